"""Readers of .txt and .jsonl files, from a stream of decompressed bytes."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from slmjax.text.document_checks import Grouping, checked_document
from slmjax.text.records import TOO_LONG, Document, Fault, Record, Source, SourceFile
from slmjax.text.streams import LONGEST, lines, text_pieces

# Some editors begin a UTF-8 file with this.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_txt(
    stream: Any, file: SourceFile, source: Source, grouping: Grouping
) -> Iterator[Document | Fault]:
    """Yield the file as one document, or as several where it is very long.

    The file's name is its `id`, and the value of the field that the grouping asks for.
    """
    fields = {"id": file.name}
    if grouping.field:
        fields[grouping.field] = file.name
    for line, data in text_pieces(stream):
        yield checked_document(data, fields, line, grouping, source)


def read_jsonl(stream: Any, *, unique_keys: bool = False) -> Iterator[Record | Fault]:
    """Yield the JSON object of each line, and a fault for a line that holds something else.

    Blank lines are skipped.

    Args:
      unique_keys: an object that has a key twice is a fault; otherwise its last value counts. The
        check takes two thirds more time, so running text, of which one field is read, goes without.
    """
    hook = _unique_fields if unique_keys else None
    # Lines end at "\n" only: str.splitlines would also split at characters inside of texts.
    for number, line in enumerate(lines(stream), 1):
        if line is None:
            yield Fault(number, TOO_LONG, f"more than {LONGEST >> 20} MiB")
            continue
        # Behind the start of the file the mark is a character of the text.
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            # Only a line of a byte-order mark alone is empty now. Read as null, it is a fault.
            content = json.loads(line.decode() or "null", object_pairs_hook=hook)
        except UnicodeDecodeError as error:
            yield Fault(number, "invalid UTF-8", f"byte {error.start + 1} of the line")
        except (ValueError, RecursionError) as error:
            # A blank line is malformed JSON as well, but no fault.
            if line.strip():
                yield Fault(number, "malformed JSON", str(error))
        else:
            if isinstance(content, dict):
                yield Record(content, number)
            else:
                detail = f"expected an object, found {type(content).__name__}"
                yield Fault(number, "malformed JSON", detail)


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object. Raises: ValueError where it has a key twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"an object has the key {twice!r} twice")
    return fields
