"""Packing as a plan: which pieces of which documents make up row r of a source, for any r, without reading any text."""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from slmjax.data.best_fit import best_fit_decreasing
from slmjax.errors import UserError, nearest

PACKINGS = ("best_fit", "concat")
# Part of the data order: another value gives other rows. 512 rows are enough for best-fit to close nearly every row with whole
# documents, and few enough that a window is packed in milliseconds.
WINDOW_ROWS = 512
LEAST_BOUND = 8  # below it attention costs nearly the same and more documents would be cut
# Of an epoch whose documents are visited in the order of a score: each may move forward by this share of its tokens, so that neighbours are
# mixed anew in every epoch, and windows are at most a sixteenth of it, since a window's rows are shuffled. A tenth keeps the order (rank
# correlation of row and score 0.99) and lets a row's documents differ.
SCORE_NOISE = 0.1
SCORE_WINDOWS = 16
SAMPLE_WINDOWS = 4  # of which a bound on documents is tried; the rest keeps to it all the same


class DocumentSpan(NamedTuple):
    """`length` tokens of document `doc`, from its token `offset` on (0 is the leading end-of-text token)."""

    doc: int
    offset: int
    length: int


class RowPlan:
    """Row r of one source, for every r >= 0, as a pure function of (document lengths, seed, r).

    An epoch is a seeded permutation of the documents, laid end to end and used up in rows of `seq_len` tokens; row
    `rows_per_epoch` starts the next epoch with another permutation. Less than one row is left over at the end of an epoch.

    "concat" cuts the stream at row edges. "best_fit" takes windows of 512 rows' worth of it and packs each window by
    best-fit-decreasing (see `best_fit_decreasing`), so that most documents stay whole and short ones are spread over all rows;
    documents longer than a row are cut in rows first, and the few that do not fit whole fill the remaining gaps, so that every row is full.

    Args:
      lengths: tokens of each stored document, its leading end-of-text token included.
      seq_len: tokens of a row.
      seed, name: with the epoch they decide the order; `name` also stands in messages.
      packing: "best_fit" or "concat".
      scores: a number for each document: an epoch visits documents from low to high, mixed over a tenth of it (equal scores wholly);
        None: in random order.
      max_segments: most spans of a row; None: as many as the text needs (`bound`). Where more would fall into one, the shortest
        are left out and the row ends in padding (`dropped_share` says how much that is).
    Attributes: max_segments (as given or found), rows_per_epoch, tokens.
    Raises: UserError where all documents together are shorter than one row, or the packing has no such name.
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
                f"data.packing is '{packing}'; expected one of {', '.join(PACKINGS)}.{nearest(packing, PACKINGS)}"
            )
        self._lengths = np.asarray(lengths, np.int64)
        self._seq_len, self._packing, self._key, self._scores = (
            seq_len,
            packing,
            (seed, name),
            scores,
        )
        self.tokens = int(self._lengths.sum())
        self.rows_per_epoch = self.tokens // seq_len
        if not self.rows_per_epoch:
            raise UserError(
                f"{name} has {self.tokens} tokens, which is shorter than one sequence of data.seq_len={seq_len}: "
                "add text or lower data.seq_len."
            )
        self._window = (
            WINDOW_ROWS
            if scores is None
            else max(1, min(WINDOW_ROWS, self.rows_per_epoch // SCORE_WINDOWS))
        )
        self._epochs, self._windows = Recent(2), Recent(8)
        self.max_segments = max_segments or self.bound()

    def row(self, r: int) -> tuple[DocumentSpan, ...]:
        """The spans of row r in order: `seq_len` tokens together, fewer where `max_segments` left some out."""
        epoch, row = divmod(r, self.rows_per_epoch)
        if self._packing == "concat":
            return self._concat(epoch, row)[0]
        window, row = divmod(row, self._window)
        return self._windows.get(
            (epoch, window), lambda: self._pack(epoch, window, self.max_segments)
        ).row(row)

    @property
    def mean_segments(self) -> float:
        """Spans of a row, on average over an epoch."""
        if self._packing == "concat":
            return 1 + len(self._lengths) / self.rows_per_epoch
        return int((-(-self._lengths // self._seq_len)).sum()) / self.rows_per_epoch

    def bound(self) -> int:
        """A small multiple of 4 that no row need exceed.

        For "best_fit" the least one, tried in steps of an eighth from 1.25 x the average of a row, at which a sample of windows
        leaves nothing out; for "concat" the most that any row of the first epoch holds.
        """
        if self._packing == "concat":
            _, edges = self._epochs.get(0, lambda: self._permute(0))
            starts = np.bincount(edges[:-1] // self._seq_len)[: self.rows_per_epoch]
            return _of_four(
                int(starts.max()) + 1
            )  # and the end of one that started in an earlier row
        bound = _of_four(max(LEAST_BOUND, int(1.25 * self.mean_segments) + 1))
        sample = _spread(math.ceil(self.rows_per_epoch / self._window), SAMPLE_WINDOWS)
        if (
            self._scores is not None
        ):  # which may go with length: then the last window is the one that needs most
            sample.append(math.ceil(self.rows_per_epoch / self._window) - 1)
        while any(self._pack(0, window, bound).dropped for window in sample):
            bound = _of_four(9 * bound // 8)
        return bound

    def dropped_share(self, rows: int = 4096) -> float:
        """Share of tokens that `max_segments` leaves out: of the first epoch where it has at most `rows` rows, else of an even sample."""
        if self._packing == "concat":
            sample = _spread(self.rows_per_epoch, rows)
            dropped = sum(self._concat(0, row)[1] for row in sample)
            return dropped / (len(sample) * self._seq_len)
        sample = _spread(
            math.ceil(self.rows_per_epoch / self._window), max(1, rows // self._window)
        )
        windows = [self._pack(0, window, self.max_segments) for window in sample]
        return sum(w.dropped for w in windows) / sum(w.tokens for w in windows)

    def _concat(self, epoch: int, row: int) -> tuple[tuple[DocumentSpan, ...], int]:
        docs, offsets, lengths = self._stream(epoch, row * self._seq_len, (row + 1) * self._seq_len)
        keep = longest(lengths, self.max_segments)
        spans = tuple(
            map(DocumentSpan, docs[keep].tolist(), offsets[keep].tolist(), lengths[keep].tolist())
        )
        return spans, self._seq_len - int(lengths[keep].sum())

    def _pack(self, epoch: int, window: int, max_segments: int) -> "_Window":
        """The packed rows of one window."""
        size = self._seq_len
        rows = min(self._window, self.rows_per_epoch - window * self._window)
        start = window * self._window * size
        docs, offsets, lengths = _cut(*self._stream(epoch, start, start + rows * size), size)
        row, piece, inside, length = best_fit_decreasing(lengths, rows, size, max_segments)
        # Packing puts the longest documents into the first rows and the shortest into the last: rows are shuffled, and the
        # spans of a row stand in the order of the stream, so that neither place nor batch says anything about length.
        row = np.argsort(random_bits(rows, "rows", *self._key, epoch, window), kind="stable")[row]
        order = np.lexsort((inside, piece, row))
        row, piece, inside, length = row[order], piece[order], inside[order], length[order]
        return _Window.of(
            row, docs[piece], offsets[piece] + inside, length, rows, size, max_segments
        )

    def _stream(
        self, epoch: int, start: int, stop: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Documents, offsets and lengths of the pieces that make up tokens [start, stop) of an epoch's stream."""
        order, edges = self._epochs.get(epoch, lambda: self._permute(epoch))
        first = int(np.searchsorted(edges, start, "right")) - 1
        last = int(np.searchsorted(edges, stop, "left"))
        offsets = np.maximum(start - edges[first:last], 0)
        lengths = np.minimum(edges[first + 1 : last + 1], stop) - edges[first:last] - offsets
        some = lengths > 0
        return order[first:last][some], offsets[some], lengths[some]

    def _permute(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        bits = random_bits(len(self._lengths), "documents", *self._key, epoch)
        if self._scores is None:
            order = np.argsort(bits, kind="stable")
        else:
            ranked = np.lexsort((bits, self._scores))
            noise = (bits[ranked] >> np.uint64(11)).astype(np.float64) * 2.0**-53 * SCORE_NOISE
            order = ranked[
                np.argsort(np.cumsum(self._lengths[ranked]) / self.tokens + noise, kind="stable")
            ]
        return order, np.concatenate([[0], np.cumsum(self._lengths[order])])


def first_fit(
    lengths: Int[np.ndarray, "docs"], seq_len: int, max_segments: int, open_rows: int = 64
) -> list[tuple[DocumentSpan, ...]]:
    """Rows that hold every document once: each piece (documents are cut every `seq_len` tokens) goes into the first row that takes it.

    Only the latest `open_rows` rows are tried, so that time stays linear in the documents.
    """
    rows: list[list[DocumentSpan]] = []
    free: list[int] = []
    pieces = _cut(
        np.arange(len(lengths)),
        np.zeros(len(lengths), np.int64),
        np.asarray(lengths, np.int64),
        seq_len,
    )
    for span in map(DocumentSpan, *(column.tolist() for column in pieces)):
        recent = range(max(0, len(rows) - open_rows), len(rows))
        row = next(
            (r for r in recent if free[r] >= span.length and len(rows[r]) < max_segments), len(rows)
        )
        if row == len(rows):
            rows.append([])
            free.append(seq_len)
        rows[row].append(span)
        free[row] -= span.length
    return [tuple(row) for row in rows]


def random_bits(count: int, *key: int | str) -> UInt64[np.ndarray, "count"]:
    """`count` random 64-bit words that depend on nothing but the key: Philox's raw stream, which numpy never changes between versions."""
    return np.random.Philox(
        key=int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:16], "little")
    ).random_raw(count)


class Recent:
    """The latest results of pure functions, by key; safe between threads. A copy or a pickle of it starts empty."""

    def __init__(self, size: int):
        self._size, self._kept, self._lock = size, OrderedDict(), threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returned for this key, made now where it is not among the latest."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                if len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def __reduce__(self):
        return Recent, (self._size,)


def longest(lengths: Int[np.ndarray, "spans"], count: int) -> np.ndarray | slice:
    """Index of the `count` longest spans, in their order."""
    if len(lengths) <= count:
        return slice(None)
    return np.sort(np.argsort(-lengths, kind="stable")[:count])


class _Window(NamedTuple):
    """Packed rows: the spans of row r are spans[edges[r]:edges[r + 1]]."""

    spans: list[DocumentSpan]
    edges: list[int]
    tokens: int
    dropped: int

    def row(self, r: int) -> tuple[DocumentSpan, ...]:
        return tuple(self.spans[self.edges[r] : self.edges[r + 1]])

    @classmethod
    def of(
        cls, row, docs, offsets, lengths, rows: int, capacity: int, max_segments: int
    ) -> "_Window":
        """From one entry a span, sorted by row."""
        counts = np.bincount(row, minlength=rows)
        keep = np.ones(len(row), bool)
        for crowded in np.flatnonzero(counts > max_segments):
            inside = np.flatnonzero(row == crowded)
            keep[inside] = False
            keep[inside[longest(lengths[inside], max_segments)]] = True
        spans = list(
            map(DocumentSpan, docs[keep].tolist(), offsets[keep].tolist(), lengths[keep].tolist())
        )
        edges = [0, *np.cumsum(np.bincount(row[keep], minlength=rows)).tolist()]
        return cls(spans, edges, rows * capacity, int(lengths[~keep].sum()))


def _cut(
    docs: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut pieces longer than `size` into pieces of `size` and a remainder."""
    parts = -(-lengths // size)
    start = (np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)) * size
    return (
        np.repeat(docs, parts),
        np.repeat(offsets, parts) + start,
        np.minimum(np.repeat(lengths, parts) - start, size),
    )


def _of_four(count: int) -> int:
    """The next multiple of 4, so that a little more text does not mean another compiled program."""
    return -(-count // 4) * 4


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..count-1, evenly spaced."""
    return [i * count // min(count, most) for i in range(min(count, most))]
