"""Matrix products in float8: e4m3 forward, e5m2 gradients, sums in float32, delayed scaling.

A tensor is kept as float8 values times one scale. The scale is a power of two, so that scaling is
exact and only the cast rounds. Inputs and gradients are cast with scales from earlier steps; this
step's largest value sets the next step's scale. So a cast never waits for a pass over its own
tensor.

Bytes moved for an element of an input (bfloat16 in the plain product):
  1 written by the cast, which XLA fuses with what computes the element, in place of 2;
  1 read by each product, in place of 2;
  1 read and 1 written by the transposition before the weights' gradient, as the matrix unit wants
    its operands contiguous along the sum;
  1/8 read for the maximum.
For an element of a gradient: the same. For a weight: 2 read for the maximum, 2 read and 1 written
by the cast, 1 read and 1 written by the forward product's transposition. Inputs and weights are
kept for the backward pass in 1 byte, in place of 2.

Source: Micikevicius et al. 2022 (FP8 formats for deep learning), sections 3 and 4: formats,
saturating casts; delayed scaling as in NVIDIA's Transformer Engine; growing and shrinking by powers
of two as in Peng et al. 2023 (FP8-LM), section 2.1.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Format(NamedTuple):
    """A float8 type, and how its scale follows the largest magnitude that a step has seen.

    Above `high` the scale doubles. At `largest`, where more may have been cut off, it quadruples.
    Below `low` it halves. All three are in units of the scale.
    """

    dtype: Any
    largest: float  # the type's largest value
    high: float
    low: float
    start: float  # the first step's scale


# Up to `high`, a factor of 2 is left below the largest value for inputs, and of 8 for gradients,
# whose maxima vary more and whose type spans 32 powers of two. A maximum at `low` is still 3,600
# times the smallest normal value for inputs, and 7,000,000 times for gradients. The scales of the
# first step: activations behind a norm, or averages of them, are seldom above 10 and never above
# the root of their width; gradients of a loss that is summed over tokens, as tasks are, begin near
# 1e-3.
INPUT = Format(jnp.float8_e4m3fn, largest=448.0, high=224.0, low=56.0, start=2.0**-3)
GRADIENT = Format(jnp.float8_e5m2, largest=57344.0, high=7168.0, low=448.0, start=2.0**-10)
# The maximum is taken over one token in this many. Another token's magnitude may be larger by the
# factor that `high` leaves; what is larger still is cut off.
EVERY = 8
# Bounds that keep a scale and its inverse normal in float32.
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-100, 2.0**100
Axes = tuple[int, ...]


def products(
    x: Float[Array, "*B I"],
    weights: tuple[Float[Array, "I _"], ...],
    scales: dict[str, Float[Array, ""]],
    weight_scales: tuple[Float[Array, ""], ...],
) -> tuple[Float[Array, "*B _"], ...]:
    """Return x @ w, in x's type, for each of the weights; x is cast once.

    What automatic differentiation returns as the gradient of `scales` is no gradient: it is this
    step's largest magnitudes in units of each scale, for `next_scales`. The gradient of
    `weight_scales` is zero.

    Args:
      scales: of x ("input") and of the products' gradients ("gradient"), from `initial_scales` or
        `next_scales`.
      weight_scales: one for each of the weights, from `scale_for`.
    """
    return _products(x, weights, scales, weight_scales)


def initial_scales() -> dict[str, Float[Array, ""]]:
    """Return the `scales` of one call of `products` for the first step."""
    return {
        "input": jnp.float32(INPUT.start),
        "gradient": jnp.float32(GRADIENT.start),
    }


def next_scales(scales: dict, seen: dict) -> dict:
    """Return the next step's scales.

    Args:
      scales: what `initial_scales` returns, or nested dicts of it; a leaf is a scalar, or a stack
        for layers.
      seen: the largest magnitudes, laid out as `scales`.
    """
    if "input" not in scales:  # not yet the dict of one call of `products`
        return {name: next_scales(scales[name], seen[name]) for name in scales}
    return {
        "input": _next_scale(scales["input"], seen["input"], INPUT),
        "gradient": _next_scale(scales["gradient"], seen["gradient"], GRADIENT),
    }


def scale_for(x: Float[Array, "..."], axes: Axes) -> Float[Array, "..."]:
    """Return the power of two that scales the largest magnitude along `axes` to e4m3's range.

    Divided by it, that magnitude is between half and all of e4m3's largest value. The scale of
    zeros is 1.
    """
    largest = jnp.max(jnp.abs(x), axis=axes)
    _, exponent = jnp.frexp(largest.astype(jnp.float32) / INPUT.largest)
    return jnp.ldexp(jnp.float32(1), exponent)


def quantize(x: Float[Array, "*B"], scale: Float[Array, ""], float8: Format) -> Array:
    """Return x / scale in float8; values that do not fit become the largest one."""
    # Exact, as the scale is a power of two.
    scaled = x.astype(jnp.float32) * (1 / scale)
    clipped = jnp.clip(scaled, -float8.largest, float8.largest)
    return clipped.astype(float8.dtype)


def _next_scale(scale: Array, seen: Array, float8: Format) -> Array:
    cut_off = seen >= float8.largest
    high = seen > float8.high
    low = seen < float8.low
    # A NaN fails all three comparisons, and the scale stays as it is.
    factor = jnp.where(low, 0.5, 1.0)
    factor = jnp.where(high, 2.0, factor)
    factor = jnp.where(cut_off, 4.0, factor)
    return jnp.clip(scale * factor, SMALLEST_SCALE, LARGEST_SCALE)


@jax.custom_vjp
def _products(x, weights, scales, weight_scales):
    return _forward(x, weights, scales, weight_scales)[0]


def _forward(x, weights, scales, weight_scales):
    x8 = _cast(x, scales["input"], INPUT)
    w8s = []
    for w, scale in zip(weights, weight_scales, strict=True):
        w8s.append(_cast(w, scale, INPUT))
    over_inputs = ((x.ndim - 1,), (0,))  # x's last axis and a weight's first
    out = []
    for w8, scale in zip(w8s, weight_scales, strict=True):
        product = _dot(x8, w8, over_inputs, scales["input"], scale, x.dtype)
        out.append(product)
    residuals = (x8, tuple(w8s), scales, weight_scales)
    return tuple(out), residuals


def _backward(residuals, gradients):
    x8, w8s, scales, weight_scales = residuals
    scale = scales["gradient"]
    dtype = gradients[0].dtype
    g8s = [_cast(gradient, scale, GRADIENT) for gradient in gradients]
    # d x = sum of g w^T over all weights
    over_outputs = ((x8.ndim - 1,), (1,))
    d_x_parts = []
    for g8, w8, w_scale in zip(g8s, w8s, weight_scales, strict=True):
        part = _dot(g8, w8, over_outputs, scale, w_scale, dtype, precise=True)
        d_x_parts.append(part)
    # d w = x^T g, summed over all axes but the last
    rows = tuple(range(x8.ndim - 1))
    d_weights = []
    for g8 in g8s:
        d_w = _dot(x8, g8, (rows, rows), scales["input"], scale, dtype, precise=True)
        d_weights.append(d_w)
    seen = {
        "input": _largest_seen(x8),
        "gradient": functools.reduce(jnp.maximum, map(_largest_seen, g8s)),
    }
    zeros = jax.tree.map(jnp.zeros_like, weight_scales)
    d_x = functools.reduce(operator.add, d_x_parts)
    return d_x, tuple(d_weights), seen, zeros


_products.defvjp(_forward, _backward)


def _cast(x: Array, scale: Array, float8: Format) -> Array:
    # The barrier keeps XLA from casting anew for each reader, transposed and not: without it the
    # step of a 304M model took 151 ms on an H200, with it 134.
    return jax.lax.optimization_barrier(quantize(x, scale, float8))


def _dot(
    a: Array,
    b: Array,
    contract: tuple[Axes, Axes],
    scale_a: Array,
    scale_b: Array,
    dtype: Any,
    *,
    precise: bool = False,
) -> Array:
    """Return the product of two float8 tensors and their scales, summed over the axes `contract`.

    It is written so that XLA makes one cuBLASLt float8 product of it. At default precision the
    tensor cores add up float8 products in fewer bits than float32 has; `precise` forbids that, for
    gradients, which are sums over all tokens. It costs 4 ms of a step of 134.
    """
    precision = "highest" if precise else "default"
    # XLA recognises this pattern: convert, scale, multiply.
    a = a.astype(dtype) * scale_a.astype(dtype)
    b = b.astype(dtype) * scale_b.astype(dtype)
    return jax.lax.dot_general(
        a, b, (contract, ((), ())), precision=precision, preferred_element_type=dtype
    )


def _largest_seen(x8: Array) -> Float[Array, ""]:
    """Return the largest magnitude of one token in EVERY, in units of the scale.

    It is read off the float8 bits: without their sign, they grow with the magnitude.
    """
    sample = x8[..., ::EVERY, :] if x8.ndim > 1 else x8
    bits = jax.lax.bitcast_convert_type(sample, jnp.uint8)
    largest = jnp.max(bits & 0x7F)  # all bits but the sign
    value = jax.lax.bitcast_convert_type(largest, x8.dtype)
    return value.astype(jnp.float32)
