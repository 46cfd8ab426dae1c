"""Kneser-Ney against a slow reference of dictionaries and recursion, which follows Chen & Goodman's formulas word by word."""

import math
import time
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.evals.kneser_ney import discounts, fit, ngram_bits_per_byte

EOT = 0


class SlowKneserNey:
    """Interpolated modified Kneser-Ney by dictionaries; the discounts, tested by themselves below, are shared."""

    def __init__(self, documents, vocab_size, order):
        raw, left, begins = Counter(), defaultdict(set), set()
        for document in documents:
            sequence = (EOT, *document, EOT)
            for end in range(2, len(sequence) + 1):
                for start in range(max(0, end - order), end):
                    gram = sequence[start:end]
                    raw[gram] += 1
                    if start == 0:
                        begins.add(gram)
                    if end - start < order and start > 0:
                        left[gram].add(sequence[start - 1])
        self.vocab_size, self.order = vocab_size, order
        self.followers = defaultdict(dict)
        for gram, count in raw.items():
            self.followers[gram[:-1]][gram[-1]] = (
                count if len(gram) == order or gram in begins else len(left[gram])
            )
        by_length = defaultdict(list)
        for context, words in self.followers.items():
            by_length[len(context)] += words.values()
        self.discount = {
            length: discounts(np.array(counts)) for length, counts in by_length.items()
        }

    def probability(self, word, context):
        shorter = self.probability(word, context[1:]) if context else 1 / self.vocab_size
        if context not in self.followers:
            return shorter
        words, discount = self.followers[context], self.discount[len(context)]
        taken = sum(discount[min(count, 3)] for count in words.values())
        count = words.get(word, 0)
        return (count - discount[min(count, 3)] + taken * shorter) / sum(words.values())


def corpora(vocab_size):
    return st.lists(st.lists(st.integers(1, vocab_size - 1), max_size=12), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(train=corpora(5), heldout=corpora(6), order=st.integers(2, 5))
def test_log_probabilities_equal_the_slow_reference(train, heldout, order):
    slow, fast = SlowKneserNey(train, 6, order), fit(train, 6, order, EOT)
    expected = []
    for document in heldout:
        sequence = (EOT, *document, EOT)
        for end in range(1, len(sequence)):
            expected.append(
                math.log(slow.probability(sequence[end], sequence[max(0, end - order + 1) : end]))
            )
    np.testing.assert_allclose(
        fast.log_probabilities(heldout), expected, rtol=1e-12
    )  # float64, a few operations per token


@settings(max_examples=60, deadline=None)
@given(train=corpora(5), context=st.lists(st.integers(1, 5), max_size=6), order=st.integers(2, 5))
def test_probabilities_sum_to_one_over_the_vocabulary_in_every_context(train, context, order):
    model = fit(train, 6, order, EOT)
    distribution = model.distribution(context)
    assert distribution.min() > 0
    np.testing.assert_allclose(distribution.sum(), 1, rtol=1e-12)
    following = [model.log_probabilities([[*context, word]])[len(context)] for word in range(1, 6)]
    np.testing.assert_allclose(np.log(distribution[1:]), following, rtol=1e-12)


def test_discounts_are_chen_and_goodmans():
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 10, 5, 3])
    y = 40 / (40 + 2 * 20)
    np.testing.assert_allclose(
        discounts(counts), [0, 1 - 2 * y * 20 / 40, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10]
    )


def test_impossible_estimates_fall_back_to_a_single_discount():
    counts = np.repeat([1, 2, 3], [4, 1, 10])
    single = 4 / (4 + 2)
    assert discounts(counts)[2] == single  # 2 - 3 * y * 10 / 1 is negative
    assert discounts(np.array([5, 6])).tolist() == [0, 0.5, 0.5, 0.5]


def test_a_document_does_not_see_the_one_before_it():
    documents = [[1, 2, 3], [4, 1, 2]]
    model = fit([[1, 2, 3, 4], [2, 4, 1]], 5, 4, EOT)
    together = model.log_probabilities(documents)
    alone = np.concatenate([model.log_probabilities([document]) for document in documents])
    np.testing.assert_array_equal(together, alone)


def test_bits_per_byte_divide_all_bits_by_the_bytes_of_the_text():
    model = fit([[1, 2], [2]], 4, 2, EOT)
    bits = -sum(
        math.log2(p)
        for p in (
            model.distribution([])[1],
            model.distribution([1])[3],
            model.distribution([1, 3])[EOT],
        )
    )
    assert ngram_bits_per_byte(model, [[1, 3]], 7) == pytest.approx(bits / 7, rel=1e-12)


def test_completion_repeats_what_was_always_said_and_stops():
    model = fit([[1, 2, 3, 4]] * 5 + [[2, 1]], 5, 3, EOT)
    assert model.complete([1], 10) == [2, 3, 4]
    assert model.complete([1], 2) == [2, 3]
    assert model.complete([1], 10, stop=4) == [2, 3]


@pytest.mark.parametrize(("documents", "order"), [([], 3), ([[1]], 1), ([[9]], 3)])
def test_a_model_without_data_or_order_or_vocabulary_is_refused(documents, order):
    with pytest.raises(ValueError, match="Kneser-Ney needs"):
        fit(documents, 5, order, EOT)


@pytest.mark.parametrize("token", [-1, 5])
def test_an_id_outside_the_vocabulary_is_refused(token):
    model = fit([[1, 2, 3]], 5, 3, EOT)
    with pytest.raises(ValueError, match="outside the vocabulary of 5"):
        model.log_probabilities([[1], [2, token]])
    with pytest.raises(ValueError, match="outside the vocabulary of 5"):
        model.distribution([token])


def test_half_a_million_tokens_fit_and_score_within_seconds():
    rng = np.random.default_rng(0)
    documents = (1 + rng.zipf(1.3, (5000, 100)) % 999).tolist()
    start = time.process_time()
    assert np.isfinite(fit(documents, 1000, 5, EOT).log_probabilities(documents[:1000])).all()
    assert time.process_time() - start < 10  # about one second on one core
