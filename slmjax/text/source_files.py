"""List the files of a source, find their kinds from their endings, and bundle small ones."""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from slmjax.errors import UserError
from slmjax.text.records import SEQIO, Source, SourceFile
from slmjax.text.remote import list_remote
from slmjax.text.walk import FoundFiles, find_files, printable

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
SUPPORTED = ".txt, .jsonl (each plain or .gz, .xz, .zst) and .parquet"
OWN = "own"  # format of the files that a source's own reader reads

FEW = 100  # a source with at most this many files has a unit of work for each of them
TOGETHER_FILES = 1000  # most files in one unit
TOGETHER_BYTES = 4_000_000  # most bytes of text in one unit of several files

# Bytes of text for each byte of a file: rough, since only shares of work depend on it.
_EXPANSION = {".gz": 3.0, ".xz": 4.2, ".zst": 3.8, ".parquet": 2.5}


class FileKind(NamedTuple):
    """The kind of a file by its ending: one of FORMATS or OWN, and one of COMPRESSIONS or ""."""

    format: str
    compression: str


def list_files(source: Source, say: Callable[[str], None] = print) -> tuple[SourceFile, ...]:
    """Return the files of a source, sorted by path; folders are searched for every supported file.

    Args:
      say: called with a line for each path or pattern about the files there that are left out.
    Raises: UserError for a path or pattern that matches nothing, an unsupported ending, or files
      that are all empty.
    """
    where = source.where
    # By path without links, since two patterns may lead to the same file.
    by_place: dict[str, SourceFile] = {}
    for pattern in source.path:
        files, left_out = _matching_files(pattern, source)
        if left_out:
            say(f"{where}: left out of '{printable(pattern)}': {left_out}")
        if not any(file.size for file in files):
            raise UserError(f"{where}: every file of '{printable(pattern)}' is empty.")
        for file in files:
            place = file.path if file.remote else os.path.realpath(file.path)
            by_place.setdefault(place, file)
    return tuple(sorted(by_place.values(), key=lambda file: file.path))


def file_kind(path: str, source: Source) -> FileKind | None:
    """Return (".jsonl", ".xz") for "a.jsonl.xz"; None where the ending is not supported.

    Every file of a source with its own reader has the format OWN.
    """
    lower = path.lower()
    compression = next((ending for ending in COMPRESSIONS if lower.endswith(ending)), "")
    if source.reader:
        return FileKind(OWN, compression)
    stem = lower.removesuffix(compression)
    for ending in FORMATS:
        # A Parquet file compresses its own pages, and is not read inside of another compression.
        if stem.endswith(ending) and not (compression and ending == ".parquet"):
            return FileKind(ending, compression)
    return None


def text_bytes(file: SourceFile) -> float:
    """Guess how many bytes of text a file holds, only to share out work and samples."""
    for ending, factor in _EXPANSION.items():
        if file.path.lower().endswith(ending):
            return file.size * factor
    return file.size * 1.0


def bundles(files: Sequence[SourceFile]) -> list[tuple[int, tuple[SourceFile, ...]]]:
    """Return a source's files as units of work, in order: (index of its first file, its files).

    In a source of more than FEW files, consecutive small ones share a unit, because every unit
    writes several files of its own.
    """
    units: list[list[SourceFile]] = []
    unit_bytes = 0.0  # text of the last unit
    for file in files:
        unit_bytes += text_bytes(file)
        has_room = units and len(units[-1]) < TOGETHER_FILES and unit_bytes <= TOGETHER_BYTES
        if has_room and len(files) > FEW:
            units[-1].append(file)
        else:
            units.append([file])
            unit_bytes = text_bytes(file)
    # accumulate gives one index more than there are units, which zip drops.
    first_indices = itertools.accumulate(map(len, units), initial=0)
    return list(zip(first_indices, map(tuple, units)))


def _matching_files(pattern: str, source: Source) -> tuple[list[SourceFile], str]:
    """Return the files that a pattern matches, and a text that lists what is left out.

    Raises: UserError where no supported file is left.
    """
    if pattern.startswith(SEQIO):
        # Imported late: seqio brings TensorFlow, which takes seconds.
        from slmjax.text.seqio_source import task_file

        return [task_file(pattern, source)], ""
    if "://" in pattern:
        return _remote_files(pattern, source)
    return _local_files(pattern, source)


def _local_files(pattern: str, source: Source) -> tuple[list[SourceFile], str]:
    where = source.where
    found_files = find_files(pattern, lambda path: file_kind(path, source) is not None, where)
    for path in found_files.files:
        # find_files takes a file that the user named, whatever its ending.
        if file_kind(path, source) is None:
            problem = f"{printable(pattern)} has an unsupported ending"
            raise UserError(f"{where}: {problem}; supported are {SUPPORTED}.")
    left_out = found_files.describe_left_out()
    if not found_files.files:
        raise UserError(_nothing_supported(where, pattern, left_out))
    return [_local_file(path, name) for path, name in found_files.files.items()], left_out


def _local_file(path: str, name: str) -> SourceFile:
    status = os.stat(path)
    name = printable(name.replace(os.sep, "/"))
    return SourceFile(os.path.abspath(path), name, status.st_size, str(status.st_mtime_ns))


def _remote_files(pattern: str, source: Source) -> tuple[list[SourceFile], str]:
    where = source.where
    listed = list_remote(pattern, source.revision, where)
    if not listed:
        raise UserError(f"{where}: '{pattern}' matches no file.")
    files: list[SourceFile] = []
    others = FoundFiles()
    for path, name, size, version in listed:
        if file_kind(path, source) is None:
            others.leave_out("unsupported ending", name)
        else:
            files.append(SourceFile(path, name, size, version))
    left_out = others.describe_left_out()
    if not files:
        raise UserError(_nothing_supported(where, pattern, left_out))
    return files, left_out


def _nothing_supported(where: str, pattern: str, left_out: str) -> str:
    hint = f" (left out: {left_out})" if left_out else ""
    problem = f"'{printable(pattern)}' holds no supported file{hint}"
    return f"{where}: {problem}; supported are {SUPPORTED}."
