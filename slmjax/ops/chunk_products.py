"""Products of all pairs of tokens in a chunk, decayed from the later token i to the earlier one j.

This is Q K^T * L of Mamba-2, with L_ij = exp(g_i - g_j) its 1-semiseparable matrix, and likewise
the overlap of keys that the delta rule erases. Decays by channel go to ops/decayed.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from slmjax.ops.chunk_walk import dot
from slmjax.ops.decayed import decayed
from slmjax.ops.recurrence_layout import for_value_heads


def decayed_products(
    kernel: str,
    lefts: tuple[Float[Array, "N B G ... K"], ...],
    right: Float[Array, "N B G C K"],
    total: Float[Array, "N B G R C ..."],
    same: Bool[Array, "N B C C"],
) -> list[Float[Array, "N B G _ C C"]]:
    """Return the sum over K of left_i right_j exp(total_i - total_j), float32, for each of `lefts`.

    Only places in `same` are meaningful. Each exponent is clamped to at most 0 before it is taken,
    so that nothing overflows which a mask would have to undo.

    Args:
      lefts: [N,B,G,C,K] or [N,B,G,R,C,K].
      total: sums of decays, [N,B,G,R,C] or [N,B,G,R,C,K].
      same: j <= i, and both in one segment.
    """
    if total.ndim == 6:
        matrices = tuple(_rows(left) for left in lefts)
        products = decayed(kernel, matrices, _rows(right), _rows(total))
        *chunks, _ = total.shape  # [N,B,G,R,C]
        return [product.reshape(*chunks, -1) for product in products]
    # Value heads share a product of query and key; only its decay is their own.
    lefts = tuple(for_value_heads(left) for left in lefts)
    products = []
    for left in lefts:
        undecayed = dot("...ik,...jk->...ij", left, for_value_heads(right))
        scaled = _scaled(undecayed, total, same[:, :, None, None])
        products.append(scaled)
    return products


def _rows(x: Float[Array, "*N C K"]) -> Float[Array, "P C K"]:
    """Return x with one axis for chunks, rows and heads."""
    *_, C, K = x.shape
    return x.reshape(-1, C, K)


@jax.custom_vjp
def _scaled(
    products: Float[Array, "N B G r C C"],
    total: Float[Array, "N B G R C"],
    same: Bool[Array, "N B 1 1 C C"],
) -> Float[Array, "N B G R C C"]:
    """Return products * exp(total_i - total_j); r is R, or 1 where value heads share a product."""
    decay = total[..., :, None] - total[..., None, :]
    # Masked before exp: above the diagonal a difference is positive and could overflow.
    decay = jnp.where(same, decay, 0.0)
    return products * jnp.exp(decay)


def _scaled_forward(products, total, same):
    return _scaled(products, total, same), (products, total, same)


def _scaled_backward(kept, gradient):
    products, total, same = kept
    scaled = _scaled(gradient, total, same)
    # Without the barrier, a GPU's program for sums over rows and columns at once is ten times
    # slower than two sums.
    change = jnp.where(same, scaled * products, 0.0)
    change = jax.lax.optimization_barrier(change)
    d_products = scaled
    if products.shape != scaled.shape:  # the value heads share it
        d_products = scaled.sum(3, keepdims=True)
    # total_i enters row i with plus and column i with minus.
    d_total = change.sum(-1) - change.sum(-2)
    return d_products, d_total, None


_scaled.defvjp(_scaled_forward, _scaled_backward)
