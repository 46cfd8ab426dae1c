"""Learning-rate schedules as pure functions of the step: a factor in [0, 1] of the peak rate.

They are computed on the host: the compiled step takes its rates as an argument, so that it serves
every rate, schedule and number of steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from slmjax.config import Config, TrainConfig
from slmjax.config.run_phases import RunPhase, run_phases

# One for each step that was asked for; of a single step a scalar.
Factors = Float[np.ndarray, "..."] | np.float32


class Rates(NamedTuple):
    """What a step multiplies its updates with, float32.

    Attributes:
      learning: the learning rate, of groups without a multiplier.
      decay: train.decay_lr with the same factor; 0, and not used, where that is 0.
    """

    learning: Float[ArrayLike, ""]
    decay: Float[ArrayLike, ""]


def rates(train: TrainConfig, step: int, phases: Sequence[RunPhase] = ()) -> Rates:
    """Return the rates of a step. Args: see `factor`."""
    return scaled_rates(train, factor(train, step, phases))


def scaled_rates(train: TrainConfig, factor: Factors | float) -> Rates:
    """Return the rates at a factor of their peaks."""
    return Rates(np.float32(train.lr * factor), np.float32(train.decay_lr * factor))


def factor(train: TrainConfig, step: ArrayLike, phases: Sequence[RunPhase] = ()) -> Factors:
    """Return the factor that config.train asks for at a step.

    Args:
      phases: of the run; only the schedule "phases" reads them.
    """
    if train.schedule == "phases":
        return by_phases(step, warmup=train.warmup, phases=phases)
    if train.schedule == "cosine":
        return cosine(step, warmup=train.warmup, total=train.steps)
    return wsd(step, warmup=train.warmup, total=train.steps, decay=train.decay)


def wsd(step: ArrayLike, *, warmup: int, total: int, decay: float) -> Factors:
    """Warm up, hold, then decay to zero as 1 - sqrt over the last `decay` share of the run.

    Args:
      step: training step, 0-based; scalars and arrays both work.
      warmup, total: in steps.
      decay: share of `total` spent decaying, in [0, 1).
    Source: Hu et al. 2024 (MiniCPM), section 4; the 1-sqrt shape is from Haegele et al. 2024,
      section 4.
    Raises: ValueError if warmup and decay together exceed the run.
    """
    start = decay_start(total, decay)
    if warmup > start:
        raise ValueError(
            f"warmup of {warmup} steps and a decay from step {start} exceed a run of {total}"
        )
    step = np.asarray(step, np.float32)
    # Share of the decay that is done; 0 before it begins.
    done = np.clip((step - start) / max(total - start, 1), 0.0, 1.0)
    falling = 1.0 - np.sqrt(done)
    return _warmup(step, warmup) * falling


def by_phases(step: ArrayLike, *, warmup: int, phases: Sequence[RunPhase]) -> Factors:
    """Warm up, and follow the rate of each phase: falling as 1 - sqrt, rising linearly.

    Args:
      step: training step, 0-based; scalars and arrays both work.
      warmup: steps of linear warmup at the start of the run.
      phases: each with a rate (from, to): factors of the peak rate at its begin and its end.
    Source: the shape is that of `wsd`.
    Raises: ValueError without phases.
    """
    if not phases:
        raise ValueError("the schedule 'phases' needs the phases of the run")
    step = np.asarray(step, np.float32)
    value = np.ones_like(step)
    for phase in phases:
        begin, end = phase.rate
        # Share of the phase that is done.
        done = np.clip((step - phase.first) / (phase.stop - phase.first), 0.0, 1.0)
        if end < begin:
            # 1 - sqrt from `begin` to `end`; from 1 to 0 it is that of `wsd` to the last bit.
            in_phase = end + (begin - end) * (1.0 - np.sqrt(done))
        else:
            in_phase = begin + (end - begin) * done
        value = np.where(step >= phase.first, in_phase, value)
    return _warmup(step, warmup) * value


def cosine(step: ArrayLike, *, warmup: int, total: int, floor: float = 0.1) -> Factors:
    """Warm up, then half a cosine down to `floor` of the peak.

    Source: Loshchilov and Hutter 2017; the floor is Hoffmann et al. 2022's.
    """
    step = np.asarray(step, np.float32)
    done = np.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
    return _warmup(step, warmup) * (floor + (1.0 - floor) * 0.5 * (1.0 + np.cos(np.pi * done)))


def decay_start(total: int, decay: float) -> int:
    """Return the first step of the decay.

    A checkpoint after that many steps is the last one that longer runs share.
    """
    return total - round(decay * total)


def trunk(train: TrainConfig, phases: Sequence[RunPhase] = ()) -> int | None:
    """Return the number of steps that a longer run of the same config would share.

    With the schedule "phases": the first step of the first phase whose rate falls.
    None for schedules that depend on the run's length from the first step on.
    """
    if train.schedule == "phases":
        for phase in phases:
            begin, end = phase.rate
            if end < begin:
                return phase.first
        return train.steps
    if train.schedule != "wsd":
        return None
    return decay_start(train.steps, train.decay)


def shared_steps(one: Config, other: Config) -> int:
    """Return in how many steps, from the first on, two runs have equal factors of their rates."""
    steps = np.arange(min(one.train.steps, other.train.steps))
    factors = []
    for config in (one, other):
        phases = run_phases(config.data, config.train)
        factors.append(factor(config.train, steps, phases))
    differing = np.flatnonzero(factors[0] != factors[1])
    return int(differing[0]) if len(differing) else len(steps)


def _warmup(step: Factors, warmup: int) -> Factors:
    """Return the factor of the warmup: a linear rise to 1 over `warmup` steps."""
    # The first step has 1 / warmup of the peak, not 0: a step at rate 0 would be wasted.
    return np.minimum(1.0, (step + 1.0) / max(warmup, 1))
