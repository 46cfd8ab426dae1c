"""The short causal convolution before linear mixers: a weighted sum of each channel's last inputs.

Only inputs of the same document count.

Axes: B rows, T tokens, W taps, H heads of c channels, C = H c channels, S = W - 1 + T tokens with
those before the row.
"""

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
    """Return silu(short_conv(x) + bias): the queries, keys or values of a linear mixer.

    Args:
      unit: normalise each head's vector to Euclidean length 1.
      kernel: "scan" (plain XLA) or "triton" (NVIDIA GPUs; c must be a power of two and at least 16,
        other sizes go through XLA). "interpret" runs Triton's kernels anywhere, slowly.
    """
    W, _, c = weight.shape
    # Triton's products and blocks take powers of two.
    is_power_of_two = c & (c - 1) == 0
    fits_triton = c >= triton_conv.LEAST and is_power_of_two
    if kernel != "scan" and fits_triton:
        arrays = {"x": x, "weight": weight, "segments": segments}
        if bias is not None:
            arrays["bias"] = bias
        return _by_kernel(unit, kernel == "interpret", arrays)
    B, T, _, _ = x.shape
    flat = x.reshape(B, T, -1)  # [B,T,C]: each channel has its own taps, heads do not matter
    y, _, _ = short_conv(flat, weight.reshape(W, -1), segments)
    return activation(y.reshape(x.shape), bias, unit=unit)


def activation(
    y: Float[Array, "B T H c"],
    bias: Float[Array, "H c"] | None,
    *,
    unit: bool,
) -> Float[Array, "B T H c"]:
    """Return silu(y + bias); where `unit`, each head's vector is normalised to length 1."""
    if bias is not None:
        y = y + bias.astype(y.dtype)[None, None]
    y = jax.nn.silu(y)
    if not unit:
        return y
    # In 16 bits the squares could overflow, and their sum would lose its small terms.
    wide = y.astype(jnp.float32)
    square_length = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    scaled = wide * jax.lax.rsqrt(square_length + triton_conv.TINY)
    return scaled.astype(y.dtype)


def short_conv(
    x: Float[Array, "B T C"],
    weight: Float[Array, "W C"],
    segments: Int[Array, "B T"],
    *,
    tail: Float[Array, "B W-1 C"] | None = None,
    tail_segments: Int[Array, "B W-1"] | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B W-1 C"], Int[Array, "B W-1"]]:
    """Return (y, tail, tail_segments) with y_t = sum over j < W of weight_j x_(t-j).

    A token t - j of another segment counts as zero. The next call takes the returned tail.
    Padding (segment 0) gives zeros and takes no place among a document's tokens; it may follow a
    piece of a prompt, but not interrupt it.

    These are W shifted multiplications and not a convolution: XLA fuses them into one pass, and its
    depthwise convolution knows no documents.

    Args:
      weight: row j is for the token j before; sums are float32.
      tail, tail_segments: the last W - 1 real tokens before these, as an earlier call returned
        them; None: there were none.
    """
    W = weight.shape[0]
    B, T, C = x.shape
    if tail is None:
        tail = jnp.zeros((B, W - 1, C), x.dtype)
    if tail_segments is None:
        tail_segments = jnp.zeros((B, W - 1), jnp.int32)
    extended = jnp.concatenate([tail, x], axis=1)  # [B,W-1+T,C]
    extended_segments = jnp.concatenate([tail_segments, segments], axis=1)
    real = segments != 0
    same = []  # for each j: whether the token j before is of a real token's segment
    for j in range(W):
        first = W - 1 - j
        shifted = extended_segments[:, first : first + T]
        same.append((shifted == segments) & real)
    weight = weight.astype(jnp.float32)
    y = _weighted(extended, weight, jnp.stack(same))
    # `extended` holds W - 1 + count tokens, then padding: the last W - 1 tokens begin at `count`.
    count = real.sum(1)
    tail_index = (count[:, None] + jnp.arange(W - 1)[None])[..., None]  # [B,W-1,1]
    tail = jnp.take_along_axis(extended, tail_index, axis=1)
    tail_segments = jnp.take_along_axis(extended_segments, tail_index[..., 0], axis=1)
    return y, tail, tail_segments


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_kernel(unit: bool, interpret: bool, arrays: dict[str, Array]) -> Float[Array, "B T H c"]:
    """Return `activated` by Triton's kernels, from its arrays by name."""
    return triton_conv.conv_forward(arrays, unit=unit, interpret=interpret)


def _by_kernel_forward(unit, interpret, arrays):
    return _by_kernel(unit, interpret, arrays), arrays


def _by_kernel_backward(unit, interpret, arrays, gradient):
    computed = triton_conv.conv_backward(arrays, gradient, unit=unit, interpret=interpret)
    gradients = {"segments": None}
    for name, d_array in computed.items():
        gradients[name] = d_array.astype(arrays[name].dtype)
    return (gradients,)


_by_kernel.defvjp(_by_kernel_forward, _by_kernel_backward)


@jax.custom_vjp
def _weighted(
    extended: Float[Array, "B S C"],
    weight: Float[Array, "W C"],
    same: Bool[Array, "W B T"],
) -> Float[Array, "B T C"]:
    """Return, for each token, the sum over j of weight_j times the token j before.

    Terms where `same` is False count as zero.
    """
    total = 0
    for j, x in enumerate(_shifted(extended, taps=len(same))):
        visible = same[j][..., None]
        total += jnp.where(visible, x * weight[j, None, None], 0.0)
    return total.astype(extended.dtype)


def _weighted_forward(extended, weight, same):
    return _weighted(extended, weight, same), (extended, weight, same)


def _weighted_backward(residuals, gradient):
    extended, weight, same = residuals
    W = len(same)
    # The barrier puts the gradient in memory once. Without it, each of the sums below computes
    # again what led to it (0.9 instead of 0.4 ms for a layer of 8 x 4096 on an H200).
    gradient = jax.lax.optimization_barrier(gradient).astype(jnp.float32)
    tap_gradients = [jnp.where(same[j][..., None], gradient, 0.0) for j in range(W)]
    d_weight_rows = []
    for tap_gradient, x in zip(tap_gradients, _shifted(extended, taps=W), strict=True):
        d_weight_rows.append(jnp.sum(tap_gradient * x, axis=(0, 1)))
    d_weight = jnp.stack(d_weight_rows)
    # The transposed convolution: each tap's gradient goes back to where _shifted read its input.
    d_extended = 0
    for j, tap_gradient in enumerate(tap_gradients):
        padding = ((0, 0), (W - 1 - j, j), (0, 0))  # from T to S tokens
        d_extended += jnp.pad(tap_gradient * weight[j, None, None], padding)
    return d_extended.astype(extended.dtype), d_weight, None


_weighted.defvjp(_weighted_forward, _weighted_backward)


def _shifted(extended: Float[Array, "B S C"], *, taps: int) -> list[Float[Array, "B T C"]]:
    """Return, for each j < taps, the token j before each token, float32."""
    T = extended.shape[1] - (taps - 1)  # the extended row begins taps - 1 tokens before the row
    shifted = []
    for j in range(taps):
        first = taps - 1 - j
        part = extended[:, first : first + T]
        shifted.append(part.astype(jnp.float32))
    return shifted
