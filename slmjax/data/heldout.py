"""Held-out text: which groups are held out, and which documents training has seen all the same."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt64

from slmjax.text.hashing import Matcher, shingles

# Most bytes of a source; more would cost evaluation time and show no more.
MAX_BYTES = 10_000_000
# Groups of a file that a GroupCounter keeps at least.
KEPT = 4096
# A counter is pruned when it has this many times KEPT groups: pruning sorts all of them.
PRUNED_AT = 8
# Groups are forgotten behind so many times MAX_BYTES of text in one file.
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

    A group of two sources has one id, so it falls on one side in both.
    """
    # A field may hold half a surrogate pair, which strict UTF-8 refuses.
    content = f"{seed}\n{group}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big")


class GroupCounter:
    """Bytes and documents of a file's groups; only those that can ever be held out are kept.

    Groups are taken in the order of their ids until MAX_BYTES, so what comes after four times that
    in one file cannot be reached.
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
    """Choose groups in the order of their ids until `share` of a source's bytes.

    They are at most MAX_BYTES, at least one group and never over half of the source. A group that
    is held out in one source is held out in all, unless that would take more than half of a
    source's groups.

    Args:
      tables: of each source, its groups (dtype GROUP; a group may be in several rows, one for each
        file).
      totals: bytes of each source.
    """
    no_groups = np.zeros(0, np.uint64)
    if share <= 0:
        return HeldoutChoice(dict.fromkeys(tables, no_groups), ())
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
        # The source's own groups, and those of its groups that other sources hold out.
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
