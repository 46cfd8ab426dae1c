"""The short causal convolution before linear mixers: each channel's last few inputs, weighted, of one document only."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
    same = [(of[:, W - 1 - j : W - 1 - j + T] == segments) & real for j in range(W)]
    y = _weighted(before, weight.astype(jnp.float32), jnp.stack(same))
    last = (real.sum(1)[:, None] + jnp.arange(W - 1)[None])[..., None]  # places of the last W - 1 real tokens
    return y, jnp.take_along_axis(before, last, axis=1), jnp.take_along_axis(of, last[..., 0], axis=1)


@jax.custom_vjp
def _weighted(before: Float[Array, "B S C"], weight: Float[Array, "W C"], same: Bool[Array, "W B T"]) -> Float[Array, "B T C"]:
    terms = (jnp.where(same[j][..., None], x * weight[j, None, None], 0.0) for j, x in enumerate(_shifted(before, same)))
    return sum(terms).astype(before.dtype)


def _weighted_forward(before, weight, same):
    return _weighted(before, weight, same), (before, weight, same)


def _weighted_backward(kept, gradient):
    before, weight, same = kept
    W = len(same)
    # In memory once: else each of the sums below computes again what led to it (0.9 instead of 0.4 ms for a layer of 8 x 4096 on an H200).
    gradient = jax.lax.optimization_barrier(gradient).astype(jnp.float32)
    seen = [jnp.where(same[j][..., None], gradient, 0.0) for j in range(W)]
    of_weight = jnp.stack([jnp.sum(part * x, axis=(0, 1)) for part, x in zip(seen, _shifted(before, same))])
    of_before = sum(jnp.pad(part * weight[j, None, None], ((0, 0), (W - 1 - j, j), (0, 0))) for j, part in enumerate(seen))
    return of_before.astype(before.dtype), of_weight, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _shifted(before, same):
    W, _, T = same.shape
    return [before[:, W - 1 - j : W - 1 - j + T].astype(jnp.float32) for j in range(W)]
