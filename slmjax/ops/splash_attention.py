"""Splash attention (Pallas) over packed rows on TPU: the one place that touches JAX's experimental interface to it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError
from slmjax.parallel.mesh import per_device_heads


def splash_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    window: int = 0,
    *,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Causal attention within segments, T a multiple of 128.

    Args:
      window: tokens that a query sees, its own among them; 0: all.
      interpret: run on any device, slowly, for tests.
    Raises: UserError where T is not a multiple of 128.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T = query.shape[1]
    if T == 1:  # initialisation traces the model with one token, which sees itself alone
        return jnp.where(
            (segments != 0)[:, :, None, None],
            jnp.repeat(value, query.shape[2] // value.shape[2], axis=2),
            0,
        )
    if T % 128:
        raise UserError(
            f"config.data.seq_len is {T}; splash attention needs a multiple of 128 (or --config.model.attention=blockwise)."
        )
    block = max(size for size in (512, 256, 128) if T % size == 0)
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

    def kernel(q, k, v, seg):
        group = q.shape[2] // k.shape[2]
        mask = masks.LocalMask((T, T), (window - 1, 0), 0) if window else masks.CausalMask((T, T))
        mask = masks.MultiHeadMask([mask for _ in range(group)])
        attend = splash.make_splash_mqa_single_device(
            mask=mask, block_sizes=sizes, interpret=interpret
        )
        q = q.reshape(*q.shape[:2], k.shape[2], group, q.shape[3]) * q.shape[3] ** -0.5
        ids = splash.SegmentIds(seg, seg)
        over_heads = jax.vmap(
            attend, in_axes=(0, 0, 0, None)
        )  # K: the mask's heads are one group's queries
        out = jax.vmap(over_heads)(
            q.transpose(0, 2, 3, 1, 4), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), ids
        )
        out = out.transpose(0, 3, 1, 2, 4).reshape(seg.shape[0], T, -1, q.shape[-1])
        return jnp.where((seg != 0)[:, :, None, None], out, 0)

    return per_device_heads(kernel)(query, key, value, segments)
