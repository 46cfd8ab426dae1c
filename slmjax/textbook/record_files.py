"""Files of records, which are written again only if their settings or bytes have changed."""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from slmjax.text.files import write_atomic

Item = TypeVar("Item")


def write_or_keep(stamp: Path, settings: dict, files: Mapping[Path, Iterable[dict]]) -> None:
    """Write each file with one JSON record a line; keep all if the same settings have written them.

    Args:
      stamp: a file for the settings and the hash of the other files.
      settings: all that the records depend on.
      files: {file: its records}. Lazy records are not computed where the files are kept.
    """
    stamp.parent.mkdir(parents=True, exist_ok=True)
    paths = list(files)
    if _read_stamp(stamp) == settings | {"sha256": _digest(paths)}:
        return
    # Removed first, so that half-written files have no stamp.
    stamp.unlink(missing_ok=True)
    for path, records in files.items():
        lines = [json.dumps(record) + "\n" for record in records]
        write_atomic(path, "".join(lines))
    write_atomic(stamp, json.dumps(settings | {"sha256": _digest(paths)}))


def first_different(
    candidate: Callable[[int], Item], key: Callable[[Item], Hashable], count: int, what: str
) -> Iterator[Item]:
    """Yield the first `count` of candidate(0), candidate(1), ... whose keys differ.

    Args:
      what: names the items in the error.
    Raises: ValueError where there are not so many.
    """
    seen: set[Hashable] = set()
    index = 0
    while len(seen) < count:
        item = candidate(index)
        item_key = key(item)
        if item_key not in seen:
            seen.add(item_key)
            yield item
        index += 1
        # Give up: with so many repetitions there is hardly a new item left.
        if index > 100 * count + 10_000:
            raise ValueError(f"the textbook has fewer than {count} different {what}")


def _read_stamp(stamp: Path) -> Any:
    """Return the content of a stamp; None where there is no readable one."""
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _digest(paths: Sequence[Path]) -> str:
    """Return one hash of all files' bytes; "" where a file is missing."""
    digest = hashlib.sha256()
    for path in paths:
        if not path.exists():
            return ""
        digest.update(path.read_bytes())
    return digest.hexdigest()
