"""The attention mixer: grouped queries, rotary positions or none, optional norm on queries and keys, optional output gate."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture, Block
from slmjax.models.cache import KVCache
from slmjax.models.layers import Context, RMSNorm, products, residual_scale, weight
from slmjax.ops.attention import attention
from slmjax.ops.cached_attention import cached_attention
from slmjax.ops.rope import rope
from slmjax.parallel.mesh import BATCH, ways

TILE = 128  # a first piece of a multiple of this takes the training kernel: splash needs it, and shorter pieces gain nothing


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
        query, key, value, *gate = products(self, "in", x, inputs, fused=cache is None)
        if arch.qk_norm:
            query, key = RMSNorm(arch, name="query_norm")(query), RMSNorm(arch, name="key_norm")(key)
        if self.block.rope:
            query, key = rope(query, ctx.positions, arch.rope_theta), rope(key, ctx.positions, arch.rope_theta)
        query, key, value = (checkpoint_name(a, n) for a, n in ((query, "query"), (key, "key"), (value, "value")))
        if cache is None:
            mixed = attention(
                query, key, value, query_segments=ctx.segments, key_segments=ctx.segments, kernel=arch.attention,
                max_segments=arch.max_segments, usual_segments=arch.usual_segments,
            )  # fmt: skip
        else:
            cache = cache.append(key, value, ctx.slots)
            mixed = _cached(arch, query, key, value, cache, ctx)
        mixed = checkpoint_name(mixed, "mixed")
        if arch.output_gate:
            mixed *= jax.nn.sigmoid(gate[0])
        out = weight(self, "out", (N, H, D), N * H, residual_scale(arch))
        return *products(self, "out", mixed, {"out": out}), cache, shared


def _cached(arch: Architecture, query: Array, key: Array, value: Array, cache: KVCache, ctx: Context) -> Array:
    """Attention of a piece of tokens over a cache that already holds them."""
    T, slots = query.shape[1], ctx.slots
    if T == 1 or not slots.first:
        return cached_attention(
            query, cache.key, cache.value, query_segments=ctx.segments, key_segments=slots.segments, query_index=slots.index
        )  # fmt: skip
    kernel = "blockwise" if T % TILE or len(query) % ways(*BATCH) else arch.attention
    return attention(
        query, key, value, query_segments=ctx.segments, key_segments=ctx.segments, kernel=kernel, max_segments=1
    )  # fmt: skip
