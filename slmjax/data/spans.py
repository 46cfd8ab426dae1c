"""Spans of documents: as arrays while a plan is made, as tuples once a row is read."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class DocumentSpan(NamedTuple):
    """`length` tokens of document `doc` from its token `offset` on.

    Token 0 is the end-of-text token that leads the document.
    """

    doc: int
    offset: int
    length: int


class Spans(NamedTuple):
    """Many spans, one entry each in three arrays of the same length."""

    docs: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def pick(self, index: np.ndarray | slice) -> "Spans":
        """Return the spans of an index, a mask or a slice."""
        return Spans(self.docs[index], self.offsets[index], self.lengths[index])

    def tuples(self) -> list[DocumentSpan]:
        """Return the spans one by one."""
        # Lists of Python's integers: a span that is read again and again is faster with them.
        columns = self.docs.tolist(), self.offsets.tolist(), self.lengths.tolist()
        return list(map(DocumentSpan, *columns))

    def cut(self, size: int) -> "Spans":
        """Return the spans with those longer than `size` cut into parts of `size` and a rest."""
        # How many parts each span is cut into: [spans]. What follows is [parts of all spans].
        parts = -(-self.lengths // size)
        # Number of each part within its span: 0, 1, ..., 0, 1, ...
        first_part = np.cumsum(parts) - parts
        number = np.arange(parts.sum()) - np.repeat(first_part, parts)
        start = number * size
        return Spans(
            np.repeat(self.docs, parts),
            np.repeat(self.offsets, parts) + start,
            np.minimum(np.repeat(self.lengths, parts) - start, size),
        )


class PackedRows(NamedTuple):
    """Packed rows: the spans of row r are spans[edges[r] : edges[r + 1]].

    `dropped` tokens of the `tokens` that were to be packed were left out.
    """

    spans: list[DocumentSpan]
    edges: list[int]
    tokens: int
    dropped: int

    def row(self, r: int) -> tuple[DocumentSpan, ...]:
        """Return the spans of row r, in order."""
        return tuple(self.spans[self.edges[r] : self.edges[r + 1]])


def packed_rows(
    spans: Spans,
    row: Int[np.ndarray, "spans"],
    *,
    rows: int,
    capacity: int,
    max_segments: int,
) -> PackedRows:
    """Return rows of at most `max_segments` spans; where there are more, the shortest are left out.

    Args:
      spans: sorted by row.
      row: of each span.
      rows, capacity: number of rows, and tokens of each.
    """
    counts = np.bincount(row, minlength=rows)
    keep = np.ones(len(row), bool)
    # Few rows are crowded where `max_segments` follows from the text.
    for crowded in np.flatnonzero(counts > max_segments):
        inside = np.flatnonzero(row == crowded)
        kept = longest(spans.lengths[inside], max_segments)
        keep[inside] = False
        keep[inside[kept]] = True
    kept_counts = np.bincount(row[keep], minlength=rows)
    edges = [0, *np.cumsum(kept_counts).tolist()]
    dropped = int(spans.lengths[~keep].sum())
    return PackedRows(spans.pick(keep).tuples(), edges, rows * capacity, dropped)


def longest(lengths: Int[np.ndarray, "spans"], count: int) -> np.ndarray | slice:
    """Return the index of the `count` longest spans, in their order."""
    if len(lengths) <= count:
        return slice(None)
    # Stable: of equally long spans the first stay, on every machine.
    by_length = np.argsort(-lengths, kind="stable")
    return np.sort(by_length[:count])
