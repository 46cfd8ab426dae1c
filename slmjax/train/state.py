"""Everything that a training run carries from step to step, as one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

WINDOW = 128  # steps over which the running mean and deviation forget; Groeneveld et al. 2024 (OLMo) keep as many
WARM = 64  # kept steps before anything counts as a spike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spikes:
    """Running mean and variance [2] of (loss, gradient norm) over the kept steps, their count, and the skipped steps in a row."""

    count: Any  # fields of pytrees also hold shapes and shardings, therefore Any
    mean: Any
    variance: Any
    skips: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step (optimizer steps done, skipped ones included), parameters, buffers, optimizer state, spike statistics."""

    step: Any
    params: Any
    buffers: Any
    optimizer: Any
    spikes: Spikes


def saved(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds beside the parameters; a model without buffers has none there."""
    rest = {"step": state.step, "optimizer": state.optimizer, "spikes": state.spikes}
    return rest | ({"buffers": state.buffers} if state.buffers else {})


def no_spikes() -> Spikes:
    """Statistics of no steps."""
    return Spikes(jnp.zeros((), jnp.int32), jnp.zeros(2), jnp.zeros(2), jnp.zeros((), jnp.int32))


def judge(spikes: Spikes, seen: Float[Array, "2"], sigma: float) -> tuple[Bool[Array, ""], Spikes]:
    """Whether to keep a step with these (loss, gradient norm), and the statistics after it.

    A step is skipped when either is not finite, or lies more than `sigma` deviations above its running mean once WARM steps were kept
    (sigma 0: only when not finite). Source: the skip-step optimizers of OLMo-core (Groeneveld et al. 2024).
    """
    usual = spikes.mean + sigma * jnp.sqrt(spikes.variance)
    spiked = jnp.any(seen > usual) & (spikes.count >= WARM) if sigma else jnp.zeros((), jnp.bool_)
    keep = jnp.all(jnp.isfinite(seen)) & ~spiked
    share = 1.0 / jnp.minimum(spikes.count + 1, WINDOW).astype(jnp.float32)
    distance = jnp.where(keep, seen - spikes.mean, 0.0)
    variance = jnp.where(keep, (1 - share) * (spikes.variance + share * jnp.square(distance)), spikes.variance)
    after = Spikes(spikes.count + keep, spikes.mean + share * distance, variance, jnp.where(keep, 0, spikes.skips + 1).astype(jnp.int32))
    return keep, after
