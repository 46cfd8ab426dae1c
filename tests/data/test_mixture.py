"""The mixture schedule: shares as planned at every row, picks that depend only on the phases begun."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.data.mixture import BLOCK_ROWS, Mixture
from slmjax.errors import UserError

weights_of_sources = st.lists(st.one_of(st.just(0.0), st.floats(1e-4, 1), st.floats(0.1, 1)), min_size=1, max_size=7).filter(any)


def mixture_of(weights, total_rows=10_000, seed=0, **options):
    names = [f"s{i}" for i in range(len(weights))]
    return Mixture(names, [1] * len(names), ((1.0, dict(zip(names, weights))),), total_rows, seed, **options)


def sources_of(mixture, stop, start=0):
    return np.array([mixture.pick(g)[0] for g in range(start, stop)])


@given(weights_of_sources, st.integers(0, 5), st.integers(1, 4))
@settings(max_examples=60)
def test_counts_after_whole_blocks_are_the_exact_share_rounded_down_or_up(weights, seed, blocks):
    mixture = mixture_of(weights, seed=seed)
    rows = blocks * BLOCK_ROWS
    counts = mixture.rows_before(rows)
    exact = np.array(weights) / sum(weights) * rows
    assert counts.sum() == rows
    assert np.all(np.abs(counts - exact) < 1 + 1e-5)  # weights are kept to 2^-30
    assert np.all(counts[np.array(weights) == 0] == 0)
    assert np.all(np.abs(counts / rows - exact / rows) < 1e-3)


@given(weights_of_sources, st.integers(0, 5))
@settings(max_examples=12)
def test_at_every_row_each_source_is_near_its_share(weights, seed):
    sources = sources_of(mixture_of(weights, seed=seed), 1500)
    share = np.array(weights) / sum(weights)
    counts = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    exact = np.arange(1, len(sources) + 1)[:, None] * share
    assert np.all(np.abs(counts - exact) < 2 + share * len(weights))


@given(weights_of_sources, st.integers(0, 5), st.integers(1, 2500))
@settings(max_examples=12)
def test_each_source_is_read_row_by_row_and_rows_before_counts_them(weights, seed, stop):
    mixture = mixture_of(weights, total_rows=2000, seed=seed, align=3)
    picks = [mixture.pick(g) for g in range(stop)]
    for source in range(len(weights)):
        rows = [row for s, row in picks if s == source]
        assert rows == list(range(len(rows)))
        assert mixture.rows_before(stop)[source] == len(rows)


def test_many_small_sources_beside_a_large_one_stay_within_one_row_at_every_block_edge():
    """The case that breaks largest-remainder rounding: small sources rounded up early would have to be taken back."""
    weights = np.array([0.9] + [0.1 / 97] * 97)
    mixture = mixture_of(weights, total_rows=200 * BLOCK_ROWS)
    counts = np.array([mixture.rows_before(block * BLOCK_ROWS) for block in range(200)])
    assert np.all(np.diff(counts, axis=0) >= 0)
    assert np.all(np.abs(counts - weights * np.arange(200)[:, None] * BLOCK_ROWS) < 1 + 1e-4)


def test_a_longer_run_begins_with_the_picks_of_a_shorter_one():
    short, long = (mixture_of([0.2, 0.5, 0.3], total_rows=rows) for rows in (1500, 9000))
    assert [short.pick(g) for g in range(3000)] == [long.pick(g) for g in range(3000)]


def test_picks_agree_up_to_the_earlier_boundary_and_differ_after_it():
    phases = ((0.5, {"a": 0.9, "b": 0.1}), (1.0, {"a": 0.1, "b": 0.9}))
    short, long = (Mixture(["a", "b"], [1, 1], phases, rows, 0) for rows in (3000, 5000))
    assert [short.pick(g) for g in range(1500)] == [long.pick(g) for g in range(1500)]
    assert sources_of(short, 2500, 1500).mean() > 0.88 and sources_of(long, 2500, 1500).mean() < 0.12
    assert short.begun(1500) == long.begun(1500) and short.begun(1501) != long.begun(1501)


def test_phases_have_their_own_shares_and_rows_go_on_over_the_boundary():
    phases = ((0.3, {"a": 1}), (0.8, {"a": 1, "b": 3}), (1.0, {"b": 1}))
    mixture = Mixture(["a", "b"], [5, 5], phases, 20_000, 0, align=16)
    picks = [mixture.pick(g) for g in range(20_000)]
    sources = np.array([source for source, _ in picks])
    assert sources[:6000].sum() == 0 and np.all(sources[16_000:] == 1)
    assert abs(sources[6000:16_000].mean() - 0.75) < 1e-3
    assert [row for source, row in picks if source == 1] == list(range(sources.sum()))


def test_a_source_of_weight_zero_and_the_order_of_names_leave_the_picks_alone():
    def named(names, weights):
        mixture = Mixture(names, [1] * len(names), ((1.0, weights),), 5000, 0)
        return [(names[source], row) for source, row in (mixture.pick(g) for g in range(3000))]

    weights = {"a": 0.3, "b": 0.5, "c": 0.2}
    assert named(["a", "b", "c"], weights) == named(["c", "x", "b", "a"], weights)


def test_order_is_by_random_access_through_a_pickle_and_another_with_another_seed():
    mixture, copy = mixture_of([0.4, 0.6]), pickle.loads(pickle.dumps(mixture_of([0.4, 0.6])))
    picks = [mixture.pick(g) for g in range(3000)]
    order = np.random.default_rng(0).permutation(3000)[:300]
    assert [copy.pick(int(g)) for g in order] == [picks[g] for g in order]
    assert picks[:300] != [mixture_of([0.4, 0.6], seed=1).pick(g) for g in range(300)]


def test_without_phases_shares_are_the_given_weights_or_else_the_tokens():
    by_tokens = Mixture(["a", "b"], [300, 100], (), 4096, 0)
    by_weight = Mixture(["a", "b"], [300, 100], (), 4096, 0, weights={"a": 1, "b": 1})
    assert by_tokens.rows_before(4096).tolist() == [3072, 1024]
    assert by_weight.rows_before(4096).tolist() == [2048, 2048]


@pytest.mark.parametrize(
    ("phases", "weights", "message"),
    [
        (((1.0, {"boks": 1.0}),), None, "'boks'.*Did you mean 'books'"),
        (((1.0, {"books": 0.0}),), None, "every source the weight 0"),
        (((1.0, {"books": -0.1, "web": 1}),), None, "weight -0.1"),
        (((1.0, {"books": float("nan")}),), None, "weight nan"),
        (((0.5, {"books": 1}),), None, "last one 1.0"),
        (((0.5, {"books": 1}), (0.5, {"web": 1}), (1.0, {"web": 1})), None, "increasing"),
        ((), {"books": 0.5, "web": None}, "none to 'web'"),
    ],
)
def test_a_wrong_mixture_is_refused_in_one_sentence(phases, weights, message):
    with pytest.raises(UserError, match=message):
        Mixture(["books", "web"], [1, 1], phases, 1000, 0, weights=weights)
