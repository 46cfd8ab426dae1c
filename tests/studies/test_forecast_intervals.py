"""Intervals of forecasts: they hold the truth as often as they say, and a slow profile agrees."""

import functools

import numpy as np
import pytest
from scipy import optimize, stats

from slmjax.studies.forecast_intervals import ForecastInterval, forecast_interval
from slmjax.studies.ladder_runs import SeedNoise, seed_noise
from slmjax.studies.scaling_law import CHINCHILLA, ScalingLaw
from slmjax.studies.variable_projection import EXPONENTS
from tests.studies.ladders import MILLION, grid, ladder

LAW = ScalingLaw(0.78, 0.55, 0.38)
TARGET, TOKENS = 300 * MILLION, 100 * MILLION


@pytest.mark.slow
def test_a_90_percent_interval_from_five_sizes_holds_the_truth_in_86_to_94_percent():
    """Must show 7 of the issue: seed noise is itself estimated, from two seeds at three sizes."""
    chance = np.random.default_rng(7)
    truth = CHINCHILLA.loss(TARGET, TOKENS)
    noise = 0.003
    of_mean, of_run = 0, 0
    for _ in range(500):
        runs = ladder(CHINCHILLA, noise=noise, chance=chance)
        interval = forecast_interval(runs, seed_noise(runs), TARGET, TOKENS, joint=False)
        of_mean += interval.mean[0] <= truth <= interval.mean[1]
        measured = truth * np.exp(noise * chance.standard_normal())
        of_run += interval.run[0] <= measured <= interval.run[1]
    assert 0.86 <= of_mean / 500 <= 0.94
    assert 0.86 <= of_run / 500 <= 0.94


def slow_profile(runs, noise, level, target, one_run):
    """Both ends, by a solver over the other constants at every candidate, on log residuals.

    The law is written as loss at the target times (1 - shares + share of each power).
    """
    sizes = np.array([(each.parameters, each.tokens) for each in runs]) / target
    if len(set(sizes[:, 1])) == 1:
        sizes = sizes[:, :1]
    powers = sizes.shape[1]
    losses = np.array([each.loss for each in runs])
    low = [0] * (1 + powers) + [EXPONENTS[0]] * powers
    high = [np.inf] + [1] * powers + [EXPONENTS[1]] * powers
    tight = {"xtol": 1e-11, "ftol": 1e-11, "gtol": 1e-11}

    def log_residuals(constants):
        loss, shares, exponents = constants[0], constants[1 : 1 + powers], constants[1 + powers :]
        return np.log(loss * (1 - shares.sum() + sizes**-exponents @ shares) / losses)

    free = []
    for share in (0.1, 0.3, 0.45):
        start = [losses.min()] + [share] * powers + [0.4] * powers
        free.append(optimize.least_squares(log_residuals, start, bounds=(low, high), **tight))
    best = min(free, key=lambda solution: solution.cost)
    allowed = 2 * best.cost + noise.deviation**2 * stats.f.ppf(level, 1, noise.degrees)

    @functools.cache
    def excess(value):
        """Least squares with this value at the target, less the allowed ones."""

        def residuals(constants):
            if not one_run:
                return log_residuals(np.append(value, constants))
            return np.append(log_residuals(constants), np.log(constants[0] / value))

        starts = [best.x, [value] + [0.45] * powers + [0.4] * powers]
        starts = np.clip(starts, np.array(low) + 1e-6, np.array(high) - 1e-6)
        # The loss at the target is given, or free like the others.
        first = 0 if one_run else 1
        costs = []
        for start in starts:
            bounds = (low[first:], high[first:])
            solution = optimize.least_squares(residuals, start[first:], bounds=bounds, **tight)
            costs.append(solution.cost)
        return 2 * min(costs) - allowed

    middle = best.x[0]
    ends = []
    for beyond in (0.5 * middle, 1.2 * middle):
        ends.append(optimize.brentq(excess, middle, beyond, xtol=5e-5 * middle))
    return ends


@pytest.mark.parametrize(
    ("law", "one_run", "chance"),
    [(LAW, False, 0), (LAW, True, 1), (ScalingLaw(0, 2, 0.12), False, 2)],
)
def test_an_interval_is_the_slow_profile_of_every_candidate(law, one_run, chance):
    runs = ladder(law, noise=0.003, chance=chance)
    noise = seed_noise(runs)
    interval = forecast_interval(runs, noise, TARGET, TOKENS, joint=False)
    low, high = interval.run if one_run else interval.mean
    expected = slow_profile(runs, noise, 0.9, (TARGET, TOKENS), one_run)
    # Relative residuals instead of log ones move an end by noise times width.
    assert [low, high] == pytest.approx(expected, abs=0.01 * (high - low))


def test_an_interval_of_a_joint_law_is_the_slow_profile_too():
    runs = grid(CHINCHILLA, [5, 20, 80], [50, 200, 800], noise=0.0005)
    noise = seed_noise(runs)
    interval = forecast_interval(runs, noise, TARGET, 30 * TOKENS, joint=True, level=0.5)
    low, high = interval.mean
    expected = slow_profile(runs, noise, 0.5, (TARGET, 30 * TOKENS), False)
    assert [low, high] == pytest.approx(expected, abs=0.01 * (high - low))


def test_where_the_runs_allow_no_irreducible_loss_at_all_the_interval_says_so():
    # A pure power law: E = 0 is among what the runs allow.
    runs = ladder(ScalingLaw(0, 2, 0.12), noise=0.003, chance=2)
    interval = forecast_interval(runs, seed_noise(runs), TARGET, TOKENS, joint=False)
    assert "lower end is where E is 0" in interval.bound
    runs = ladder(LAW, noise=0.0005, chance=2)
    interval = forecast_interval(runs, seed_noise(runs), TARGET, TOKENS, joint=False)
    assert interval.bound == ""


def test_where_a_curve_may_be_a_step_the_interval_says_so():
    # Only the smallest size is off the plateau, so that any steep exponent will do.
    runs = ladder(ScalingLaw(1.0, 60.0, 3.9), noise=0.003, chance=1)
    interval = forecast_interval(runs, seed_noise(runs), TARGET, TOKENS, joint=False)
    assert "an exponent leaves (0.01, 4.0)" in interval.bound


def test_one_run_varies_more_than_the_mean_and_a_higher_level_is_wider():
    runs = ladder(LAW, noise=0.003)
    narrow, wide = (
        forecast_interval(runs, seed_noise(runs), TARGET, TOKENS, joint=False, level=level)
        for level in (0.5, 0.95)
    )
    assert narrow.run[0] < narrow.mean[0] < narrow.mean[1] < narrow.run[1]
    assert wide.mean[0] < narrow.mean[0] and narrow.mean[1] < wide.mean[1]


def test_runs_off_the_curve_by_more_than_seeds_differ_are_noticed():
    runs = ladder(LAW, noise=0.001, chance=4)
    interval = forecast_interval(runs, seed_noise(runs), TARGET, TOKENS, joint=False)
    assert interval.misfit > 0.05
    # 3 % off at one size, as with a learning rate that does not suit it.
    bent = [each for each in runs if each.parameters != 50 * MILLION]
    bent += ladder(ScalingLaw(0.82, 0.55, 0.38), [50], [1])
    interval = forecast_interval(bent, seed_noise(bent), TARGET, TOKENS, joint=False)
    assert interval.misfit < 0.05


@pytest.mark.parametrize(
    ("runs", "noise", "joint", "words"),
    [
        (ladder(LAW, [10, 50, 100], [2, 2, 2]), SeedNoise(0.01, 3), False, "3 constants pass"),
        (grid(LAW, [5, 10], [50, 100]), SeedNoise(0.01, 2), True, "5 constants pass"),
        (ladder(LAW, noise=0.01), None, False, "no rung has two seeds"),
        (ladder(LAW), SeedNoise(0.0, 3), False, "the same loss"),
        (
            ladder(LAW, [5, 10, 20, 40, 80, 160], [2] * 6, tokens=lambda size: size, noise=0.01),
            SeedNoise(0.01, 6),
            True,
            "Tokens follow parameters",
        ),
    ],
)
def test_where_there_is_no_interval_a_sentence_says_why(runs, noise, joint, words):
    reason = forecast_interval(runs, noise, TARGET, TOKENS, joint=joint)
    assert not isinstance(reason, ForecastInterval)
    assert reason.startswith("No interval: ") and words in reason
