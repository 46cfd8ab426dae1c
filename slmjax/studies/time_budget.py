"""The best model for a time budget: the size whose predicted loss is lowest after those seconds."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from slmjax.errors import UserError
from slmjax.studies.scaling_law import CHINCHILLA, ScalingLaw

# Epochs of repetition after which a token's worth has fallen to 1/e: Muennighoff et al. 2023,
# section 5.
REPETITION_DECAY = 15.4
# Sizes between the smallest and the largest measured one: neighbours differ by at most 0.5 %.
SPACING = 1.005


@dataclasses.dataclass(frozen=True)
class SizeForTime:
    """What a size makes of the budget."""

    parameters: int
    tokens: int
    tokens_per_second: float
    epochs: float
    loss: float  # predicted, in the law's unit


@dataclasses.dataclass(frozen=True)
class TimeBudget:
    """A size, the best one unless it is said, and half and twice as large ones for comparison."""

    best: SizeForTime
    half: SizeForTime
    twice: SizeForTime
    # "smallest" or "largest" where the best size is the end of the measured range, so that a size
    # beyond it may be better; else "".
    end: str

    def rows(self) -> list[SizeForTime]:
        """Return the three sizes, from the smallest."""
        return [self.half, self.best, self.twice]


def best_size(
    seconds: float,
    throughput: Mapping[int, float],
    unique_tokens: float,
    law: ScalingLaw = CHINCHILLA,
) -> TimeBudget:
    """Return the size with the lowest predicted loss after a time, and its alternatives.

    Sizes are those between the smallest and the largest measured one. Between two measured sizes,
    tokens per second are a power of the size; half and twice the best size may lie beyond the
    measured ones and then continue the nearest power.

    Args:
      seconds: of training.
      throughput: {parameters: tokens per second}, of two or more sizes.
      unique_tokens: of the text. Tokens of further epochs count less (`effective_tokens`).
      law: default: Besiroglu et al. 2024. Where its minimum lies depends on its exponents and on
        the ratio of A to B, but not on the unit of its loss.
    Raises: UserError for a value that is not positive, and for a single size.
    """
    if len(throughput) < 2:
        raise UserError("The throughput of two sizes is needed to choose between sizes.")
    values = [seconds, unique_tokens, *throughput, *throughput.values()]
    if not all(0 < value < float("inf") for value in values):
        raise UserError(
            f"seconds={seconds}, unique_tokens={unique_tokens}, throughput={dict(throughput)}: "
            "expected positive numbers."
        )
    if law.data_factor <= 0 or law.data_exponent <= 0:
        raise UserError("The law has no part for tokens, so that the largest model always wins.")
    low, high = min(throughput), max(throughput)
    number = 2 + int(np.log(high / low) / np.log(SPACING))
    sizes = np.geomspace(low, high, number)
    tokens = speeds_between(throughput, sizes) * seconds
    losses = law.loss(sizes, effective_tokens(tokens, unique_tokens))
    place = int(np.argmin(losses))
    ends = {0: "smallest", number - 1: "largest"}
    best = alternatives(float(sizes[place]), seconds, throughput, unique_tokens, law)
    return dataclasses.replace(best, end=ends.get(place, ""))


def alternatives(
    parameters: float,
    seconds: float,
    throughput: Mapping[int, float],
    unique_tokens: float,
    law: ScalingLaw = CHINCHILLA,
) -> TimeBudget:
    """Return what a size makes of a time, next to half and twice as large ones.

    The other arguments are those of `best_size`.
    """
    sizes = parameters * np.array([1.0, 0.5, 2.0])
    speeds = speeds_between(throughput, sizes)
    tokens = speeds * seconds
    losses = law.loss(sizes, effective_tokens(tokens, unique_tokens))
    outcomes = []
    for size, count, speed, loss in zip(sizes, tokens, speeds, losses):
        epochs = count / unique_tokens
        outcomes.append(
            SizeForTime(round(size), round(count), float(speed), float(epochs), float(loss))
        )
    return TimeBudget(*outcomes, end="")


def effective_tokens(
    tokens: Float[np.ndarray, "runs"], unique_tokens: float
) -> Float[np.ndarray, "runs"]:
    """Return how many fresh tokens are worth as much as repeated ones.

    D' = U + U R* (1 - exp(-R / R*)), with U unique tokens and R epochs after the first. Below one
    epoch it is the number of tokens itself. The paper's second correction, of excess
    parameters, is left out.
    Source: Muennighoff et al. 2023, section 3.1.
    """
    repeats = np.maximum(tokens / unique_tokens - 1, 0)
    worth = -REPETITION_DECAY * np.expm1(-repeats / REPETITION_DECAY)
    return np.minimum(tokens, unique_tokens) + unique_tokens * worth


def speeds_between(
    throughput: Mapping[int, float], sizes: Float[np.ndarray, "sizes"]
) -> Float[np.ndarray, "sizes"]:
    """Return tokens per second: straight lines between the measured points on logarithmic axes.

    Args:
      throughput: {parameters: tokens per second}, of two or more sizes. The first and the last line
        reach on.
    """
    points = sorted(throughput.items())
    x, y = np.log(np.array(points, np.float64)).T
    logarithms = np.log(sizes)
    speeds = np.empty(len(sizes))
    segments = list(itertools.pairwise(zip(x, y)))
    # The segment of each size; the first and the last one reach on.
    which = np.clip(np.searchsorted(x, logarithms) - 1, 0, len(segments) - 1)
    for i, ((x0, y0), (x1, y1)) in enumerate(segments):
        inside = which == i
        speeds[inside] = y0 + (logarithms[inside] - x0) * (y1 - y0) / (x1 - x0)
    return np.exp(speeds)
