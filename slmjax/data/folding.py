"""Rows of text between reading and training: the compact form that is sent, and the full arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slmjax.data.rows import Arrays
from slmjax.data.spans import DocumentSpan

# A row to read: its ShardSet, and the spans of its documents.
RowSpans = tuple[Any, Sequence[DocumentSpan]]


def fold(rows: Sequence[RowSpans], seq_len: int) -> Arrays:
    """Read rows, given as (ShardSet, spans), into a compact form.

    The five arrays of a batch follow from it (`unfold`), and it is a fifth of their size.

    Returns:
      tokens: int32 [rows, T], spans end to end and zeros behind them.
      spans: int32 [rows], how many each row has.
      lengths, last: int32 [spans of all rows], length and last target of every span in order.
    """
    shape = (len(rows), seq_len)
    tokens = np.zeros(shape, np.int32)
    counts = []
    lengths = []
    last = []
    for line, (shards, spans) in zip(tokens, rows):
        counts.append(len(spans))
        start = 0
        for doc, offset, length in spans:
            # One token more than the span has: the target of its last one.
            text = shards.read(doc, offset, length)
            line[start : start + length] = text[:-1]
            lengths.append(length)
            last.append(text[-1])
            start += length
    return {
        "tokens": tokens,
        "spans": np.array(counts, np.int32),
        "lengths": np.array(lengths, np.int32),
        "last": np.array(last, np.int32),
    }


def unfold(folded: Mapping[str, np.ndarray]) -> Arrays:
    """Return the batch that `fold` has read: tokens, targets, segments, positions and weights.

    Each is [rows, T]. Behind a row's spans is padding: zeros, segment 0, weight 0.
    """
    tokens = folded["tokens"]
    counts = folded["spans"]
    rows, seq_len = tokens.shape

    # Every row gets one more span for its padding, which may be empty: then the spans together
    # cover all places of the batch, and each array is one `repeat` over their lengths.
    lengths = folded["lengths"]
    row_of_span = np.repeat(np.arange(rows), counts)
    # Tokens that the spans of each row have together: [rows].
    used = np.bincount(row_of_span, lengths, rows).astype(np.int64)
    behind_row = np.cumsum(counts)
    all_text = np.ones(len(lengths), bool)
    is_text = np.insert(all_text, behind_row, False)  # [spans and paddings]
    lengths = np.insert(lengths, behind_row, seq_len - used)
    stops = np.cumsum(lengths)
    starts = stops - lengths

    # Spans are numbered from 1 in each row; padding is 0.
    first_of_row = behind_row - counts + np.arange(rows)
    number = np.arange(1, len(lengths) + 1)
    number -= np.repeat(first_of_row, counts + 1)
    number = np.where(is_text, number, 0).astype(np.int32)
    segments = np.repeat(number, lengths).reshape(rows, seq_len)

    # Positions count from the start of each span. They are flat until the end: [rows x T].
    start_of_place = np.repeat(starts.astype(np.int32), lengths)
    positions = np.arange(tokens.size, dtype=np.int32) - start_of_place
    if used.sum() < tokens.size:
        positions *= segments.reshape(-1) > 0

    # The target of a token is its neighbour, except at the end of a span: there it was read.
    targets = np.zeros_like(tokens)
    targets[:, :-1] = tokens[:, 1:]
    last_of_span = stops[is_text] - 1
    targets.reshape(-1)[last_of_span] = folded["last"]
    return {
        "tokens": tokens,
        "targets": targets,
        "segments": segments,
        "positions": positions.reshape(rows, seq_len),
        "weights": (segments > 0).astype(np.float32),
    }
