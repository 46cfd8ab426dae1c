"""Profile-likelihood intervals of the loss that a scaling law forecasts."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy import stats

from slmjax.studies.ladder_runs import LadderRun, SeedNoise, seed_noise
from slmjax.studies.scaling_law import joint_obstacle, powers_of
from slmjax.studies.variable_projection import EXPONENTS, Powers, extreme_values, fit_powers, lowest

LEVEL = 0.9
# Below this probability the runs miss the curve by more than seeds explain.
SIGNIFICANT = 0.05
# What an exponent that cannot reach the allowed misfit scores, far above any loss.
UNREACHABLE = 1e9
# An exponent this close to an end of its range, relatively, is at the end.
EDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class ForecastInterval:
    """Two intervals of one forecast at one level."""

    level: float
    # Of the mean loss over seeds: the law's own uncertainty.
    mean: tuple[float, float]
    # Of the loss of one run, which has seed noise of its own: a prediction interval.
    run: tuple[float, float]
    # What ends the interval of the mean other than the runs, as a sentence; "" for the runs alone.
    bound: str
    # Probability of a misfit as large as the runs', if the law holds and only seeds differ.
    misfit: float


def forecast_interval(
    runs: Sequence[LadderRun],
    noise: SeedNoise | None,
    parameters: int,
    tokens: int,
    *,
    joint: bool,
    level: float = LEVEL,
) -> ForecastInterval | str:
    """Return the intervals of a law's forecast, or in a sentence why there are none.

    An interval holds every loss at the target for which the best law through it raises the sum of
    squared log residuals by at most s^2 F, with the seed noise s and the quantile F of Fisher's
    distribution with 1 and noise.degrees degrees of freedom. The law's E, A and B are at least 0.
    It knows of seed noise alone: `misfit` says whether the runs contradict the law itself.

    Args:
      parameters, tokens: of the target.
      joint: E + A / N^a + B / D^b instead of E + A / N^a.
    Source: Bates & Watts 1988, chapter 6 (profile likelihood); the noise is pure error, so that a
      misfit does not enter it.
    """
    constants = 5 if joint else 3
    rungs = len({(run.parameters, run.tokens) for run in runs})
    if not joint:
        rungs = len({run.parameters for run in runs})
    if rungs <= constants:
        return (
            f"No interval: {constants} constants pass through {rungs} rungs exactly, so that "
            "nothing shows whether the law holds."
        )
    if joint and joint_obstacle(runs):
        return f"No interval: {joint_obstacle(runs)}"
    if noise is None:
        return "No interval: no rung has two seeds, so that the noise is unknown."
    if noise.deviation == 0:
        return "No interval: the seeds of each rung have the same loss, which is no noise to go by."
    problem, units = powers_of(runs, joint=joint)
    target = np.array([parameters, tokens], np.float64)[: len(units)] / units
    exponents, _, squares = fit_powers(problem)
    allowed = squares + noise.deviation**2 * stats.f.ppf(level, 1, noise.degrees)
    mean, bound = _interval(problem, target, exponents, allowed, one_run=False)
    run, _ = _interval(problem, target, exponents, allowed, one_run=True)
    # Lack of fit: the squares that differences between these runs' seeds leave over.
    own_noise = seed_noise(runs)
    if own_noise is not None:
        squares -= own_noise.degrees * own_noise.deviation**2
    lack = max(squares, 0) / (rungs - constants)
    misfit = float(stats.f.sf(lack / noise.deviation**2, rungs - constants, noise.degrees))
    return ForecastInterval(level, mean, run, bound, misfit)


def _interval(
    problem: Powers, target: np.ndarray, exponents: np.ndarray, allowed: float, *, one_run: bool
) -> tuple[tuple[float, float], str]:
    """Return the lowest and highest value at the target over all exponents, and what bounds them.

    Args:
      exponents: of the fit, which reach `allowed`.
    """
    ends, bounds = [], []
    for name, sign in (("lower", -1), ("upper", 1)):
        extremes = functools.partial(
            extreme_values, problem, target, allowed=allowed, sign=sign, one_run=one_run
        )

        def objective(candidates: np.ndarray, extremes=extremes, sign=sign) -> np.ndarray:
            values, _, least = extremes(candidates)
            # The excess leads the search back to where `allowed` can be reached.
            excess = UNREACHABLE * (1 + least / allowed)
            return np.where(np.isfinite(values), -sign * values, excess)

        best = lowest(objective, len(exponents), start=exponents)
        values, constants, _ = extremes(best[None])
        ends.append(float(values[0]))
        if constants[0] == 0:
            bounds.append(f"The {name} end is where E is 0: the runs do not bound it.")
        elif best.min() < EXPONENTS[0] * (1 + EDGE) or best.max() > EXPONENTS[1] * (1 - EDGE):
            bounds.append(f"The {name} end is where an exponent leaves {EXPONENTS}.")
    return (ends[0], ends[1]), " ".join(bounds)
