"""McNemar's exact test against scipy and by hand, and what its sentence may say."""

import numpy as np
import pytest

from slmjax.evals.paired_verdicts import compare_verdicts, mcnemar_exact


def verdicts(both, first_only, second_only, neither):
    """Two rows of verdicts with so many items of each kind."""
    first = [True] * (both + first_only) + [False] * (second_only + neither)
    second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
    return np.array(first), np.array(second)


@pytest.mark.parametrize("wins, losses", [(0, 0), (1, 0), (5, 5), (30, 12), (3, 900), (1200, 1000)])
def test_the_p_value_is_scipys_exact_binomial_one(wins, losses):
    binomtest = pytest.importorskip("scipy.stats").binomtest
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1
    assert mcnemar_exact(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_items_that_both_or_neither_solve_change_nothing():
    small = compare_verdicts(*verdicts(0, 30, 12, 0))
    large = compare_verdicts(*verdicts(400, 30, 12, 700))
    assert (small.first_only, small.second_only, small.p) == (30, 12, large.p)


def test_the_sentence_says_no_more_than_the_test():
    better = compare_verdicts(*verdicts(10, 90, 40, 1000))
    assert better.sentence == (
        "The model solves 8.8 % of 1,140 items, the vote of the nearest problems 4.4 %; 90 are "
        "solved by the model alone, 40 by the vote of the nearest problems alone: the model is "
        "better (exact McNemar p = 1.4e-05)."
    )
    worse = compare_verdicts(*verdicts(10, 40, 90, 1000), "A", "B")
    assert worse.sentence.endswith(": B is better (exact McNemar p = 1.4e-05).")
    unclear = compare_verdicts(*verdicts(10, 50, 40, 1000))
    assert "which of them is better cannot be told (exact McNemar p = 0.34)" in unclear.sentence


def test_chance_alone_is_called_better_at_most_one_time_in_twenty():
    rng = np.random.default_rng(0)
    calls = 0
    for first, second in rng.random((1000, 2, 300)) < 0.06:
        calls += "cannot be told" not in compare_verdicts(first, second).sentence
    assert calls <= 50


def test_verdicts_that_cannot_be_paired_are_refused():
    with pytest.raises(ValueError, match="3 and 2 verdicts cannot be paired"):
        compare_verdicts(np.ones(3, bool), np.ones(2, bool))
    with pytest.raises(ValueError, match="cannot be paired"):
        compare_verdicts(np.ones(0, bool), np.ones(0, bool))
