"""Attention of new tokens over a cache: one product per key/value head, reading keys in place.

Axes: B rows, T new tokens, S slots of the cache, N query heads, K key/value heads, H head size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slmjax.ops.softmax_attention import MASKED


def cached_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    *,
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    query_index: Int[Array, "B T"],
    key_index: Int[Array, "B S"] | None = None,
    window: int = 0,
) -> Float[Array, "B T N H"]:
    """Return what softmax_attention.reference does, from keys and values in the cache's layout.

    It is for few new tokens a row, one (decoding) or a short piece of a prompt, because all T x S
    scores exist at once. All queries of a key/value head are rows of one product, so that each key
    and value is read once. Products take operands of the cache's type; scores and softmax are
    float32. Padding (segment 0) gives zeros.

    Args:
      query_index: number of each query's token in its row.
      key_index: number of each key's token; None: 0, 1, ...
      window: tokens that a query sees, its own among them; 0: all.
    """
    B, T, N, H = query.shape
    K = key.shape[1]
    group = N // K  # query heads that share a key/value head
    # Rows of one product: the queries of all tokens and heads that share a key/value head.
    grouped = query.reshape(B, T, K, group, H)
    grouped = grouped.transpose(0, 2, 1, 3, 4)  # [B,K,T,group,H]
    rows = grouped.reshape(B, K, -1, H)
    products = jnp.einsum("bkrh,bksh->bkrs", rows, key, preferred_element_type=jnp.float32)
    scores = products * H**-0.5  # [B,K,T*group,S]
    visible = _visible(query_segments, key_segments, query_index, key_index, window)
    # The rows of one token, one for each head of the group, follow each other.
    visible = jnp.repeat(visible, group, axis=1)
    visible = visible[:, None]  # [B,1,T*group,S]
    masked = jnp.where(visible, scores, MASKED)
    weights = jax.nn.softmax(masked, axis=-1)
    weights = jnp.where(visible, weights, 0.0)  # padding sees no key: zeros
    mixed = jnp.einsum("bkrs,bksh->bkrh", weights.astype(value.dtype), value)
    mixed = mixed.reshape(B, K, T, group, H)
    mixed = mixed.transpose(0, 2, 1, 3, 4)  # [B,T,K,group,H]
    return mixed.reshape(B, T, N, H)


def _visible(
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    query_index: Int[Array, "B T"],
    key_index: Int[Array, "B S"] | None,
    window: int,
) -> Bool[Array, "B T S"]:
    """Return which query sees which key."""
    same_segment = query_segments[:, :, None] == key_segments[:, None]
    visible = same_segment & (query_segments[:, :, None] != 0)  # padding sees nothing
    if key_index is None:
        slots = jnp.arange(key_segments.shape[1])
        key_index = slots[None]
    visible &= query_index[:, :, None] >= key_index[:, None]
    if window:
        distance = query_index[:, :, None] - key_index[:, None]
        visible &= distance < window
    return visible
