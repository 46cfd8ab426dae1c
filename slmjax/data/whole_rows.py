"""Rows that hold whole documents: what does not fit begins another row, and rows end in padding."""

from bisect import bisect_left, insort
from typing import Any

import numpy as np
from jaxtyping import Int

from slmjax.data.answer_mask import complete_turns
from slmjax.data.seeded import Recent, random_bits
from slmjax.data.spans import DocumentSpan
from slmjax.errors import UserError
from slmjax.text.records import CHAT, PAIRS, TEXT

# A pair has two dialogues, which do not see each other.
SEGMENTS_OF_KIND = {TEXT: 1, CHAT: 1, PAIRS: 2}


def whole_row_plan(shards: Any, seq_len: int, *, seed: int, name: str) -> "WholeRowPlan":
    """Return the rows of a source of dialogues or pairs.

    A dialogue that is longer than a row is cut behind the last answer that fits. It is left out if
    not even its first answer fits, and so is a pair that is longer than a row.

    Args:
      shards: a ShardSet. Only documents that are longer than a row are read.
    Raises: UserError where no document is left.
    """
    lengths = shards.lengths.copy()
    for doc in np.flatnonzero(lengths > seq_len):
        kept = 0
        if shards.kind == CHAT:
            # Without the last id, the target of the last token.
            tokens = shards.read(doc, 0, lengths[doc])[:-1]
            kept = complete_turns(tokens, shards.chat, seq_len)
        lengths[doc] = kept
    is_used = lengths > 0
    return WholeRowPlan(
        lengths,
        seq_len,
        seed=seed,
        name=name,
        dropped=int((~is_used).sum()),
        cut=int((is_used & (lengths < shards.lengths)).sum()),
        segments_per_document=SEGMENTS_OF_KIND[shards.kind],
    )


class WholeRowPlan:
    """Row r of one source, for every r >= 0, where no document is cut at the end of a row.

    Documents are packed into as few rows as best-fit-decreasing finds. An epoch has all rows, in a
    seeded order of its own; which documents share a row is the same in every epoch. It has the
    interface of `packing.RowPlan`.

    Args:
      lengths: tokens to use of each document, from its start; 0 leaves it out.
      seq_len: tokens of a row; no length is above it.
      seed, name: with the epoch they decide the order; errors call the source by `name`.
      dropped, cut: how many documents are longer than a row and were left out, or cut.
      segments_per_document: how many segments a document has.
    Attributes: max_segments (of any row), rows_per_epoch, seq_len, tokens (of an epoch, without
      padding).
    Raises: UserError where no document is left.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, "docs"],
        seq_len: int,
        *,
        seed: int,
        name: str = "the text",
        dropped: int = 0,
        cut: int = 0,
        segments_per_document: int = 1,
    ):
        if not lengths.any():
            raise UserError(f"{name} has no document that fits into data.seq_len={seq_len} tokens.")
        self.dropped, self.cut = dropped, cut
        self.segments_per_document = segments_per_document
        self.tokens = int(lengths.sum())
        self._lengths = lengths
        self.seq_len = seq_len
        self._key = (seed, name)
        self._rows = fill_rows(lengths, seq_len)
        self.rows_per_epoch = len(self._rows)
        self.max_segments = max(map(len, self._rows)) * segments_per_document
        # A batch lies in two epochs at most.
        self._orders = Recent(2)

    def row(self, r: int) -> tuple[DocumentSpan, ...]:
        """Return the spans of row r in order; together at most `seq_len` tokens."""
        epoch, place = divmod(r, self.rows_per_epoch)
        order = self._orders.get(epoch, lambda: self._order(epoch))
        spans = []
        for doc in self._rows[order[place]]:
            spans.append(DocumentSpan(doc, 0, int(self._lengths[doc])))
        return tuple(spans)

    @property
    def size(self) -> int:
        """Tokens of an epoch's rows, padding included, so that weights mean shares of rows."""
        return self.rows_per_epoch * self.seq_len

    def left_out(self) -> str:
        """Return in words how many documents were cut or left out; "" for none."""
        words = []
        if self.cut:
            words.append(f"{self.cut:,} cut behind an answer")
        if self.dropped:
            words.append(f"{self.dropped:,} left out")
        if not words:
            return ""
        return f"{' and '.join(words)} (longer than {self.seq_len:,} tokens)"

    def _order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the rows in the order of an epoch."""
        bits = random_bits(self.rows_per_epoch, "whole rows", *self._key, epoch)
        return np.argsort(bits, kind="stable")


def fill_rows(lengths: Int[np.ndarray, "docs"], capacity: int) -> list[list[int]]:
    """Return rows as lists of document numbers, each document whole in one row.

    Best-fit-decreasing: the longest first, each into the fullest row that takes it. Documents of
    length 0 are left out.
    """
    rows: list[list[int]] = []
    gaps: list[tuple[int, int]] = []  # (free tokens, row) of rows that are not full, sorted
    longest_first = np.argsort(-lengths, kind="stable")
    # Documents of length 0 come last.
    used = longest_first[: np.count_nonzero(lengths)]
    for doc in used.tolist():
        length = int(lengths[doc])
        # The first gap that is not smaller than the document.
        tightest = bisect_left(gaps, (length, 0))
        if tightest == len(gaps):
            gap, row = capacity, len(rows)
            rows.append([])
        else:
            gap, row = gaps.pop(tightest)
        rows[row].append(doc)
        if gap > length:
            insort(gaps, (gap - length, row))
    return rows
