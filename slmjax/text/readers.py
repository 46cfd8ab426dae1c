"""Read the documents and records of one file, whatever its kind."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from slmjax.errors import UserError
from slmjax.text.chat_documents import chat_document
from slmjax.text.document_checks import Grouping, checked_document, describe_missing_text, grouping
from slmjax.text.own_reader import own_reader
from slmjax.text.parquet_reader import read_parquet
from slmjax.text.plain_readers import read_jsonl, read_txt
from slmjax.text.records import DAMAGED, SEQIO, TEXT, Document, Fault, Record, Source, SourceFile
from slmjax.text.source_files import file_kind
from slmjax.text.streams import DamagedStream, broken_errors, check_is_text, open_stream
from slmjax.text.walk import printable


def read_documents(
    file: SourceFile, source: Source, group_by: str = ""
) -> Iterator[Document | Fault]:
    """Yield the documents and faults of one file, in order, with one record at a time in memory.

    A .txt file is one document, or several where it has more than streams.LONGEST bytes; a longer
    record of another kind is a fault.

    Args:
      group_by: "" (a document is its own group), a field, or a regular expression on the field `id`
        ("re:" prefix or any metacharacter).
    Raises: UserError where the file cannot be opened, or has no column of a name that is needed.
    """
    document_groups = grouping(group_by)
    file_format = ""  # of a SeqIO task, which has no ending
    if not file.path.startswith(SEQIO):
        file_format = file_kind(file.path, source).format
    if source.kind != TEXT:
        # Conversations need fields: `read_records` refuses files that have none.
        yield from _documents_of(read_records(file, source), source, document_groups)
    elif file_format == ".txt":
        reader = partial(read_txt, file=file, source=source, grouping=document_groups)
        yield from _read(file, source, reader)
    elif file_format == ".parquet":
        reader = partial(read_parquet, file=file, source=source, grouping=document_groups)
        yield from _read(file, source, reader)
    else:
        yield from _documents_of(read_records(file, source), source, document_groups)


def read_records(file: SourceFile, source: Source) -> Iterator[Record | Fault]:
    """Yield every line of a .jsonl file as a Record, or as a Fault if it is not a JSON object.

    For a SeqIO task it yields the examples, and for a source with its own reader what that reader
    yields.
    Raises: UserError where the file cannot be opened or is of another kind.
    """
    if file.path.startswith(SEQIO):
        # Imported late: seqio brings TensorFlow, which takes seconds.
        from slmjax.text.seqio_source import read_examples

        yield from read_examples(file.path, source)
    elif source.reader:
        yield from _read(file, source, own_reader(source))
    elif file_kind(file.path, source).format == ".jsonl":
        # With a key twice, it is not known which of the two answers is meant.
        yield from _read(file, source, partial(read_jsonl, unique_keys=source.kind != TEXT))
    else:
        problem = f"{printable(file.path)} has no records with fields"
        raise UserError(f"{source.where}: {problem}; expected .jsonl.")


def unreadable(file: SourceFile, source: Source, error: OSError) -> UserError:
    """Return the error for a file that the system does not let us read."""
    reason = error.strerror or error
    return UserError(f"{source.where}: cannot read {printable(file.path)}: {reason}.")


def _read(
    file: SourceFile, source: Source, reader: Callable[[Any], Iterator[Any]]
) -> Iterator[Any]:
    """Yield what `reader` yields from the file's stream, and a fault last if the file is damaged.

    Raises: UserError where the system refuses to read the file.
    """
    kind = file_kind(file.path, source)
    # Even empty text has a header once it is compressed: a file without any bytes was cut.
    if kind.compression and not file.size:
        yield _damage(1, EOFError("it is empty"))
        return
    line = 0  # of the last item; damage is reported on the line after it
    try:
        with open_stream(file.path, kind.compression) as stream:
            # Parquet, and files of a source's own reader, may be binary.
            if kind.format in (".txt", ".jsonl"):
                check_is_text(stream)
            for item in reader(stream):
                line = item.line
                yield item
    except broken_errors() as error:
        yield _damage(line + 1, error)
    except OSError as error:
        # The system's errors have a number. pyarrow's for a damaged file has none, but a remote
        # store's may have none either, and a lost connection is no damage.
        if error.errno is not None or file.remote:
            raise unreadable(file, source, error) from error
        yield _damage(line + 1, error)


def _damage(line: int, error: Exception) -> Fault:
    """Return the fault for an error that reading a damaged file raised."""
    # Some libraries append a trace of several lines.
    detail = str(error).partition("\n")[0] or "it ends too early"
    # DamagedStream is ours, and its words need no exception's name.
    if not isinstance(error, DamagedStream):
        detail = f"{type(error).__name__}: {detail}"
    return Fault(line, DAMAGED, detail)


def _documents_of(
    records: Iterator[Record | Fault], source: Source, document_groups: Grouping
) -> Iterator[Document | Fault]:
    """Yield the document of each record, and a fault for one without text."""
    for record in records:
        if isinstance(record, Fault):
            yield record
            continue
        if source.kind != TEXT:
            yield chat_document(record, source)
            continue
        text = record.fields.get(source.field)
        if isinstance(text, str):
            yield checked_document(text, record.fields, record.line, document_groups, source)
        else:
            yield Fault(record.line, "no text", describe_missing_text(record.fields, source.field))
