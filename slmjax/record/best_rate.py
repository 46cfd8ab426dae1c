"""The best learning rate of a grid, and what any other rate costs: a parabola in log rate."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slmjax.errors import UserError

FEWEST = 5  # rates of a grid
LEAST_SPAN = 16.0  # highest over lowest rate


class RateFit(NamedTuple):
    """A parabola loss = `loss` + `curvature` * log2(rate / `rate`)^2."""

    rate: float  # the best one
    loss: float  # at the best rate
    curvature: float
    residual: float  # largest distance of a measured loss from the parabola
    lowest: float  # ends of the grid
    highest: float

    def cost(self, rate: float) -> float:
        """Return how much higher the loss at `rate` is than the best, relative to the best.

        Raises: UserError for a rate outside the grid.
        """
        if not self.lowest <= rate <= self.highest:
            raise UserError(
                f"the learning rate {rate:g} is outside the grid, {self.lowest:g} to "
                f"{self.highest:g}; what it costs was not measured."
            )
        return self.curvature * float(np.log2(rate / self.rate)) ** 2 / self.loss


def fit_best_rate(rates: Sequence[float], losses: Sequence[float]) -> RateFit:
    """Fit a parabola in log2 of the rate to all losses, by least squares.

    A rate may come several times, with different seeds.
    Raises: UserError where there are fewer than FEWEST rates or they span less than LEAST_SPAN,
      where a loss is not finite, and where neither the lowest mean loss nor the vertex lies inside
      the grid.
    """
    x, y = np.log2(np.asarray(rates, float)), np.asarray(losses, float)
    distinct = np.unique(x)
    if len(distinct) < FEWEST or distinct[-1] - distinct[0] < np.log2(LEAST_SPAN) - 1e-6:
        raise UserError(
            f"a best learning rate needs at least {FEWEST} rates that span a factor of "
            f"{LEAST_SPAN:g}; there are {len(distinct)}."
        )
    if not np.isfinite(y).all():
        worst = 2.0 ** x[~np.isfinite(y)][0]
        raise UserError(f"the run at learning rate {worst:g} has no finite loss; leave it out.")
    means = [y[x == rate].mean() for rate in distinct]
    # Around the middle, so that the three columns are far from parallel.
    middle = x.mean()
    square, slope, level = np.polyfit(x - middle, y, 2)
    vertex = middle - slope / (2 * square) if square > 0 else np.inf
    inside = distinct[0] < vertex < distinct[-1]
    if not inside or np.argmin(means) in (0, len(means) - 1):
        raise UserError(
            f"the best learning rate is not inside the grid {2.0 ** distinct[0]:g} to "
            f"{2.0 ** distinct[-1]:g}; extend it."
        )
    best = level - slope**2 / (4 * square)
    residuals = best + square * (x - vertex) ** 2 - y
    return RateFit(
        rate=float(2.0**vertex),
        loss=float(best),
        curvature=float(square),
        residual=float(np.abs(residuals).max()),
        lowest=float(2.0 ** distinct[0]),
        highest=float(2.0 ** distinct[-1]),
    )
