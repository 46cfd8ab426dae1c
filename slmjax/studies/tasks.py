"""Synthetic tasks that show what a token mixer can remember: associative recall, selective copying, induction heads.

Each returns a batch as training takes it (tokens, targets, segments, positions [rows, length]; weights, which are 1 where an answer is
asked for and 0 elsewhere) and is a pure function of its arguments, the seed among them.
"""

import numpy as np
from jaxtyping import Shaped

Batch = dict[str, Shaped[np.ndarray, "rows length"]]


def associative_recall(rows: int, length: int, pairs: int, *, seed: int, vocab: int = 8192, power: float = 0.01) -> Batch:
    """Multi-query associative recall: `pairs` keys with their values, then each key once more, whose value is asked for.

    Keys are of the lower half of the vocabulary and values of the upper, none twice in a row. A key stands again at an even distance from
    the end of the pairs, drawn without repetition with weights n ** (power - 1): most soon, a few late. All other tokens are random.
    Source: Arora et al. 2023 (Zoology), section 4; figure 2 has (length, pairs) = (64, 4), (128, 8), (256, 16) of a vocabulary of 8,192.
    Raises: ValueError where the pairs and their queries do not fit into the length.
    """
    if length % 2 or 4 * pairs > length:
        raise ValueError(f"{pairs} pairs and {pairs} queries need an even length of at least {4 * pairs}; it is {length}.")
    random = np.random.default_rng(seed)
    keys = _distinct(random, rows, pairs, np.arange(1, vocab // 2))
    values = _distinct(random, rows, pairs, np.arange(vocab // 2, vocab))
    places = np.arange(1, (length - 2 * pairs) // 2 + 1)
    gaps = _distinct(random, rows, pairs, places - 1, np.log(places) * (power - 1))
    tokens, targets = random.integers(0, vocab, (rows, length)), np.zeros((rows, length), np.int64)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    asked = 2 * pairs + 2 * gaps
    np.put_along_axis(tokens, asked, keys, axis=1)
    np.put_along_axis(targets, asked, values, axis=1)
    return _batch(tokens, targets, asked)


def selective_copy(rows: int, length: int, copied: int = 16, *, seed: int, vocab: int = 16) -> Batch:
    """`copied` tokens scattered among noise, then as many marks, at which they are asked for in their order.

    Token 0 is noise and vocab - 1 the mark. Source: Gu and Dao 2023 (Mamba), section 4.1.1: 16 of 4,096 tokens, a vocabulary of 16.
    Raises: ValueError where they do not fit.
    """
    if 2 * copied > length:
        raise ValueError(f"{copied} tokens and {copied} marks need a length of at least {2 * copied}; it is {length}.")
    random = np.random.default_rng(seed)
    tokens, targets = np.zeros((2, rows, length), np.int64)
    places = np.sort(_distinct(random, rows, copied, np.arange(length - copied)), axis=1)
    drawn = random.integers(1, vocab - 1, (rows, copied))
    np.put_along_axis(tokens, places, drawn, axis=1)
    tokens[:, -copied:], targets[:, -copied:] = vocab - 1, drawn
    return _batch(tokens, targets, np.tile(np.arange(length - copied, length), (rows, 1)))


def induction(rows: int, length: int, *, seed: int, vocab: int = 16) -> Batch:
    """Random tokens in which one special token stands twice, the second time at the end: what followed the first is asked for.

    The special token is vocab - 1. Source: Gu and Dao 2023 (Mamba), section 4.1.2: trained on 256 tokens of a vocabulary of 16.
    Raises: ValueError for rows that are too short.
    """
    if length < 3:
        raise ValueError(f"induction needs a length of at least 3; it is {length}.")
    random = np.random.default_rng(seed)
    tokens, targets = random.integers(0, vocab - 1, (rows, length)), np.zeros((rows, length), np.int64)
    first = random.integers(0, length - 2, (rows, 1))
    np.put_along_axis(tokens, first, vocab - 1, axis=1)
    tokens[:, -1:], targets[:, -1:] = vocab - 1, np.take_along_axis(tokens, first + 1, axis=1)
    return _batch(tokens, targets, np.full((rows, 1), length - 1))


def _distinct(random: np.random.Generator, rows: int, count: int, of: np.ndarray, log_weights: np.ndarray | None = None) -> np.ndarray:
    """[rows, count] of `of`, none twice in a row, in the order of their drawing (Gumbel's trick: the largest of log weight plus noise)."""
    noise = random.gumbel(size=(rows, len(of))) + (0.0 if log_weights is None else log_weights)
    return of[np.argsort(-noise, axis=1)[:, :count]]


def _batch(tokens: np.ndarray, targets: np.ndarray, asked: np.ndarray) -> Batch:
    weights = np.zeros(tokens.shape, np.float32)
    np.put_along_axis(weights, asked, 1.0, axis=1)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return {"tokens": tokens.astype(np.int32), "targets": targets.astype(np.int32), "segments": np.ones(tokens.shape, np.int32),
            "positions": positions.copy(), "weights": weights}  # fmt: skip
