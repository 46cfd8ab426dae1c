"""The inverse of I + L for strictly lower triangular L: the UT transform of the delta rule."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slmjax.ops import triton_walk
from slmjax.ops.chunk_walk import dot
from slmjax.ops.recurrence_layout import with_leading_axes


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def unit_triangular_inverse(
    kernel: str, dtype: Any, below: Float[Array, "*B C C"]
) -> Float[Array, "*B C C"]:
    """Return (I + below)^-1, computed in float32, as `dtype`.

    Only the result is kept for the gradient.

    Args:
      kernel: "scan" (plain XLA), "triton" (a GPU) or "interpret" (Triton's kernel, anywhere).
      below: strictly lower triangular; C is a power of two.
    """
    if kernel == "scan":
        return _inverse_by_blocks(below).astype(dtype)
    matrices = below.reshape(-1, *below.shape[-2:])
    inverse = triton_walk.unit_inverse(matrices, interpret=kernel == "interpret")
    return inverse.reshape(below.shape).astype(dtype)


def _forward(kernel, dtype, below):
    inverse = unit_triangular_inverse(kernel, dtype, below)
    return inverse, inverse


def _backward(kernel, dtype, inverse, gradient):
    # d(X^-1) = -X^-1 dX X^-1
    product = dot("...ji,...jk->...ik", inverse, gradient, dtype)  # X^-T (gradient)
    return (-dot("...ij,...kj->...ik", product, inverse),)


unit_triangular_inverse.defvjp(_forward, _backward)


def _inverse_by_blocks(below: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """Return the inverse from that of its diagonal blocks, whose size doubles from 1 to C.

    With blocks X and Y on the diagonal and Z below X, the lower left block is -Y^-1 Z X^-1. The
    series of powers of `below` is no alternative: powers can be huge where their sum is not.
    """
    size = below.shape[-1]
    token = jnp.arange(size)
    inverse = jnp.broadcast_to(jnp.eye(size), below.shape)
    block = 1
    while block < size:
        block_number = token // block
        # Z: its rows are in a block of odd number, its columns in the block before.
        right_after = block_number[:, None] == block_number[None, :] + 1
        in_corner = right_after & (block_number[:, None] % 2 == 1)
        corner = jnp.where(with_leading_axes(in_corner, below.ndim), below, 0.0)
        # inverse holds X^-1 and Y^-1, so that this subtracts Y^-1 Z X^-1 in the corner.
        product = dot("...ij,...jk->...ik", corner, inverse)
        inverse = inverse - dot("...ij,...jk->...ik", inverse, product)
        block *= 2
    return inverse
