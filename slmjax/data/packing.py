"""Packing as a plan: the pieces of documents in row r of a source, for any r, without any text."""

import math

import numpy as np
from jaxtyping import Float, Int

from slmjax.data.best_fit import best_fit_decreasing
from slmjax.data.seeded import Recent, random_bits, unit_floats
from slmjax.data.spans import DocumentSpan, PackedRows, Spans, longest, packed_rows
from slmjax.errors import UserError, nearest

PACKINGS = ("best_fit", "concat")
# Part of the data order: another value gives other rows. 512 rows are enough for best-fit to close
# nearly every row with whole documents, and few enough that a window is packed in milliseconds.
WINDOW_ROWS = 512
# Below this bound attention costs nearly the same, and more documents would be cut.
LEAST_BOUND = 8
# The two settings of an epoch that visits documents in the order of a score. Each document may move
# forward by SCORE_NOISE of the epoch's tokens, so that neighbours are mixed anew in every epoch. A
# tenth keeps the order (rank correlation of row and score 0.99) and lets a row's documents differ.
SCORE_NOISE = 0.1
# The rows of a window are shuffled, so a window is at most a sixteenth of such an epoch.
SCORE_WINDOWS = 16
# A bound on documents is tried on so many windows; the rest keeps to it all the same.
SAMPLE_WINDOWS = 4
# First bound that is tried, as a multiple of the average number of documents in a row.
FIRST_BOUND = 1.25


class RowPlan:
    """Row r of one source, for every r >= 0, as a pure function of (document lengths, seed, r).

    An epoch is a seeded permutation of the documents. They are laid end to end and used up in rows
    of `seq_len` tokens; row `rows_per_epoch` starts the next epoch with another permutation. Less
    than one row is left over at the end of an epoch.

    "concat" cuts the stream at row edges. "best_fit" takes windows of 512 rows' worth of it and
    packs each window by best-fit-decreasing (see `best_fit_decreasing`): most documents stay whole
    and short ones are spread over all rows. Documents longer than a row are cut in rows first. The
    few that do not fit whole fill the remaining gaps, so that every row is full.

    Args:
      lengths: tokens of each stored document, its leading end-of-text token included.
      seq_len: tokens of a row.
      seed, name: with the epoch they decide the order; errors call the source by `name`.
      packing: "best_fit" or "concat".
      scores: a number for each document. An epoch visits documents from low to high, mixed over a
        tenth of it (equal scores wholly); None: in random order.
      max_segments: most spans of a row; None: as many as the text needs (`bound`). Where more would
        fall into a row, the shortest are left out and the row ends in padding (`dropped_share`).
    Attributes: max_segments (the given one, or the bound), rows_per_epoch, tokens.
    Raises: UserError where all documents together are shorter than one row, or for an unknown
      packing.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, "docs"],
        seq_len: int,
        *,
        seed: int,
        packing: str,
        max_segments: int | None,
        name: str = "the text",
        scores: Float[np.ndarray, "docs"] | None = None,
    ):
        if packing not in PACKINGS:
            raise UserError(
                f"data.packing is '{packing}'; expected one of {', '.join(PACKINGS)}."
                f"{nearest(packing, PACKINGS)}"
            )
        self._lengths = np.asarray(lengths, np.int64)
        self._seq_len = seq_len
        self._packing = packing
        self._key = (seed, name)
        self._scores = scores
        self.tokens = int(self._lengths.sum())
        self.rows_per_epoch = self.tokens // seq_len
        if not self.rows_per_epoch:
            raise UserError(
                f"{name} has {self.tokens} tokens, which is shorter than one sequence of "
                f"data.seq_len={seq_len}: add text or lower data.seq_len."
            )
        self._window_rows = WINDOW_ROWS
        if scores is not None:
            rows = self.rows_per_epoch // SCORE_WINDOWS
            self._window_rows = max(1, min(WINDOW_ROWS, rows))
        self._windows_per_epoch = math.ceil(self.rows_per_epoch / self._window_rows)
        # A batch lies in two epochs at most, and in few windows.
        self._epochs = Recent(2)
        self._windows = Recent(8)
        self.max_segments = max_segments or self.bound()

    def row(self, r: int) -> tuple[DocumentSpan, ...]:
        """Return the spans of row r in order: `seq_len` tokens, fewer where some were left out."""
        epoch, row = divmod(r, self.rows_per_epoch)
        if self._packing == "concat":
            return tuple(self._cut_row(epoch, row).tuples())
        # Rows are mostly asked for in order, and a window is packed as a whole.
        window, row = divmod(row, self._window_rows)
        packed = self._windows.get(
            (epoch, window), lambda: self._pack(epoch, window, self.max_segments)
        )
        return packed.row(row)

    @property
    def mean_segments(self) -> float:
        """Spans of a row, on average over an epoch."""
        if self._packing == "concat":
            # Every document starts one span, and every row edge cuts one in two.
            return 1 + len(self._lengths) / self.rows_per_epoch
        pieces = -(-self._lengths // self._seq_len)
        return int(pieces.sum()) / self.rows_per_epoch

    def bound(self) -> int:
        """Return a small multiple of 4 that the spans of no row need exceed.

        For "best_fit" it is the least one, tried in steps of an eighth from 1.25 x the average of a
        row, at which a sample of windows leaves nothing out. For "concat" it is the most that any
        row of the first epoch holds.
        """
        if self._packing == "concat":
            _, edges = self._epoch(0)
            row_of_start = edges[:-1] // self._seq_len
            starts = np.bincount(row_of_start)[: self.rows_per_epoch]
            # One more for the end of a document that started in an earlier row.
            return _multiple_of_four(int(starts.max()) + 1)
        sample = _spread(self._windows_per_epoch, SAMPLE_WINDOWS)
        if self._scores is not None:
            # Scores may go with length: then the last window is the one that needs most.
            sample.append(self._windows_per_epoch - 1)
        first_bound = int(FIRST_BOUND * self.mean_segments) + 1
        bound = _multiple_of_four(max(LEAST_BOUND, first_bound))
        while any(self._pack(0, window, bound).dropped for window in sample):
            bound = _multiple_of_four(9 * bound // 8)
        return bound

    def dropped_share(self, rows: int = 4096) -> float:
        """Return the share of tokens that `max_segments` leaves out.

        It is that of the first epoch where this has at most `rows` rows, else of an even sample.
        """
        tokens = dropped = 0
        if self._packing == "concat":
            for row in _spread(self.rows_per_epoch, rows):
                kept = self._cut_row(0, row).lengths
                tokens += self._seq_len
                dropped += self._seq_len - int(kept.sum())
        else:
            windows = max(1, rows // self._window_rows)
            for window in _spread(self._windows_per_epoch, windows):
                packed = self._pack(0, window, self.max_segments)
                tokens += packed.tokens
                dropped += packed.dropped
        return dropped / tokens

    def _cut_row(self, epoch: int, row: int) -> Spans:
        """Return a row of "concat": the stream between two row edges."""
        start = row * self._seq_len
        spans = self._stream(epoch, start, start + self._seq_len)
        return spans.pick(longest(spans.lengths, self.max_segments))

    def _pack(self, epoch: int, window: int, max_segments: int) -> PackedRows:
        """Return the packed rows of one window of "best_fit"."""
        size = self._seq_len
        first_row = window * self._window_rows
        rows = min(self._window_rows, self.rows_per_epoch - first_row)
        start = first_row * size
        stream = self._stream(epoch, start, start + rows * size)
        pieces = stream.cut(size)
        # For each span of the packed rows: [spans].
        row, piece, inside, length = best_fit_decreasing(pieces.lengths, rows, size, max_segments)

        # Packing puts the longest documents into the first rows and the shortest into the last.
        # Rows are shuffled, and the spans of a row stand in the order of the stream, so that
        # neither place nor batch says anything about length.
        bits = random_bits(rows, "rows", *self._key, epoch, window)
        new_row = np.argsort(bits, kind="stable")
        row = new_row[row]
        order = np.lexsort((inside, piece, row))
        piece = piece[order]
        offsets = pieces.offsets[piece] + inside[order]
        spans = Spans(pieces.docs[piece], offsets, length[order])
        return packed_rows(
            spans,
            row[order],
            rows=rows,
            capacity=size,
            max_segments=max_segments,
        )

    def _stream(self, epoch: int, start: int, stop: int) -> Spans:
        """Return the pieces of documents that make up tokens [start, stop) of an epoch's stream."""
        order, edges = self._epoch(epoch)
        # Places in the order of the first document, and of the one behind the last.
        first = int(np.searchsorted(edges, start, "right")) - 1
        last = int(np.searchsorted(edges, stop, "left"))
        begins = edges[first:last]
        ends = np.minimum(edges[first + 1 : last + 1], stop)
        # Only the first document may begin before `start`.
        offsets = np.maximum(start - begins, 0)
        lengths = ends - begins - offsets
        spans = Spans(order[first:last], offsets, lengths)
        # A document without tokens has no piece.
        return spans.pick(lengths > 0)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the documents of an epoch in order, and the token at which each begins.

        The last edge, one more than documents, is where the stream ends.
        """
        return self._epochs.get(epoch, lambda: self._permute(epoch))

    def _permute(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        bits = random_bits(len(self._lengths), "documents", *self._key, epoch)
        if self._scores is None:
            order = np.argsort(bits, kind="stable")
        else:
            order = self._order_by_score(bits)
        # In tokens of the stream, [docs + 1]; a row is found in them by bisection.
        ends = np.cumsum(self._lengths[order])
        edges = np.concatenate([[0], ends])
        return order, edges

    def _order_by_score(self, bits: np.ndarray) -> np.ndarray:
        """Return the documents from low to high score, each moved forward by some noise."""
        # Documents with equal scores are in random order.
        ranked = np.lexsort((bits, self._scores))
        noise = unit_floats(bits[ranked]) * SCORE_NOISE
        # Where each document ends in the epoch, as a share of its tokens.
        place = np.cumsum(self._lengths[ranked]) / self.tokens
        order = np.argsort(place + noise, kind="stable")
        return ranked[order]


def first_fit(
    lengths: Int[np.ndarray, "docs"], seq_len: int, max_segments: int, open_rows: int = 64
) -> list[tuple[DocumentSpan, ...]]:
    """Return rows that hold every document once.

    Documents are cut every `seq_len` tokens, and each piece goes into the first row that takes it.
    Only the latest `open_rows` rows are tried, so that time stays linear in the documents.
    """
    documents = len(lengths)
    whole = Spans(
        docs=np.arange(documents),
        offsets=np.zeros(documents, np.int64),
        lengths=np.asarray(lengths, np.int64),
    )
    rows: list[list[DocumentSpan]] = []
    free: list[int] = []  # tokens that each row still takes
    for span in whole.cut(seq_len).tuples():
        oldest = max(0, len(rows) - open_rows)
        for row in range(oldest, len(rows)):
            has_place = len(rows[row]) < max_segments
            if has_place and free[row] >= span.length:
                break
        else:
            # No open row takes it.
            row = len(rows)
            rows.append([])
            free.append(seq_len)
        rows[row].append(span)
        free[row] -= span.length
    return [tuple(row) for row in rows]


def _multiple_of_four(count: int) -> int:
    """Return the next multiple of 4: a little more text does not mean another compiled program."""
    return -(-count // 4) * 4


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0..count-1, evenly spaced."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]
