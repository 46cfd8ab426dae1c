"""Held-out text: which groups are held out, and which held-out documents training has seen all the same."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt64

from slmjax.text.hashing import Matcher, shingles

MAX_BYTES = 10_000_000  # of a source; more would cost evaluation time and tell no more
KEPT = 4096
GROUP = np.dtype([("id", "<u8"), ("bytes", "<i8"), ("documents", "<i8")])


def group_id(group: str, seed: int) -> int:
    """A 64-bit hash that orders groups at random by `seed`; a group of two sources has one id, so it falls on one side in both."""
    return int.from_bytes(
        hashlib.blake2b(
            f"{seed}\n{group}".encode("utf-8", "surrogatepass"), digest_size=8
        ).digest(),
        "big",
    )


class GroupCounter:
    """Bytes and documents of the groups of a file, of which only those that can ever be held out are kept.

    Groups are taken in the order of their ids until MAX_BYTES, so what comes after four times that in one file cannot be reached.
    """

    def __init__(self) -> None:
        self._groups: dict[int, list[int]] = {}
        self._limit, self._full = 1 << 64, 8 * KEPT
        self.complete = True

    def add(self, group: int, size: int) -> None:
        """Count one document of `size` bytes."""
        if group >= self._limit:
            return
        entry = self._groups.setdefault(group, [0, 0])
        entry[0] += size
        entry[1] += 1
        if len(self._groups) > self._full:
            self._prune()
            self._full = max(8 * KEPT, 2 * len(self._groups))

    def table(self) -> np.ndarray:
        """Sorted by id, dtype GROUP."""
        return np.array([(group, *entry) for group, entry in sorted(self._groups.items())], GROUP)

    def _prune(self) -> None:
        table = self.table()
        keep = max(KEPT, int(np.searchsorted(np.cumsum(table["bytes"]), 4 * MAX_BYTES)) + 1)
        if keep < len(table):
            self._limit, self.complete = int(table["id"][keep]), False
            self._groups = {
                int(group): [int(size), int(count)] for group, size, count in table[:keep]
            }


@dataclass(frozen=True)
class HeldoutChoice:
    """Held-out group ids of each source, and a sentence for each source where the choice is not what the settings asked for."""

    groups: dict[str, UInt64[np.ndarray, " groups"]]
    warnings: tuple[str, ...]


def choose_groups(
    tables: Mapping[str, np.ndarray], totals: Mapping[str, int], share: float
) -> HeldoutChoice:
    """Choose groups in the order of their ids until `share` of a source's bytes, at most MAX_BYTES, at least one and never over half.

    Args:
      tables: of each source, its groups (dtype GROUP; a group may be in several rows, one for each file).
      totals: bytes of each source.
    A group that is held out in one source is held out in all, unless that would take more than half of a source's groups.
    """
    own, warnings, merged = {}, [], {name: _merge(table) for name, table in tables.items()}
    if share <= 0:
        return HeldoutChoice({name: np.zeros(0, np.uint64) for name in tables}, ())
    for name, groups in merged.items():
        own[name] = _take(groups, totals[name], share)
        if len(groups) < 2:
            warnings.append(f"source '{name}' is a single group, so nothing of it is held out")
        elif not len(own[name]):
            warnings.append(
                f"each group of source '{name}' is over half of its text or over {MAX_BYTES:,} bytes, so nothing is held out"
            )
    union = np.unique(np.concatenate([np.zeros(0, np.uint64), *own.values()]))
    out = {}
    for name, groups in merged.items():
        wider = np.intersect1d(groups["id"], union)
        out[name] = wider if 2 * len(wider) <= len(groups) else own[name]
        if len(out[name]) < len(wider):
            warnings.append(
                f"source '{name}' trains on groups that another source holds out; holding out all would leave less than half"
            )
    return HeldoutChoice(out, tuple(warnings))


def _merge(table: np.ndarray) -> np.ndarray:
    ids, inverse = np.unique(table["id"], return_inverse=True)
    out = np.zeros(len(ids), GROUP)
    out["id"] = ids
    np.add.at(out["bytes"], inverse, table["bytes"])
    np.add.at(out["documents"], inverse, table["documents"])
    return out


def _take(groups: np.ndarray, total: int, share: float) -> np.ndarray:
    limit, target = min(MAX_BYTES, total / 2), min(MAX_BYTES, share * total)
    taken, size = [], 0
    for group, count, _ in groups:
        if size >= target or len(taken) + 1 > len(groups) // 2:
            break
        if size + count <= limit:
            taken.append(group)
            size += count
    return np.array(taken, np.uint64)


def seen_in_training(text: str, matcher: Matcher, seen: Bool[np.ndarray, " m"]) -> bool:
    """Whether more than half of a held-out text's shingles are marked in `seen` (over the matcher's set)."""
    places = matcher.find(shingles(text))
    return 2 * int(seen[places].sum()) > len(places)
