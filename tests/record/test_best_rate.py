"""The parabola in log rate against losses whose best rate is known."""

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.record.best_rate import fit_best_rate

RATES = [1e-3 * 2**i for i in range(6)]


def losses(best, rates=RATES, noise=0.0):
    draw = np.random.default_rng(0)
    return [1.1 + 0.02 * np.log2(rate / best) ** 2 + noise * draw.normal() for rate in rates]


def test_the_vertex_of_exact_losses_is_found_exactly():
    fit = fit_best_rate(RATES, losses(5.3e-3))
    assert fit.rate == pytest.approx(5.3e-3, rel=1e-9)
    assert fit.loss == pytest.approx(1.1, rel=1e-9) and fit.residual < 1e-9
    assert fit.cost(1.06e-2) == pytest.approx(0.02 / 1.1, rel=1e-6)


def test_repeated_rates_with_noise_agree_with_scipys_least_squares():
    optimize = pytest.importorskip("scipy.optimize")
    rates = RATES * 3
    noisy = losses(5.3e-3, rates, noise=2e-3)
    fit = fit_best_rate(rates, noisy)
    expected, _ = optimize.curve_fit(
        lambda x, best, loss, curvature: loss + curvature * (x - best) ** 2,
        np.log2(rates),
        noisy,
        p0=(-8, 1, 0.01),
    )
    assert np.log2(fit.rate) == pytest.approx(expected[0], rel=1e-5)
    assert (fit.loss, fit.curvature) == pytest.approx(tuple(expected[1:]), rel=1e-4)


@pytest.mark.parametrize(
    ("rates", "values", "sentence"),
    [
        (RATES, losses(1e-4), "not inside the grid 0.001 to 0.032; extend it"),
        (RATES, losses(0.1), "not inside the grid"),
        (RATES, [-loss for loss in losses(5e-3)], "not inside the grid"),
        (RATES[:4], losses(2e-3, RATES[:4]), "at least 5 rates that span a factor of 16"),
        ([], [], "there are 0"),
        (RATES, [*losses(5e-3)[:-1], np.nan], "learning rate 0.032 has no finite loss"),
    ],
)
def test_a_best_rate_that_the_grid_does_not_show_is_refused(rates, values, sentence):
    with pytest.raises(UserError, match=sentence):
        fit_best_rate(rates, values)


def test_the_cost_of_a_rate_outside_the_grid_is_refused():
    with pytest.raises(UserError, match="outside the grid"):
        fit_best_rate(RATES, losses(5e-3)).cost(0.064)
