"""Splash attention (Pallas) over packed rows on TPU, through JAX's experimental interface to it.

No other file uses that interface. Axes: B rows, T tokens, N query heads, K key/value heads,
G = N / K, H head size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.parallel.mesh import per_device_heads

TILE = 128  # tokens; T must be a multiple of it
BLOCKS = (512, 256, TILE)  # tokens of a block of queries or keys: the largest that divides T


class UnfitLength(ValueError):
    """A number of tokens that splash attention does not take."""


def splash_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    window: int = 0,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Return causal attention within segments.

    Args:
      window: tokens that a query sees, its own among them; 0: all.
      interpret: run on any device, slowly, for tests.

    Raises: UnfitLength where T is not a multiple of 128.
    """
    T = query.shape[1]
    if T == 1:  # initialisation traces the model with one token, which sees itself alone
        real = (segments != 0)[:, :, None, None]
        group = query.shape[2] // key.shape[2]
        repeated = jnp.repeat(value, group, axis=2)
        return jnp.where(real, repeated, 0)
    if T % TILE:
        raise UnfitLength(f"splash attention needs a multiple of {TILE}")

    def kernel(q, k, v, seg):
        B, _, N, H = q.shape  # of this device
        K = k.shape[2]
        G = N // K
        attend = _one_head_kernel(T, G, window, interpret)
        over_heads = jax.vmap(attend, in_axes=(0, 0, 0, None))  # heads share their row's segments
        over_rows = jax.vmap(over_heads)
        # The kernel does not scale its scores.
        q = q.reshape(B, T, K, G, H) * H**-0.5
        q = q.transpose(0, 2, 3, 1, 4)  # [B,K,G,T,H]
        k = k.transpose(0, 2, 1, 3)  # [B,K,T,H]
        v = v.transpose(0, 2, 1, 3)
        out = over_rows(q, k, v, seg)  # [B,K,G,T,H]
        out = out.transpose(0, 3, 1, 2, 4)  # [B,T,K,G,H]
        out = out.reshape(B, T, N, H)
        real = (seg != 0)[:, :, None, None]
        return jnp.where(real, out, 0)

    return per_device_heads(kernel)(query, key, value, segments)


def _one_head_kernel(T: int, group: int, window: int, interpret: bool) -> Callable:
    """Return the attention of one row and key/value head, for `group` query heads.

    It is a function(query [G,T,H], key [T,H], value [T,H], segments [T]) that returns [G,T,H].
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = max(size for size in BLOCKS if T % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    # Blocks of scores that the mask excludes as a whole are not computed.
    mask = masks.CausalMask((T, T))
    if window:
        keys_seen = (window - 1, 0)  # before a query, and after it
        mask = masks.LocalMask((T, T), keys_seen, 0)
    group_mask = masks.MultiHeadMask([mask] * group)
    run = splash.make_splash_mqa_single_device(
        mask=group_mask, block_sizes=sizes, interpret=interpret
    )

    def attend(query, key, value, segments):
        ids = splash.SegmentIds(segments, segments)
        return run(query, key, value, ids)

    return attend
