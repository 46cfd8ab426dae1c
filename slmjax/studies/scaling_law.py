"""Scaling laws: the loss as a function of parameters and tokens, fitted to a ladder's runs."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Num
from scipy import optimize

from slmjax.errors import UserError
from slmjax.studies.ladder_runs import LadderRun, SeedNoise, check_runs
from slmjax.studies.variable_projection import EXPONENTS, Powers, fit_powers

MILLION, BILLION = 1e6, 1e9
# Huber's delta for log loss: Hoffmann et al. 2022, section 3.3.
HOFFMANN_DELTA = 1e-3
# In standard deviations: with normal noise Huber's estimate is then 95 % efficient (Huber 1964).
HUBER_DEVIATIONS = 1.345
# log N and log D must not lie on a line closer than this correlation for both to have an exponent.
MOST_CORRELATION = 0.995


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """L = E + A / N^a + B / D^b, with N in millions of parameters and D in billions of tokens."""

    irreducible: float  # E
    size_factor: float = 0.0  # A
    size_exponent: float = 0.0  # a
    data_factor: float = 0.0  # B
    data_exponent: float = 0.0  # b

    def loss(
        self, parameters: Num[np.ndarray, "..."] | float, tokens: Num[np.ndarray, "..."] | float
    ) -> Num[np.ndarray, "..."] | float:
        """Return the loss of models with that many parameters after that many tokens."""
        size = self.size_factor * (parameters / MILLION) ** -self.size_exponent
        data = self.data_factor * (tokens / BILLION) ** -self.data_exponent
        return self.irreducible + size + data


# Hoffmann et al.'s runs as refitted by Besiroglu et al. 2024, table 1. Nats per token, N and D as
# they are; `ScalingLaw` counts in millions and billions.
CHINCHILLA = ScalingLaw(1.8172, 482.01 / MILLION**0.3478, 0.3478, 2085.43 / BILLION**0.3658, 0.3658)


def fit_line(runs: Sequence[LadderRun]) -> ScalingLaw:
    """Return the straight line through log loss over log parameters: E is 0.

    It is biased where there is an irreducible loss: it forecasts too low a loss.
    Raises: UserError with fewer than two sizes.
    """
    sizes, losses = _by_size(runs, 2, "A line")
    slope, intercept = np.polyfit(np.log(sizes), np.log(losses), 1)
    return ScalingLaw(0.0, math.exp(intercept), -float(slope))


def fit_power(runs: Sequence[LadderRun]) -> ScalingLaw:
    """Return the power law with an irreducible loss, E + A / N^a, of least squared log residuals.

    E and A are at least 0, and a is in `EXPONENTS`.
    Raises: UserError with fewer than three sizes.
    """
    _by_size(runs, 3, "A power law with an irreducible loss")
    exponents, coefficients, _ = fit_powers(powers_of(runs, joint=False)[0])
    return _law(runs, exponents, coefficients)


def fit_joint(runs: Sequence[LadderRun], noise: SeedNoise | None = None) -> ScalingLaw:
    """Return the joint law in size and tokens, with Huber's loss on log residuals.

    Huber's delta is 1.345 deviations of `noise` and at least Hoffmann's 1e-3. The start is the
    least-squares optimum over all exponents, since the surface is flat along a valley, in which
    optimisers stop early.

    Source: Hoffmann et al. 2022, section 3.3; Besiroglu et al. 2024.
    Raises: UserError where the runs do not determine it (`joint_obstacle`).
    """
    check_runs(runs)
    obstacle = joint_obstacle(runs)
    if obstacle:
        raise UserError(obstacle)
    delta = HOFFMANN_DELTA
    if noise is not None:
        delta = max(delta, HUBER_DEVIATIONS * noise.deviation)
    problem, _ = powers_of(runs, joint=True)
    exponents, coefficients, _ = fit_powers(problem)
    log_losses = np.log(problem.losses)

    def residuals(values: np.ndarray) -> np.ndarray:
        powers = problem.sizes ** -values[3:]
        return np.log(values[0] + powers @ values[1:3]) - log_losses

    start = np.concatenate([coefficients, exponents])
    low = np.array([0, 0, 0, EXPONENTS[0], EXPONENTS[0]])
    high = np.array([np.inf, np.inf, np.inf, EXPONENTS[1], EXPONENTS[1]])
    # The solver wants a start inside the bounds.
    start = np.clip(start, low + 1e-9, high - 1e-9)
    result = optimize.least_squares(
        residuals,
        start,
        jac="3-point",
        bounds=(low, high),
        x_scale="jac",
        loss="huber",
        f_scale=delta,
        ftol=1e-15,
        xtol=1e-12,
        gtol=1e-15,
        max_nfev=2000,
    )
    return _law(runs, result.x[3:], result.x[:3])


def joint_obstacle(runs: Sequence[LadderRun]) -> str:
    """Return why runs do not determine a joint law, as a sentence; "" where they do."""
    points = sorted({(run.parameters, run.tokens) for run in runs})
    sizes, tokens = np.log(np.array(points, np.float64)).T
    if len(points) < 6:
        return f"A joint law has five constants and needs six rungs; there are {len(points)}."
    if len(set(sizes)) < 3 or len(set(tokens)) < 3:
        return "A joint law needs runs with three sizes and three numbers of tokens."
    if abs(np.corrcoef(sizes, tokens)[0, 1]) > MOST_CORRELATION:
        return "Tokens follow parameters in all runs, so that a joint law cannot tell them apart."
    return ""


def powers_of(runs: Sequence[LadderRun], *, joint: bool) -> tuple[Powers, np.ndarray]:
    """Return runs as a problem of variable projection, and the units of its sizes.

    Sizes are relative to their geometric mean over the runs. Without `joint` they are parameters
    only, else parameters and tokens.
    """
    sizes = np.array([(run.parameters, run.tokens) for run in runs], np.float64)
    if not joint:
        sizes = sizes[:, :1]
    units = np.exp(np.log(sizes).mean(0))
    losses = np.array([run.loss for run in runs], np.float64)
    return Powers(sizes / units, losses), units


def compute_factor(
    law: ScalingLaw, parameters: int, tokens: int, reduction: float, *, tokens_follow: bool
) -> float:
    """Return how many times the training FLOPs lower the loss by a share, by a larger model.

    FLOPs are taken as proportional to parameters times tokens.

    Args:
      parameters, tokens: of the model from which the loss is lowered.
      reduction: share of the loss, in (0, 1).
      tokens_follow: tokens grow with parameters, and the law is one of such runs; else they stay.
    Returns: infinity where the law's loss cannot fall so far.
    """
    if law.size_exponent <= 0:
        return math.inf
    now = law.loss(parameters, tokens)
    reducible = law.size_factor * (parameters / MILLION) ** -law.size_exponent
    left = reducible - reduction * now
    if left <= 0:
        return math.inf
    size_ratio = (reducible / left) ** (1 / law.size_exponent)
    if tokens_follow:
        return size_ratio**2
    return size_ratio


def _by_size(runs: Sequence[LadderRun], least: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return parameters in millions and losses of runs with at least that many sizes."""
    check_runs(runs)
    sizes = np.array([run.parameters / MILLION for run in runs])
    number = len(set(sizes))
    if number < least:
        raise UserError(f"{what} needs {least} sizes; there {_is_are(number)}.")
    return sizes, np.array([run.loss for run in runs])


def _is_are(number: int) -> str:
    if number == 1:
        return "is 1"
    return f"are {number}"


def _law(runs: Sequence[LadderRun], exponents: np.ndarray, coefficients: np.ndarray) -> ScalingLaw:
    """Return a law in millions and billions from a fit in the units of `powers_of`."""
    _, units = powers_of(runs, joint=len(exponents) == 2)
    scales = units / np.array([MILLION, BILLION])[: len(units)]
    factors = coefficients[1:] * scales**exponents
    values = [coefficients[0]]
    for factor, exponent in zip(factors, exponents):
        values += [factor, exponent]
    return ScalingLaw(*map(float, values))
