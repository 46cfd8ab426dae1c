"""The synthetic tasks: whoever reads a row can answer, and each is drawn as its paper says."""

import numpy as np
import pytest

from slmjax.studies import tasks

MAKERS = {
    "recall": lambda seed: tasks.associative_recall(64, 128, 8, seed=seed, vocab=256),
    "copy": lambda seed: tasks.selective_copy(64, 100, 6, seed=seed),
    "induction": lambda seed: tasks.induction(64, 50, seed=seed),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_keeps_the_contract_and_is_a_function_of_the_seed(name):
    batch, again, other = MAKERS[name](3), MAKERS[name](3), MAKERS[name](4)
    assert all(np.array_equal(batch[key], again[key]) for key in batch)
    assert not np.array_equal(batch["tokens"], other["tokens"])
    assert {key: of.dtype.name for key, of in batch.items()} == {
        "tokens": "int32", "targets": "int32", "segments": "int32", "positions": "int32", "weights": "float32"
    }  # fmt: skip
    assert np.all(batch["segments"] == 1) and np.array_equal(batch["positions"][5], np.arange(batch["tokens"].shape[1]))


def test_a_dictionary_recalls_every_value():
    batch = MAKERS["recall"](0)
    for tokens, targets, weights in zip(batch["tokens"].tolist(), batch["targets"].tolist(), batch["weights"]):
        pairs = dict(zip(tokens[0:16:2], tokens[1:16:2], strict=True))
        assert len(pairs) == 8 and len(set(pairs.values())) == 8
        assert all(1 <= key < 128 <= value < 256 for key, value in pairs.items())
        asked = np.flatnonzero(weights).tolist()
        assert sorted(tokens[at] for at in asked) == sorted(pairs)
        assert all(at >= 16 and at % 2 == 0 and targets[at] == pairs[tokens[at]] for at in asked)


def test_gaps_follow_the_power_law():
    """With one pair there is one draw: the share of each gap is its weight."""
    batch = tasks.associative_recall(20_000, 64, 1, seed=0, vocab=32)
    gaps = (batch["weights"].argmax(1) - 2) // 2
    weights = np.arange(1, 32) ** (0.01 - 1.0)
    expected = weights / weights.sum()
    found = np.bincount(gaps, minlength=31) / len(gaps)
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(expected.max() / len(gaps)))
    assert found[0] > 4 * found[8]


def test_what_is_copied_is_what_stands_between_the_noise_in_order():
    batch = MAKERS["copy"](0)
    for tokens, targets, weights in zip(batch["tokens"], batch["targets"], batch["weights"]):
        body = tokens[:-6]
        assert np.array_equal(targets[-6:], body[body != 0]) and np.all(tokens[-6:] == 15)
        assert np.array_equal(np.flatnonzero(weights), np.arange(94, 100)) and body.max() < 15


def test_the_special_token_stands_twice_and_its_follower_is_asked_for():
    batch = MAKERS["induction"](0)
    for tokens, targets, weights in zip(batch["tokens"], batch["targets"], batch["weights"]):
        first, last = np.flatnonzero(tokens == 15)
        assert last == 49 and targets[49] == tokens[first + 1] and np.flatnonzero(weights).tolist() == [49]


@pytest.mark.parametrize("make, told", [
    (lambda: tasks.associative_recall(1, 63, 4, seed=0), "even length"),
    (lambda: tasks.associative_recall(1, 64, 17, seed=0), "at least 68"),
    (lambda: tasks.selective_copy(1, 10, 6, seed=0), "at least 12"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()
