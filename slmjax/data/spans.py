"""Spans of documents: many of them as arrays, or each as a tuple."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class DocumentSpan(NamedTuple):
    """`length` tokens of document `doc`, from token `offset` of the document on.

    Token 0 is the end-of-text token that leads the document.
    """

    doc: int
    offset: int
    length: int


class Spans(NamedTuple):
    """Many spans as three arrays: entry i of each is from span i."""

    docs: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def pick(self, index: np.ndarray | slice) -> "Spans":
        """Return the spans that an array of indices, a mask or a slice selects."""
        return Spans(self.docs[index], self.offsets[index], self.lengths[index])

    def tuples(self) -> list[DocumentSpan]:
        """Return the spans as a list of tuples."""
        # Converted to Python's integers, which are faster than numpy's to read one by one.
        columns = self.docs.tolist(), self.offsets.tolist(), self.lengths.tolist()
        return list(map(DocumentSpan, *columns))

    def cut(self, size: int) -> "Spans":
        """Return the spans with those longer than `size` cut into parts of `size` and a rest."""
        part_counts = -(-self.lengths // size)  # [spans], rounded up
        first_part = np.cumsum(part_counts) - part_counts  # [spans]
        # Number of each part within its span, such as 0, 1, 2, 0, 0, 1: [parts of all spans].
        number = np.arange(part_counts.sum()) - np.repeat(first_part, part_counts)
        start = number * size
        return Spans(
            np.repeat(self.docs, part_counts),
            np.repeat(self.offsets, part_counts) + start,
            np.minimum(np.repeat(self.lengths, part_counts) - start, size),
        )


class PackedRows(NamedTuple):
    """Rows of spans.

    spans, edges: the spans of row r are spans[edges[r] : edges[r + 1]].
    tokens, dropped: number of tokens that were to be packed, and how many of them were left out.
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
      spans: sorted by row; together they fill all rows exactly.
      row: the row of each span.
      rows, capacity: number of rows, and tokens of each.
    """
    counts = np.bincount(row, minlength=rows)
    keep = np.ones(len(row), bool)
    # A loop is fast enough: few rows have too many spans.
    for crowded_row in np.flatnonzero(counts > max_segments):
        indices = np.flatnonzero(row == crowded_row)
        kept = longest(spans.lengths[indices], max_segments)
        keep[indices] = False
        keep[indices[kept]] = True
    kept_counts = np.bincount(row[keep], minlength=rows)
    edges = [0, *np.cumsum(kept_counts).tolist()]
    dropped = int(spans.lengths[~keep].sum())
    return PackedRows(spans.pick(keep).tuples(), edges, rows * capacity, dropped)


def longest(lengths: Int[np.ndarray, "spans"], count: int) -> np.ndarray | slice:
    """Return an index of the `count` longest spans, in their old order; a slice if it is all."""
    if len(lengths) <= count:
        return slice(None)
    # A stable sort, so that on every machine the first of equally long spans are kept.
    by_length = np.argsort(-lengths, kind="stable")
    return np.sort(by_length[:count])
