"""Products of queries and keys in a chunk whose decays differ by channel.

For j <= i: the sum over K of left_i right_j exp(total_i - total_j). Such a decay is no number that
could scale a product of matrices, and its two factors exp(total_i) and exp(-total_j) overflow.

Here the places below the diagonal are cut into squares of 1, 2, 4 ... C/2 tokens, as a tree halves
the chunk. All pairs of a square have a token m between them, the last of the left half, and

    exp(total_i - total_j) = exp(total_i - total_m) exp(total_m - total_j)

where both factors only shrink. So each size takes one product of matrices, and no exponent is ever
positive.

The gradient of total is left * (gradient of left) - right * (gradient of right), channel by
channel: decays need no sums of their own.

Axes: P chunks times heads, C tokens, K channels.
Source: Yang et al. 2023 (GLA), sections 4.3 and C; there with two levels of tiles, the inner one
without products of matrices.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int

from slmjax.ops.triton_walk import dot

CHANNELS = 64  # of a key, whose gradients one program of the kernel computes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def decayed(
    kernel: str,
    lefts: tuple[Float[Array, "_ C K"], ...],
    right: Float[Array, "_ C K"],
    total: Float[Array, "P C K"],
) -> tuple[Float[Array, "P C C"], ...]:
    """Return the products, float32, for each of `lefts`; 0 above the diagonal.

    Only places between which total falls are meaningful, and the gradients of others must be 0.
    C and K are powers of two, for triton at least 16.

    Args:
      kernel: "scan" (plain XLA), "triton" (a GPU) or "interpret" (Triton's kernel, anywhere).
      lefts, right: each has P entries, or fewer, which as many neighbours of `total` share. All are
        of one type, that of the products' operands.
      total: sums of decays, float32.
    """
    return _forward(kernel, lefts, right, total)[0]


def _forward(kernel, lefts, right, total):
    if kernel == "scan":
        alike = [_repeat(x, total) for x in (*lefts, right)]
        products = jax.vmap(_products)(alike[:-1], alike[-1], total)
        return tuple(products), (lefts, right, total)
    P, C, K = total.shape

    def shared(x):
        return pl.BlockSpec((None, C, K), lambda p: (p // (P // len(x)), 0, 0))

    products = pl.pallas_call(
        _forward_kernel,
        grid=(P,),
        in_specs=jax.tree.map(shared, (lefts, right, total)),
        out_specs=[pl.BlockSpec((None, C, C), lambda p: (p, 0, 0))] * len(lefts),
        out_shape=[jax.ShapeDtypeStruct((P, C, C), jnp.float32)] * len(lefts),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=kernel == "interpret",
    )(lefts, right, total)
    return tuple(products), (lefts, right, total)


def _backward(kernel, kept, gradients):
    lefts, right, total = kept
    if kernel == "scan":
        alike = [_repeat(x, total) for x in (*lefts, right)]
        d_lefts, d_right, d_total = jax.vmap(_gradients)(alike[:-1], alike[-1], total, gradients)
    else:
        d_lefts, d_right, d_total = _backward_call(kernel, lefts, right, total, gradients)
    d_lefts = tuple(_summed(d_left, left) for d_left, left in zip(d_lefts, lefts, strict=True))
    return d_lefts, _summed(d_right, right), d_total


def _backward_call(kernel, lefts, right, total, gradients):
    """Return gradients by the kernel, of which each has P entries, as total does."""
    P, C, K = total.shape
    part = min(K, CHANNELS)

    def channels(x):
        return pl.BlockSpec((None, C, part), lambda p, k: (p // (P // len(x)), 0, k))

    def gradient_of(x):
        dtype = x.dtype if len(x) == P else jnp.float32  # the latter are summed afterwards
        return jax.ShapeDtypeStruct(total.shape, dtype)

    square = pl.BlockSpec((None, C, C), lambda p, k: (p, 0, 0))
    return pl.pallas_call(
        _backward_kernel,
        grid=(P, K // part),
        in_specs=[*jax.tree.map(channels, (lefts, right, total)), [square] * len(lefts)],
        out_specs=jax.tree.map(channels, ([total] * len(lefts), total, total)),
        out_shape=([gradient_of(left) for left in lefts], gradient_of(right), gradient_of(total)),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=kernel == "interpret",
    )(lefts, right, total, list(gradients))


decayed.defvjp(_forward, _backward)


def _forward_kernel(lefts, right, total, *outs):
    products = _products([left[...] for left in lefts], right[...], total[...], total)
    for out, product in zip(outs, products, strict=True):
        out[...] = product


def _backward_kernel(lefts, right, total, gradients, *outs):
    """Write gradients of lefts, right and total into `outs`: a list of lefts, right, total."""
    d_lefts, d_right, d_total = outs
    left_values = [left[...] for left in lefts]
    right_value, total_value = right[...], total[...]
    gradient_values = [gradient[...] for gradient in gradients]
    computed = _gradients(left_values, right_value, total_value, gradient_values, total)
    d_left_values, d_right_value, d_total_value = computed
    for out, value in zip(d_lefts, d_left_values, strict=True):
        out[...] = value.astype(out.dtype)
    d_right[...] = d_right_value.astype(d_right.dtype)
    d_total[...] = d_total_value.astype(d_total.dtype)


class _Square(NamedTuple):
    """The squares of one size: the pairs of a right half and the left half before it."""

    factor: Any  # [C,K]: decay between each token and the one in the middle of its pair of halves
    pairs: Any  # [C,C] bool


def _products(
    lefts: Sequence[Float[Array, "C K"]],
    right: Float[Array, "C K"],
    total: Float[Array, "C K"],
    stored: Any = None,
) -> list[Float[Array, "C C"]]:
    """Return the products of one chunk.

    Args:
      stored: total where a kernel can read chosen rows of it; None: total itself.
    """
    stored = total if stored is None else stored
    row, column = _places(len(total))
    products = [jnp.where(row == column, dot(left, right.T), 0.0) for left in lefts]
    for size in _sizes(len(total)):
        square = _square(total, stored, row, column, size)
        keys = _scaled(right, square.factor).T
        for i, left in enumerate(lefts):
            product = dot(_scaled(left, square.factor), keys)
            products[i] = jnp.where(square.pairs, product, products[i])
    return products


def _gradients(
    lefts: Sequence[Float[Array, "C K"]],
    right: Float[Array, "C K"],
    total: Float[Array, "C K"],
    gradients: Sequence[Float[Array, "C C"]],
    stored: Any = None,
) -> tuple[list[Float[Array, "C K"]], Float[Array, "C K"], Float[Array, "C K"]]:
    """Return gradients of (lefts, right, total) of one chunk, float32; `stored` as in _products."""
    stored = total if stored is None else stored
    row, column = _places(len(total))
    d_lefts = []
    d_right = jnp.zeros(total.shape, jnp.float32)
    for left, gradient in zip(lefts, gradients, strict=True):
        diagonal = jnp.where(row == column, gradient, 0.0).astype(right.dtype)
        d_lefts.append(dot(diagonal, right))
        d_right += dot(diagonal, left)
    for size in _sizes(len(total)):
        square = _square(total, stored, row, column, size)
        keys = _scaled(right, square.factor)
        for i, (left, gradient) in enumerate(zip(lefts, gradients, strict=True)):
            inside = jnp.where(square.pairs, gradient, 0.0).astype(right.dtype)
            d_lefts[i] += square.factor * dot(inside, keys)
            d_right += square.factor * dot(inside.T, _scaled(left, square.factor))
    by_rows = sum(left.astype(jnp.float32) * d for left, d in zip(lefts, d_lefts, strict=True))
    d_total = by_rows - right.astype(jnp.float32) * d_right
    return d_lefts, d_right, d_total


def _square(total, stored, row, column, size: int) -> _Square:
    middle = stored[_middles(len(total), size), :]
    return _Square(_factor(total, middle, size), _pairs(row, column, size))


def _sizes(chunk: int) -> list[int]:
    return [1 << level for level in range(chunk.bit_length() - 1)]


def _middles(chunk: int, size: int) -> Int[Array, "C"]:
    """Return the last token of the left half of each token's pair of halves."""
    return jnp.arange(chunk) // (2 * size) * (2 * size) + size - 1


def _factor(
    total: Float[Array, "C K"], middle: Float[Array, "C K"], size: int
) -> Float[Array, "C K"]:
    """Return exp of the decays from the middle on in right halves, up to it in left halves."""
    after = (jax.lax.broadcasted_iota(jnp.int32, total.shape, 0) // size) % 2 == 1
    return jnp.exp(jnp.minimum(jnp.where(after, total - middle, middle - total), 0.0))


def _pairs(row: Int[Array, "C C"], column: Int[Array, "C C"], size: int) -> Bool[Array, "C C"]:
    """Return where a row of a right half meets a column of the left half before it."""
    return (row // (2 * size) == column // (2 * size)) & (row // size > column // size)


def _places(chunk: int) -> tuple[Int[Array, "C C"], Int[Array, "C C"]]:
    """Return the number of each place's row, and of its column."""
    row = jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
    return row, jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)


def _scaled(x: Float[Array, "C K"], factor: Float[Array, "C K"]) -> Float[Array, "C K"]:
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


def _repeat(x: Float[Array, "_ C K"], total: Float[Array, "P C K"]) -> Float[Array, "P C K"]:
    return jnp.repeat(x, len(total) // len(x), axis=0)


def _summed(gradient: Float[Array, "P C K"], like: Float[Array, "_ C K"]) -> Float[Array, "_ C K"]:
    """Return the sum over the entries of total that share one of `like`, in its type."""
    groups = gradient.reshape(len(like), -1, *like.shape[1:])
    return groups.sum(1).astype(like.dtype)
