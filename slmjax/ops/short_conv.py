"""The short causal convolution before linear mixers: each channel's last few inputs, weighted, of one document only."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def short_conv(
    x: Float[Array, "B T C"],
    weight: Float[Array, "W C"],
    segments: Int[Array, "B T"],
    *,
    tail: Float[Array, "B W-1 C"] | None = None,
    tail_segments: Int[Array, "B W-1"] | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"], Int[Array, "B W-1"]]:
    """(y, tail, tail_segments): y_t = sum over j < W of weight_j x_(t-j), where token t - j is of t's segment, and the next call's tail.

    W shifted multiplications and not a convolution: XLA fuses them into one pass, and its depthwise convolution knows no documents.
    Padding (segment 0) gives zeros and takes no place among a document's tokens: it may stand behind a piece of a prompt, not inside.
    Args:
      weight: row j is for the token j before; sums are float32.
      tail, tail_segments: the last W - 1 real tokens before these, as an earlier call returned them; None: there were none.
    """
    W, (B, T, C) = weight.shape[0], x.shape
    tail = jnp.zeros((B, W - 1, C), x.dtype) if tail is None else tail
    tail_segments = jnp.zeros((B, W - 1), jnp.int32) if tail_segments is None else tail_segments
    before, of = jnp.concatenate([tail, x], axis=1), jnp.concatenate([tail_segments, segments], axis=1)
    real = segments != 0
    y = jnp.zeros((B, T, C), jnp.float32)
    for j in range(W):
        place = slice(W - 1 - j, W - 1 - j + T)
        same = (of[:, place] == segments) & real
        y += jnp.where(same[..., None], before[:, place].astype(jnp.float32) * weight[j][None, None].astype(jnp.float32), 0.0)
    last = (real.sum(1)[:, None] + jnp.arange(W - 1)[None])[..., None]  # places of the last W - 1 real tokens
    return y.astype(x.dtype), jnp.take_along_axis(before, last, axis=1), jnp.take_along_axis(of, last[..., 0], axis=1)
