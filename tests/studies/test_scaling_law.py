"""Scaling laws: known constants come back, and other solvers agree."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize, stats

from slmjax.errors import UserError
from slmjax.studies import ladder_runs, scaling_law
from slmjax.studies.scaling_law import CHINCHILLA, ScalingLaw
from tests.studies.ladders import MILLION, grid, ladder, run

LAW = ScalingLaw(0.78, 0.55, 0.38)


def test_a_law_counts_in_millions_and_billions_what_the_paper_counts_in_ones():
    n, d = 70e9, 1.4e12
    expected = 1.8172 + 482.01 / n**0.3478 + 2085.43 / d**0.3658
    assert CHINCHILLA.loss(n, d) == pytest.approx(expected, rel=1e-12)


def test_the_line_is_the_regression_of_log_loss_on_log_parameters():
    runs = ladder(LAW, noise=0.01)
    x, y = np.log([[each.parameters / MILLION, each.loss] for each in runs]).T
    expected = stats.linregress(x, y)
    law = scaling_law.fit_line(runs)
    assert law.irreducible == 0
    assert np.log(law.size_factor) == pytest.approx(expected.intercept, rel=1e-9)
    assert law.size_exponent == pytest.approx(-expected.slope, rel=1e-9)


def test_a_pure_line_forecasts_too_low_a_loss_and_a_constant_mends_it():
    # Research finding 4: 10, 50 and 100M with 20 tokens a parameter on the refitted Chinchilla law.
    runs = ladder(CHINCHILLA, [10, 50, 100], [1, 1, 1], tokens=lambda size: 20 * size)
    errors = []
    for size in (350 * MILLION, 1000 * MILLION):
        truth = CHINCHILLA.loss(size, 20 * size)
        errors.append(scaling_law.fit_line(runs).loss(size, 20 * size) / truth - 1)
        # Two powers are not one, but nearly.
        assert scaling_law.fit_power(runs).loss(size, 20 * size) == pytest.approx(truth, rel=1e-4)
    assert errors == pytest.approx([-0.077, -0.16], abs=2e-3)


@pytest.mark.parametrize("law", [LAW, ScalingLaw(0.0, 2.0, 0.12), ScalingLaw(1.5, 9.0, 0.9)])
def test_a_power_law_comes_back_from_points_without_noise(law):
    fitted = scaling_law.fit_power(ladder(law))
    # The valley is flat: the forecast is known much better than each constant.
    assert dataclasses.astuple(fitted) == pytest.approx(dataclasses.astuple(law), abs=2e-3)
    assert fitted.loss(1e9, 1e8) == pytest.approx(law.loss(1e9, 1e8), rel=1e-5)


def test_a_power_law_comes_back_from_noise_with_as_much_error_as_noise_explains():
    runs = ladder(LAW, range(5, 405, 5), [2] * 80, noise=0.002, chance=1)
    fitted = scaling_law.fit_power(runs)
    assert fitted.size_exponent == pytest.approx(LAW.size_exponent, abs=0.03)
    assert fitted.irreducible == pytest.approx(LAW.irreducible, abs=0.02)


@pytest.mark.parametrize("chance", range(3))
def test_the_power_law_is_where_a_solver_of_all_constants_ends(chance):
    runs = ladder(LAW, noise=0.003, chance=chance)
    sizes, losses = np.array([[each.parameters / MILLION, each.loss] for each in runs]).T

    def residuals(constants):
        return np.log(constants[0] + constants[1] * sizes ** -constants[2]) - np.log(losses)

    bounds = ([0, 0, 0.01], [np.inf, np.inf, 4])
    solutions = []
    for exponent in (0.1, 0.4, 1.0, 2.0):
        start = [losses.min() / 2, 1.0, exponent]
        tight = {"xtol": 1e-14, "ftol": 1e-14, "gtol": 1e-14, "max_nfev": 5000}
        solutions.append(optimize.least_squares(residuals, start, bounds=bounds, **tight))
    best = min(solutions, key=lambda solution: solution.cost)
    expected = best.x[0] + best.x[1] * 300 ** -best.x[2]
    # Relative and log residuals differ by half the noise squared, 5e-6.
    assert scaling_law.fit_power(runs).loss(3e8, 1e8) == pytest.approx(expected, rel=1e-4)


def test_the_refitted_constants_of_chinchilla_come_back_from_points_without_noise():
    runs = grid(CHINCHILLA, [44, 100, 300, 1000, 4000], [1000, 3000, 10_000, 30_000])
    law = scaling_law.fit_joint(runs)
    found = (
        law.irreducible,
        law.size_factor * 1e6**law.size_exponent,
        law.size_exponent,
        law.data_factor * 1e9**law.data_exponent,
        law.data_exponent,
    )
    # Besiroglu et al. 2024, table 1.
    assert found == pytest.approx((1.8172, 482.01, 0.3478, 2085.43, 0.3658), rel=1e-5)


def test_a_joint_law_comes_back_from_noise_and_one_wild_run_hardly_moves_it():
    runs = grid(CHINCHILLA, [5, 20, 80, 320], [50, 200, 800, 3200], noise=0.001)
    truth = CHINCHILLA.loss(1e9, 2e10)
    noise = ladder_runs.seed_noise(runs)
    assert scaling_law.fit_joint(runs, noise).loss(1e9, 2e10) == pytest.approx(truth, rel=5e-3)
    wild = [*runs[:-1], dataclasses.replace(runs[-1], loss=1.05 * runs[-1].loss)]
    robust = scaling_law.fit_joint(wild, noise).loss(1e9, 2e10)
    # Without Huber's loss: a delta that no residual reaches.
    squares = scaling_law.fit_joint(wild, ladder_runs.SeedNoise(1.0, 4)).loss(1e9, 2e10)
    assert abs(robust / truth - 1) < 0.3 * abs(squares / truth - 1)


def test_seed_noise_is_pooled_over_rungs():
    losses = {10: [1.0, 1.1], 20: [0.9, 0.95, 0.92], 50: [0.8]}
    runs = []
    for size, of_size in losses.items():
        runs += [run(size * MILLION, 10**8, seed, loss) for seed, loss in enumerate(of_size)]
    noise = ladder_runs.seed_noise(runs)
    # Weighted by degrees of freedom: 1, 2 and 0.
    variances = [np.var(np.log(losses[10]), ddof=1), np.var(np.log(losses[20]), ddof=1)]
    assert noise.degrees == 3
    assert noise.deviation == pytest.approx(np.sqrt((variances[0] + 2 * variances[1]) / 3))
    # Other tokens are another rung, however large the model.
    assert ladder_runs.seed_noise([run(MILLION, 1, 0), run(MILLION, 2, 1)]) is None


def test_the_table_of_a_ladder_has_flops_next_to_parameters():
    rows = ladder_runs.ladder_table(ladder(LAW, [20, 5], [1, 2])).markdown().splitlines()
    assert [row.split(" | ")[1] for row in rows[2:]] == ["5M", "5M", "20M"]
    # 6 x 20M FLOPs a token, 100M tokens.
    assert rows[-1].split(" | ")[2:6] == ["20M", "120M", "100M", "12"]


@pytest.mark.parametrize("tokens_follow", [False, True])
def test_the_price_of_a_lower_loss_is_what_the_law_itself_says(tokens_follow):
    factor = scaling_law.compute_factor(
        LAW, 300 * MILLION, 10**8, 0.02, tokens_follow=tokens_follow
    )
    ratio = factor**0.5 if tokens_follow else factor
    expected = 0.98 * LAW.loss(3e8, 1e8)
    assert LAW.loss(3e8 * ratio, 1e8) == pytest.approx(expected, rel=1e-12)
    beyond = scaling_law.compute_factor(LAW, 300 * MILLION, 10**8, 0.5, tokens_follow=False)
    assert beyond == np.inf


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"fully_decayed": False}, "'odd' has not fully decayed"),
        ({"loss": float("nan")}, "'odd' has loss nan"),
        ({"loss": 0.0}, "'odd' has loss 0.0"),
        ({"tokens": 0}, "'odd' has tokens 0"),
        ({"unit": "nats per token"}, "'odd' has unit 'nats per token'"),
        ({"heldout": "others"}, "'odd' has heldout 'others'"),
        ({"parameters": 5 * MILLION}, "'5000000-100000000-0' and 'odd' have the same"),
    ],
)
def test_a_run_that_cannot_be_compared_is_refused_by_name(changed, words):
    odd = run(300 * MILLION, 10**8, **{"name": "odd"} | changed)
    with pytest.raises(UserError, match=words):
        scaling_law.fit_power([*ladder(LAW), odd])


def test_too_few_runs_are_refused():
    with pytest.raises(UserError, match="no finished run"):
        scaling_law.fit_line([])
    with pytest.raises(UserError, match="needs 3 sizes; there are 2"):
        scaling_law.fit_power(ladder(LAW, [5, 10], [2, 2]))
    with pytest.raises(UserError, match="needs 2 sizes; there is 1"):
        scaling_law.fit_line(ladder(LAW, [5], [2]))


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (ladder(CHINCHILLA), "needs six rungs; there are 5"),
        (grid(CHINCHILLA, [5, 10, 20], [50, 100]), "three numbers of tokens"),
        (
            ladder(CHINCHILLA, [5, 10, 20, 40, 80, 160], [1] * 6, tokens=lambda size: 20 * size),
            "Tokens follow parameters",
        ),
    ],
)
def test_a_joint_law_that_the_runs_do_not_determine_is_refused(runs, words):
    with pytest.raises(UserError, match=words):
        scaling_law.fit_joint(runs)
