"""Where text comes from: named sources of .txt, .jsonl and .parquet files and of SeqIO tasks, read one document at a time."""

import gzip
import hashlib
import io
import json
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from slmjax.data.remote import list_remote, open_remote
from slmjax.errors import UserError, nearest

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = ("", ".gz", ".xz", ".zst")
SUPPORTED = ".txt, .jsonl (each plain or .gz, .xz, .zst) and .parquet"
SEQIO = "seqio://"
DAMAGED = "damaged file"


@dataclass(frozen=True)
class Source:
    """One named part of the training text.

    `weight` is its share of training tokens (None: by its size), `max_epochs` how often it may be read at most (None: without bound), and
    `score` a field that holds a number: each epoch visits documents from low to high, or from high to low as "-field".
    """

    name: str
    path: tuple[str, ...]
    weight: float | None = None
    field: str = "text"
    revision: str = ""
    heldout: tuple[str, ...] = ()
    max_epochs: float | None = None
    score: str = ""

    @property
    def score_field(self) -> str:
        """`score` without its direction, which is no matter of preparation."""
        return self.score.removeprefix("-")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source: `name` is relative to the source, `version` changes when the content does (local: mtime; remote: content id).

    A SeqIO task is a remote file.
    """

    path: str
    name: str
    size: int
    version: str

    @property
    def remote(self) -> bool:
        return "://" in self.path


@dataclass(frozen=True)
class Document:
    """A text with its group, 1-based line (row of parquet), UTF-8 length, 64-bit hash of its content, and score where one is asked for.

    `record` is all that stood beside it in a .jsonl file.
    """

    text: str
    group: str
    line: int
    bytes: int
    key: int
    matched: bool = True
    score: float = 0.0
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Record:
    """A JSON object and its 1-based line."""

    fields: dict[str, Any]
    line: int


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used: `reason` is one of a few kinds (they are counted), `detail` says more."""

    line: int
    reason: str
    detail: str = ""


def parse_sources(value: Any) -> tuple[Source, ...]:
    """Sources from whatever a user may type.

    Args:
      value: "books:0.7=~/books,web=data/*.jsonl.xz", a bare path, {name: path or {path, weight, ...}} with the fields of
        Source, or Sources. A SeqIO mixture (seqio://MODULE/NAME) stands for its tasks.
    Raises: UserError for an unknown field, a bad or repeated name, a missing path, or a weight or max_epochs that is no positive number.
    """
    if not value:
        return ()
    if isinstance(value, (str, os.PathLike)):
        found = _from_text(str(value))
    elif hasattr(value, "items"):
        found = [_from_entry(str(name), entry) for name, entry in value.items()]
    else:
        found = [piece for item in value for piece in ([item] if isinstance(item, Source) else _from_text(str(item)))]
    found = [part for source in found for part in _parts(source)]
    names = [source.name for source in found]
    for source in found:
        if names.count(source.name) > 1:
            raise UserError(f"data.sources: two sources are named '{source.name}'; give each its own name (name=path).")
        if not re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*", source.name):
            raise UserError(f"data.sources: '{source.name}' is no name; use letters, digits, '_', '-' and '.'.")
    return tuple(found)


def list_files(source: Source) -> tuple[SourceFile, ...]:
    """The files of a source, sorted by path; folders are searched for every supported file.

    Raises: UserError for a path or pattern that matches nothing, an unsupported ending, or files that are all empty.
    """
    found: dict[str, SourceFile] = {}
    for pattern in source.path:
        list_matching = _tasks if pattern.startswith(SEQIO) else _remote_files if "://" in pattern else _local_files
        for file in list_matching(pattern, source):
            found.setdefault(file.path, file)
    if not any(file.size for file in found.values()):
        raise UserError(f"data.sources.{source.name}: every file of '{', '.join(source.path)}' is empty.")
    return tuple(found[path] for path in sorted(found))


def read_documents(file: SourceFile, source: Source, group_by: str = "") -> Iterator[Document | Fault]:
    """Documents and faults of one file, in order, never holding more than one record (.txt: the file is one document) in memory.

    Args:
      group_by: "" (a document is its own group), a field, or a regular expression on the field `id` ("re:" prefix or any metacharacter).
    Raises: UserError where the file cannot be opened or has no such column.
    """
    group, kind = grouping(group_by), None if file.path.startswith(SEQIO) else _kind(file.path)[0]
    if kind in (None, ".jsonl"):
        yield from _of_records(read_records(file, source), source, group)
    else:
        reader = {".txt": _read_txt, ".parquet": _read_parquet}[kind]
        yield from _read(file, source, lambda stream: reader(stream, file, source, group))


def read_records(file: SourceFile, source: Source) -> Iterator[Record | Fault]:
    """Every field of each line of a .jsonl file, and the lines that are no JSON object; of a SeqIO task, its examples.

    Raises: UserError where the file cannot be opened.
    """
    if file.path.startswith(SEQIO):
        from slmjax.data.seqio_source import read_examples

        yield from read_examples(file.path, source)
    else:
        yield from _read(file, source, _records)


def _read(file: SourceFile, source: Source, reader: Callable[[Any], Iterator[Any]]) -> Iterator[Any]:
    line = 0
    try:
        with _open(file, _kind(file.path)[1]) as stream:
            for item in reader(stream):
                line = item.line
                yield item
    except _broken_errors() as error:
        yield Fault(line + 1, DAMAGED, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'it ends too early'}")
    except OSError as error:
        raise UserError(f"data.sources.{source.name}: cannot read {file.path}: {error.strerror or error}.") from error


def content_key(data: bytes) -> int:
    """The 64-bit hash of a text's bytes that a Document has as its key."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def grouping(group_by: str) -> tuple[str, Callable[[str], str | None] | None]:
    """(field that holds the group, function from its value to the group or None where nothing matches); ("", None) without grouping.

    Raises: UserError for a regular expression that does not compile.
    """
    if not group_by:
        return "", None
    if not group_by.startswith("re:") and not re.search(r"[.^$*+?{}\[\]|()\\]", group_by):
        return group_by, lambda value: value
    try:
        pattern = re.compile(group_by.removeprefix("re:"))
    except re.error as error:
        raise UserError(f"data.group_by: '{group_by}' is no regular expression: {error}.") from error

    def group(value: str) -> str | None:
        found = pattern.search(value)
        return None if found is None else (found.group(1) or "" if pattern.groups else found.group(0))

    return "id", group


def _from_text(text: str) -> list[Source]:
    if Path(text).expanduser().exists():
        return _bare(text)
    out = []
    for piece in filter(None, (piece.strip() for piece in text.split(","))):
        named = re.match(r"([^/=:*?\[\]]+)(?::([^/=:]*))?=(.+)", piece)
        if named:
            name, weight, path = named.groups()
            out.append(_from_entry(name.strip(), {"path": path, **({} if weight is None else {"weight": weight})}))
        else:
            out.extend(_bare(piece))
    return out


def _bare(path: str) -> list[Source]:
    """A path without a name: named after its last piece; a prepared folder stands for each of its sources, a SeqIO task names itself."""
    if path.startswith(SEQIO):
        return _parts(Source("", (path,)))
    manifest = Path(path).expanduser() / "manifest.json"
    if "://" not in path and manifest.is_file():
        names = json.loads(manifest.read_text())["sources"]
        return [Source(name, (os.path.join(path, name),)) for name in names]
    pieces = [piece for piece in re.split(r"[/\\]+", os.path.abspath(path) if path.strip("./") == "" else path) if piece]
    names = (re.sub(r"[^A-Za-z0-9_-]+", "-", re.sub(r"(\.(txt|jsonl|parquet|gz|xz|zst))+$", "", p)).strip("-") for p in reversed(pieces))
    return [Source(next((name for name in names if name), "text"), (path,))]


def _parts(source: Source) -> list[Source]:
    """The source, or those of the SeqIO mixture that it names."""
    if not any(path.startswith(SEQIO) for path in source.path):
        return [source]
    from slmjax.data.seqio_source import split_mixture

    return split_mixture(source)


def _from_entry(name: str, entry: Any) -> Source:
    if isinstance(entry, Source):
        return replace(entry, name=name)
    if not hasattr(entry, "items"):
        entry = {"path": entry}
    entry = dict(entry.items())
    known = [field.name for field in fields(Source) if field.name != "name"]
    for field in entry:
        if field not in known:
            raise UserError(f"data.sources.{name}: there is no field '{field}' (fields: {', '.join(known)}).{nearest(str(field), known)}")
    weight, max_epochs = (_positive(name, entry, field) for field in ("weight", "max_epochs"))
    path = _paths(entry.get("path"))
    if not path:
        raise UserError(f"data.sources.{name}: path is missing; expected a file, folder or pattern of {SUPPORTED}.")
    texts = entry.get("field") or "text", entry.get("revision") or ""
    return Source(name, path, weight, *texts, _paths(entry.get("heldout")), max_epochs, str(entry.get("score") or ""))


def _positive(name: str, entry: dict, field: str) -> float | None:
    value = entry.get(field)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number is not None and not 0 < number < float("inf"):
        raise UserError(f"data.sources.{name}.{field} is {value!r}; expected a positive number.")
    return number


def _paths(value: Any) -> tuple[str, ...]:
    return tuple(str(path) for path in ([value] if isinstance(value, (str, os.PathLike)) else value or ()) if str(path))


def _kind(path: str) -> tuple[str, str] | None:
    """(".jsonl", ".xz") of "a.jsonl.xz"; None where the ending is not supported."""
    lower = path.lower()
    for kind in FORMATS:
        for compression in COMPRESSIONS if kind != ".parquet" else ("",):
            if lower.endswith(kind + compression):
                return kind, compression
    return None


def _local_files(pattern: str, source: Source) -> list[SourceFile]:
    import glob

    place = os.path.expanduser(pattern)
    if os.path.isfile(place):
        if _kind(place) is None:
            raise UserError(f"data.sources.{source.name}: {pattern} has an unsupported ending; supported are {SUPPORTED}.")
        return [_local_file(place, os.path.basename(place))]
    found, roots = [], [place] if os.path.isdir(place) else sorted(glob.glob(place, recursive=True))
    if not roots:
        folder = os.path.dirname(place) or "."
        siblings = os.listdir(folder) if os.path.isdir(folder) else []
        raise UserError(f"data.sources.{source.name}: '{pattern}' matches no file.{nearest(os.path.basename(place), siblings)}")
    base = place if os.path.isdir(place) else os.path.dirname(re.split(r"[*?\[]", place)[0])
    for root in roots:
        if os.path.isfile(root):
            found.append(root)
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found.extend(os.path.join(folder, name) for name in names if not name.startswith("."))
    supported = sorted({path for path in found if _kind(path) is not None})
    if not supported:
        raise UserError(f"data.sources.{source.name}: '{pattern}' holds no supported file; supported are {SUPPORTED}.")
    return [_local_file(path, os.path.relpath(path, base or ".")) for path in supported]


def _local_file(path: str, name: str) -> SourceFile:
    status = os.stat(path)
    return SourceFile(os.path.abspath(path), name.replace(os.sep, "/"), status.st_size, str(status.st_mtime_ns))


def _tasks(path: str, source: Source) -> list[SourceFile]:
    from slmjax.data.seqio_source import task_file

    return [task_file(path, source)]


def _remote_files(pattern: str, source: Source) -> list[SourceFile]:
    found = list_remote(pattern, source.revision, f"data.sources.{source.name}")
    if not found:
        raise UserError(f"data.sources.{source.name}: '{pattern}' matches no file.")
    files = [SourceFile(*entry) for entry in found if _kind(entry[0]) is not None]
    if not files:
        raise UserError(f"data.sources.{source.name}: '{pattern}' holds no supported file; supported are {SUPPORTED}.")
    return files


def _open(file: SourceFile, compression: str) -> Any:
    raw = open_remote(file.path) if file.remote else open(file.path, "rb")  # noqa: SIM115 (the caller closes it)
    if compression == ".gz":
        return gzip.open(raw, "rb")
    if compression == ".xz":
        return lzma.open(raw, "rb")
    return io.BufferedReader(_ZstdFile(raw), 1 << 20) if compression == ".zst" else raw


class _ZstdFile(io.RawIOBase):
    """Reads several frames and fails on a cut one; zstandard's own stream reader takes a cut file for a short one."""

    def __init__(self, raw: Any):
        import zstandard

        self._raw, self._new, self._left = raw, zstandard.ZstdDecompressor().decompressobj, b""
        self._frame, self._rest = None, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            data = self._rest or self._raw.read(1 << 18)
            self._rest = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the last frame is cut")
                return 0
            self._frame = self._frame or self._new()
            self._left = self._frame.decompress(data)
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def _broken_errors() -> tuple[type[BaseException], ...]:
    import zstandard

    errors: tuple[type[BaseException], ...] = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError)
    try:
        from pyarrow import ArrowException
    except ImportError:
        return errors
    return (*errors, ArrowException)


def _read_txt(stream: Any, file: SourceFile, source: Source, group: tuple) -> Iterator[Document | Fault]:
    """The whole file is one document; its id is its name, and a field that a text file cannot have makes it a group of its own."""
    yield _document(stream.read(), {"id": file.name, **({group[0]: file.name} if group[0] else {})}, 1, group, source)


def _of_records(items: Iterator[Record | Fault], source: Source, group: tuple) -> Iterator[Document | Fault]:
    for item in items:
        if isinstance(item, Fault):
            yield item
        elif not isinstance(item.fields.get(source.field), str):
            yield Fault(item.line, "no text", f"'{source.field}' is {_found(item.fields, source.field)}")
        else:
            yield _document(item.fields[source.field], item.fields, item.line, group, source)


def _records(stream: Any) -> Iterator[Record | Fault]:
    for number, raw in enumerate(stream, 1):  # a binary stream splits at "\n" only; str.splitlines would also split inside texts
        try:
            record = json.loads((raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).decode() or "null")
        except UnicodeDecodeError as error:
            yield Fault(number, "invalid UTF-8", f"byte {error.start + 1} of the line")
        except (ValueError, RecursionError) as error:
            if raw.strip():
                yield Fault(number, "malformed JSON", str(error))
        else:
            fault = Fault(number, "malformed JSON", f"expected an object, found {type(record).__name__}")
            yield Record(record, number) if isinstance(record, dict) else fault


def _read_parquet(stream: Any, file: SourceFile, source: Source, group: tuple) -> Iterator[Document | Fault]:
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.ParquetFile(stream)
    others = [field for field in (group[0], source.score_field) if field]
    for field in (source.field, *others):
        if field not in table.schema_arrow.names:
            names = table.schema_arrow.names
            raise UserError(f"{file.path} has no column '{field}' (columns: {', '.join(names)}).{nearest(field, names)}")
    number = 0
    for batch in table.iter_batches(batch_size=256, columns=sorted({source.field, *others})):
        column = batch.column(source.field)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise UserError(f"{file.path}: column '{source.field}' holds {column.type}; expected strings.")
        values = [batch.column(field).to_pylist() for field in others]
        for text, *of_text in zip(column.cast(pa.large_binary()).to_pylist(), *values, strict=True):
            number += 1
            if text is None:
                yield Fault(number, "no text", f"'{source.field}' is null")
            else:
                yield _document(text, dict(zip(others, of_text)), number, group, source)


def _document(text: str | bytes, record: Mapping, line: int, group: tuple, source: Source) -> Document | Fault:
    """A checked document of a record; JSON may hold half a surrogate pair, which no UTF-8 can write."""
    try:
        text, data = (text.decode("utf-8-sig"), text) if isinstance(text, bytes) else (text, text.encode())
        data = data.removeprefix(b"\xef\xbb\xbf")
    except UnicodeDecodeError as error:
        inside = error.object.count(b"\n", 0, error.start) + 1
        return Fault(line, "invalid UTF-8", f"byte {error.start + 1}, line {inside} of the text")
    except UnicodeEncodeError as error:
        return Fault(line, "invalid UTF-8", f"half a surrogate pair at character {error.start + 1}")
    if not text or text.isspace():
        return Fault(line, "empty document")
    score = record.get(source.score_field) if source.score_field else 0.0
    if type(score) not in (int, float) or not abs(score) < sys.float_info.max:
        return Fault(line, "no score", f"'{source.score_field}' is {_found(record, source.score_field, 'a finite number')}")
    key = content_key(data)
    field, function = group
    if function is None:
        return Document(text, f"{key:016x}", line, len(data), key, True, float(score), record)
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return Fault(line, "no group", f"data.group_by needs '{field}', which is {_found(record, field)}")
    name = function(str(value))
    return Document(text, str(value) if name is None else name, line, len(data), key, name is not None, float(score), record)


def _found(record: Mapping, field: str, wanted: str = "a string") -> str:
    if field in record:
        return f"{type(record[field]).__name__}, not {wanted}"
    names: Sequence[str] = [str(name) for name in record]
    return f"missing (fields: {', '.join(names[:12])}).{nearest(field, names)}"
