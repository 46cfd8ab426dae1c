"""Rows of text between reading and training: the compact form that is sent, and the full arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slmjax.data.answer_mask import answer_mask, last_turn, next_is
from slmjax.data.rows import Arrays
from slmjax.data.spans import DocumentSpan
from slmjax.data.whole_rows import SEGMENTS_OF_KIND
from slmjax.text.chat_template import ChatIds
from slmjax.text.records import PAIRS, TEXT

# A row to read: its ShardSet, and the spans of its documents.
RowSpans = tuple[Any, Sequence[DocumentSpan]]


def fold(rows: Sequence[RowSpans], seq_len: int) -> Arrays:
    """Read rows, given as (ShardSet, spans), into a compact form.

    `unfold` makes the five arrays of a batch from it. It has a fifth of their size.

    Returns:
      tokens: int32 [rows, T], spans end to end and zeros behind them.
      spans: int32 [rows], how many spans each row has.
      lengths: int32 [spans of all rows], tokens of each span, row by row.
      last: int32 [spans of all rows], target of each span's last token.
      has_dialogues, is_pairs: bool [rows], whether a row holds dialogues, those of pairs among
        them, and whether it holds pairs. Left out where all rows are running text.

    A document of kind "pairs" becomes two spans: its two dialogues.
    """
    shape = (len(rows), seq_len)
    tokens = np.zeros(shape, np.int32)
    counts = []
    lengths = []
    last_targets = []
    kinds = [shards.kind for shards, _ in rows]
    for row_tokens, (shards, spans) in zip(tokens, rows):
        counts.append(len(spans) * SEGMENTS_OF_KIND[shards.kind])
        start = 0
        for doc, offset, length in spans:
            # [length + 1]: the last one is the target of the span's last token.
            span_tokens = shards.read(doc, offset, length)
            row_tokens[start : start + length] = span_tokens[:-1]
            start += length
            if shards.kind == PAIRS:
                # The only end-of-text behind the first token begins the second dialogue.
                (first_length,) = np.flatnonzero(span_tokens[1:-1] == shards.chat.eot) + 1
                lengths.append(first_length)
                last_targets.append(shards.chat.eot)
                length -= first_length
            lengths.append(length)
            last_targets.append(span_tokens[-1])
    folded = {
        "tokens": tokens,
        "spans": np.array(counts, np.int32),
        "lengths": np.array(lengths, np.int32),
        "last": np.array(last_targets, np.int32),
    }
    if any(kind != TEXT for kind in kinds):
        folded["has_dialogues"] = np.array([kind != TEXT for kind in kinds])
        folded["is_pairs"] = np.array([kind == PAIRS for kind in kinds])
    return folded


def unfold(folded: Mapping[str, np.ndarray], chat: ChatIds | None = None) -> Arrays:
    """Return the arrays of the batch that `fold` has read.

    They are tokens, targets, segments, positions and weights, each [rows, T]. Behind a row's spans
    is padding, which is 0 in all of them. Weights are 1 where the target is a token of running
    text, of an answer in a dialogue, or of the last answer in a dialogue of a pair.

    Args:
      chat: the ids that mark turns, where a row is not running text.
    """
    tokens = folded["tokens"]
    counts = folded["spans"]
    rows, seq_len = tokens.shape

    # Append to every row a span for its padding, which may be empty. Then the spans together cover
    # all rows x T tokens, and each array is one `repeat` over the lengths of the spans.
    lengths = folded["lengths"]
    row_of_span = np.repeat(np.arange(rows), counts)
    # Tokens of all spans of each row: [rows].
    used = np.bincount(row_of_span, lengths, rows).astype(np.int64)
    span_ends = np.cumsum(counts)  # [rows], index behind each row's last span
    all_text = np.ones(len(lengths), bool)
    is_text = np.insert(all_text, span_ends, False)  # [spans and paddings]
    lengths = np.insert(lengths, span_ends, seq_len - used)  # the same axis
    stops = np.cumsum(lengths)
    starts = stops - lengths

    # Segments: spans are numbered from 1 in each row; padding is 0.
    first_span = span_ends - counts + np.arange(rows)  # [rows], in the list with paddings
    segment = np.arange(1, len(lengths) + 1)
    segment -= np.repeat(first_span, counts + 1)
    segment = np.where(is_text, segment, 0).astype(np.int32)
    segments = np.repeat(segment, lengths).reshape(rows, seq_len)

    # Positions count from the start of each span: [rows * T], reshaped at the end.
    start_of_token = np.repeat(starts.astype(np.int32), lengths)
    positions = np.arange(tokens.size, dtype=np.int32) - start_of_token
    if used.sum() < tokens.size:
        # There is padding, whose positions are 0.
        positions *= segments.reshape(-1) > 0

    # The target of a token is the next one, but that of a span's last token was read by `fold`.
    targets = np.zeros_like(tokens)
    targets[:, :-1] = tokens[:, 1:]
    last_of_span = stops[is_text] - 1
    targets.reshape(-1)[last_of_span] = folded["last"]
    weights = (segments > 0).astype(np.float32)
    if "has_dialogues" in folded:
        dialogues = folded["has_dialogues"]
        is_answer = answer_mask(tokens, chat)
        # Of a pair only the last turns differ: earlier ones are its prompt.
        is_last = last_turn(tokens, segments, chat)
        is_answer &= is_last | ~folded["is_pairs"][:, None]
        weights[dialogues] = next_is(is_answer)[dialogues]
    return {
        "tokens": tokens,
        "targets": targets,
        "segments": segments,
        "positions": positions.reshape(rows, seq_len),
        "weights": weights,
    }
