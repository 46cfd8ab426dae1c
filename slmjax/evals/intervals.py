"""Figures of evaluations with their 95 % intervals."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

RESAMPLES = 1000
QUANTILES = (0.025, 0.975)  # the ends of the middle 95 %
_NORMAL = 1.959964  # the 97.5 % quantile of the normal distribution


class Figure(NamedTuple):
    """A figure with its 95 % interval.

    Attributes:
      count: items that it is computed from.
      chance: what guessing gives; None where nobody can say.
    """

    value: float
    low: float
    high: float
    count: int
    chance: float | None = None


def share_of(
    hits: Sequence[bool] | Shaped[np.ndarray, " n"], chance: float | None = None
) -> Figure:
    """Return the share of hits with Wilson's interval.

    Raises: ValueError without items.
    Source: Wilson 1927.
    """
    n = len(hits)
    if n == 0:
        raise ValueError("a share of no items")
    share = float(np.mean(hits))
    squared = _NORMAL**2
    middle = (share + squared / (2 * n)) / (1 + squared / n)
    spread = math.sqrt(share * (1 - share) / n + squared / (4 * n * n))
    half = _NORMAL * spread / (1 + squared / n)
    # Rounding may put an end a little beyond the share itself.
    low = min(share, max(0.0, middle - half))
    high = max(share, min(1.0, middle + half))
    return Figure(share, low, high, n, chance)


def resampled(
    columns: Float[np.ndarray, "n columns"],
    statistic: Callable[[Float[np.ndarray, "n columns"]], float],
) -> Figure:
    """Return a statistic of items with its percentile bootstrap interval.

    The same draws every time, so that a rerun gives the same interval.

    Args:
      columns: one row for each item.
      statistic: of the rows; a resample repeats some of them.
    Raises: ValueError without items.
    Source: Efron & Tibshirani 1993, chapter 13.
    """
    n = len(columns)
    if n == 0:
        raise ValueError("a statistic of no items")
    rng = np.random.default_rng(0)
    values = [statistic(columns[rng.integers(0, n, n)]) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, QUANTILES)
    return Figure(float(statistic(columns)), float(low), float(high), n)


def mean_of(values: Float[np.ndarray, " n"]) -> Figure:
    """Return the mean with its bootstrap interval, see `resampled`."""
    return resampled(np.asarray(values, np.float64)[:, None], lambda rows: float(rows.mean()))
