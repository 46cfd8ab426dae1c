"""Products of queries and keys in a chunk whose decays differ by channel.

For j <= i: the sum over K of left_i right_j exp(total_i - total_j). The decay cannot scale the
finished product of matrices, as it is inside the sum over channels. It cannot scale the operands
either, by exp(total_i) and exp(-total_j), as the latter overflows.

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

CHANNELS = 64  # channels whose gradients one program of the backward kernel computes, at most


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def decayed(
    kernel: str,
    lefts: tuple[Float[Array, "_ C K"], ...],
    right: Float[Array, "_ C K"],
    total: Float[Array, "P C K"],
) -> tuple[Float[Array, "P C C"], ...]:
    """Return the products, float32, for each of `lefts`; 0 above the diagonal.

    Only pairs of one document are meaningful, and the gradients of others must be 0. C and K are
    powers of two, for triton at least 16.

    Args:
      kernel: "scan" (plain XLA), "triton" (a GPU) or "interpret" (Triton's kernel, anywhere).
      lefts, right: each has P entries, or a divisor of P: consecutive entries of `total` then share
        one, as value heads share a key. All are of one type, that of the products' operands.
      total: sums of the decays' logarithms, float32.
    """
    return _forward(kernel, lefts, right, total)[0]


def _forward(kernel, lefts, right, total):
    if kernel == "scan":
        # XLA takes a copy of each shared entry, the kernels read it in place.
        every_left, every_right = _repeated(lefts, right, total)
        products = jax.vmap(square_products)(every_left, every_right, total)
        return tuple(products), (lefts, right, total)
    P, C, K = total.shape
    # The part of each array that program p sees. None: the axis falls away.
    product_spec = pl.BlockSpec((None, C, C), lambda p: (p, 0, 0))
    product_shape = jax.ShapeDtypeStruct((P, C, C), jnp.float32)

    def input_spec(x):
        sharers = P // len(x)
        return pl.BlockSpec((None, C, K), lambda p: (p // sharers, 0, 0))

    products = pl.pallas_call(
        _forward_kernel,
        grid=(P,),
        in_specs=jax.tree.map(input_spec, (lefts, right, total)),
        out_specs=[product_spec] * len(lefts),
        out_shape=[product_shape] * len(lefts),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=kernel == "interpret",
    )(lefts, right, total)
    return tuple(products), (lefts, right, total)


def _backward(kernel, residuals, gradients):
    lefts, right, total = residuals
    if kernel == "scan":
        every_left, every_right = _repeated(lefts, right, total)
        computed = jax.vmap(square_gradients)(every_left, every_right, total, gradients)
    else:
        computed = _backward_call(kernel, lefts, right, total, gradients)
    d_lefts, d_right, d_total = computed
    # A shared entry takes the sum of its sharers' gradients.
    summed = []
    for d_left, left in zip(d_lefts, lefts, strict=True):
        summed.append(_summed(d_left, left))
    return tuple(summed), _summed(d_right, right), d_total


def _backward_call(kernel, lefts, right, total, gradients):
    """Return the kernel's gradients of (lefts, right, total), each with P entries, as total has."""
    P, C, K = total.shape
    # Gradients by channel need no sum over channels, so programs share them out.
    block = min(K, CHANNELS)

    # The part that program p sees, for block k of the channels.
    def channels_spec(x):
        sharers = P // len(x)
        return pl.BlockSpec((None, C, block), lambda p, k: (p // sharers, 0, k))

    def gradient_shape(x):
        # Gradients of a shared entry stay float32 until they are summed.
        dtype = x.dtype if len(x) == P else jnp.float32
        return jax.ShapeDtypeStruct(total.shape, dtype)

    inputs = (lefts, right, total)
    outputs = ([total] * len(lefts), total, total)  # every gradient is laid out as total
    product_spec = pl.BlockSpec((None, C, C), lambda p, k: (p, 0, 0))
    return pl.pallas_call(
        _backward_kernel,
        grid=(P, K // block),
        in_specs=[*jax.tree.map(channels_spec, inputs), [product_spec] * len(lefts)],
        out_specs=jax.tree.map(channels_spec, outputs),
        out_shape=jax.tree.map(gradient_shape, (list(lefts), right, total)),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=kernel == "interpret",
    )(lefts, right, total, list(gradients))


decayed.defvjp(_forward, _backward)


def _forward_kernel(lefts, right, total, *outs):
    """Write the product of each of `lefts`; all arguments are references."""
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
    left_gradients, *other_gradients = computed
    references = (*d_lefts, d_right, d_total)
    values = (*left_gradients, *other_gradients)
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
    groups = gradient.reshape(len(like), -1, C, K)  # [entries of like, sharers of each, C, K]
    return groups.sum(1).astype(like.dtype)
