"""Interpolated modified Kneser-Ney n-gram models over token ids: the baseline that a trained model has to beat.

Counts live in sorted arrays, so that a fit is a few sorts and a score a few binary searches.
Sources: Kneser & Ney 1995 (lower orders count distinct left neighbours); Chen & Goodman 1999, section 3 (interpolation, three discounts
estimated from counts of counts); Heafield et al. 2013, section 3 (n-grams that begin where a document begins have no left neighbour and
keep their raw counts).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length: for each context its n-grams' own shares, and the weight that the shorter context gets."""

    contexts: (
        np.ndarray
    )  # int64, sorted: index of the context without its oldest token * vocabulary + oldest token
    left_over: np.ndarray  # float64 per context
    grams: np.ndarray  # int64, sorted: index of the context * vocabulary + last token
    shares: np.ndarray  # float64 per n-gram: (count - discount) / count of the context


class KneserNey:
    """A fitted model; `fit` makes one. In every context its probabilities sum to one over the vocabulary."""

    def __init__(
        self, vocab_size: int, order: int, eot: int, unigram: np.ndarray, levels: Sequence[_Level]
    ):
        self.vocab_size, self.order, self.eot = vocab_size, order, eot
        self._unigram, self._levels = unigram, tuple(levels)

    def log_probabilities(self, documents: Iterable[Sequence[int]]) -> np.ndarray:
        """Natural logarithm of the probability of each token of each document and of the eot after it, in order; float64."""
        stream, age = _stream(documents, self.eot)
        positions = np.arange(len(age))
        target = stream[1:]
        probability = self._unigram[target]
        code = np.zeros(len(age), np.int64)
        for length, level in enumerate(self._levels, start=1):
            reaching = age[positions] >= length
            positions, code = positions[reaching], code[reaching]
            code, found = _find(
                level.contexts, code * self.vocab_size + stream[positions + 1 - length]
            )
            positions, code = positions[found], code[found]
            gram, known = _find(level.grams, code * self.vocab_size + target[positions])
            probability[positions] = (
                np.where(known, level.shares[gram], 0.0)
                + level.left_over[code] * probability[positions]
            )
        return np.log(probability)

    def distribution(self, tokens: Sequence[int]) -> np.ndarray:
        """Probabilities float64 [vocab_size] of the token that follows a document's first `tokens`."""
        probability, code = self._unigram.copy(), 0
        recent = [self.eot, *tokens][-len(self._levels) :]
        for level, token in zip(self._levels, reversed(recent)):
            key = code * self.vocab_size + int(token)
            code = int(np.searchsorted(level.contexts, key))
            if code == len(level.contexts) or level.contexts[code] != key:
                break
            first, last = np.searchsorted(
                level.grams, (code * self.vocab_size, (code + 1) * self.vocab_size)
            )
            probability *= level.left_over[code]
            probability[level.grams[first:last] - code * self.vocab_size] += level.shares[
                first:last
            ]
        return probability

    def complete(
        self, prompt_tokens: Sequence[int], max_tokens: int, stop: int | None = None
    ) -> list[int]:
        """The most probable next token, repeatedly, until it is `stop` (by default the eot; not returned) or there are `max_tokens`."""
        stop = self.eot if stop is None else stop
        tokens: list[int] = []
        while (
            len(tokens) < max_tokens
            and (best := int(self.distribution([*prompt_tokens, *tokens]).argmax())) != stop
        ):
            tokens.append(best)
        return tokens


def fit(documents: Iterable[Sequence[int]], vocab_size: int, order: int, eot: int) -> KneserNey:
    """Fit a model of n-grams of up to `order` tokens.

    Args:
      documents: token ids of each document without eot. The model reads `eot t1 .. tn` and predicts `t1 .. tn eot`; no context reaches
        past a document's start, where it is the eot alone.
      order: 2 or more; the longest context has order - 1 tokens.
    Raises: ValueError on a smaller order, on no documents, and on ids outside the vocabulary.
    """
    stream, age = _stream(documents, eot)
    if order < 2 or not len(age) or stream.min() < 0 or stream.max() >= vocab_size:
        raise ValueError(
            f"Kneser-Ney needs an order of 2 or more (here {order}), a document, and token ids below {vocab_size}"
        )
    target, positions, code = stream[1:], np.arange(len(age)), np.zeros(len(age), np.int64)
    contexts, grams, counts = [np.zeros(1, np.int64)], [], []
    gram_at = np.zeros(len(age), np.int64)
    for length in range(order):
        if length:
            reaching = age[positions] >= length
            positions = positions[reaching]
            unique, code = np.unique(
                code[reaching] * vocab_size + stream[positions + 1 - length], return_inverse=True
            )
            contexts.append(unique)
        unique, first, gram, raw = np.unique(
            code * vocab_size + target[positions],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        if (
            length
        ):  # each distinct n-gram is one left neighbour of the n-gram without its oldest token
            neighbours = np.bincount(gram_at[positions[first]], minlength=len(counts[-1]))
            counts[-1] = np.where(
                neighbours, neighbours, counts[-1]
            )  # none: it begins where a document begins
        gram_at[positions] = gram
        grams.append(unique)
        counts.append(raw)
    levels = [_level(*parts, vocab_size) for parts in zip(contexts, grams, counts)]
    unigram = np.full(vocab_size, levels[0].left_over[0] / vocab_size)
    unigram[levels[0].grams] += levels[0].shares
    return KneserNey(vocab_size, order, eot, unigram, levels[1:])


def ngram_bits_per_byte(
    model: KneserNey, documents: Sequence[Sequence[int]], total_bytes: int
) -> float:
    """Bits that the model needs for the documents, each with its eot, over the bytes of their text."""
    return float(-model.log_probabilities(documents).sum() / math.log(2) / total_bytes)


def discounts(counts: np.ndarray) -> np.ndarray:
    """What to take from counts of 1, 2, and 3 or more: float64 [4], the first (for a count of 0) being 0.

    Source: Chen & Goodman 1999, equation 26. Where an estimate falls outside (0, count), as it may on very regular text, Ney's single
    discount n1 / (n1 + 2 n2) takes its place.
    """
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    single = n1 / (n1 + 2 * n2) if n1 else 0.5
    estimates = [
        c - (c + 1) * single * more / some if some else single
        for c, some, more in ((1, n1, n2), (2, n2, n3), (3, n3, n4))
    ]
    return np.array(
        [0.0]
        + [
            estimate if 0 < estimate < c else single
            for c, estimate in enumerate(estimates, start=1)
        ]
    )


def _level(contexts: np.ndarray, grams: np.ndarray, counts: np.ndarray, vocab_size: int) -> _Level:
    owner = grams // vocab_size
    discount = discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(owner, weights=counts, minlength=len(contexts))
    left_over = np.bincount(owner, weights=discount, minlength=len(contexts)) / total
    return _Level(contexts, left_over, grams, (counts - discount) / total[owner])


def _stream(documents: Iterable[Sequence[int]], eot: int) -> tuple[np.ndarray, np.ndarray]:
    """`eot doc eot doc .. eot` as int64, and for each token but the first how many tokens of its own document (eot included) precede it."""
    pieces: list[np.ndarray] = [np.array([eot], np.int64)]
    ages: list[np.ndarray] = [np.zeros(0, np.int64)]
    for document in documents:
        pieces += [np.asarray(document, np.int64), pieces[0]]
        ages.append(np.arange(1, len(document) + 2))
    return np.concatenate(pieces), np.concatenate(ages)


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of each key in a sorted table (any valid index where it is missing), and whether it is there."""
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return index, table[index] == keys
