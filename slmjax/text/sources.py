"""Where text comes from: named sources of .txt, .jsonl and .parquet files, of SeqIO tasks and of readers of your own."""

import hashlib
import inspect
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from slmjax.errors import UserError, imported, nearest, users_error
from slmjax.text.records import (
    DAMAGED,
    TOO_LONG,
    Document,
    Fault,
    Record,
    Source,
    SourceFile,
    content_key,
)
from slmjax.text.remote import list_remote
from slmjax.text.streams import (
    LONGEST,
    DamagedStream,
    broken_errors,
    check_is_text,
    lines,
    open_stream,
    text_pieces,
)
from slmjax.text.walk import FoundFiles, find_files, printable

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = ("", ".gz", ".xz", ".zst")
SUPPORTED = ".txt, .jsonl (each plain or .gz, .xz, .zst) and .parquet"
SEQIO = "seqio://"
OWN = "own"  # kind of the files that a source's own reader reads
RESERVED = (
    "manifest.json",
    "tokenizer.json",
)  # what lies beside the folders of sources in prepared text
LONGEST_NAME = 150  # characters of a source's name, of which files are made
FEW = 100  # files of a source up to which each is worked on by itself
TOGETHER_FILES, TOGETHER_BYTES = (
    1000,
    4_000_000,
)  # most files that are worked on together, and their text
_EXPANSION = {".gz": 3.0, ".xz": 4.2, ".zst": 3.8, ".parquet": 2.5}


def parse_sources(value: Any) -> tuple[Source, ...]:
    """Sources from whatever a user may type.

    Args:
      value: "books:0.7=~/books,web=data/*.jsonl.xz", a bare path, {name: path or {path, weight, ...}} with the fields of
        Source, or Sources. A SeqIO mixture (seqio://MODULE/NAME) stands for its tasks.
    Raises: UserError for an unknown field, a bad or repeated name, a missing path, or a weight or max_epochs that is no positive number.
    """
    if isinstance(value, str) and value and not value.strip():
        raise UserError(
            "data.sources is blank; expected name=path, where path is a file, folder or pattern."
        )
    if not value:
        return ()
    if isinstance(value, (str, os.PathLike)):
        found = _from_text(str(value))
    elif hasattr(value, "items"):
        found = [_from_entry(str(name), entry) for name, entry in value.items()]
    elif isinstance(value, (list, tuple)):
        found = [
            piece
            for item in value
            for piece in ([item] if isinstance(item, Source) else _from_text(str(item)))
        ]
    else:
        raise UserError(
            f"data.sources is {value!r}; expected name=path, where path is a file, folder or pattern."
        )
    found = [part for source in found for part in _parts(source)]
    names = [source.name for source in found]
    for source in found:
        if names.count(source.name) > 1:
            raise UserError(
                f"data.sources: two sources are named '{source.name}'; give each its own name (name=path)."
            )
        if not re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*", source.name):
            raise UserError(
                f"data.sources: '{source.name}' is no name; use letters, digits, '_', '-' and '.'."
            )
        if len(source.name) > LONGEST_NAME:
            raise UserError(
                f"data.sources: '{source.name[:40]}...' has {len(source.name)} characters; give it a shorter name (name=path)."
            )
        if source.name in RESERVED or source.name.startswith(".tmp-"):
            raise UserError(
                f"data.sources: '{source.name}' is a file of prepared text; give the source another name (name=path)."
            )
    return tuple(found)


def list_files(source: Source, say: Callable[[str], None] = print) -> tuple[SourceFile, ...]:
    """The files of a source, sorted by path; folders are searched for every supported file.

    `say` is given a line about what lies there and is left out.
    Raises: UserError for a path or pattern that matches nothing, an unsupported ending, or files that are all empty.
    """
    found: dict[str, SourceFile] = {}
    where = source.where
    for pattern in source.path:
        list_matching = (
            _tasks
            if pattern.startswith(SEQIO)
            else _remote_files
            if "://" in pattern
            else _local_files
        )
        files, left_out = list_matching(pattern, source)
        if left_out:
            say(f"{where}: left out of '{printable(pattern)}': {left_out}")
        if not any(file.size for file in files):
            raise UserError(f"{where}: every file of '{printable(pattern)}' is empty.")
        for file in files:
            found.setdefault(file.path if file.remote else os.path.realpath(file.path), file)
    return tuple(sorted(found.values(), key=lambda file: file.path))


def text_bytes(file: SourceFile) -> float:
    """A guess of a file's text from its size, for shares of work and sample only."""
    return file.size * next(
        (factor for ending, factor in _EXPANSION.items() if file.path.lower().endswith(ending)), 1.0
    )


def bundles(files: Sequence[SourceFile]) -> list[tuple[int, tuple[SourceFile, ...]]]:
    """A source's files as units of work, in order: (number of the first file, files).

    Where there are many, small ones that follow each other are together: every unit leaves several files.
    """
    out: list[list[SourceFile]] = []
    size = 0.0
    for file in files:
        size += text_bytes(file)
        if out and len(files) > FEW and len(out[-1]) < TOGETHER_FILES and size <= TOGETHER_BYTES:
            out[-1].append(file)
        else:
            out.append([file])
            size = text_bytes(file)
    return list(zip(itertools.accumulate(map(len, out), initial=0), map(tuple, out)))


def read_documents(
    file: SourceFile, source: Source, group_by: str = ""
) -> Iterator[Document | Fault]:
    """Documents and faults of one file, in order, never holding more than one record (.txt: the file is one document) in memory.

    Args:
      group_by: "" (a document is its own group), a field, or a regular expression on the field `id` ("re:" prefix or any metacharacter).
    A .txt file of more than LONGEST bytes is several documents; a longer record is a fault.
    Raises: UserError where the file cannot be opened or has no such column.
    """
    group, kind = (
        grouping(group_by),
        None if file.path.startswith(SEQIO) else _kind(file.path, source)[0],
    )
    if kind in (None, ".jsonl", OWN):
        yield from _of_records(read_records(file, source), source, group)
    else:
        reader = {".txt": _read_txt, ".parquet": _read_parquet}[kind]
        yield from _read(file, source, lambda stream: reader(stream, file, source, group))


def read_records(file: SourceFile, source: Source) -> Iterator[Record | Fault]:
    """Every field of each line of a .jsonl file, and the lines that are no JSON object; of a SeqIO task, its examples.

    Raises: UserError where the file cannot be opened or is of another kind.
    """
    if file.path.startswith(SEQIO):
        from slmjax.text.seqio_source import read_examples

        yield from read_examples(file.path, source)
    elif source.reader:
        yield from _read(file, source, _own_reader(source))
    elif _kind(file.path, source)[0] != ".jsonl":
        raise UserError(
            f"{source.where}: {printable(file.path)} has no records with fields; expected .jsonl."
        )
    else:
        yield from _read(file, source, _records)


def _read(
    file: SourceFile, source: Source, reader: Callable[[Any], Iterator[Any]]
) -> Iterator[Any]:
    line, (kind, compression) = 0, _kind(file.path, source)
    if compression and not file.size:  # not even a header
        yield _damage(1, EOFError("it is empty"))
        return
    try:
        with open_stream(file.path, compression) as stream:
            if kind in (".txt", ".jsonl"):
                check_is_text(stream)
            for item in reader(stream):
                line = item.line
                yield item
    except broken_errors() as error:
        yield _damage(line + 1, error)
    except OSError as error:
        if error.errno is not None or file.remote:
            raise unreadable(file, source, error) from error
        yield _damage(
            line + 1, error
        )  # pyarrow's word for a damaged file; the system's errors have numbers


def _own_reader(source: Source) -> Callable[[Any], Iterator[Record | Fault]]:
    """The user's function that reads a file of the source; what it raises becomes one sentence.

    Raises: UserError where the path leads nowhere or the module fails.
    """
    where, name = f"{source.where}.reader", source.reader
    function = imported(name, where)

    def reader(stream: Any) -> Iterator[Record | Fault]:
        try:
            for item in function(stream):
                if not isinstance(item, Record | Fault):
                    raise TypeError(
                        f"it gave {item!r}; expected a Record or a Fault of slmjax.text.sources"
                    )
                yield item
        except broken_errors():  # the file's, not the reader's
            raise
        except Exception as error:
            raise UserError(f"{where}: '{name}' failed: {users_error(error)}.") from error

    return reader


def reader_identity(source: Source) -> list[str]:
    """Return the name of the source's own reader, and the hash of the file that it is written in."""
    file = inspect.getsourcefile(inspect.unwrap(imported(source.reader, f"{source.where}.reader")))
    return [source.reader, hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""]


def _damage(line: int, error: Exception) -> Fault:
    reason = str(error).partition("\n")[0] or "it ends too early"
    return Fault(
        line,
        DAMAGED,
        reason if isinstance(error, DamagedStream) else f"{type(error).__name__}: {reason}",
    )


def unreadable(file: SourceFile, source: Source, error: OSError) -> UserError:
    """What to tell the user of a file that the system does not let us read."""
    reason = error.strerror or error
    return UserError(f"{source.where}: cannot read {printable(file.path)}: {reason}.")


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
        raise UserError(
            f"data.group_by: '{group_by}' is no regular expression: {error}."
        ) from error

    def group(value: str) -> str | None:
        found = pattern.search(value)
        return (
            None if found is None else (found.group(1) or "" if pattern.groups else found.group(0))
        )

    return "id", group


def _from_text(text: str) -> list[Source]:
    if text and _exists(text):
        return _bare(text)
    out = []
    for piece in (piece.strip() for piece in text.split(",")):
        if not piece:
            raise UserError(
                f"data.sources: '{printable(text)}' has an empty part; expected name=path or a path."
            )
        named = re.match(r"([^/=:*?\[\]]+)(?::([^/=:]*))?=(.*)", piece)
        if named:
            name, weight, path = named.groups()
            out.append(
                _from_entry(
                    name.strip(), {"path": path, **({} if weight is None else {"weight": weight})}
                )
            )
        else:
            out.extend(_bare(piece))
    return out


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long for a path, no such user, not readable
        return False


def _bare(path: str) -> list[Source]:
    """A path without a name: named after its last piece; a prepared folder stands for each of its sources, a SeqIO task names itself."""
    if path.startswith(SEQIO):
        return _parts(Source("", (path,)))
    manifest = Path(os.path.expanduser(path)) / "manifest.json"
    if "://" not in path and manifest.is_file():
        names = _prepared_names(manifest)
        if names:
            return [Source(name, (os.path.join(path, name),)) for name in names]
    pieces = [
        piece
        for piece in re.split(r"[/\\]+", os.path.abspath(path) if path.strip("./") == "" else path)
        if piece
    ]
    names = (
        re.sub(
            r"[^A-Za-z0-9_-]+", "-", re.sub(r"(\.(txt|jsonl|parquet|gz|xz|zst))+$", "", p)
        ).strip("-")
        for p in reversed(pieces)
    )
    return [Source(next((name for name in names if name), "text"), (path,))]


def _prepared_names(manifest: Path) -> list[str]:
    """Names of the sources of a prepared folder; none where the manifest is some other file."""
    try:
        content = json.loads(manifest.read_text())
    except (OSError, ValueError, RecursionError):
        return []
    sources = content.get("sources") if isinstance(content, dict) else None
    return list(sources) if isinstance(sources, dict) else []


def _parts(source: Source) -> list[Source]:
    """The source, or those of the SeqIO mixture that it names."""
    if not any(path.startswith(SEQIO) for path in source.path):
        return [source]
    from slmjax.text.seqio_source import split_mixture

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
            raise UserError(
                f"data.sources.{name}: there is no field '{field}' (fields: {', '.join(known)}).{nearest(str(field), known)}"
            )
    weight, max_epochs = (_positive(name, entry, field) for field in ("weight", "max_epochs"))
    path = _paths(entry.get("path"), f"data.sources.{name}.path")
    if not path:
        raise UserError(
            f"data.sources.{name}: path is missing; expected a file, folder or pattern of {SUPPORTED}."
        )
    if entry.get("field") == "":
        raise UserError(
            f"data.sources.{name}.field is empty; expected the name of a field or column, such as text."
        )
    texts = str(entry.get("field") or "text"), str(entry.get("revision") or "")
    heldout = _paths(entry.get("heldout"), f"data.sources.{name}.heldout")
    if entry.get("score") == "-":
        raise UserError(
            f"data.sources.{name}.score is '-'; expected the name of a field that holds a number, such as -quality."
        )
    score, reader = (str(entry.get(field) or "") for field in ("score", "reader"))
    return Source(name, path, weight, *texts, heldout, max_epochs, score, reader)


def _positive(name: str, entry: dict, field: str) -> float | None:
    value = entry.get(field)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number is not None and not 0 < number < float("inf"):
        raise UserError(f"data.sources.{name}.{field} is {value!r}; expected a positive number.")
    return number


def _paths(value: Any, where: str) -> tuple[str, ...]:
    """Paths as a user may give them; a folder whose name is a number is a folder."""
    if value is None or value == "":
        return ()
    values = value if isinstance(value, (list, tuple)) else [value]
    for path in values:
        whole_number = isinstance(path, int) and not isinstance(path, bool)
        if not (whole_number or isinstance(path, (str, os.PathLike))) or not str(path).strip():
            raise UserError(f"{where} is {value!r}; expected a path or a list of paths.")
    return tuple(str(path) for path in values)


def _kind(path: str, source: Source) -> tuple[str, str] | None:
    """(".jsonl", ".xz") of "a.jsonl.xz"; None where the ending is not supported. All files of an own reader are of the kind OWN."""
    lower = path.lower()
    if source.reader:
        return OWN, next((ending for ending in COMPRESSIONS[1:] if lower.endswith(ending)), "")
    for kind in FORMATS:
        for compression in COMPRESSIONS if kind != ".parquet" else ("",):
            if lower.endswith(kind + compression):
                return kind, compression
    return None


def _local_files(pattern: str, source: Source) -> tuple[list[SourceFile], str]:
    where = source.where
    found = find_files(pattern, lambda path: _kind(path, source) is not None, where)
    for path in found.files:
        if _kind(path, source) is None:  # only a file that the user named gets here
            name = printable(pattern)
            raise UserError(
                f"{where}: {name} has an unsupported ending; supported are {SUPPORTED}."
            )
    if not found.files:
        raise UserError(_nothing_supported(where, pattern, found.told()))
    return [_local_file(path, name) for path, name in found.files.items()], found.told()


def _nothing_supported(where: str, pattern: str, left_out: str) -> str:
    seen = f" (left out: {left_out})" if left_out else ""
    return (
        f"{where}: '{printable(pattern)}' holds no supported file{seen}; supported are {SUPPORTED}."
    )


def _local_file(path: str, name: str) -> SourceFile:
    status = os.stat(path)
    name = printable(name.replace(os.sep, "/"))
    return SourceFile(os.path.abspath(path), name, status.st_size, str(status.st_mtime_ns))


def _tasks(path: str, source: Source) -> tuple[list[SourceFile], str]:
    from slmjax.text.seqio_source import task_file

    return [task_file(path, source)], ""


def _remote_files(pattern: str, source: Source) -> tuple[list[SourceFile], str]:
    where = source.where
    listed = list_remote(pattern, source.revision, where)
    if not listed:
        raise UserError(f"{where}: '{pattern}' matches no file.")
    files, found = [], FoundFiles()
    for entry in listed:
        if _kind(entry[0], source) is None:
            found.leave_out("unsupported ending", entry[1])
        else:
            files.append(SourceFile(*entry))
    if not files:
        raise UserError(_nothing_supported(where, pattern, found.told()))
    return files, found.told()


def _read_txt(
    stream: Any, file: SourceFile, source: Source, group: tuple
) -> Iterator[Document | Fault]:
    """The file is one document, or several where it is very long; its id is its name, and a field that it cannot have groups it alone."""
    record = {"id": file.name, **({group[0]: file.name} if group[0] else {})}
    for line, data in text_pieces(stream):
        yield _document(data, record, line, group, source)


def _of_records(
    items: Iterator[Record | Fault], source: Source, group: tuple
) -> Iterator[Document | Fault]:
    for item in items:
        if isinstance(item, Fault):
            yield item
        elif not isinstance(item.fields.get(source.field), str):
            yield Fault(item.line, "no text", _why_no_text(item.fields, source.field))
        else:
            yield _document(item.fields[source.field], item.fields, item.line, group, source)


def _records(stream: Any) -> Iterator[Record | Fault]:
    for number, raw in enumerate(
        lines(stream), 1
    ):  # at "\n" only; str.splitlines would also split inside texts
        if raw is None:
            yield Fault(number, TOO_LONG, f"more than {LONGEST >> 20} MiB")
            continue
        try:
            record = json.loads(
                (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).decode() or "null"
            )
        except UnicodeDecodeError as error:
            yield Fault(number, "invalid UTF-8", f"byte {error.start + 1} of the line")
        except (ValueError, RecursionError) as error:
            if raw.strip():
                yield Fault(number, "malformed JSON", str(error))
        else:
            fault = Fault(
                number, "malformed JSON", f"expected an object, found {type(record).__name__}"
            )
            yield Record(record, number) if isinstance(record, dict) else fault


def _read_parquet(
    stream: Any, file: SourceFile, source: Source, group: tuple
) -> Iterator[Document | Fault]:
    from pyarrow import parquet

    table = parquet.ParquetFile(stream, page_checksum_verification=True)  # of pages that have one
    others = [field for field in (group[0], source.score_field) if field]
    for field in (source.field, *others):
        if field not in table.schema_arrow.names:
            names = table.schema_arrow.names
            near = nearest(field, names)
            hint = f".{near}" if near else f"{_most_text(_text_sizes(table))}."
            columns = ", ".join(names)
            raise UserError(f"{file.path} has no column '{field}' (columns: {columns}){hint}")
        if table.schema_arrow.names.count(field) > 1:
            raise UserError(f"{file.path} has several columns named '{field}'; rename all but one.")
    number = 0
    for row_groups, rows, size in _row_groups(table.metadata, source.field):
        if size > LONGEST * rows:  # so a small file cannot fill the memory
            number += rows
            for row in range(number - rows + 1, number + 1):
                yield Fault(
                    row, TOO_LONG, f"its row group has {size >> 20:,} MiB of text in {rows} rows"
                )
            continue
        at_once = max(1, min(256, LONGEST * rows // max(1, size)))
        columns = sorted({source.field, *others})
        for batch in table.iter_batches(batch_size=at_once, row_groups=row_groups, columns=columns):
            column = batch.column(source.field)
            if not _is_text(column.type):
                raise UserError(
                    f"{file.path}: column '{source.field}' holds {column.type}; expected strings."
                )
            values = [_plain(batch.column(field)) for field in others]
            for text, *of_text in zip(_as_bytes(column), *values, strict=True):
                number += 1
                if text is None:
                    yield Fault(number, "no text", f"'{source.field}' is null")
                elif isinstance(text, int):
                    yield Fault(number, TOO_LONG, f"{text >> 20:,} MiB, more than {LONGEST >> 20}")
                else:
                    yield _document(text, dict(zip(others, of_text)), number, group, source)


def _text_sizes(table: Any) -> dict[str, int]:
    """Uncompressed bytes of each column of text in a parquet file."""
    sizes = {field.name: 0 for field in table.schema_arrow if _is_text(field.type)}
    for index in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(index)
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema in sizes:
                sizes[column.path_in_schema] += column.total_uncompressed_size
    return sizes


def _row_groups(metadata: Any, field: str) -> Iterator[tuple[list[int], int, int]]:
    """(row groups, their rows, uncompressed bytes of a column); small row groups are read together."""
    together, all_rows, all_bytes = [], 0, 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        columns = (group.column(i) for i in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == field)
        if together and (all_rows + group.num_rows > 4096 or all_bytes + size > LONGEST):
            yield together, all_rows, all_bytes
            together, all_rows, all_bytes = [], 0, 0
        together, all_rows, all_bytes = (
            [*together, index],
            all_rows + group.num_rows,
            all_bytes + size,
        )
    if together:
        yield together, all_rows, all_bytes


def _is_text(kind: Any) -> bool:
    """Whether an Arrow type holds strings, or bytes, which writers without annotations make of strings."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    names = (
        "string",
        "large_string",
        "string_view",
        "binary",
        "large_binary",
        "binary_view",
        "fixed_size_binary",
    )
    return any(getattr(pa.types, f"is_{name}", lambda kind: False)(kind) for name in names)


def _as_bytes(column: Any) -> list[bytes | int | None]:
    """The UTF-8 of a column of text; not decoded by Arrow, which would fail for a whole batch.

    Of a text of more than LONGEST bytes only the length, so that it is not copied once more.
    """
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    view = pa.types.is_string_view(column.type) if hasattr(pa.types, "is_string_view") else False
    if view:
        column = column.cast(pa.binary_view())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    if column.nbytes <= LONGEST:
        return column.to_pylist()
    sizes = compute.binary_length(column.cast(pa.large_binary())).to_pylist()
    return [size if (size or 0) > LONGEST else column[i].as_py() for i, size in enumerate(sizes)]


def _plain(column: Any) -> list:
    """The values of a column; bytes are strings of a writer without annotations."""
    values = column.to_pylist()
    return [
        value.decode(errors="replace") if isinstance(value, bytes) else value for value in values
    ]


def _document(
    text: str | bytes, record: Mapping, line: int, group: tuple, source: Source
) -> Document | Fault:
    """A checked document of a record; JSON may hold half a surrogate pair, which no UTF-8 can write."""
    if len(text) > LONGEST:
        return Fault(line, TOO_LONG, f"more than {LONGEST >> 20} MiB")
    try:
        if isinstance(text, bytes):
            data = text.removeprefix(b"\xef\xbb\xbf")
            text = data.decode()
        else:
            text = text.removeprefix("\ufeff")
            data = text.encode()
    except UnicodeDecodeError as error:
        inside = error.object.count(b"\n", 0, error.start) + 1
        return Fault(line, "invalid UTF-8", f"byte {error.start + 1}, line {inside} of the text")
    except UnicodeEncodeError as error:
        return Fault(line, "invalid UTF-8", f"half a surrogate pair at character {error.start + 1}")
    if len(data) > LONGEST:
        return Fault(line, TOO_LONG, f"more than {LONGEST >> 20} MiB")
    if not text or text.isspace():
        return Fault(line, "empty document")
    score = record.get(source.score_field) if source.score_field else 0.0
    if type(score) not in (int, float) or not abs(score) < sys.float_info.max:
        return Fault(
            line,
            "no score",
            f"'{source.score_field}' is {_found(record, source.score_field, 'a finite number')}",
        )
    key = content_key(data)
    field, function = group
    if function is None:
        return Document(text, f"{key:016x}", line, len(data), key, True, float(score), record)
    value = record.get(field)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return Fault(
            line, "no group", f"data.group_by needs '{field}', which is {_found(record, field)}"
        )
    name = function(str(value))
    return Document(
        text,
        str(value) if name is None else name,
        line,
        len(data),
        key,
        name is not None,
        float(score),
        record,
    )


def _why_no_text(record: Mapping, field: str) -> str:
    """What a record has in place of a text in `field`, and where it may be instead."""
    said = f"'{field}' is {_found(record, field)}"
    if said.endswith("?"):  # there is a field with nearly this name
        return said
    texts = {str(name): len(value) for name, value in record.items() if isinstance(value, str)}
    if texts:
        return said + _most_text(texts)
    return f"{said}. No field holds a string; lists and objects are not searched"


def _most_text(sizes: Mapping[str, int]) -> str:
    """A sentence that names the field with the most text; "" where none has any."""
    most = max(sizes, key=sizes.__getitem__, default="")
    return f". Most text is in '{most}'" if sizes.get(most) else ""


def _found(record: Mapping, field: str, wanted: str = "a string") -> str:
    if field in record:
        value = record[field]
        inside = (
            f" with the fields {', '.join(map(str, [*value][:12]))}"
            if isinstance(value, dict)
            else ""
        )
        return f"{type(value).__name__}{inside}, not {wanted}"
    names: Sequence[str] = [str(name) for name in record]
    near = nearest(field, names)
    return f"missing (fields: {', '.join(names[:12])}){'.' if near else ''}{near}"
