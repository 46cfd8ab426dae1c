"""Matrix products in float8: e4m3 forward, e5m2 gradients, sums in float32, with scales that were chosen in earlier steps.

A tensor is kept as float8 values times one scale, a power of two, so that scaling is exact and only the cast rounds. The scales of inputs
and gradients are carried from step to step and the largest value of this step decides about the next one's, so that a cast never waits for
a pass over its own tensor. Source: Micikevicius et al. 2022 (FP8 formats for deep learning), section 3 and 4: formats, saturating casts;
delayed scaling as in NVIDIA's Transformer Engine; growing and shrinking by powers of two as in Peng et al. 2023 (FP8-LM), section 2.1.

Bytes moved for an element of an input (bf16 in the plain product): written 1 by the cast, which XLA fuses with what makes the element, in
place of 2; read 1 by each product, in place of 2; read 1 and written 1 by the transposition before the weights' gradient, which the matrix
unit wants contiguous along the sum; read 1/8 for the maximum. A gradient: the same once more. Weights: read 2 for their maximum, read 2
and written 1, and 1 each for the forward product's transposition. Kept for the backward pass: 1 in place of 2.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Format(NamedTuple):
    """A float8 type and how its scale follows the largest magnitude, in units of the scale.

    Above `high` the scale doubles; at `largest`, where more may have been cut off, it quadruples; below `low` it halves.
    """

    dtype: Any
    largest: float
    high: float
    low: float
    start: float  # the first step's scale


# Room above: 2 for inputs, 8 for gradients, whose maxima vary more and whose type spans 32 powers of two. At `low` the smallest normal
# value is still 3,600 and 7,000,000 times smaller than the largest seen. Starts: what follows a norm, or averages that, is seldom above 10
# and never above the root of its width; gradients of a loss that is summed over tokens, as tasks are, begin near 1e-3.
INPUT = Format(jnp.float8_e4m3fn, 448.0, 224.0, 56.0, 2.0**-3)
GRADIENT = Format(jnp.float8_e5m2, 57344.0, 7168.0, 448.0, 2.0**-10)
EVERY = 8  # one token in this many is looked at for the maximum; twice and more of room are left above it, and what exceeds it is cut off


def products(
    x: Float[Array, "*B I"],
    weights: tuple[Float[Array, "I _"], ...],
    scales: dict[str, Float[Array, ""]],
    weight_scales: tuple[Float[Array, ""], ...],
) -> tuple[Float[Array, "*B _"], ...]:
    """x @ w for each of the weights; x is cast once.

    Args:
      scales: of x ("input") and of the products' gradients ("gradient"), as `start` or `next_scales` gave them.
      weight_scales: as `scale_for` gave them.
    Returns: the products, in x's type. What stands for the gradient with respect to `scales` is this step's largest magnitudes in units of
    each scale, for `next_scales`; the gradient with respect to `weight_scales` is zero.
    """
    return _products(x, weights, scales, weight_scales)


def initial_scales() -> dict[str, Float[Array, ""]]:
    """The scales of a place before the first step."""
    return {"input": jnp.float32(INPUT.start), "gradient": jnp.float32(GRADIENT.start)}


def next_scales(scales: dict, seen: dict) -> dict:
    """The next step's scales, for a tree of `start`s (each leaf a scalar or a stack of them) and the largest magnitudes in its shape."""
    if "input" not in scales:
        return {name: next_scales(scales[name], seen[name]) for name in scales}
    return {
        name: _next(scales[name], seen[name], of)
        for name, of in (("input", INPUT), ("gradient", GRADIENT))
    }


def scale_for(x: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    """A power of two that brings the largest magnitude along `axes` to between half and all of e4m3's; 1 where all are zero."""
    return jnp.ldexp(
        jnp.float32(1),
        jnp.frexp(jnp.max(jnp.abs(x), axis=axes).astype(jnp.float32) / INPUT.largest)[1],
    )


def quantize(x: Float[Array, "*B"], scale: Float[Array, ""], to: Format) -> Array:
    """x / scale in float8; what does not fit becomes the largest value."""
    return jnp.clip(x.astype(jnp.float32) * (1 / scale), -to.largest, to.largest).astype(to.dtype)


def _next(scale: Array, seen: Array, of: Format) -> Array:
    factor = jnp.where(
        seen >= of.largest, 4.0, jnp.where(seen > of.high, 2.0, jnp.where(seen < of.low, 0.5, 1.0))
    )
    return jnp.clip(scale * factor, 2.0**-100, 2.0**100)


@jax.custom_vjp
def _products(x, weights, scales, weight_scales):
    return _forward(x, weights, scales, weight_scales)[0]


def _forward(x, weights, scales, weight_scales):
    x8 = _cast(x, scales["input"], INPUT)
    w8s = tuple(_cast(w, s, INPUT) for w, s in zip(weights, weight_scales, strict=True))
    last = ((x.ndim - 1,), (0,))
    out = tuple(
        _dot(x8, w8, last, scales["input"], s, x.dtype)
        for w8, s in zip(w8s, weight_scales, strict=True)
    )
    return out, (x8, w8s, scales, weight_scales)


def _backward(kept, gradients):
    x8, w8s, scales, weight_scales = kept
    of, dtype = scales["gradient"], gradients[0].dtype
    g8s = tuple(_cast(g, of, GRADIENT) for g in gradients)
    rows, last = tuple(range(x8.ndim - 1)), (x8.ndim - 1,)
    dx = [
        _dot(g8, w8, (last, (1,)), of, s, dtype, precise=True)
        for g8, w8, s in zip(g8s, w8s, weight_scales, strict=True)
    ]
    dws = tuple(_dot(x8, g8, (rows, rows), scales["input"], of, dtype, precise=True) for g8 in g8s)
    report = {
        "input": _seen(x8),
        "gradient": functools.reduce(jnp.maximum, [_seen(g8) for g8 in g8s]),
    }
    return (
        functools.reduce(operator.add, dx),
        dws,
        report,
        jax.tree.map(jnp.zeros_like, weight_scales),
    )


_products.defvjp(_forward, _backward)


def _cast(x, scale, to):
    # The barrier keeps XLA from casting anew for each reader, transposed and not: without it the step of a 304M model took 151 ms on an
    # H200, with it 134.
    return jax.lax.optimization_barrier(quantize(x, scale, to))


def _dot(a, b, contract, scale_a, scale_b, dtype, *, precise=False):
    """The product of two float8 tensors and their scales, written so that XLA makes one cuBLASLt float8 product of it.

    XLA takes the default precision as leave to add up float8 in the tensor cores' short registers; `precise` forbids it (4 ms of a step
    of 134, which gradients are worth: they are sums over all tokens).
    """
    precision = jax.lax.Precision.HIGHEST if precise else jax.lax.Precision.DEFAULT
    a, b = a.astype(dtype) * scale_a.astype(dtype), b.astype(dtype) * scale_b.astype(dtype)
    return jax.lax.dot_general(
        a, b, (contract, ((), ())), precision=precision, preferred_element_type=dtype
    )


def _seen(x8):
    """The largest magnitude of a sample, in units of the scale, from the float8 bits: without their sign, they grow with the magnitude."""
    sample = x8[..., ::EVERY, :] if x8.ndim > 1 else x8
    largest = jnp.max(jax.lax.bitcast_convert_type(sample, jnp.uint8) & 0x7F)
    return jax.lax.bitcast_convert_type(largest, x8.dtype).astype(jnp.float32)
