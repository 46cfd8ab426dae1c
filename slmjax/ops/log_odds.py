"""Log-odds of sequences, exact also where a probability is close to 1."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Near the smallest float32. A sequence with fewer nats counts as certain and has no gradient.
LEAST_NATS = 1e-37


def log_odds(nats: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Return log(p / (1 - p)) of p = exp(-nats), for nats >= 0.

    Its derivative by nats is 1 / expm1(-nats). Source: Hong et al. 2024 (ORPO), equation 4, in a
    form that keeps its digits at both ends.
    """
    nats = jnp.maximum(nats, LEAST_NATS)
    near_one = nats < math.log(2)
    # Each form gets harmless values where the other one is taken: a gradient that is not a number
    # would pass through jnp.where.
    small = jnp.where(near_one, nats, 1.0)
    large = jnp.where(near_one, 1.0, nats)
    of_small = -jnp.log(jnp.expm1(small))
    of_large = -large - jnp.log1p(-jnp.exp(-large))
    return jnp.where(near_one, of_small, of_large)


def segment_sums(
    values: Float[Array, "B T"], segments: Int[Array, "B T"], count: int
) -> Float[Array, "B {count}"]:
    """Return the sum of the values of segments 1, 2, ..., `count` of each row.

    No scatter: a sum over a mask is the same on every device and in every run.
    """
    numbers = jnp.arange(1, count + 1)
    is_own = segments[..., None] == numbers  # [B,T,count]
    return jnp.where(is_own, values[..., None], 0.0).sum(1)
