"""Products of queries and keys in a chunk whose decays differ by channel: sum over K of left_i right_j exp(total_i - total_j) for j <= i.

A decay is no number that a product of matrices could be scaled by, and its two factors exp(total_i) and exp(-total_j) overflow. Here the
places below the diagonal are cut into squares of 1, 2, 4 ... C/2 tokens, as a tree halves the chunk: all pairs of a square have a token
between them by way of which both factors only shrink. So each size takes one product of matrices, and no exponent is ever positive.

The gradient of total is left x (gradient of left) - right x (gradient of right), channel by channel: decays need no sums of their own.
Source: Yang et al. 2023 (GLA), sections 4.3 and C; there with two levels of tiles, the inner one without products of matrices.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from slmjax.ops.triton_walk import dot

CHANNELS = 64  # of a key, whose gradients one program of the kernel computes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def decayed(
    kernel: str,
    lefts: tuple[Float[Array, "_ C K"], ...],
    right: Float[Array, "_ C K"],
    total: Float[Array, "P C K"],
) -> tuple[Float[Array, "P C C"], ...]:
    """The products, float32, for each of `lefts`; 0 above the diagonal.

    Only places between which total falls mean something, and the gradients of others must be 0.

    Args:
      kernel: "scan" (plain XLA), "triton" (a GPU) or "interpret" (the latter in Pallas' interpreter).
      lefts, right: neighbours of `total` share them, as many for each; of one type, that of the products.
      total: float32.
    C and K are powers of two, for triton at least 16.
    """
    return _forward(kernel, lefts, right, total)[0]


def _forward(kernel, lefts, right, total):
    if kernel == "scan":
        alike = [_repeat(x, total) for x in (*lefts, right)]
        found = jax.vmap(_products)(alike[:-1], alike[-1], total)
        return tuple(found), (lefts, right, total)
    P, C, K = total.shape
    share = lambda x: pl.BlockSpec((None, C, K), lambda p: (p // (P // len(x)), 0, 0))
    found = pl.pallas_call(
        _forward_kernel,
        grid=(P,),
        in_specs=jax.tree.map(share, (lefts, right, total)),
        out_specs=[pl.BlockSpec((None, C, C), lambda p: (p, 0, 0)) for _ in lefts],
        out_shape=[jax.ShapeDtypeStruct((P, C, C), jnp.float32) for _ in lefts],
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=kernel == "interpret",
    )(lefts, right, total)
    return tuple(found), (lefts, right, total)


def _backward(kernel, kept, gradients):
    lefts, right, total = kept
    P, C, K = total.shape
    if kernel == "scan":
        alike = [_repeat(x, total) for x in (*lefts, right)]
        of_lefts, of_right, of_total = jax.vmap(_gradients)(alike[:-1], alike[-1], total, gradients)
    else:
        part = min(K, CHANNELS)
        channels = lambda x: pl.BlockSpec((None, C, part), lambda p, k: (p // (P // len(x)), 0, k))
        like = lambda x: jax.ShapeDtypeStruct(total.shape, x.dtype if len(x) == P else jnp.float32)
        of_lefts, of_right, of_total = pl.pallas_call(
            _backward_kernel,
            grid=(P, K // part),
            in_specs=[
                *jax.tree.map(channels, (lefts, right, total)),
                [pl.BlockSpec((None, C, C), lambda p, k: (p, 0, 0)) for _ in lefts],
            ],
            out_specs=jax.tree.map(channels, ([total for _ in lefts], total, total)),
            out_shape=([like(left) for left in lefts], like(right), like(total)),
            compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
            interpret=kernel == "interpret",
        )(lefts, right, total, list(gradients))
    sum_of = lambda x, like: x.reshape(len(like), -1, C, K).sum(1).astype(like.dtype)
    return tuple(map(sum_of, of_lefts, lefts)), sum_of(of_right, right), of_total


decayed.defvjp(_forward, _backward)


def _products(lefts: Sequence, right: Any, total: Any, stored: Any = None) -> list:
    """Of one chunk; `stored` is total where a kernel can read chosen rows of it."""
    stored = total if stored is None else stored
    row, column = _places(len(total))
    found = [jnp.where(row == column, dot(left, right.T), 0.0) for left in lefts]
    for size in _sizes(len(total)):
        factor, corner = (
            _factor(total, stored[_via(len(total), size), :], size),
            _corner(row, column, size),
        )
        keys = _scaled(right, factor).T
        found = [
            jnp.where(corner, dot(_scaled(left, factor), keys), of)
            for left, of in zip(lefts, found)
        ]
    return found


def _gradients(
    lefts: Sequence, right: Any, total: Any, gradients: Sequence, stored: Any = None
) -> tuple:
    """(of lefts, of right, of total) of one chunk, float32."""
    stored = total if stored is None else stored
    row, column = _places(len(total))
    of_lefts, of_right = [], jnp.zeros(total.shape, jnp.float32)
    for left, gradient in zip(lefts, gradients):
        own = jnp.where(row == column, gradient, 0.0).astype(right.dtype)
        of_lefts.append(dot(own, right))
        of_right += dot(own, left)
    for size in _sizes(len(total)):
        factor, corner = (
            _factor(total, stored[_via(len(total), size), :], size),
            _corner(row, column, size),
        )
        keys = _scaled(right, factor)
        for i, (left, gradient) in enumerate(zip(lefts, gradients)):
            here = jnp.where(corner, gradient, 0.0).astype(right.dtype)
            of_lefts[i] += factor * dot(here, keys)
            of_right += factor * dot(here.T, _scaled(left, factor))
    of_total = (
        sum(left.astype(jnp.float32) * of for left, of in zip(lefts, of_lefts))
        - right.astype(jnp.float32) * of_right
    )
    return of_lefts, of_right, of_total


def _forward_kernel(lefts, right, total, *outs):
    found = _products([left[...] for left in lefts], right[...], total[...], total)
    for out, of in zip(outs, found):
        out[...] = of


def _backward_kernel(lefts, right, total, gradients, of_lefts, of_right, of_total):
    values = (
        [left[...] for left in lefts],
        right[...],
        total[...],
        [gradient[...] for gradient in gradients],
    )
    found = _gradients(*values, total)
    for out, of in zip((*of_lefts, of_right, of_total), (*found[0], *found[1:])):
        out[...] = of.astype(out.dtype)


def _sizes(chunk: int) -> list[int]:
    return [1 << level for level in range(chunk.bit_length() - 1)]


def _via(chunk: int, size: int) -> Array:
    """[C]: the last token of the left half of each token's pair of blocks."""
    return jnp.arange(chunk) // (2 * size) * (2 * size) + size - 1


def _factor(total, between, size):
    """exp of the decays between a token and the one by way of which it decays: after it in right halves, from it in left halves."""
    after = (jax.lax.broadcasted_iota(jnp.int32, total.shape, 0) // size) % 2 == 1
    return jnp.exp(jnp.minimum(jnp.where(after, total - between, between - total), 0.0))


def _corner(row, column, size):
    """[C,C]: pairs of a right half and the left half before it."""
    return (row // (2 * size) == column // (2 * size)) & (row // size > column // size)


def _places(chunk):
    return (jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), axis) for axis in (0, 1))


def _scaled(x, factor):
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


def _repeat(x, total):
    return jnp.repeat(x, len(total) // len(x), axis=0)
