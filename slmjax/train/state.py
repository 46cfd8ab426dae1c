"""Everything that a training run carries from step to step, as one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

WINDOW = 128  # steps over which the running mean and deviation forget; Groeneveld et al. 2024 (OLMo) keep as many
RECOVERY = 1000  # finite steps after which float16's loss scale has doubled again
WARM = 64  # steps before anything counts as a spike
REACH = 4  # a skipped step counts as at most so many times the distance from the mean that is kept


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spikes:
    """Running mean and variance [2] of (loss, gradient norm) over finite steps, their count, and the skipped steps in a row.

    exponent: log2 of the loss scale that float16 asks for, see `loss_scale`; at most 0.
    """

    count: Any  # fields of pytrees also hold shapes and shardings, therefore Any
    mean: Any
    variance: Any
    skips: Any
    exponent: Any


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
    """The items of a checkpoint; a model without buffers has no such item."""
    progress = {"step": state.step, "optimizer": state.optimizer, "spikes": state.spikes}
    items = {"params": state.params, "optimizer": progress}
    return items | ({"buffers": state.buffers} if state.buffers else {})


def restored(items: dict[str, Any]) -> TrainState:
    """The state from the items that `saved` made."""
    return TrainState(
        params=items["params"], buffers=items.get("buffers", {}), **items["optimizer"]
    )


def no_spikes() -> Spikes:
    """Statistics of no steps."""
    return Spikes(
        jnp.zeros((), jnp.int32),
        jnp.zeros(2),
        jnp.zeros(2),
        jnp.zeros((), jnp.int32),
        jnp.zeros(()),
    )


def loss_scale(spikes: Spikes) -> Float[Array, ""]:
    """The power of two that the summed loss is multiplied with where gradients are float16, so that none exceeds its 65,504.

    A loss that is summed over tokens gives gradients that fill float16's range by itself, so that the scale starts at 1 and only falls:
    by half with each step that is not finite, and slowly back. Source: Micikevicius et al. 2018 (mixed precision training), section 3.2.
    """
    return jnp.exp2(jnp.floor(spikes.exponent))


def judge_step(
    spikes: Spikes, seen: Float[Array, "2"], sigma: float
) -> tuple[Bool[Array, ""], Spikes]:
    """Whether to keep a step with these (loss, gradient norm), and the statistics after it.

    A step is skipped when either is not finite, or lies more than `sigma` deviations above its running mean after WARM steps (sigma 0: only
    when not finite). Skipped steps count too: parameters that are not moved ask for the same step again, so that a gradient norm that rose
    to stay would otherwise be skipped for ever. As each counts as REACH * sigma deviations at most, one spike hides few others.
    Source: the skip-step optimizers of OLMo-core (Groeneveld et al. 2024), whose window holds skipped steps whole.
    """
    above, limit = seen - spikes.mean, sigma * jnp.sqrt(spikes.variance)
    spiked = jnp.any(above > limit) & (spikes.count >= WARM) if sigma else jnp.zeros((), jnp.bool_)
    finite = jnp.all(jnp.isfinite(seen))
    keep = finite & ~spiked
    share = 1.0 / jnp.minimum(spikes.count + 1, WINDOW).astype(jnp.float32)
    distance = jnp.where(finite, jnp.where(spiked, jnp.minimum(above, REACH * limit), above), 0.0)
    variance = jnp.where(
        finite, (1 - share) * (spikes.variance + share * jnp.square(distance)), spikes.variance
    )
    skips = jnp.where(keep, 0, spikes.skips + 1).astype(jnp.int32)
    exponent = jnp.where(
        finite, jnp.minimum(spikes.exponent + 1 / RECOVERY, 0.0), spikes.exponent - 1
    )
    return keep, Spikes(
        spikes.count + finite, spikes.mean + share * distance, variance, skips, exponent
    )
