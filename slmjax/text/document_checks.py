"""Make a checked document of a text and its fields, or a fault that says what is wrong."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from slmjax.errors import UserError, nearest
from slmjax.text.records import TOO_LONG, Document, Fault, Source, content_key
from slmjax.text.streams import LONGEST

# Fields that a message lists; a record may have hundreds.
SHOWN_FIELDS = 12
_METACHARACTER = re.compile(r"[.^$*+?{}\[\]|()\\]")


class Grouping(NamedTuple):
    """How documents are grouped: by a function of one of their fields.

    `group_of` returns None for a value that does not match. Without grouping there is no function:
    `group_of` is None.
    """

    field: str
    group_of: Callable[[str], str | None] | None


def grouping(group_by: str) -> Grouping:
    """Return the grouping that `data.group_by` asks for.

    Args:
      group_by: "" (no grouping), a field, or a regular expression on the field `id` ("re:" prefix
        or any metacharacter). The group is what the first parenthesis matched, or the whole match.
    Raises: UserError for a regular expression that does not compile.
    """
    if not group_by:
        return Grouping("", None)
    if not group_by.startswith("re:") and not _METACHARACTER.search(group_by):
        return Grouping(group_by, lambda value: value)
    try:
        pattern = re.compile(group_by.removeprefix("re:"))
    except re.error as error:
        problem = f"'{group_by}' is no regular expression: {error}"
        raise UserError(f"data.group_by: {problem}.") from error

    def group_of(value: str) -> str | None:
        match = pattern.search(value)
        if match is None:
            return None
        if pattern.groups:
            # An optional parenthesis that took no part gives None.
            return match.group(1) or ""
        return match.group(0)

    return Grouping("id", group_of)


def checked_document(
    text: str | bytes, fields: Mapping, line: int, grouping: Grouping, source: Source
) -> Document | Fault:
    """Return the document of a text, or a fault for one that cannot be used.

    Args:
      fields: of the text's record, by name; one may give the group and another the score.
      line: 1-based line or row, for faults.
    """
    # The cheap test comes first: a string has at least as many bytes as characters.
    if len(text) > LONGEST:
        return _too_long(line)
    decoded = _decoded(text, line)
    if isinstance(decoded, Fault):
        return decoded
    text, data = decoded
    if len(data) > LONGEST:
        return _too_long(line)
    if not text or text.isspace():
        return Fault(line, "empty document")
    score = fields.get(source.score_field) if source.score_field else 0.0
    # `type` refuses booleans, which isinstance takes for integers, and `not <` refuses NaN.
    if type(score) not in (int, float) or not abs(score) < sys.float_info.max:
        value = _describe_value(fields, source.score_field, "a finite number")
        return Fault(line, "no score", f"'{source.score_field}' is {value}")
    key = content_key(data)
    if grouping.group_of is None:
        # Without grouping, a document and its exact copies are a group.
        group, matched = f"{key:016x}", True
    else:
        value = fields.get(grouping.field)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            described = _describe_value(fields, grouping.field)
            detail = f"data.group_by needs '{grouping.field}', which is {described}"
            return Fault(line, "no group", detail)
        group = grouping.group_of(str(value))
        matched = group is not None
        if group is None:
            # The pattern does not match: the whole value is the group, and the document is counted.
            group = str(value)
    return Document(
        text,
        group,
        line,
        bytes=len(data),
        key=key,
        matched=matched,
        score=float(score),
        record=fields,
    )


def _decoded(text: str | bytes, line: int) -> tuple[str, bytes] | Fault:
    """Return a text as a string and as UTF-8, without a byte-order mark, or a fault."""
    try:
        if isinstance(text, bytes):
            data = text.removeprefix(b"\xef\xbb\xbf")
            return data.decode(), data
        text = text.removeprefix("\ufeff")
        return text, text.encode()
    except UnicodeDecodeError as error:
        # Counted within the text (from 1): `line` is 1 for all of a .txt file.
        line_of_text = error.object.count(b"\n", 0, error.start) + 1
        detail = f"byte {error.start + 1}, line {line_of_text} of the text"
        return Fault(line, "invalid UTF-8", detail)
    except UnicodeEncodeError as error:
        # JSON may hold half a surrogate pair, which UTF-8 cannot write.
        return Fault(line, "invalid UTF-8", f"half a surrogate pair at character {error.start + 1}")


def _too_long(line: int) -> Fault:
    return Fault(line, TOO_LONG, f"more than {LONGEST >> 20} MiB")


def describe_missing_text(fields: Mapping, field: str) -> str:
    """Return what a record holds in `field` instead of a text, and where the text may be."""
    problem = f"'{field}' is {_describe_value(fields, field)}"
    # The description ends with a question if it suggests a field with nearly this name.
    if problem.endswith("?"):
        return problem
    sizes = {str(name): len(value) for name, value in fields.items() if isinstance(value, str)}
    if sizes:
        return problem + suggest_most_text(sizes)
    return f"{problem}. No field holds a string; lists and objects are not searched"


def suggest_most_text(sizes: Mapping[str, int]) -> str:
    """Return ". Most text is in 'FIELD'", to be appended; "" where no field has any text."""
    largest = max(sizes, key=sizes.__getitem__, default="")
    return f". Most text is in '{largest}'" if sizes.get(largest) else ""


def _describe_value(fields: Mapping[str, Any], field: str, wanted: str = "a string") -> str:
    """Return in words what a record holds in a field, or that the field is missing."""
    if field not in fields:
        names: Sequence[str] = [str(name) for name in fields]
        description = f"missing (fields: {', '.join(names[:SHOWN_FIELDS])})"
        close = nearest(field, names)
        return f"{description}.{close}" if close else description
    value = fields[field]
    description = type(value).__name__
    if isinstance(value, dict):
        inner_names = [str(name) for name in value][:SHOWN_FIELDS]
        description += f" with the fields {', '.join(inner_names)}"
    return f"{description}, not {wanted}"
