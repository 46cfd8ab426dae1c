"""The training state, as one pytree, and the statistics that decide which steps to skip."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Steps in the window of the running mean and deviation; OLMo's is as long (Groeneveld et al. 2024).
WINDOW = 128
RECOVERY = 1000  # finite steps after which float16's loss scale has doubled again
WARM = 64  # finite steps before anything counts as a spike
REACH = 4  # times the distance at which a spike begins: as far as a spike counts in the statistics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spikes:
    """Statistics of loss and gradient norm, as two-element arrays in this order.

    count: finite steps so far.
    mean, variance: running, over finite steps.
    skips: skipped steps in a row.
    exponent: log2 of the loss scale that float16 asks for, see `loss_scale`; at most 0.
    """

    count: Any  # fields of pytrees also hold shapes and shardings, therefore Any
    mean: Any  # [2] float32
    variance: Any  # [2] float32
    skips: Any
    exponent: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes from step to step; `step` counts skipped steps too."""

    step: Any
    params: Any
    buffers: Any
    optimizer: Any
    spikes: Spikes


def judge_step(
    spikes: Spikes, seen: Float[Array, "2"], sigma: float
) -> tuple[Bool[Array, ""], Spikes]:
    """Decide whether to keep a step with these (loss, gradient norm).

    A step is skipped when either is not finite, or, after WARM steps, lies more than `sigma`
    standard deviations above its running mean (sigma 0: only when not finite). A spike counts in
    the statistics too, or a lasting rise of the gradient norm would be skipped forever. It counts
    as REACH * sigma deviations at most, so that one spike hides few others.

    Args:
      seen: (loss, gradient norm) of the step.

    Returns: (whether to keep it, the statistics after it).
    Source: the skip-step optimizers of OLMo-core (Groeneveld et al. 2024), whose window holds
    skipped steps whole.
    """
    above = seen - spikes.mean  # [2]: only a rise is a spike
    limit = sigma * jnp.sqrt(spikes.variance)
    spiked = jnp.zeros((), jnp.bool_)
    if sigma:
        spiked = jnp.any(above > limit) & (spikes.count >= WARM)
    finite = jnp.all(jnp.isfinite(seen))
    # Comparisons with NaN are false: a step that is not finite does not count as spiked.
    keep = finite & ~spiked

    # Exponential mean and variance, whose window grows to WINDOW steps (Welford's update).
    # `share` is the weight of this step.
    share = 1.0 / jnp.minimum(spikes.count + 1, WINDOW).astype(jnp.float32)
    bounded = jnp.where(spiked, jnp.minimum(above, REACH * limit), above)
    distance = jnp.where(finite, bounded, 0.0)
    variance = (1 - share) * (spikes.variance + share * jnp.square(distance))
    variance = jnp.where(finite, variance, spikes.variance)
    skips = jnp.where(keep, 0, spikes.skips + 1).astype(jnp.int32)
    # For float16 only: half the loss scale after a step that is not finite, and slowly back to 1.
    risen = jnp.minimum(spikes.exponent + 1 / RECOVERY, 0.0)
    exponent = jnp.where(finite, risen, spikes.exponent - 1)
    return keep, Spikes(
        count=spikes.count + finite,
        mean=spikes.mean + share * distance,
        variance=variance,
        skips=skips,
        exponent=exponent,
    )


def no_spikes() -> Spikes:
    """Return the statistics of no steps."""
    return Spikes(
        count=jnp.zeros((), jnp.int32),
        mean=jnp.zeros(2),
        variance=jnp.zeros(2),
        skips=jnp.zeros((), jnp.int32),
        exponent=jnp.zeros(()),
    )


def loss_scale(spikes: Spikes) -> Float[Array, ""]:
    """Return the power of two that float16 multiplies the summed loss with.

    It keeps gradients below float16's largest number, 65,504. The loss is a sum over tokens, whose
    gradients fill float16's range without a larger scale. So the scale starts at 1, halves with
    each step that is not finite, and slowly comes back.
    Source: Micikevicius et al. 2018 (mixed precision training), section 3.2.
    """
    return jnp.exp2(jnp.floor(spikes.exponent))


def saved(state: TrainState) -> dict[str, Any]:
    """Return the items of a checkpoint; a model without buffers has no such item."""
    progress = {"step": state.step, "optimizer": state.optimizer, "spikes": state.spikes}
    items = {"params": state.params, "optimizer": progress}
    if state.buffers:
        items["buffers"] = state.buffers
    return items


def restored(items: dict[str, Any]) -> TrainState:
    """Return the state from the items that `saved` made."""
    return TrainState(
        params=items["params"], buffers=items.get("buffers", {}), **items["optimizer"]
    )
