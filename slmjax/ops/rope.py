"""Rotary position embedding."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], theta: float
) -> Float[Array, "B T N H"]:
    """Return x with each pair (i, i + H/2) of a head rotated by position * theta^(-2i/H).

    It computes in float32 and returns x's type.

    Args:
      x: queries or keys; H channels of a head, an even number.
      positions: number of each token in its document.

    Source: Su et al. 2021 (RoFormer), section 3.2.2; the halves are paired as GPT-NeoX and Llama in
    transformers do.
    """
    half = x.shape[-1] // 2
    pair = jnp.arange(half, dtype=jnp.float32)
    frequency = theta ** (-pair / half)
    position = positions[..., None, None].astype(jnp.float32)
    angle = position * frequency[None, None, None]
    cos = jnp.cos(angle)  # [B,T,1,H/2]
    sin = jnp.sin(angle)
    first = x[..., :half].astype(jnp.float32)
    second = x[..., half:].astype(jnp.float32)
    rotated_first = first * cos - second * sin
    rotated_second = second * cos + first * sin
    # Halves, not neighbours: see the source above.
    rotated = jnp.concatenate([rotated_first, rotated_second], axis=-1)
    return rotated.astype(x.dtype)
