"""Reader of .parquet files: some rows at a time, with damaged and over-long texts as faults."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from slmjax.errors import UserError, nearest
from slmjax.text.document_checks import Grouping, checked_document, suggest_most_text
from slmjax.text.records import TOO_LONG, Document, Fault, Source, SourceFile
from slmjax.text.streams import LONGEST

# Rows that are converted to Python at once, at most.
BATCH_ROWS = 256
# Rows of small row groups that are read together, at most.
TOGETHER_ROWS = 4096
# Arrow types of text. Writers without annotations store strings as binary.
TEXT_TYPES = (
    "string",
    "large_string",
    "string_view",
    "binary",
    "large_binary",
    "binary_view",
    "fixed_size_binary",
)


class RowGroups(NamedTuple):
    """Consecutive row groups, their rows, and the uncompressed bytes of their text column."""

    indices: list[int]
    rows: int
    bytes: int


def read_parquet(
    stream: Any, file: SourceFile, source: Source, grouping: Grouping
) -> Iterator[Document | Fault]:
    """Yield the document of each row, or a fault.

    Raises: UserError where a column is missing, ambiguous or holds no text.
    """
    from pyarrow import parquet

    # Only pages that were written with a checksum can be verified.
    table = parquet.ParquetFile(stream, page_checksum_verification=True)
    other_fields = [field for field in (grouping.field, source.score_field) if field]
    for field in (source.field, *other_fields):
        _check_column(table, field, file.path)
    # A set, as one column may be both, such as a group that is also the score.
    columns = sorted({source.field, *other_fields})
    number = 0  # of the row, 1-based
    for groups in _row_groups(table.metadata, source.field):
        # A small compressed file can hold a huge column: it is refused before it fills the memory.
        if groups.bytes > LONGEST * groups.rows:
            detail = f"its row group has {groups.bytes >> 20:,} MiB of text in {groups.rows} rows"
            for _ in range(groups.rows):
                number += 1
                yield Fault(number, TOO_LONG, detail)
            continue
        # As many rows as hold LONGEST bytes together, if all have the mean length.
        rows_within_bound = LONGEST * groups.rows // max(1, groups.bytes)
        batches = table.iter_batches(
            batch_size=max(1, min(BATCH_ROWS, rows_within_bound)),
            row_groups=groups.indices,
            columns=columns,
        )
        for batch in batches:
            text_column = batch.column(source.field)
            if not _is_text(text_column.type):
                problem = f"column '{source.field}' holds {text_column.type}"
                raise UserError(f"{file.path}: {problem}; expected strings.")
            other_columns = [_plain_values(batch.column(field)) for field in other_fields]
            for text, *values in zip(_texts_as_bytes(text_column), *other_columns, strict=True):
                number += 1
                if text is None:
                    yield Fault(number, "no text", f"'{source.field}' is null")
                # A number is the length of a text that is too long.
                elif isinstance(text, int):
                    detail = f"{text >> 20:,} MiB, more than {LONGEST >> 20}"
                    yield Fault(number, TOO_LONG, detail)
                else:
                    fields = dict(zip(other_fields, values))
                    yield checked_document(text, fields, number, grouping, source)


def _check_column(table: Any, field: str, path: str) -> None:
    """Check that a table has exactly one column of this name.

    Raises: UserError if it has none, or several.
    """
    names = table.schema_arrow.names
    if field not in names:
        # A column of nearly this name, or else the column with the most text.
        close = nearest(field, names)
        hint = f".{close}"
        if not close:
            hint = f"{suggest_most_text(_text_sizes(table))}."
        columns = ", ".join(names)
        raise UserError(f"{path} has no column '{field}' (columns: {columns}){hint}")
    if names.count(field) > 1:
        raise UserError(f"{path} has several columns named '{field}'; rename all but one.")


def _text_sizes(table: Any) -> dict[str, int]:
    """Return {column: its uncompressed bytes} of the columns of text."""
    sizes = {field.name: 0 for field in table.schema_arrow if _is_text(field.type)}
    for index in range(table.metadata.num_row_groups):
        for column in _columns(table.metadata.row_group(index)):
            if column.path_in_schema in sizes:
                sizes[column.path_in_schema] += column.total_uncompressed_size
    return sizes


def _row_groups(metadata: Any, field: str) -> Iterator[RowGroups]:
    """Yield all row groups in order; consecutive small ones come together, see TOGETHER_ROWS."""
    indices: list[int] = []
    rows = size = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        group_size = 0
        for column in _columns(group):
            if column.path_in_schema == field:
                group_size += column.total_uncompressed_size
        has_room = rows + group.num_rows <= TOGETHER_ROWS and size + group_size <= LONGEST
        if indices and not has_room:
            yield RowGroups(indices, rows, size)
            indices, rows, size = [], 0, 0
        indices = [*indices, index]
        rows += group.num_rows
        size += group_size
    if indices:
        yield RowGroups(indices, rows, size)


def _columns(row_group: Any) -> Sequence[Any]:
    return [row_group.column(index) for index in range(row_group.num_columns)]


def _is_text(arrow_type: Any) -> bool:
    """Whether an Arrow type is one of strings or bytes, or of a dictionary of them."""
    import pyarrow as pa

    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    for name in TEXT_TYPES:
        # Older versions of pyarrow do not know the views.
        is_of_type = getattr(pa.types, f"is_{name}", None)
        if is_of_type is not None and is_of_type(arrow_type):
            return True
    return False


def _texts_as_bytes(column: Any) -> list[bytes | int | None]:
    """Return the UTF-8 of each text of a column; None for a null, the length for one too long.

    Arrow does not decode the texts, since one invalid text would fail the whole batch. A text of
    more than LONGEST bytes is not returned, so that it is not copied once more.
    """
    import pyarrow as pa
    from pyarrow import compute

    # A dictionary stores repeated strings as numbers into a list of them.
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if hasattr(pa.types, "is_string_view") and pa.types.is_string_view(column.type):
        column = column.cast(pa.binary_view())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    # The usual case: no text of the column can be too long.
    if column.nbytes <= LONGEST:
        return column.to_pylist()
    sizes = compute.binary_length(column.cast(pa.large_binary())).to_pylist()
    texts: list[bytes | int | None] = []
    for index, size in enumerate(sizes):
        # A null has the length None.
        too_long = size is not None and size > LONGEST
        texts.append(size if too_long else column[index].as_py())
    return texts


def _plain_values(column: Any) -> list:
    """Return the values of a column; bytes are decoded to strings."""
    values = column.to_pylist()
    # A column holds one type, so its first value says whether there is anything to decode.
    first = next((value for value in values if value is not None), None)
    if not isinstance(first, bytes):
        return values
    return [value if value is None else value.decode(errors="replace") for value in values]
