"""Learning-rate schedules as pure functions of the step: a factor in [0, 1] of the peak rate."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from slmjax.config import Config, TrainConfig
from slmjax.config.run_phases import RunPhase, run_phases


class WsdLengths(NamedTuple):
    """Lengths of the schedule `wsd` in steps, as numbers or arrays.

    warmup: at least 1.
    start: the first step of the decay.
    decay: at least 1.
    """

    warmup: ArrayLike
    start: ArrayLike
    decay: ArrayLike


def factor(
    train: TrainConfig,
    step: ArrayLike,
    phases: Sequence[RunPhase] = (),
    lengths: WsdLengths | None = None,
) -> Float[Array, "..."]:
    """Return the factor that config.train asks for at a step.

    Args:
      phases: of the run; only the schedule "phases" reads them.
      lengths: of the schedule "wsd", where they are arguments of a compiled step.
    """
    if lengths is not None:
        return _wsd(step, lengths)
    if train.schedule == "phases":
        return by_phases(step, warmup=train.warmup, phases=phases)
    if train.schedule == "cosine":
        return cosine(step, warmup=train.warmup, total=train.steps)
    return wsd(step, warmup=train.warmup, total=train.steps, decay=train.decay)


def wsd(step: ArrayLike, *, warmup: int, total: int, decay: float) -> Float[Array, "..."]:
    """Warm up, hold, then decay to zero as 1 - sqrt over the last `decay` share of the run.

    Args:
      step: training step, 0-based; scalars and arrays both work.
      warmup, total: in steps.
      decay: share of `total` spent decaying, in [0, 1).
    Source: Hu et al. 2024 (MiniCPM), section 4; the 1-sqrt shape is from Haegele et al. 2024,
      section 4.
    Raises: ValueError if warmup and decay together exceed the run.
    """
    return _wsd(step, wsd_lengths(warmup, total, decay))


def wsd_lengths(warmup: int, total: int, decay: float) -> WsdLengths:
    """Return the lengths of a schedule. Raises: ValueError as `wsd`."""
    start = decay_start(total, decay)
    if warmup > start:
        raise ValueError(
            f"warmup of {warmup} steps and a decay from step {start} exceed a run of {total}"
        )
    return WsdLengths(max(warmup, 1), start, max(total - start, 1))


def _wsd(step: ArrayLike, lengths: WsdLengths) -> Float[Array, "..."]:
    step = jnp.asarray(step, jnp.float32)
    # Share of the decay that is done; 0 before it begins.
    done = jnp.clip((step - lengths.start) / lengths.decay, 0.0, 1.0)
    falling = 1.0 - jnp.sqrt(done)
    return _warmup(step, lengths.warmup) * falling


def by_phases(step: ArrayLike, *, warmup: int, phases: Sequence[RunPhase]) -> Float[Array, "..."]:
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
    step = jnp.asarray(step, jnp.float32)
    value = jnp.ones_like(step)
    for phase in phases:
        begin, end = phase.rate
        # Share of the phase that is done.
        done = jnp.clip((step - phase.first) / (phase.stop - phase.first), 0.0, 1.0)
        if end < begin:
            # 1 - sqrt from `begin` to `end`; from 1 to 0 it is that of `wsd` to the last bit.
            in_phase = end + (begin - end) * (1.0 - jnp.sqrt(done))
        else:
            in_phase = begin + (end - begin) * done
        value = jnp.where(step >= phase.first, in_phase, value)
    return _warmup(step, max(warmup, 1)) * value


def cosine(step: ArrayLike, *, warmup: int, total: int, floor: float = 0.1) -> Float[Array, "..."]:
    """Warm up, then half a cosine down to `floor` of the peak.

    Source: Loshchilov and Hutter 2017; the floor is Hoffmann et al. 2022's.
    """
    step = jnp.asarray(step, jnp.float32)
    done = jnp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
    return _warmup(step, max(warmup, 1)) * (
        floor + (1.0 - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    )


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
        factors.append(np.asarray(factor(config.train, steps, phases)))
    differing = np.flatnonzero(factors[0] != factors[1])
    return int(differing[0]) if len(differing) else len(steps)


def _warmup(step: Array, warmup: ArrayLike) -> Array:
    """Return the factor of the warmup: a linear rise to 1 over `warmup` steps, 1 or more."""
    # The first step has 1 / warmup of the peak, not 0: a step at rate 0 would be wasted.
    return jnp.minimum(1.0, (step + 1.0) / warmup)
