"""Held-out text: which groups of documents are held out, and which of them training has seen."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt64

from slmjax.text.hashing import Matcher, shingles

# Most held-out bytes of a source; more would cost evaluation time and show no more.
MAX_BYTES = 10_000_000
# A GroupCounter that is pruned keeps the groups with the smallest ids: at least KEPT groups, and as
# many as hold MARGIN * MAX_BYTES of text.
KEPT = 4096
MARGIN = 4
# It is pruned when it has PRUNED_AT * KEPT groups: seldom, because pruning sorts all of them.
PRUNED_AT = 8
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
    """Counts the bytes and documents of each group of a file, in bounded memory.

    Groups are held out in the order of their ids until they hold MAX_BYTES. So the groups that
    follow after MARGIN * MAX_BYTES of the file's text are unlikely to be held out, and are dropped.
    Attributes: complete, False once groups were dropped.
    """

    def __init__(self) -> None:
        self.complete = True
        self._groups: dict[int, list[int]] = {}  # id: [bytes, documents]
        self._dropped_from = 1 << 64  # this id and all larger ones are dropped
        self._prune_above = PRUNED_AT * KEPT  # groups

    def add(self, group: int, size: int) -> None:
        """Count one document of `size` bytes in the group with this id."""
        if group >= self._dropped_from:
            return
        entry = self._groups.setdefault(group, [0, 0])
        entry[0] += size
        entry[1] += 1
        if len(self._groups) > self._prune_above:
            self._prune()
            # Doubled where many groups have to stay, so that pruning stays seldom.
            self._prune_above = max(PRUNED_AT * KEPT, 2 * len(self._groups))

    def table(self) -> np.ndarray:
        """Return the groups sorted by id, dtype GROUP."""
        rows = []
        for group, (size, documents) in sorted(self._groups.items()):
            rows.append((group, size, documents))
        return np.array(rows, GROUP)

    def _prune(self) -> None:
        """Drop the groups that follow after MARGIN * MAX_BYTES of text, but keep the first KEPT."""
        table = self.table()
        bytes_so_far = np.cumsum(table["bytes"])
        last_needed = np.searchsorted(bytes_so_far, MARGIN * MAX_BYTES)
        keep = max(KEPT, int(last_needed) + 1)
        if keep >= len(table):
            return
        self._dropped_from = int(table["id"][keep])
        self.complete = False
        self._groups = {}
        for group, size, documents in table[:keep].tolist():
            self._groups[group] = [size, documents]


@dataclass(frozen=True)
class HeldoutChoice:
    """The groups to hold out.

    groups: {source: ids of its held-out groups}.
    warnings: a sentence for each source that could not be held out as the settings ask.
    own: {source: ids of the groups that it would hold out if it were alone}.
    """

    groups: dict[str, GroupIds]
    warnings: tuple[str, ...]
    own: dict[str, UInt64[np.ndarray, " _"]]


def choose_groups(
    tables: Mapping[str, np.ndarray],
    totals: Mapping[str, int],
    shares: Mapping[str, float],
    conversations: Collection[str] = (),
) -> HeldoutChoice:
    """Choose each source's held-out groups.

    Groups are taken in the order of their ids until they hold a share of the source's bytes. They
    hold at most MAX_BYTES, and at most half of the source's bytes and groups; where no group is
    small enough, none is chosen. A group that is held out in one source is held out in all, except
    in a source that would lose more than half of its groups: that keeps to its own choice.

    Args:
      tables: {source: its groups} (dtype GROUP; a group has one row for each file that it is in).
      totals: {source: bytes}.
      shares: {source: share of its bytes}; a source with 0 or less chooses no groups itself.
      conversations: names of the sources whose groups are questions.
    """
    no_groups = np.zeros(0, np.uint64)
    merged_tables = {}
    own_choices = {}
    warnings = []
    for name, table in tables.items():
        groups = _merge(table)
        merged_tables[name] = groups
        own_choices[name] = no_groups
        if shares[name] <= 0:
            continue
        own_choices[name] = _own_choice(groups, totals[name], shares[name])
        if len(groups) < 2:
            warnings.append(f"source '{name}' is a single group, so nothing of it is held out")
        elif not len(own_choices[name]):
            warnings.append(
                f"each group of source '{name}' is over half of its text or over {MAX_BYTES:,} "
                "bytes, so nothing is held out"
            )
    chosen_anywhere = np.unique(np.concatenate([no_groups, *own_choices.values()]))
    questions = [own_choices[name] for name in conversations if name in own_choices]
    all_questions = np.unique(np.concatenate([no_groups, *questions]))
    choices = {}
    for name, groups in merged_tables.items():
        if name in conversations:
            # Also those that its table lacks: the table of many groups is not complete.
            choices[name] = all_questions
            continue
        # The groups of this source that any source has chosen.
        shared_choice = np.intersect1d(groups["id"], chosen_anywhere)
        if 2 * len(shared_choice) <= len(groups):
            choices[name] = shared_choice
            continue
        choices[name] = own_choices[name]
        if len(own_choices[name]) < len(shared_choice):
            warnings.append(
                f"source '{name}' trains on groups that another source holds out; "
                "holding out all would leave less than half"
            )
    return HeldoutChoice(choices, tuple(warnings), own_choices)


def seen_in_training(text: str, matcher: Matcher, seen: Bool[np.ndarray, " m"]) -> bool:
    """Whether training text has more than half of a held-out text's shingles.

    Args:
      matcher: of all held-out shingles.
      seen: for each of them, whether training text has it.
    """
    # All shingles are found, since the text is held out.
    indices = matcher.find(shingles(text))
    seen_count = int(seen[indices].sum())
    return 2 * seen_count > len(indices)


def _merge(table: np.ndarray) -> np.ndarray:
    """Return a table with one row for each group, sorted by id."""
    ids, inverse = np.unique(table["id"], return_inverse=True)
    merged = np.zeros(len(ids), GROUP)
    merged["id"] = ids
    np.add.at(merged["bytes"], inverse, table["bytes"])
    np.add.at(merged["documents"], inverse, table["documents"])
    return merged


def _own_choice(groups: np.ndarray, total: int, share: float) -> GroupIds:
    """Return the groups that a source holds out by itself.

    Args:
      groups: all groups of the source, sorted by id.
      total: bytes of the source.
    """
    most_bytes = min(MAX_BYTES, total / 2)
    target_bytes = min(MAX_BYTES, share * total)
    taken = []
    taken_bytes = 0
    for group, group_bytes, _ in groups:
        has_half_of_groups = len(taken) + 1 > len(groups) // 2
        if taken_bytes >= target_bytes or has_half_of_groups:
            break
        # A group that is too large is passed over: a smaller one may follow.
        if taken_bytes + group_bytes <= most_bytes:
            taken.append(group)
            taken_bytes += group_bytes
    return np.array(taken, np.uint64)
