"""Rows of recall: whoever reads a row can answer, each is drawn as its paper says, and they are read over and over."""

import pickle

import numpy as np
import pytest

from slmjax.data import recall_rows as recall
from slmjax.data.loader import batch_rows

MAKERS = {
    "recall": lambda seed: recall.associative_recall(64, 128, 8, seed=seed, vocab=256),
    "copy": lambda seed: recall.selective_copy(64, 100, 6, seed=seed),
    "induction": lambda seed: recall.induction(64, 50, seed=seed),
}


@pytest.mark.parametrize("name", MAKERS)
def test_rows_are_a_function_of_the_seed(name):
    questions, again, other = MAKERS[name](3), MAKERS[name](3), MAKERS[name](4)
    assert all(np.array_equal(*both) for both in zip(questions, again, strict=True))
    assert not np.array_equal(questions.tokens, other.tokens)
    assert {array.dtype.name for array in questions} == {"int32"}


def test_a_dictionary_recalls_every_value():
    for tokens, asked, answers in zip(*(array.tolist() for array in MAKERS["recall"](0))):
        pairs = dict(zip(tokens[0:16:2], tokens[1:16:2], strict=True))
        assert len(pairs) == 8 and len(set(pairs.values())) == 8
        assert all(1 <= key < 128 <= value < 256 for key, value in pairs.items())
        assert sorted(tokens[at] for at in asked) == sorted(pairs)
        assert all(
            at >= 16 and at % 2 == 0 and answer == pairs[tokens[at]]
            for at, answer in zip(asked, answers)
        )


def test_gaps_follow_the_power_law():
    """With one pair there is one draw: the share of each gap is its weight."""
    gaps = (recall.associative_recall(20_000, 64, 1, seed=0, vocab=32).asked[:, 0] - 2) // 2
    weights = np.arange(1, 32) ** (0.01 - 1.0)
    expected = weights / weights.sum()
    found = np.bincount(gaps, minlength=31) / len(gaps)
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(expected.max() / len(gaps)))
    assert found[0] > 4 * found[8]


def test_what_is_copied_is_what_stands_between_the_noise_in_order():
    for tokens, asked, answers in zip(*MAKERS["copy"](0)):
        body = tokens[:-6]
        assert np.array_equal(answers, body[body != 0]) and np.all(tokens[-6:] == 15)
        assert np.array_equal(asked, np.arange(94, 100)) and body.max() < 15


def test_the_special_token_stands_twice_and_its_follower_is_asked_for():
    for tokens, asked, answers in zip(*MAKERS["induction"](0)):
        first, last = np.flatnonzero(tokens == 15)
        assert last == 49 and answers.tolist() == [tokens[first + 1]] and asked.tolist() == [49]


def test_keys_are_drawn_evenly_in_any_order():
    """Three of five: each of the 60 ordered draws comes as often as the others."""
    drawn = recall._distinct(np.random.default_rng(0), 60_000, 3, 5)
    counts = np.unique(drawn @ np.array([25, 5, 1]), return_counts=True)[1]
    assert len(counts) == 60 and np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: recall.associative_recall(1, 63, 4, seed=0), "even length"),
        (lambda: recall.associative_recall(1, 64, 17, seed=0), "at least 68"),
        (
            lambda: recall.associative_recall(1, 64, 16, seed=0, vocab=33),
            "at least 34 tokens; it is 33",
        ),
        (lambda: recall.selective_copy(1, 10, 6, seed=0), "at least 12"),
    ],
)
def test_what_does_not_fit_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_examples_are_read_over_and_over_each_once_in_an_epoch_and_in_any_process_alike():
    rows = recall.PuzzleRows("recall:16:2", 16, examples=24, batch=16, seed=3)
    again = pickle.loads(pickle.dumps(rows))
    batches = [batch_rows(rows, step, range(16)) for step in range(6)]
    for step in reversed(range(6)):
        other = batch_rows(again, step, range(16))
        assert all(np.array_equal(batches[step][name], other[name]) for name in other)
    fields = rows.shapes(0)
    assert {name: (array.shape, array.dtype.name) for name, array in batches[0].items()} == {
        name: (field.shape, field.dtype) for name, field in fields.items()
    }
    assert np.all(batches[0]["segments"] == 1) and np.array_equal(
        batches[0]["positions"][5], np.arange(16)
    )
    read = np.concatenate([batch["tokens"] for batch in batches]).reshape(4, 24, 16)
    epochs = [[tuple(row) for row in epoch] for epoch in read.tolist()]
    assert (
        all(sorted(epoch) == sorted(map(tuple, rows.questions.tokens.tolist())) for epoch in epochs)
        and epochs[0] != epochs[1]
    )
    assert rows.fingerprint(0) == recall.PuzzleRows(
        "copy:16:2", 16, examples=24, batch=16, seed=3
    ).fingerprint(0)
    assert rows.fingerprint(1) != recall.PuzzleRows(
        "recall:16:2", 16, examples=25, batch=16, seed=3
    ).fingerprint(1)
