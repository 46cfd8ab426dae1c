"""Products of queries and keys in a chunk whose decays differ by channel.

For j <= i: the sum over K of left_i right_j exp(total_i - total_j). Such a decay is no number that
could scale a product of matrices, and its two factors exp(total_i) and exp(-total_j) overflow.

So a chunk is cut into squares with a product each, see decay_squares.py. Here are the
differentiable function, its Triton kernels and their calls.

Axes: P chunks times heads, C tokens, K channels.
Source: Yang et al. 2023 (GLA), sections 4.3 and C; there with two levels of tiles, the inner one
without products of matrices.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from slmjax.ops.decay_squares import square_gradients, square_products

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
        # XLA takes a copy of what neighbours share, the kernels read it in place.
        every_left, every_right = _repeated(lefts, right, total)
        products = jax.vmap(square_products)(every_left, every_right, total)
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
        computed = jax.vmap(square_gradients)(every_left, every_right, total, gradients)
    else:
        computed = _backward_call(kernel, lefts, right, total, gradients)
    d_lefts, d_right, d_total = computed
    # A left that value heads share takes the sum of their gradients.
    summed = []
    for d_left, left in zip(d_lefts, lefts, strict=True):
        summed.append(_summed(d_left, left))
    return tuple(summed), _summed(d_right, right), d_total


def _backward_call(kernel, lefts, right, total, gradients):
    """Return gradients by the kernel, of which each has P entries, as total does."""
    P, C, K = total.shape
    part = min(K, CHANNELS)  # gradients by channel need no sum over channels

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
    products = square_products(left_values, right[...], total[...], total)
    for out, product in zip(outs, products, strict=True):
        out[...] = product


def _backward_kernel(lefts, right, total, gradients, *outs):
    """Write gradients of lefts, right and total into `outs`: a list of lefts, right, total."""
    d_lefts, d_right, d_total = outs
    left_values = [left[...] for left in lefts]
    right_value, total_value = right[...], total[...]
    gradient_values = [gradient[...] for gradient in gradients]
    computed = square_gradients(left_values, right_value, total_value, gradient_values, total)
    # One list of references and one of values.
    references = (*d_lefts, d_right, d_total)
    values = (*computed[0], *computed[1:])
    for out, value in zip(references, values, strict=True):
        out[...] = value.astype(out.dtype)


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
