"""Held-out text: which groups are held out, and which documents training has seen all the same."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt64

from slmjax.text.hashing import Matcher, shingles

# Most held-out bytes of a source; more would cost evaluation time and show no more.
MAX_BYTES = 10_000_000
# A GroupCounter keeps at least this many groups of a file.
KEPT = 4096
# It is pruned at PRUNED_AT * KEPT groups, which is seldom: pruning sorts all of them.
PRUNED_AT = 8
# It keeps groups, in the order of their ids, until they hold MARGIN * MAX_BYTES of text.
MARGIN = 4
# A row of a table of groups.
GROUP = np.dtype(
    [
        ("id", "<u8"),
        ("bytes", "<i8"),
        ("documents", "<i8"),
    ]
)
# Ids of groups.
GroupIds = UInt64[np.ndarray, " groups"]


def group_id(group: str, seed: int) -> int:
    """Return a 64-bit hash that orders groups at random by `seed`.

    A group that occurs in two sources has the same id in both.
    """
    # A field may hold half a surrogate pair, which strict UTF-8 refuses.
    content = f"{seed}\n{group}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big")


class GroupCounter:
    """Bytes and documents of a file's groups; groups that are unlikely to be held out are dropped.

    Groups are held out in the order of their ids until they hold MAX_BYTES. So a file's groups
    behind MARGIN * MAX_BYTES of its text are hardly ever reached.
    Attributes: complete, False once groups were forgotten.
    """

    def __init__(self) -> None:
        self.complete = True
        self._groups: dict[int, list[int]] = {}  # id: [bytes, documents]
        self._limit = 1 << 64  # ids from here on are forgotten
        self._full = PRUNED_AT * KEPT

    def add(self, group: int, size: int) -> None:
        """Count one document of `size` bytes."""
        if group >= self._limit:
            return
        entry = self._groups.setdefault(group, [0, 0])
        entry[0] += size
        entry[1] += 1
        if len(self._groups) > self._full:
            self._prune()
            # Doubled where many groups have to stay, so that pruning does not come too often.
            self._full = max(PRUNED_AT * KEPT, 2 * len(self._groups))

    def table(self) -> np.ndarray:
        """Return the groups sorted by id, dtype GROUP."""
        rows = []
        for group, (size, documents) in sorted(self._groups.items()):
            rows.append((group, size, documents))
        return np.array(rows, GROUP)

    def _prune(self) -> None:
        """Drop the groups behind MARGIN * MAX_BYTES of text, but keep the first KEPT."""
        table = self.table()
        bytes_so_far = np.cumsum(table["bytes"])
        reachable = np.searchsorted(bytes_so_far, MARGIN * MAX_BYTES)
        keep = max(KEPT, int(reachable) + 1)
        if keep >= len(table):
            return
        self._limit = int(table["id"][keep])
        self.complete = False
        self._groups = {}
        for group, size, documents in table[:keep].tolist():
            self._groups[group] = [size, documents]


@dataclass(frozen=True)
class HeldoutChoice:
    """Held-out group ids of each source.

    warnings: a sentence for each source where the choice is not what the settings asked for.
    """

    groups: dict[str, GroupIds]
    warnings: tuple[str, ...]


def choose_groups(
    tables: Mapping[str, np.ndarray],
    totals: Mapping[str, int],
    share: float,
) -> HeldoutChoice:
    """Choose groups in the order of their ids until they hold `share` of a source's bytes.

    They hold at most MAX_BYTES, and at most half of the source's bytes and groups; where no group
    is small enough, none is chosen. A group that is held out in one source is held out in all,
    unless that would take more than half of a source's groups.

    Args:
      tables: of each source, its groups (dtype GROUP; a group may be in several rows, one for each
        file).
      totals: bytes of each source.
    """
    no_groups = np.zeros(0, np.uint64)
    if share <= 0:
        return HeldoutChoice(dict.fromkeys(tables, no_groups), ())
    # Of each source: all its groups, and the ids that it would hold out by itself.
    merged = {}
    own = {}
    warnings = []
    for name, table in tables.items():
        groups = _merge(table)
        merged[name] = groups
        own[name] = _take(groups, totals[name], share)
        if len(groups) < 2:
            warnings.append(f"source '{name}' is a single group, so nothing of it is held out")
        elif not len(own[name]):
            warnings.append(
                f"each group of source '{name}' is over half of its text or over {MAX_BYTES:,} "
                "bytes, so nothing is held out"
            )
    held_out_anywhere = np.unique(np.concatenate([no_groups, *own.values()]))
    chosen = {}
    for name, groups in merged.items():
        # The source's groups that this source or another one holds out.
        wider = np.intersect1d(groups["id"], held_out_anywhere)
        if 2 * len(wider) <= len(groups):
            chosen[name] = wider
            continue
        chosen[name] = own[name]
        if len(own[name]) < len(wider):
            warnings.append(
                f"source '{name}' trains on groups that another source holds out; "
                "holding out all would leave less than half"
            )
    return HeldoutChoice(chosen, tuple(warnings))


def seen_in_training(text: str, matcher: Matcher, seen: Bool[np.ndarray, " m"]) -> bool:
    """Whether training has more than half of a held-out text's shingles.

    Args:
      matcher: of all held-out shingles.
      seen: which of them training has.
    """
    places = matcher.find(shingles(text))
    in_training = int(seen[places].sum())
    return 2 * in_training > len(places)


def _merge(table: np.ndarray) -> np.ndarray:
    """Return a table with one row for each group."""
    ids, inverse = np.unique(table["id"], return_inverse=True)
    merged = np.zeros(len(ids), GROUP)
    merged["id"] = ids
    np.add.at(merged["bytes"], inverse, table["bytes"])
    np.add.at(merged["documents"], inverse, table["documents"])
    return merged


def _take(groups: np.ndarray, total: int, share: float) -> GroupIds:
    """Return the ids of a source's own held-out groups; total: bytes of the source."""
    limit = min(MAX_BYTES, total / 2)
    target = min(MAX_BYTES, share * total)
    taken = []
    size = 0
    for group, count, _ in groups:
        would_be_most_groups = len(taken) + 1 > len(groups) // 2
        if size >= target or would_be_most_groups:
            break
        # A group that is too large is passed over: a smaller one may follow.
        if size + count <= limit:
            taken.append(group)
            size += count
    return np.array(taken, np.uint64)
