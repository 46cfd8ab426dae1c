"""One record of a run as one line of JSON, with a checksum, and back."""

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# Whatever a damaged line can raise while it is read.
UNREADABLE = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RecursionError,
    OverflowError,
)

# Joins the keys and list positions that lead to a number, see `_split_nonfinite`.
PATH_JOIN = " > "


class ReadLine(NamedTuple):
    """A record that was read."""

    record: dict
    # Whether the line carried a checksum; `record` does not hold it.
    has_checksum: bool


def to_line(record: dict) -> str:
    """Return a record as strict JSON with its newline.

    NaN and infinities become null; their values are kept as text under "nonfinite".
    """
    finite, nonfinite = _split_nonfinite(record)
    if nonfinite:
        finite["nonfinite"] = nonfinite
    # Added last: it covers all other fields.
    finite["crc32"] = _checksum(finite)
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def from_line(line: str) -> ReadLine:
    """Return the record of a line that `to_line` wrote.

    Raises: one of UNREADABLE for a line that was cut, has changed, or was never a record.
    """
    record = json.loads(line)
    # Asked here, as `_check_unchanged` removes it. Lines of earlier versions have none.
    has_checksum = "crc32" in record
    _check_unchanged(record)
    _restore_nonfinite(record)
    _check_numbers(record)
    return ReadLine(record, has_checksum)


def plain(value: Any) -> Any:
    """Return a value in JSON's types.

    Arrays and numpy scalars become lists and numbers; an array of one element becomes a number.
    Other objects become their text.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if not hasattr(value, "__array__"):
        return str(value)
    array = np.asarray(value)
    if array.size == 1:
        return plain(array.reshape(-1).tolist()[0])
    return plain(array.tolist())


def _split_nonfinite(value: Any) -> tuple[Any, dict[str, str]]:
    """Return the value with null for NaN and infinities, and {path: "nan" | "inf" | "-inf"}.

    A path joins keys and list positions by " > ".
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None, {"": str(value)}
    if not isinstance(value, dict | list):
        return value, {}
    is_list = isinstance(value, list)
    # A list is handled as a dict of its positions.
    items = dict(enumerate(value)) if is_list else value
    finite, paths = {}, {}
    for key, item in items.items():
        finite[key], inner_paths = _split_nonfinite(item)
        for path, text in inner_paths.items():
            # An item that is a number itself has an empty path.
            names = filter(None, [str(key), path])
            paths[PATH_JOIN.join(names)] = text
    if is_list:
        return list(finite.values()), paths
    return finite, paths


def _restore_nonfinite(record: dict) -> None:
    """Put NaN and infinities back where `_split_nonfinite` took them from."""
    for path, text in record.pop("nonfinite", {}).items():
        *parents, last = path.split(PATH_JOIN)
        place: Any = record
        for name in parents:
            place = place[_key(place, name)]
        place[_key(place, last)] = float(text)


def _key(place: Any, name: str) -> str | int:
    """Return a name of a path as a key of `place`: an int where `place` is a list."""
    return int(name) if isinstance(place, list) else name


def _checksum(record: dict) -> int:
    """Return the CRC-32 of a record that holds no checksum, for any order of its fields."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _check_unchanged(record: dict) -> None:
    """Remove the checksum, if there is one. Raises: ValueError where it is not the record's."""
    checksum = record.pop("crc32", None)
    if checksum is not None and checksum != _checksum(record):
        raise ValueError("it is not what was written")


def _check_numbers(record: dict) -> None:
    """Raises: TypeError or ValueError for a record that no writer wrote."""
    numbers = [record["step"], record.get("time", 0.0)]
    if "event" not in record:
        # A record of metrics holds numbers only; null is a metric without a value.
        numbers += [value for value in record.values() if value is not None]
    for number in numbers:
        if not isinstance(number, int | float):
            raise TypeError("a step, a time or a metric that is no number")
    step = record["step"]
    if step != int(step) or not 0 <= step < 2**63:
        raise ValueError("a step that is no count")
