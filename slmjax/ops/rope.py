"""Rotary position embedding, and its frequencies for rows longer than those of training."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# YaRN's ramp: pairs that turn more often than FAST times in a row of training keep their frequency,
# those that turn less often than SLOW times are slowed down by the factor.
FAST, SLOW = 32, 1
# The logarithm's factor in the scale of cosine and sine.
YARN_SCALE = 0.1


def rope(
    x: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    frequencies: Float[Array, " pairs"],
    scale: float = 1.0,
) -> Float[Array, "B T N H"]:
    """Return x with each pair (i, i + H/2) of a head rotated by position * frequencies[i].

    It computes in float32 and returns x's type.

    Args:
      x: queries or keys; H channels of a head, an even number.
      positions: number of each token in its document.
      scale: factor on cosine and sine, so that a query times a key gets its square.

    Source: Su et al. 2021 (RoFormer), section 3.2.2; the halves are paired as GPT-NeoX and Llama in
    transformers do.
    """
    half = x.shape[-1] // 2
    position = positions[..., None, None].astype(jnp.float32)
    angle = position * frequencies[None, None, None]
    cos = jnp.cos(angle)  # [B,T,1,H/2]
    sin = jnp.sin(angle)
    if scale != 1:
        cos, sin = scale * cos, scale * sin
    first = x[..., :half].astype(jnp.float32)
    second = x[..., half:].astype(jnp.float32)
    rotated_first = first * cos - second * sin
    rotated_second = second * cos + first * sin
    # Halves, not neighbours: see the source above.
    rotated = jnp.concatenate([rotated_first, rotated_second], axis=-1)
    return rotated.astype(x.dtype)


def rope_frequencies(head_dim: int, theta: float) -> Float[Array, " pairs"]:
    """Return the angle by which each pair of channels turns from token to token: theta^(-2i/H)."""
    half = head_dim // 2
    pair = jnp.arange(half, dtype=jnp.float32)
    return theta ** (-pair / half)


def yarn_frequencies(
    head_dim: int, theta: float, factor: float, trained: int
) -> tuple[Float[Array, " pairs"], float]:
    """Return (frequencies, scale of cosine and sine) for rows `factor` times as long.

    Fast pairs stay as they are, slow ones are slowed down by the factor, those in between by a part
    of it. A factor of 1 changes nothing.

    Args:
      trained: tokens of a row of the training whose positions are stretched.
    Source: Peng et al. 2023 (YaRN), sections 3.2 and 3.4; the ends of the ramp are rounded outwards
      as in transformers.
    """
    plain = rope_frequencies(head_dim, theta)
    if factor == 1:
        return plain, 1.0

    def pair_that_turns(times: float) -> float:
        """Return the number of the pair that turns so many times in a row of training."""
        return head_dim * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(FAST)), 0)
    high = min(math.ceil(pair_that_turns(SLOW)), head_dim - 1)
    width = max(high - low, 1e-3)
    pair = jnp.arange(head_dim // 2, dtype=jnp.float32)
    slowed = jnp.clip((pair - low) / width, 0, 1)  # 0: as it is, 1: slowed down by the factor
    return plain * (1 - slowed) + plain / factor * slowed, YARN_SCALE * math.log(factor) + 1
