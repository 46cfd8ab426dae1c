"""Products of one chunk whose decays differ by channel, as products of matrices.

The chunk is halved again and again. A pair of neighbouring halves, of 1, 2, 4 ... C/2 tokens each,
is a square of the C x C pairs of tokens: i from the right half, j from the left half before it.
These squares fill everything below the diagonal. With m the last token of the left half,

    exp(total_i - total_j) = exp(total_i - total_m) exp(total_m - total_j)

for all pairs of a square, and neither factor exceeds 1, as total never rises within a document. So
each size of squares takes one product of matrices, and no exponent is ever positive.

The gradient of total is left * (gradient of left) - right * (gradient of right), channel by
channel: it takes no further products of matrices.

Axes: C tokens, a power of two (two of them: i, the later token, then j), K channels. The functions
run under vmap and in Triton kernels alike.

Source: as ops/decayed.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slmjax.ops.triton_walk import dot

# Of one chunk: numbers by token and channel, and numbers, indices and masks by pair of tokens.
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
    """Return the sum over K of left_i right_j exp(total_i - total_j), for each of `lefts`.

    Args:
      total: sums of the decays' logarithms, float32.
      stored: in a kernel the reference to total, as a loaded array cannot be read by row; else
        None.
    """
    stored = total if stored is None else stored
    row, column = _pair_indices(len(total))
    products = []
    for left in lefts:  # pairs of a token with itself, which do not decay
        products.append(jnp.where(row == column, dot(left, right.T), 0.0))
    for size in _sizes(len(total)):
        # All C x C products are computed; those outside of this size's squares are dropped.
        squares = _squares(total, stored, (row, column), size)
        keys = _scaled(right, squares.factor).T  # [K,C]
        for n, left in enumerate(lefts):
            product = dot(_scaled(left, squares.factor), keys)
            products[n] = jnp.where(squares.pairs, product, products[n])
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
    row, column = _pair_indices(len(total))
    d_lefts = []
    d_right = jnp.zeros(total.shape, jnp.float32)
    for left, gradient in zip(lefts, gradients, strict=True):
        # A token with itself: no decay.
        diagonal = jnp.where(row == column, gradient, 0.0)
        diagonal = diagonal.astype(right.dtype)
        d_lefts.append(dot(diagonal, right))
        d_right += dot(diagonal, left)
    for size in _sizes(len(total)):
        factor, pairs = _squares(total, stored, (row, column), size)
        keys = _scaled(right, factor)
        for n, left in enumerate(lefts):
            inside = jnp.where(pairs, gradients[n], 0.0).astype(right.dtype)
            d_lefts[n] += factor * dot(inside, keys)
            d_right += factor * dot(inside.T, _scaled(left, factor))
    # total_i enters row i with plus, and column i with minus.
    d_total_by_rows = 0
    for left, d_left in zip(lefts, d_lefts, strict=True):
        d_total_by_rows += left.astype(jnp.float32) * d_left
    d_total = d_total_by_rows - right.astype(jnp.float32) * d_right
    return d_lefts, d_right, d_total


class _Squares(NamedTuple):
    """The squares of one size: the pairs of a right half and the left half before it."""

    factor: Any  # [C,K]: decay between each token and token m of its pair of halves
    pairs: Any  # [C,C] bool


def _squares(total: ByChannel, stored: Any, indices: tuple, size: int) -> _Squares:
    middle = stored[_middles(len(total), size), :]
    factor = _factor(total, middle, size)
    return _Squares(factor, _pairs(*indices, size))


def _sizes(chunk: int) -> list[int]:
    """Return 1, 2, 4 ... chunk / 2."""
    levels = chunk.bit_length() - 1
    return [1 << level for level in range(levels)]


def _middles(chunk: int, size: int) -> Int[Array, "C"]:
    """Return m for each token: the last token of the left half of its pair of halves."""
    first = jnp.arange(chunk) // (2 * size) * (2 * size)
    return first + size - 1


def _factor(total: ByChannel, middle: ByChannel, size: int) -> ByChannel:
    """Return the decay from m to each token of a right half, and from each of a left half to m."""
    token = jax.lax.broadcasted_iota(jnp.int32, total.shape, 0)
    in_right_half = (token // size) % 2 == 1
    exponent = jnp.where(in_right_half, total - middle, middle - total)
    # Positive only between documents, whose pairs the caller masks; it must not overflow.
    return jnp.exp(jnp.minimum(exponent, 0.0))


def _pairs(row: PairIndex, column: PairIndex, size: int) -> PairMask:
    """Return where a row of a right half meets a column of the left half before it."""
    same_pair = row // (2 * size) == column // (2 * size)
    return same_pair & (row // size > column // size)


def _pair_indices(chunk: int) -> tuple[PairIndex, PairIndex]:
    """Return the row i of each pair of tokens, and its column j."""
    shape = (chunk, chunk)
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return row, column


def _scaled(x: ByChannel, factor: ByChannel) -> ByChannel:
    scaled = x.astype(jnp.float32) * factor
    return scaled.astype(x.dtype)
