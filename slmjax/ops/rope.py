"""Rotary position embedding."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rope(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], theta: float
) -> Float[Array, "B T N H"]:
    """Return x with each pair (i, i + H/2) of a head rotated by position * theta^(-2i/H).

    It computes in float32 and returns x's type.

    Source: Su et al. 2021 (RoFormer), section 3.2.2; the halves are paired as GPT-NeoX and Llama in
    transformers do.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)  # [B,T,1,H/2]
    first = x[..., :half].astype(jnp.float32)
    second = x[..., half:].astype(jnp.float32)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
