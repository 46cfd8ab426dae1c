"""Splash attention (Pallas) over packed rows on TPU, the one user of JAX's interface to it.

That interface is experimental.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.parallel.mesh import per_device_heads

TILE = 128  # tokens; T must be a multiple of it


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
        return jnp.where(real, jnp.repeat(value, query.shape[2] // key.shape[2], axis=2), 0)
    if T % TILE:
        raise UnfitLength(f"splash attention needs a multiple of {TILE}")

    def kernel(q, k, v, seg):
        B, _, N, H = q.shape  # of this device
        K = k.shape[2]
        attend = _one_head_kernel(T, N // K, window, interpret)
        over_rows = jax.vmap(jax.vmap(attend, in_axes=(0, 0, 0, None)))
        q = q.reshape(B, T, K, N // K, H) * H**-0.5
        # [B,K,G,T,H] and [B,K,T,H], of which `attend` takes [G,T,H] and [T,H].
        q, k, v = q.transpose(0, 2, 3, 1, 4), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        out = over_rows(q, k, v, seg).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
        return jnp.where((seg != 0)[:, :, None, None], out, 0)

    return per_device_heads(kernel)(query, key, value, segments)


def _one_head_kernel(T: int, group: int, window: int, interpret: bool) -> Callable:
    """Return a function(query [G,T,H], key [T,H], value [T,H], segments [T]) for one key head."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = max(size for size in (512, 256, TILE) if T % size == 0)
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
    mask = masks.LocalMask((T, T), (window - 1, 0), 0) if window else masks.CausalMask((T, T))
    group_mask = masks.MultiHeadMask([mask] * group)
    run = splash.make_splash_mqa_single_device(
        mask=group_mask, block_sizes=sizes, interpret=interpret
    )

    def attend(query, key, value, segments):
        return run(query, key, value, splash.SegmentIds(segments, segments))

    return attend
