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

# Token ids of each document, without eot.
Documents = Iterable[Sequence[int] | np.ndarray]


def fit(documents: Documents, vocab_size: int, order: int, eot: int) -> "KneserNey":
    """Fit a model of n-grams of up to `order` tokens.

    Args:
      documents: the model reads `eot t1 .. tn` and predicts `t1 .. tn eot`. No context reaches past
        a document's start: the first token has the eot alone as its context.
      order: 2 or more; the longest context has order - 1 tokens.
    Raises: ValueError on a smaller order, on no documents, and on ids outside the vocabulary.
    """
    stream, ages = _stream(documents, eot)
    has_documents = len(ages) > 0
    if order < 2 or not has_documents or not _in_vocabulary(stream, vocab_size):
        raise ValueError(
            f"Kneser-Ney needs an order of 2 or more (here {order}), a document, and token ids "
            f"below {vocab_size}"
        )
    counted = _count_ngrams(stream, ages, vocab_size, order)
    levels = [_level(ngrams, vocab_size) for ngrams in counted]
    # The weight that discounts take from single tokens is spread evenly over the vocabulary.
    single_tokens, *longer = levels
    left_over = single_tokens.left_over[0]
    unigram = np.full(vocab_size, left_over / vocab_size)
    unigram[single_tokens.grams] += single_tokens.shares
    return KneserNey(vocab_size, order, eot, unigram, longer)


class KneserNey:
    """A fitted model; `fit` makes one.

    In every context its probabilities sum to one over the vocabulary.
    """

    def __init__(
        self,
        vocab_size: int,
        order: int,
        eot: int,
        unigram: Float[np.ndarray, " vocab"],
        levels: Sequence["_Level"],
    ):
        self.vocab_size = vocab_size
        self.order = order
        self.eot = eot
        # Probability of each token where no context is known.
        self._unigram = unigram
        # From contexts of one token to the longest.
        self._levels = tuple(levels)

    def log_probabilities(self, documents: Documents) -> Float[np.ndarray, " n"]:
        """Return the natural log-probability of each token of each document, and of its eot.

        Raises: ValueError on ids outside the vocabulary.
        """
        vocab = self.vocab_size
        stream, ages = _stream(documents, self.eot)
        if not _in_vocabulary(stream, vocab):
            raise ValueError(f"a document has a token id outside the vocabulary of {vocab}")
        targets = stream[1:]
        probability = self._unigram[targets]
        # Positions whose context was seen in training, and the index of that context. At first
        # these are all positions, with the empty context.
        positions = np.arange(len(ages))
        contexts = np.zeros(len(ages), np.int64)
        for length, level in enumerate(self._levels, start=1):
            is_long_enough = ages[positions] >= length
            positions, contexts = positions[is_long_enough], contexts[is_long_enough]
            # Position p has the target stream[p + 1]; its context is the `length` tokens up to p.
            oldest = stream[positions + 1 - length]
            contexts, is_known = _find(level.contexts, contexts * vocab + oldest)
            # Where a context was never seen, neither was any longer context that ends with it.
            positions, contexts = positions[is_known], contexts[is_known]
            keys = contexts * vocab + targets[positions]
            grams, was_seen = _find(level.grams, keys)
            # Interpolation: the n-gram's own share, and what the context leaves to a shorter one.
            own_share = np.where(was_seen, level.shares[grams], 0.0)
            shorter = level.left_over[contexts] * probability[positions]
            probability[positions] = own_share + shorter
        return np.log(probability)

    def distribution(self, tokens: Sequence[int]) -> Float[np.ndarray, " vocab"]:
        """Return the probabilities of the token that follows a document's first `tokens`.

        Raises: ValueError on ids outside the vocabulary.
        """
        if not all(0 <= token < self.vocab_size for token in tokens):
            raise ValueError(f"there is a token id outside the vocabulary of {self.vocab_size}")
        probability = self._unigram.copy()
        # The index of the empty context. Each level puts one older token before the context.
        context = 0
        so_far = [self.eot, *tokens]
        recent = so_far[-len(self._levels) :]
        for level, token in zip(self._levels, reversed(recent)):
            key = context * self.vocab_size + int(token)
            context = int(np.searchsorted(level.contexts, key))
            # searchsorted gives a place for any key; without this key there, it was never seen.
            if context == len(level.contexts) or level.contexts[context] != key:
                break
            # Keys are sorted by context first, so a context's n-grams are one slice.
            first_key = context * self.vocab_size
            end_key = first_key + self.vocab_size
            first, last = np.searchsorted(level.grams, (first_key, end_key))
            followers = level.grams[first:last] - first_key
            probability *= level.left_over[context]
            probability[followers] += level.shares[first:last]
        return probability

    def complete(
        self,
        prompt_tokens: Sequence[int],
        max_tokens: int,
        stop: int | None = None,
    ) -> list[int]:
        """Return the most probable next tokens, one after the other.

        They end before `stop` (by default the eot), or once there are `max_tokens`.
        """
        if stop is None:
            stop = self.eot
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            probability = self.distribution([*prompt_tokens, *tokens])
            best = int(probability.argmax())
            if best == stop:
                break
            tokens.append(best)
        return tokens


def ngram_bits_per_byte(model: KneserNey, documents: Documents, total_bytes: int) -> float:
    """Return the bits that the documents need, each with its eot, over the bytes of their text."""
    nats = -model.log_probabilities(documents).sum()
    bits = nats / math.log(2)
    return float(bits / total_bytes)


def discounts(counts: Int[np.ndarray, " grams"]) -> Float[np.ndarray, "4"]:
    """Return what to take from counts of 0 (nothing), 1, 2, and 3 or more.

    Where an estimate falls outside (0, count), as it may on very regular text, Ney's single
    discount n1 / (n1 + 2 n2) takes its place.
    Source: Chen & Goodman 1999, equation 26.
    """
    # How many n-grams were counted once, twice, three and four times.
    counts_of_counts = {}
    for count in (1, 2, 3, 4):
        counts_of_counts[count] = int((counts == count).sum())
    once, twice = counts_of_counts[1], counts_of_counts[2]
    # Without n-grams that were counted once Ney's estimate would be 0, and leave nothing to unseen
    # tokens. Half a count is our choice.
    single = 0.5
    if once:
        single = once / (once + 2 * twice)
    estimates = [0.0]
    for count in (1, 2, 3):
        equal, one_more = counts_of_counts[count], counts_of_counts[count + 1]
        estimate = single
        # Without n-grams of this count there is nothing to estimate from.
        if equal:
            estimate = count - (count + 1) * single * one_more / equal
        if not 0 < estimate < count:
            estimate = single
        estimates.append(estimate)
    return np.array(estimates)


class _Stream(NamedTuple):
    """All documents in a row.

    Attributes:
      tokens: `eot doc eot doc .. eot`.
      ages: for each token after the first, how many tokens of its own document precede it, the eot
        at the document's start included. This is the length of its longest context.
    """

    tokens: Int[np.ndarray, " tokens"]
    ages: Int[np.ndarray, " targets"]


class _Ngrams(NamedTuple):
    """The n-grams of one length, as sorted keys, and the count of each.

    Counts are raw for the longest n-grams and for those that begin where a document begins. The
    others' are of distinct left neighbours.

    context key = index of the context without its oldest token * vocab_size + the oldest token
    n-gram key = index of the n-gram's context * vocab_size + the n-gram's last token

    The index of a context is its place among the contexts of its own length.
    """

    contexts: Int[np.ndarray, " contexts"]
    grams: Int[np.ndarray, " grams"]
    counts: Int[np.ndarray, " grams"]


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length with their probabilities; keys as in _Ngrams.

    Attributes:
      left_over: for each context, the weight of the probabilities under the next shorter one.
      shares: for each n-gram, (count - discount) / (sum of the counts in its context).
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
    """Return the n-grams of each length, 1 to `order` tokens. See _Ngrams for their counts."""
    targets = stream[1:]
    positions = np.arange(len(ages))
    # The index of the context at each of `positions`, which become fewer.
    context_at = np.zeros(len(ages), np.int64)
    # For each target, the index of the n-gram that ends there, of the length counted last.
    gram_at = np.zeros(len(ages), np.int64)
    # `length` is the context's: 0 for single tokens, order - 1 for the longest n-grams.
    levels: list[_Ngrams] = []
    for length in range(order):
        contexts = np.zeros(1, np.int64)
        if length:
            is_long_enough = ages[positions] >= length
            positions = positions[is_long_enough]
            # Position p has the target stream[p + 1]; its context is the `length` tokens up to p.
            oldest = stream[positions + 1 - length]
            keys = context_at[is_long_enough] * vocab_size + oldest
            contexts, context_at = np.unique(keys, return_inverse=True)
        # positions[first] has one position of each n-gram; gram has the n-gram of each position.
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
            # An n-gram without left neighbours begins where a document begins: it keeps its count.
            kept = np.where(neighbours, neighbours, shorter.counts)
            levels[-1] = shorter._replace(counts=kept)
        gram_at[positions] = gram
        levels.append(_Ngrams(contexts, grams, counts))
    return levels


def _level(ngrams: _Ngrams, vocab_size: int) -> _Level:
    contexts, grams, counts = ngrams
    context_of_gram = grams // vocab_size
    # Counts of 3 and more share a discount.
    discount_of_count = discounts(counts)
    discount = discount_of_count[np.minimum(counts, 3)]
    size = len(contexts)
    # [contexts]: sums of the counts, and of the discounts, over each context's n-grams.
    total = np.bincount(context_of_gram, weights=counts, minlength=size)
    taken = np.bincount(context_of_gram, weights=discount, minlength=size)
    shares = (counts - discount) / total[context_of_gram]
    return _Level(contexts, taken / total, grams, shares)


def _stream(documents: Documents, eot: int) -> _Stream:
    """Put all documents into one stream."""
    end = np.array([eot], np.int64)
    pieces = [end]
    ages = [np.zeros(0, np.int64)]
    for document in documents:
        pieces.append(np.asarray(document, np.int64))
        pieces.append(end)
        # The first token follows the eot alone; the eot at the end follows all of them.
        tokens = len(document)
        ages.append(np.arange(1, tokens + 2))
    return _Stream(np.concatenate(pieces), np.concatenate(ages))


def _in_vocabulary(stream: Int[np.ndarray, " tokens"], vocab_size: int) -> bool:
    return bool(stream.min() >= 0 and stream.max() < vocab_size)


def _find(
    table: Int[np.ndarray, " n"],
    keys: Int[np.ndarray, " m"],
) -> tuple[Int[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Return the index of each key in a sorted table, and whether it is there.

    The index of a missing key is any valid one.
    """
    index = np.searchsorted(table, keys)
    # A key that is larger than all would lie behind the table's end.
    index = np.minimum(index, len(table) - 1)
    is_there = table[index] == keys
    return index, is_there
