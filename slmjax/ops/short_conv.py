"""The short causal convolution before linear mixers: each channel's last few inputs, weighted, of one document only."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slmjax.ops import triton_conv


def activated(
    x: Float[Array, "B T H c"],
    weight: Float[Array, "W H c"],
    bias: Float[Array, "H c"] | None,
    segments: Int[Array, "B T"],
    *,
    unit: bool = False,
    kernel: str = "scan",
) -> Float[Array, "B T H c"]:
    """silu(short_conv + bias), as linear mixers take their streams; with `unit` divided by its length, by heads.

    Args:
      kernel: "scan", plain XLA, or "triton", kernels of an NVIDIA GPU, which take powers of two from 16 on for c; other sizes go through
        XLA. "interpret" runs the same kernels anywhere, slowly, for tests.
    """
    c = x.shape[3]
    if kernel != "scan" and c >= 16 and c & (c - 1) == 0:
        given = {"x": x, "weight": weight, "segments": segments} | (
            {} if bias is None else {"bias": bias}
        )
        return _by_kernel(unit, kernel == "interpret", given)
    y = short_conv(x.reshape(*x.shape[:2], -1), weight.reshape(len(weight), -1), segments)[
        0
    ].reshape(x.shape)
    return activation(y, bias, unit=unit)


def activation(
    y: Float[Array, "B T H c"], bias: Float[Array, "H c"] | None, *, unit: bool
) -> Float[Array, "B T H c"]:
    """What `activated` does behind the convolution."""
    y = jax.nn.silu(y if bias is None else y + bias.astype(y.dtype)[None, None])
    if not unit:
        return y
    wide = y.astype(jnp.float32)
    return (
        wide * jax.lax.rsqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True) + triton_conv.TINY)
    ).astype(y.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_kernel(unit, interpret, given):
    return triton_conv.conv_forward(given, unit=unit, interpret=interpret)


def _by_kernel_forward(unit, interpret, given):
    return _by_kernel(unit, interpret, given), given


def _by_kernel_backward(unit, interpret, given, gradient):
    found = triton_conv.backward(given, gradient, unit=unit, interpret=interpret)
    return (
        {name: found[name].astype(x.dtype) if name in found else None for name, x in given.items()},
    )


_by_kernel.defvjp(_by_kernel_forward, _by_kernel_backward)


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
    before, of = (
        jnp.concatenate([tail, x], axis=1),
        jnp.concatenate([tail_segments, segments], axis=1),
    )
    real = segments != 0
    same = [(of[:, W - 1 - j : W - 1 - j + T] == segments) & real for j in range(W)]
    y = _weighted(before, weight.astype(jnp.float32), jnp.stack(same))
    last = (real.sum(1)[:, None] + jnp.arange(W - 1)[None])[
        ..., None
    ]  # places of the last W - 1 real tokens
    return (
        y,
        jnp.take_along_axis(before, last, axis=1),
        jnp.take_along_axis(of, last[..., 0], axis=1),
    )


@jax.custom_vjp
def _weighted(
    before: Float[Array, "B S C"], weight: Float[Array, "W C"], same: Bool[Array, "W B T"]
) -> Float[Array, "B T C"]:
    terms = (
        jnp.where(same[j][..., None], x * weight[j, None, None], 0.0)
        for j, x in enumerate(_shifted(before, same))
    )
    return sum(terms).astype(before.dtype)


def _weighted_forward(before, weight, same):
    return _weighted(before, weight, same), (before, weight, same)


def _weighted_backward(kept, gradient):
    before, weight, same = kept
    W = len(same)
    # In memory once: else each of the sums below computes again what led to it (0.9 instead of 0.4 ms for a layer of 8 x 4096 on an H200).
    gradient = jax.lax.optimization_barrier(gradient).astype(jnp.float32)
    seen = [jnp.where(same[j][..., None], gradient, 0.0) for j in range(W)]
    of_weight = jnp.stack(
        [jnp.sum(part * x, axis=(0, 1)) for part, x in zip(seen, _shifted(before, same))]
    )
    of_before = sum(
        jnp.pad(part * weight[j, None, None], ((0, 0), (W - 1 - j, j), (0, 0)))
        for j, part in enumerate(seen)
    )
    return of_before.astype(before.dtype), of_weight, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _shifted(before, same):
    W, _, T = same.shape
    return [before[:, W - 1 - j : W - 1 - j + T].astype(jnp.float32) for j in range(W)]
