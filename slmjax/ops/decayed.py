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

# Of one chunk: numbers by token and channel, by pairs of tokens i and j, and masks of pairs.
ByChannel = Float[Array, "C K"]
ByPair = Float[Array, "C C"]
PairIndex = Int[Array, "C C"]
PairMask = Bool[Array, "C C"]


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
        # XLA takes a copy of what neighbours share, the kernels read it in place.
        every_left, every_right = _repeated(lefts, right, total)
        products = jax.vmap(_products)(every_left, every_right, total)
        return tuple(products), (lefts, right, total)
    P, C, K = total.shape
    square = pl.BlockSpec((None, C, C), lambda p: (p, 0, 0))
    square_shape = jax.ShapeDtypeStruct((P, C, C), jnp.float32)

    def shared(x):
        sharers = P // len(x)
        return pl.BlockSpec((None, C, K), lambda p: (p // sharers, 0, 0))

    products = pl.pallas_call(
        _forward_kernel,
        grid=(P,),
        in_specs=jax.tree.map(shared, (lefts, right, total)),
        out_specs=[square] * len(lefts),
        out_shape=[square_shape] * len(lefts),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=kernel == "interpret",
    )(lefts, right, total)
    return tuple(products), (lefts, right, total)


def _backward(kernel, kept, gradients):
    lefts, right, total = kept
    if kernel == "scan":
        every_left, every_right = _repeated(lefts, right, total)
        computed = jax.vmap(_gradients)(every_left, every_right, total, gradients)
    else:
        computed = _backward_call(kernel, lefts, right, total, gradients)
    d_lefts, d_right, d_total = computed
    summed = []
    for d_left, left in zip(d_lefts, lefts, strict=True):
        summed.append(_summed(d_left, left))
    return tuple(summed), _summed(d_right, right), d_total


def _backward_call(kernel, lefts, right, total, gradients):
    """Return gradients by the kernel, of which each has P entries, as total does."""
    P, C, K = total.shape
    part = min(K, CHANNELS)

    def channels(x):
        sharers = P // len(x)
        return pl.BlockSpec((None, C, part), lambda p, k: (p // sharers, 0, k))

    def gradient_of(x):
        dtype = x.dtype if len(x) == P else jnp.float32  # the latter are summed afterwards
        return jax.ShapeDtypeStruct(total.shape, dtype)

    inputs = (lefts, right, total)
    outputs = ([total] * len(lefts), total, total)
    square = pl.BlockSpec((None, C, C), lambda p, k: (p, 0, 0))
    return pl.pallas_call(
        _backward_kernel,
        grid=(P, K // part),
        in_specs=[*jax.tree.map(channels, inputs), [square] * len(lefts)],
        out_specs=jax.tree.map(channels, outputs),
        out_shape=jax.tree.map(gradient_of, (list(lefts), right, total)),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=kernel == "interpret",
    )(lefts, right, total, list(gradients))


decayed.defvjp(_forward, _backward)


def _forward_kernel(lefts, right, total, *outs):
    left_values = [left[...] for left in lefts]
    products = _products(left_values, right[...], total[...], total)
    for out, product in zip(outs, products, strict=True):
        out[...] = product


def _backward_kernel(lefts, right, total, gradients, *outs):
    """Write gradients of lefts, right and total into `outs`: a list of lefts, right, total."""
    d_lefts, d_right, d_total = outs
    left_values = [left[...] for left in lefts]
    right_value, total_value = right[...], total[...]
    gradient_values = [gradient[...] for gradient in gradients]
    computed = _gradients(left_values, right_value, total_value, gradient_values, total)
    # One list of references and one of values.
    references = (*d_lefts, d_right, d_total)
    values = (*computed[0], *computed[1:])
    for out, value in zip(references, values, strict=True):
        out[...] = value.astype(out.dtype)


class _Square(NamedTuple):
    """The squares of one size: the pairs of a right half and the left half before it."""

    factor: Any  # [C,K]: decay between each token and the one in the middle of its pair of halves
    pairs: Any  # [C,C] bool


def _products(
    lefts: Sequence[ByChannel],
    right: ByChannel,
    total: ByChannel,
    stored: Any = None,
) -> list[ByPair]:
    """Return the products of one chunk.

    Args:
      stored: total where a kernel can read chosen rows of it; None: total itself.
    """
    stored = total if stored is None else stored
    row, column = _places(len(total))
    products = []
    for left in lefts:  # pairs of a token with itself, which do not decay
        products.append(jnp.where(row == column, dot(left, right.T), 0.0))
    for size in _sizes(len(total)):
        square = _square(total, stored, (row, column), size)
        keys = _scaled(right, square.factor).T
        for i, left in enumerate(lefts):
            product = dot(_scaled(left, square.factor), keys)
            products[i] = jnp.where(square.pairs, product, products[i])
    return products


def _gradients(
    lefts: Sequence[ByChannel],
    right: ByChannel,
    total: ByChannel,
    gradients: Sequence[ByPair],
    stored: Any = None,
) -> tuple[list[ByChannel], ByChannel, ByChannel]:
    """Return gradients of (lefts, right, total) of one chunk, float32; `stored` as in _products."""
    stored = total if stored is None else stored
    row, column = _places(len(total))
    d_lefts = []
    d_right = jnp.zeros(total.shape, jnp.float32)
    for left, gradient in zip(lefts, gradients, strict=True):
        diagonal = jnp.where(row == column, gradient, 0.0)
        diagonal = diagonal.astype(right.dtype)
        d_lefts.append(dot(diagonal, right))
        d_right += dot(diagonal, left)
    for size in _sizes(len(total)):
        factor, pairs = _square(total, stored, (row, column), size)
        keys = _scaled(right, factor)
        for i, left in enumerate(lefts):
            inside = jnp.where(pairs, gradients[i], 0.0).astype(right.dtype)
            d_lefts[i] += factor * dot(inside, keys)
            d_right += factor * dot(inside.T, _scaled(left, factor))
    by_rows = 0
    for left, d_left in zip(lefts, d_lefts, strict=True):
        by_rows += left.astype(jnp.float32) * d_left
    d_total = by_rows - right.astype(jnp.float32) * d_right
    return d_lefts, d_right, d_total


def _square(total: ByChannel, stored: Any, places: tuple, size: int) -> _Square:
    middle = stored[_middles(len(total), size), :]
    factor = _factor(total, middle, size)
    return _Square(factor, _pairs(*places, size))


def _sizes(chunk: int) -> list[int]:
    """Return 1, 2, 4 ... chunk / 2."""
    levels = chunk.bit_length() - 1
    return [1 << level for level in range(levels)]


def _middles(chunk: int, size: int) -> Int[Array, "C"]:
    """Return the last token of the left half of each token's pair of halves."""
    first = jnp.arange(chunk) // (2 * size) * (2 * size)
    return first + size - 1


def _factor(total: ByChannel, middle: ByChannel, size: int) -> ByChannel:
    """Return exp of the decays from the middle on in right halves, up to it in left halves."""
    token = jax.lax.broadcasted_iota(jnp.int32, total.shape, 0)
    in_right_half = (token // size) % 2 == 1
    decay = jnp.where(in_right_half, total - middle, middle - total)
    # It is positive only across documents, whose places the caller masks: no exponent overflows.
    return jnp.exp(jnp.minimum(decay, 0.0))


def _pairs(row: PairIndex, column: PairIndex, size: int) -> PairMask:
    """Return where a row of a right half meets a column of the left half before it."""
    same_pair = row // (2 * size) == column // (2 * size)
    return same_pair & (row // size > column // size)


def _places(chunk: int) -> tuple[PairIndex, PairIndex]:
    """Return the number of each place's row, and of its column."""
    shape = (chunk, chunk)
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return row, column


def _scaled(x: ByChannel, factor: ByChannel) -> ByChannel:
    scaled = x.astype(jnp.float32) * factor
    return scaled.astype(x.dtype)


def _repeated(lefts: Sequence[Array], right: Array, total: Array) -> tuple[list[Array], Array]:
    """Return lefts and right with P entries each, as total has."""
    repeated = []
    for x in (*lefts, right):
        repeated.append(jnp.repeat(x, len(total) // len(x), axis=0))
    return repeated[:-1], repeated[-1]


def _summed(gradient: Array, like: Array) -> Array:
    """Return the sum over the entries of total that share one of `like`, in its type."""
    _, C, K = like.shape
    groups = gradient.reshape(len(like), -1, C, K)  # neighbours share
    return groups.sum(1).astype(like.dtype)
