"""Rows that hold whole documents: what does not fit begins another row, and rows end in padding."""

from bisect import bisect_left, insort

import numpy as np
from jaxtyping import Int

from slmjax.data.seeded import Recent, random_bits
from slmjax.data.spans import DocumentSpan
from slmjax.errors import UserError


class WholeRowPlan:
    """Row r of one source, for every r >= 0, where no document is cut.

    Documents are packed into as few rows as best-fit-decreasing finds. An epoch has all rows, in a
    seeded order of its own; which documents share a row is the same in every epoch. It has the
    interface of `packing.RowPlan`.

    Args:
      lengths: tokens to use of each document, counted from its start; 0 leaves it out.
      seq_len: tokens of a row; no length is above it.
      seed, name: with the epoch they decide the order; errors call the source by `name`.
      max_segments: most documents of a row; None: as many as fit.
    Attributes: max_segments (the most of any row), rows_per_epoch, tokens (of an epoch).
    Raises: UserError where no document is left.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, "docs"],
        seq_len: int,
        *,
        seed: int,
        name: str = "the text",
        max_segments: int | None = None,
    ):
        if not lengths.any():
            raise UserError(f"{name} has no document that fits into data.seq_len={seq_len} tokens.")
        self.tokens = int(lengths.sum())
        self._lengths = lengths
        self._key = (seed, name)
        self._rows = fill_rows(lengths, seq_len, max_segments or seq_len)
        self.rows_per_epoch = len(self._rows)
        self.max_segments = max(map(len, self._rows))
        # A batch lies in two epochs at most.
        self._orders = Recent(2)

    def row(self, r: int) -> tuple[DocumentSpan, ...]:
        """Return the spans of row r in order; together at most `seq_len` tokens."""
        epoch, place = divmod(r, self.rows_per_epoch)
        order = self._orders.get(epoch, lambda: self._order(epoch))
        return tuple(
            DocumentSpan(doc, 0, int(self._lengths[doc])) for doc in self._rows[order[place]]
        )

    @property
    def mean_segments(self) -> float:
        """Documents of a row, on average."""
        return int((self._lengths > 0).sum()) / self.rows_per_epoch

    def dropped_share(self) -> float:
        """Return 0: every document with a length has a place."""
        return 0.0

    def _order(self, epoch: int) -> np.ndarray:
        bits = random_bits(self.rows_per_epoch, "whole rows", *self._key, epoch)
        return np.argsort(bits, kind="stable")


def fill_rows(
    lengths: Int[np.ndarray, "docs"], capacity: int, max_segments: int
) -> list[list[int]]:
    """Return rows as lists of document numbers, each document whole in one row.

    Best-fit-decreasing: the longest first, each into the fullest row that takes it. Documents of
    length 0 are left out.
    """
    rows: list[list[int]] = []
    gaps: list[tuple[int, int]] = []  # (free tokens, row) of rows that take more, sorted
    longest_first = np.argsort(-lengths, kind="stable")
    for doc in longest_first[: np.count_nonzero(lengths)].tolist():
        length = int(lengths[doc])
        tightest = bisect_left(gaps, (length, 0))
        if tightest == len(gaps):
            gap, row = capacity, len(rows)
            rows.append([])
        else:
            gap, row = gaps.pop(tightest)
        rows[row].append(doc)
        if gap > length and len(rows[row]) < max_segments:
            insort(gaps, (gap - length, row))
    return rows
