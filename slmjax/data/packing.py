"""Packing as a plan: which pieces of documents are in row r of a source, known without any text."""

import math

import numpy as np
from jaxtyping import Float, Int

from slmjax.data.best_fit import best_fit_decreasing
from slmjax.data.seeded import Recent, random_bits, unit_floats
from slmjax.data.spans import DocumentSpan, PackedRows, Spans, longest, packed_rows
from slmjax.errors import UserError, nearest

PACKINGS = ("best_fit", "concat")
# Rows that are packed together. Part of the data order: another value gives other rows. 512 rows
# are enough for best-fit to fill nearly every row with whole documents, and few enough to be packed
# in milliseconds.
WINDOW_ROWS = 512
# Two settings for epochs that visit documents in the order of a score. A document may come later by
# up to SCORE_NOISE of the epoch's tokens, so that neighbours are mixed anew in every epoch. A tenth
# keeps the order (rank correlation of row and score 0.99) and lets a row's documents differ.
SCORE_NOISE = 0.1
# The rows of a window are shuffled, so such an epoch has at least this many windows.
SCORE_WINDOWS = 16
# `RowPlan.bound` returns at least this many documents for a row: with fewer, attention would cost
# nearly the same and more documents would be cut.
LEAST_BOUND = 8
# First bound that it tries, as a multiple of the average number of documents in a row.
FIRST_BOUND = 1.25
# Windows on which it tries each bound.
SAMPLE_WINDOWS = 4


class RowPlan:
    """Row r of one source, for every r >= 0, as a pure function of (document lengths, seed, r).

    An epoch is a seeded permutation of the documents, laid end to end as a stream of tokens. It has
    `rows_per_epoch` rows of `seq_len` tokens; the rest of the stream, less than one row, is not
    read. The next row begins the next epoch, with another permutation.

    "concat" cuts the stream at row edges. "best_fit" cuts it into windows of 512 rows' worth of
    tokens. Documents longer than a row are cut into rows. Then each window is packed by
    `best_fit_decreasing`: most documents stay whole, short ones are spread over all rows, and a few
    are split to fill the remaining gaps, so that every row is full.

    Args:
      lengths: tokens of each stored document, its leading end-of-text token included.
      seq_len: tokens of a row.
      seed, name: with the number of the epoch they decide its order. `name` is the source's.
      packing: "best_fit" or "concat".
      max_segments: most spans of a row; None: as many as the text needs (`bound`). Where a row
        would have more, the shortest are left out and it ends in padding (`dropped_share`).
      scores: a number for each document. An epoch visits documents roughly from low to high score,
        see SCORE_NOISE; None: in random order.
    Attributes: max_segments (the given one, or the bound), rows_per_epoch, seq_len, tokens.
    Raises: UserError where all documents together are shorter than one row, or for an unknown
      packing.
    """

    segments_per_document = 1  # as of WholeRowPlan, whose pairs have two

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
        self.seq_len = seq_len
        self._packing = packing
        self._random_key = (seed, name)
        self._scores = scores  # [docs] or None
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
        # Most batches lie in one or two epochs, and in few windows.
        self._epochs = Recent(2)
        self._windows = Recent(8)
        self.max_segments = max_segments or self.bound()

    def left_out(self) -> str:
        """Return in words how much of the text is in no row; "" for nothing."""
        share = self.dropped_share()
        if not share:
            return ""
        return f"{share:.2%} (more than {self.max_segments} documents in a row)"

    def row(self, r: int) -> tuple[DocumentSpan, ...]:
        """Return the spans of row r in order: `seq_len` tokens, fewer where some were left out."""
        epoch, row = divmod(r, self.rows_per_epoch)
        if self._packing == "concat":
            return tuple(self._cut_row(epoch, row).tuples())
        # A window is packed as a whole, and kept: its other rows are likely to be read next.
        window, row = divmod(row, self._window_rows)
        packed = self._windows.get(
            (epoch, window), lambda: self._pack(epoch, window, self.max_segments)
        )
        return packed.row(row)

    @property
    def size(self) -> int:
        """Tokens of an epoch, by which sources are weighted where no weight is given."""
        return self.tokens

    @property
    def mean_segments(self) -> float:
        """Spans of a row, on average over an epoch."""
        if self._packing == "concat":
            # Every document begins a span, and so does every row (with the rest of a document).
            return 1 + len(self._lengths) / self.rows_per_epoch
        pieces = -(-self._lengths // self.seq_len)
        return int(pieces.sum()) / self.rows_per_epoch

    def bound(self) -> int:
        """Return a bound on the spans of a row, a multiple of 4 with which little text is left out.

        For "concat" it is the most spans of any row of the first epoch. For "best_fit" it begins at
        1.25 x the average of a row and grows by an eighth until a sample of windows leaves nothing
        out.
        """
        if self._packing == "concat":
            _, edges = self._epoch(0)
            row_of_start = edges[:-1] // self.seq_len
            starts = np.bincount(row_of_start)[: self.rows_per_epoch]
            # One more for the rest of a document that starts in an earlier row.
            return _multiple_of_four(int(starts.max()) + 1)
        sample = _spread(self._windows_per_epoch, SAMPLE_WINDOWS)
        if self._scores is not None:
            # Scores may be related to length: then the last window may need the most spans.
            sample.append(self._windows_per_epoch - 1)
        first_bound = int(FIRST_BOUND * self.mean_segments) + 1
        bound = _multiple_of_four(max(LEAST_BOUND, first_bound))
        while any(self._pack(0, window, bound).dropped for window in sample):
            bound = _multiple_of_four(9 * bound // 8)
        return bound

    def dropped_share(self, rows: int = 4096) -> float:
        """Return the share of tokens that are left out because of `max_segments`.

        It is measured on about `rows` rows, evenly spaced in the first epoch.
        """
        tokens = dropped = 0
        if self._packing == "concat":
            for row in _spread(self.rows_per_epoch, rows):
                kept = self._cut_row(0, row).lengths
                tokens += self.seq_len
                dropped += self.seq_len - int(kept.sum())
        else:
            windows = max(1, rows // self._window_rows)
            for window in _spread(self._windows_per_epoch, windows):
                packed = self._pack(0, window, self.max_segments)
                tokens += packed.tokens
                dropped += packed.dropped
        return dropped / tokens

    def _cut_row(self, epoch: int, row: int) -> Spans:
        """Return the spans of a row of "concat": the stream between two row edges."""
        start = row * self.seq_len
        spans = self._stream(epoch, start, start + self.seq_len)
        return spans.pick(longest(spans.lengths, self.max_segments))

    def _pack(self, epoch: int, window: int, max_segments: int) -> PackedRows:
        """Return the rows of one window of "best_fit"."""
        seq_len = self.seq_len
        first_row = window * self._window_rows
        rows = min(self._window_rows, self.rows_per_epoch - first_row)
        start = first_row * seq_len
        stream = self._stream(epoch, start, start + rows * seq_len)
        pieces = stream.cut(seq_len)
        # Row, piece, offset inside the piece and length of each packed span: [spans].
        row, piece, inside, length = best_fit_decreasing(
            pieces.lengths, rows, seq_len, max_segments
        )

        # Packing puts the longest documents into the first rows and the shortest into the last. So
        # rows are shuffled, and the spans of a row are sorted as in the stream: the length of a
        # document does not depend on its place.
        bits = random_bits(rows, "rows", *self._random_key, epoch, window)
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
            capacity=seq_len,
            max_segments=max_segments,
        )

    def _stream(self, epoch: int, start: int, stop: int) -> Spans:
        """Return the pieces of documents that make up tokens [start, stop) of an epoch's stream."""
        order, edges = self._epoch(epoch)
        # Indices into `order` of the first document, and of the one behind the last.
        first = int(np.searchsorted(edges, start, "right")) - 1
        last = int(np.searchsorted(edges, stop, "left"))
        begins = edges[first:last]
        ends = np.minimum(edges[first + 1 : last + 1], stop)
        # 0 except for the first document, which may begin before `start`.
        offsets = np.maximum(start - begins, 0)
        lengths = ends - begins - offsets
        spans = Spans(order[first:last], offsets, lengths)
        # A document without tokens has no piece.
        return spans.pick(lengths > 0)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (order, edges) of an epoch, from memory where it is recent.

        order: [docs], the documents in the order of the stream.
        edges: [docs + 1], the token of the stream at which each begins, and the stream's end.
        """
        return self._epochs.get(epoch, lambda: self._permute(epoch))

    def _permute(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        bits = random_bits(len(self._lengths), "documents", *self._random_key, epoch)
        if self._scores is None:
            order = np.argsort(bits, kind="stable")
        else:
            order = self._order_by_score(bits)
        ends = np.cumsum(self._lengths[order])
        edges = np.concatenate([[0], ends])
        return order, edges

    def _order_by_score(self, bits: np.ndarray) -> np.ndarray:
        """Return the documents from low to high score, each moved towards the end by some noise.

        Args:
          bits: a random number for each document.
        """
        # Sorted by score; documents with equal scores are in random order.
        ranked = np.lexsort((bits, self._scores))
        noise = unit_floats(bits[ranked]) * SCORE_NOISE
        # Where each document ends, as a share of the epoch's tokens.
        place = np.cumsum(self._lengths[ranked]) / self.tokens
        order = np.argsort(place + noise, kind="stable")
        return ranked[order]


def first_fit(
    lengths: Int[np.ndarray, "docs"], seq_len: int, max_segments: int, open_rows: int = 64
) -> list[tuple[DocumentSpan, ...]]:
    """Return rows that hold every document once.

    Documents are cut every `seq_len` tokens, and each piece goes into the first row that has room
    for it and fewer than `max_segments` pieces. Only the latest `open_rows` rows are tried, so that
    the time stays linear in the documents.
    """
    document_count = len(lengths)
    whole_documents = Spans(
        docs=np.arange(document_count),
        offsets=np.zeros(document_count, np.int64),
        lengths=np.asarray(lengths, np.int64),
    )
    rows: list[list[DocumentSpan]] = []
    free: list[int] = []  # tokens that each row still takes
    for span in whole_documents.cut(seq_len).tuples():
        oldest = max(0, len(rows) - open_rows)
        for row in range(oldest, len(rows)):
            has_place = len(rows[row]) < max_segments
            if has_place and free[row] >= span.length:
                break
        else:
            # No open row takes the span: begin another row.
            row = len(rows)
            rows.append([])
            free.append(seq_len)
        rows[row].append(span)
        free[row] -= span.length
    return [tuple(row) for row in rows]


def _multiple_of_four(count: int) -> int:
    """Return `count` rounded up to a multiple of 4."""
    # A step is compiled for its bound; a little more text should not need another program.
    return -(-count // 4) * 4


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0..count-1, evenly spaced."""
    chosen = min(count, most)
    return [i * count // chosen for i in range(chosen)]
