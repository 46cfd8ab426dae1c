"""The attention mixer: grouped queries, rotary positions or none, optional norm on queries and keys, optional output gate."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture, Block
from slmjax.models.cache import KVCache
from slmjax.models.layers import Context, RMSNorm, products, residual_scale, weight
from slmjax.ops.attention import attention
from slmjax.ops.rope import rope


class Attention(nn.Module):
    """mixer(x, ctx, cache, shared) -> (y, cache, shared).

    Source: Ainslie et al. 2023 (grouped queries); Henry et al. 2020 and Qwen3 (norm on queries and keys, per head, before rotation);
    Qiu et al. 2025 (sigmoid gate on the heads' outputs); Kazemnejad et al. 2023 (no positions).
    """

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, ctx: Context, cache: KVCache | None = None, shared=None):
        arch = self.arch
        D, N, K, H = arch.width, arch.heads, arch.kv_heads, arch.head_dim
        heads = {"query": N, "key": K, "value": K} | ({"gate": N} if arch.output_gate else {})
        inputs = {name: weight(self, name, (D, count, H), D) for name, count in heads.items()}
        query, key, value, *gate = products(self, "in", x, inputs)
        if arch.qk_norm:
            query, key = RMSNorm(arch, name="query_norm")(query), RMSNorm(arch, name="key_norm")(key)
        if self.block.rope:
            query, key = rope(query, ctx.positions, arch.rope_theta), rope(key, ctx.positions, arch.rope_theta)
        query, key, value = (checkpoint_name(a, n) for a, n in ((query, "query"), (key, "key"), (value, "value")))
        if cache is None:
            mixed = attention(
                query, key, value, query_segments=ctx.segments, key_segments=ctx.segments, kernel=arch.attention,
                max_segments=arch.max_segments,
            )  # fmt: skip
        else:
            index = cache.length[:, None] + jnp.arange(x.shape[1])[None]
            cache = cache.append(key, value, ctx.segments)
            mixed = attention(
                query, cache.key, cache.value, query_segments=ctx.segments, key_segments=cache.segments, query_index=index
            )  # fmt: skip
        mixed = checkpoint_name(mixed, "mixed")
        if arch.output_gate:
            mixed *= jax.nn.sigmoid(gate[0])
        out = weight(self, "out", (N, H, D), N * H, residual_scale(arch))
        return *products(self, "out", mixed, {"out": out}), cache, shared
