"""Paired bits per byte and their bootstrap intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.record.paired import Paired, bits_per_byte, bootstrap, pair


def scores(keys, nats, sizes):
    return {
        "keys": np.array(keys, np.uint64),
        "nats": np.array(nats, np.float64),
        "bytes": np.array(sizes, np.int64),
    }


def simulated(chance, documents, *, runs=(1, 1), gap=0.01, seed_noise=0.0):
    """Two groups of runs whose true difference is `gap` nats per byte; documents differ far more from one another than runs do."""
    sizes = chance.integers(200, 3000, documents).astype(np.float64)
    rate = (
        0.6 + chance.normal(0, 0.1, (documents, 1)) + chance.normal(0, 0.02, (documents, sum(runs)))
    )
    rate = rate + np.repeat([0.0, gap], runs) + chance.normal(0, seed_noise, sum(runs))
    return Paired({"a": rate * sizes[:, None]}, {"a": sizes}, 0)


def test_bits_per_byte_is_total_bits_over_total_bytes():
    paired = Paired(
        {"a": np.array([[1.0], [2.0]]), "b": np.array([[3.0]])},
        {"a": np.array([4.0, 6.0]), "b": np.array([10.0])},
        0,
    )
    assert bits_per_byte(paired, "a")[0] == pytest.approx(3 / 10 / math.log(2))
    assert bits_per_byte(paired)[0] == pytest.approx(6 / 20 / math.log(2))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 simulated comparisons at 95 %: fewer than 90 % has probability 0.002 for a right method (binomial)."""
    held = 0
    for trial in range(200):
        paired = simulated(np.random.default_rng(trial), 150)
        found = bootstrap(paired, [[0], [1]], seed=trial, resamples=300)["a"][1]
        held += found.low <= 0.01 / math.log(2) <= found.high
    assert 180 <= held < 200


def test_the_interval_shrinks_as_one_over_the_root_of_the_documents():
    widths = []
    for documents in (100, 1600):
        found = [
            bootstrap(simulated(np.random.default_rng(t), documents), [[0], [1]], resamples=500)[
                "a"
            ][1]
            for t in range(8)
        ]
        widths.append(np.mean([one.high - one.low for one in found]))
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.15)


def test_pairing_is_narrower_than_comparing_two_independent_scores():
    paired = simulated(np.random.default_rng(0), 400)
    found = bootstrap(paired, [[0], [1]])["a"][1]
    nats, sizes = paired.nats["a"], paired.bytes["a"]
    rate = nats.sum(0) / sizes.sum()
    errors = np.sqrt(
        (((nats - rate * sizes[:, None]) / sizes.sum() / math.log(2)) ** 2).sum(0)
    )  # delta method, each run alone
    assert (found.high - found.low) < 0.5 * 2 * 1.96 * np.hypot(*errors)


def test_the_interval_agrees_with_the_delta_method():
    paired = simulated(np.random.default_rng(1), 2000)
    found = bootstrap(paired, [[0], [1]], resamples=4000)["a"][1]
    sizes = paired.bytes["a"]
    gap = paired.nats["a"][:, 1] - paired.nats["a"][:, 0]
    residual = gap - gap.sum() / sizes.sum() * sizes
    error = np.sqrt((residual**2).sum()) / sizes.sum() / math.log(2)
    assert found.high - found.low == pytest.approx(
        2 * 1.96 * error, rel=0.06
    )  # 4,000 resamples know a quantile to about 3 %


def test_runs_of_several_seeds_widen_the_interval_by_their_spread():
    chance = np.random.default_rng(3)
    paired = simulated(chance, 800, runs=(5, 5), seed_noise=0.01)
    together = bootstrap(paired, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])["a"][1]
    single = bootstrap(Paired({"a": paired.nats["a"][:, [0, 5]]}, paired.bytes, 0), [[0], [1]])[
        "a"
    ][1]
    runs = bits_per_byte(paired)
    error = math.sqrt(
        runs[:5].var(ddof=1) / 5 + runs[5:].var(ddof=1) / 5
    )  # two-sample standard error of the means
    assert together.high - together.low == pytest.approx(
        2 * 1.96 * error, rel=0.07
    )  # unwidened: 11 % less
    assert together.high - together.low > 2 * (single.high - single.low)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_pairing_ignores_documents_that_a_run_lacks(seed, first_share, second_share):
    """A slow match by dictionary gives the same documents, whatever their order in the files."""
    chance = np.random.default_rng(seed)
    keys = chance.permutation(40).astype(np.uint64)
    runs = []
    for share in (first_share, second_share):
        mine = chance.permutation(keys[chance.random(40) <= share])
        runs.append(
            {
                "a": scores(mine, mine + chance.random(len(mine)), 10 + mine),
                "b": scores([99], [1.0], [2]),
            }
        )
    common = sorted(set(runs[0]["a"]["keys"].tolist()) & set(runs[1]["a"]["keys"].tolist()))
    paired = pair(runs)
    if not common:
        assert "a" not in paired.nats
    else:
        expected = [
            [run["a"]["nats"][run["a"]["keys"].tolist().index(key)] for run in runs]
            for key in common
        ]
        np.testing.assert_array_equal(paired.nats["a"], expected)
        np.testing.assert_array_equal(paired.bytes["a"], [10 + key for key in common])
    union = set(runs[0]["a"]["keys"].tolist()) | set(runs[1]["a"]["keys"].tolist())
    assert paired.left_out == len(union) - len(common)


def test_a_document_that_one_run_scored_only_in_part_is_no_pair():
    paired = pair(
        [{"a": scores([1, 2], [1, 1], [10, 20])}, {"a": scores([1, 2], [1, 1], [10, 15])}]
    )
    assert paired.documents == 1


def test_nothing_in_common_is_the_users_error():
    with pytest.raises(UserError, match="in common"):
        pair([{"a": scores([1], [1], [1])}, {"b": scores([1], [1], [1])}])


def test_total_weighs_sources_by_their_bytes():
    chance = np.random.default_rng(0)
    small, large = simulated(chance, 50, gap=0.05), simulated(chance, 500, gap=0.0)
    paired = Paired(
        {"s": small.nats["a"], "l": large.nats["a"]},
        {"s": small.bytes["a"], "l": large.bytes["a"]},
        0,
    )
    found = bootstrap(paired, [[0], [1]])
    share = small.bytes["a"].sum() / (small.bytes["a"].sum() + large.bytes["a"].sum())
    mixed = share * found["s"][1].value + (1 - share) * found["l"][1].value
    assert found["total"][1].value == pytest.approx(mixed)
