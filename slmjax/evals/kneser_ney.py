"""Interpolated modified Kneser-Ney n-gram models over token ids: a baseline for trained models.

Counts live in sorted arrays, so that a fit is a few sorts and a score a few binary searches.
Sources: Kneser & Ney 1995 (lower orders count distinct left neighbours); Chen & Goodman 1999,
section 3 (interpolation, three discounts estimated from counts of counts); Heafield et al. 2013,
section 3 (n-grams that begin where a document begins have no left neighbour and keep their raw
counts).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


def fit(documents: Iterable[Sequence[int]], vocab_size: int, order: int, eot: int) -> "KneserNey":
    """Fit a model of n-grams of up to `order` tokens.

    Args:
      documents: token ids of each document without eot. The model reads `eot t1 .. tn` and predicts
        `t1 .. tn eot`; no context reaches past a document's start, where it is the eot alone.
      order: 2 or more; the longest context has order - 1 tokens.
    Raises: ValueError on a smaller order, on no documents, and on ids outside the vocabulary.
    """
    stream, ages = _stream(documents, eot)
    if order < 2 or not len(ages) or stream.min() < 0 or stream.max() >= vocab_size:
        needed = f"an order of 2 or more (here {order}), a document, and token ids below"
        raise ValueError(f"Kneser-Ney needs {needed} {vocab_size}")
    counted = _count_ngrams(stream, ages, vocab_size, order)
    levels = [_level(ngrams, vocab_size) for ngrams in counted]
    # What single tokens leave over is shared by the whole vocabulary.
    unigram = np.full(vocab_size, levels[0].left_over[0] / vocab_size)
    unigram[levels[0].grams] += levels[0].shares
    return KneserNey(vocab_size, order, eot, unigram, levels[1:])


class KneserNey:
    """A fitted model; `fit` makes one.

    In every context its probabilities sum to one over the vocabulary.
    """

    def __init__(
        self, vocab_size: int, order: int, eot: int, unigram: np.ndarray, levels: Sequence["_Level"]
    ):
        self.vocab_size, self.order, self.eot = vocab_size, order, eot
        self._unigram = unigram
        # From contexts of one token to the longest.
        self._levels = tuple(levels)

    def log_probabilities(self, documents: Iterable[Sequence[int]]) -> Float[np.ndarray, " n"]:
        """Return the natural log-probability of each token of each document, and of its eot."""
        stream, ages = _stream(documents, self.eot)
        targets = stream[1:]
        probability = self._unigram[targets]
        # The positions whose context was seen in training, and the index of that context.
        positions = np.arange(len(ages))
        contexts = np.zeros(len(ages), np.int64)
        for length, level in enumerate(self._levels, start=1):
            reaching = ages[positions] >= length
            positions, contexts = positions[reaching], contexts[reaching]
            oldest = stream[positions + 1 - length]
            contexts, is_known = _find(level.contexts, contexts * self.vocab_size + oldest)
            # A context that was never seen has no longer one that was.
            positions, contexts = positions[is_known], contexts[is_known]
            keys = contexts * self.vocab_size + targets[positions]
            grams, was_seen = _find(level.grams, keys)
            own_share = np.where(was_seen, level.shares[grams], 0.0)
            shorter = level.left_over[contexts] * probability[positions]
            probability[positions] = own_share + shorter
        return np.log(probability)

    def distribution(self, tokens: Sequence[int]) -> Float[np.ndarray, " vocab"]:
        """Return the probabilities of the token that follows a document's first `tokens`."""
        probability = self._unigram.copy()
        context = 0
        recent = [self.eot, *tokens][-len(self._levels) :]
        for level, token in zip(self._levels, reversed(recent)):
            key = context * self.vocab_size + int(token)
            context = int(np.searchsorted(level.contexts, key))
            if context == len(level.contexts) or level.contexts[context] != key:
                break
            # The n-grams of a context stand together.
            first_key = context * self.vocab_size
            first, last = np.searchsorted(level.grams, (first_key, first_key + self.vocab_size))
            followers = level.grams[first:last] - first_key
            probability *= level.left_over[context]
            probability[followers] += level.shares[first:last]
        return probability

    def complete(
        self, prompt_tokens: Sequence[int], max_tokens: int, stop: int | None = None
    ) -> list[int]:
        """Return the most probable next tokens, one after the other.

        They end before `stop` (by default the eot), or once there are `max_tokens`.
        """
        if stop is None:
            stop = self.eot
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            best = int(self.distribution([*prompt_tokens, *tokens]).argmax())
            if best == stop:
                break
            tokens.append(best)
        return tokens


def ngram_bits_per_byte(
    model: KneserNey, documents: Sequence[Sequence[int]], total_bytes: int
) -> float:
    """Return the bits that the documents need, each with its eot, over the bytes of their text."""
    return float(-model.log_probabilities(documents).sum() / math.log(2) / total_bytes)


def discounts(counts: Int[np.ndarray, " grams"]) -> Float[np.ndarray, "4"]:
    """Return what to take from counts of 0 (nothing), 1, 2, and 3 or more.

    Where an estimate falls outside (0, count), as it may on very regular text, Ney's single
    discount n1 / (n1 + 2 n2) takes its place.
    Source: Chen & Goodman 1999, equation 26.
    """
    # How many n-grams were counted once, twice, three and four times.
    counts_of_counts = {count: int((counts == count).sum()) for count in (1, 2, 3, 4)}
    single = 0.5
    if counts_of_counts[1]:
        single = counts_of_counts[1] / (counts_of_counts[1] + 2 * counts_of_counts[2])
    estimates = [0.0]
    for count in (1, 2, 3):
        estimate = single
        if counts_of_counts[count]:
            more = counts_of_counts[count + 1]
            estimate = count - (count + 1) * single * more / counts_of_counts[count]
        if not 0 < estimate < count:
            estimate = single
        estimates.append(estimate)
    return np.array(estimates)


class _Ngrams(NamedTuple):
    """The n-grams of one length, as sorted keys, and the count of each.

    A context's key is the index of the context without its oldest token * vocabulary + that token;
    an n-gram's key is the index of its context * vocabulary + its last token.
    """

    contexts: Int[np.ndarray, " contexts"]
    grams: Int[np.ndarray, " grams"]
    counts: Int[np.ndarray, " grams"]


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length with their probabilities; keys as in _Ngrams.

    Attributes:
      left_over: weight that the shorter context gets in each context.
      shares: (count - discount) / count of the context, of each n-gram.
    """

    contexts: Int[np.ndarray, " contexts"]
    left_over: Float[np.ndarray, " contexts"]
    grams: Int[np.ndarray, " grams"]
    shares: Float[np.ndarray, " grams"]


def _count_ngrams(
    stream: Int[np.ndarray, " tokens"],
    ages: Int[np.ndarray, " targets"],
    vocab_size: int,
    order: int,
) -> list[_Ngrams]:
    """Return the n-grams of one token, of two, and so on; all but the longest count neighbours."""
    targets = stream[1:]
    positions = np.arange(len(ages))
    # The index of each position's context, and of its n-gram of the length before.
    context_at = np.zeros(len(ages), np.int64)
    gram_at = np.zeros(len(ages), np.int64)
    levels: list[_Ngrams] = []
    for length in range(order):
        contexts = np.zeros(1, np.int64)
        if length:
            reaching = ages[positions] >= length
            positions = positions[reaching]
            oldest = stream[positions + 1 - length]
            keys = context_at[reaching] * vocab_size + oldest
            contexts, context_at = np.unique(keys, return_inverse=True)
        grams, first, gram, counts = np.unique(
            context_at * vocab_size + targets[positions],
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        if length:
            # Each n-gram is one left neighbour of the n-gram without its oldest token.
            shorter = levels[-1]
            owner = gram_at[positions[first]]
            neighbours = np.bincount(owner, minlength=len(shorter.counts))
            # Without one it begins where a document begins, and keeps its count.
            kept = np.where(neighbours, neighbours, shorter.counts)
            levels[-1] = shorter._replace(counts=kept)
        gram_at[positions] = gram
        levels.append(_Ngrams(contexts, grams, counts))
    return levels


def _level(ngrams: _Ngrams, vocab_size: int) -> _Level:
    contexts, grams, counts = ngrams
    owner = grams // vocab_size
    # 3 stands for all larger counts.
    discount = discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(owner, weights=counts, minlength=len(contexts))
    left_over = np.bincount(owner, weights=discount, minlength=len(contexts)) / total
    return _Level(contexts, left_over, grams, (counts - discount) / total[owner])


def _stream(
    documents: Iterable[Sequence[int]], eot: int
) -> tuple[Int[np.ndarray, " tokens"], Int[np.ndarray, " targets"]]:
    """Return `eot doc eot doc .. eot`, and for each token but the first its place in its document.

    The place counts the tokens before it, with the eot: they are the contexts that it can have.
    """
    end = np.array([eot], np.int64)
    pieces = [end]
    ages = [np.zeros(0, np.int64)]
    for document in documents:
        pieces += [np.asarray(document, np.int64), end]
        ages.append(np.arange(1, len(document) + 2))
    return np.concatenate(pieces), np.concatenate(ages)


def _find(
    table: Int[np.ndarray, " n"], keys: Int[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Return the index of each key in a sorted table, and whether it is there.

    The index of a missing key is any valid one.
    """
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return index, table[index] == keys
