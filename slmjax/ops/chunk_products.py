"""Products of all pairs of tokens (i, j) of a chunk, times the decay from j to the later token i.

This is Q K^T * L of Mamba-2, with L_ij = exp(g_i - g_j) its 1-semiseparable matrix; for the delta
rule also K K^T * L, what token i erases of token j. Where decays differ by channel, ops/decayed.py
computes them.

Axes as in ops/recurrence_chunks.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from slmjax.ops.chunk_walk import dot
from slmjax.ops.decayed import decayed
from slmjax.ops.recurrence_layout import with_value_head_axis


def decayed_products(
    kernel: str,
    lefts: tuple[Float[Array, "N B G ... K"], ...],
    right: Float[Array, "N B G C K"],
    total: Float[Array, "N B G R C ..."],
    same: Bool[Array, "N B C C"],
) -> list[Float[Array, "N B G _ C C"]]:
    """Return the sum over K of left_i right_j exp(total_i - total_j), float32, for each of `lefts`.

    Only pairs in `same` are meaningful. Outside of `same` an exponent may be positive; it is
    replaced by 0 before exp, so that none overflows.

    Args:
      lefts: [N,B,G,C,K] or [N,B,G,R,C,K].
      right: [N,B,G,C,K].
      total: sums of the decays' logarithms, [N,B,G,R,C] or [N,B,G,R,C,K].
      same: j <= i, and both in one segment.
    """
    if total.ndim == 6:  # K decays a token
        matrices = tuple(_matrices(left) for left in lefts)
        products = decayed(kernel, matrices, _matrices(right), _matrices(total))
        *leading, _ = total.shape  # N, B, G, R, C
        return [product.reshape(*leading, -1) for product in products]
    # One decay a token. Value heads share a product of query and key; only its decay is their own.
    lefts = tuple(with_value_head_axis(left) for left in lefts)
    products = []
    for left in lefts:
        undecayed = dot("...ik,...jk->...ij", left, with_value_head_axis(right))
        scaled = _scaled(undecayed, total, same[:, :, None, None])
        products.append(scaled)
    return products


def _matrices(x: Float[Array, "*N C K"]) -> Float[Array, "P C K"]:
    """Return x with the axes of chunks, rows and heads as one."""
    *_, C, K = x.shape
    return x.reshape(-1, C, K)


@jax.custom_vjp
def _scaled(
    products: Float[Array, "N B G r C C"],
    total: Float[Array, "N B G R C"],
    same: Bool[Array, "N B 1 1 C C"],
) -> Float[Array, "N B G R C C"]:
    """Return products * exp(total_i - total_j); r is R, or 1 where value heads share a product."""
    exponent = total[..., :, None] - total[..., None, :]
    # Masked before exp: above the diagonal a difference is positive and could overflow.
    exponent = jnp.where(same, exponent, 0.0)
    return products * jnp.exp(exponent)


def _scaled_forward(products, total, same):
    return _scaled(products, total, same), (products, total, same)


def _scaled_backward(residuals, gradient):
    products, total, same = residuals
    d_products = _scaled(gradient, total, same)  # [N,B,G,R,C,C]
    d_exponent = jnp.where(same, d_products * products, 0.0)
    # Without the barrier, XLA sums over rows and columns in one GPU kernel, which is ten times
    # slower than two.
    d_exponent = jax.lax.optimization_barrier(d_exponent)
    if products.shape != d_products.shape:  # the value heads share a product
        d_products = d_products.sum(3, keepdims=True)
    # total_i enters row i with plus and column i with minus.
    d_total = d_exponent.sum(-1) - d_exponent.sum(-2)
    return d_products, d_total, None


_scaled.defvjp(_scaled_forward, _scaled_backward)
