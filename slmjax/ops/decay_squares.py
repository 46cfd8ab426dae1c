"""Products with decays by channel in one chunk, as products of matrices of its squares.

The places below the diagonal are cut into squares of 1, 2, 4 ... C/2 tokens, as a tree halves the
chunk. All pairs of a square have a token m between them, the last of the left half, and

    exp(total_i - total_j) = exp(total_i - total_m) exp(total_m - total_j)

where both factors only shrink. So each size takes one product of matrices, and no exponent is ever
positive.

The gradient of total is left * (gradient of left) - right * (gradient of right), channel by
channel: decays need no sums of their own.

The functions run under vmap and in Triton kernels alike. Source: as ops/decayed.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slmjax.ops.triton_walk import dot

# Of one chunk: numbers by token and channel, by pairs of tokens i and j, and masks of pairs.
ByChannel = Float[Array, "C K"]
ByPair = Float[Array, "C C"]
PairIndex = Int[Array, "C C"]
PairMask = Bool[Array, "C C"]


def square_products(
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
        # Rows outside of right halves and columns outside of left halves are masked afterwards.
        square = _square(total, stored, (row, column), size)
        keys = _scaled(right, square.factor).T  # [K,C]
        for i, left in enumerate(lefts):
            product = dot(_scaled(left, square.factor), keys)
            products[i] = jnp.where(square.pairs, product, products[i])
    return products


def square_gradients(
    lefts: Sequence[ByChannel],
    right: ByChannel,
    total: ByChannel,
    gradients: Sequence[ByPair],
    stored: Any = None,
) -> tuple[list[ByChannel], ByChannel, ByChannel]:
    """Return gradients of (lefts, right, total) of one chunk, float32.

    Arguments as in square_products, and the gradients of its results.
    """
    stored = total if stored is None else stored
    row, column = _places(len(total))
    d_lefts = []
    d_right = jnp.zeros(total.shape, jnp.float32)
    for left, gradient in zip(lefts, gradients, strict=True):
        # A token with itself: no decay.
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
    # total_i takes part in row i with plus, and in column i with minus.
    by_rows = 0
    for left, d_left in zip(lefts, d_lefts, strict=True):
        by_rows += left.astype(jnp.float32) * d_left
    d_total = by_rows - right.astype(jnp.float32) * d_right
    return d_lefts, d_right, d_total


class _Square(NamedTuple):
    """The squares of one size: the pairs of a right half and the left half before it."""

    factor: Any  # [C,K]: decay between each token and the one in the middle of its pair of halves
    pairs: Any  # [C,C] bool


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
