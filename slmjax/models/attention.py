"""The attention mixer: grouped queries, rotary positions or none, a window, optional norm on queries and keys, optional output gate."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture, Block
from slmjax.models.cache import Keys, KVCache, empty_kv
from slmjax.models.layers import Context, RMSNorm, products, residual_scale, weight
from slmjax.ops.attention import attention
from slmjax.ops.cached_attention import cached_attention
from slmjax.ops.rope import rope
from slmjax.parallel.mesh import BATCH, ways

TILE = 128  # a first piece of a multiple of this takes the training kernel: splash needs it, and shorter pieces gain nothing


class Attention(nn.Module):
    """mixer(x, ctx, cache, shared) -> (y, cache, shared).

    `shared` is {kind of keys: cache.Keys} of the blocks before in the pattern, or None where none of it borrows.
    Source: Ainslie et al. 2023 (grouped queries); Henry et al. 2020 and Qwen3 (norm on queries and keys, per head, before rotation);
    Qiu et al. 2025 (sigmoid gate on the heads' outputs); Kazemnejad et al. 2023 (no positions); Beltagy et al. 2020 (window); Brandon et
    al. 2024 (keys and values of a layer before).
    """

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, ctx: Context, cache: KVCache | None = None, shared: dict | None = None):
        arch, block = self.arch, self.block
        D, N, K, H = arch.width, arch.heads, arch.kv_heads, arch.head_dim
        heads = {"query": N} | ({} if block.borrows else {"key": K, "value": K}) | ({"gate": N} if arch.output_gate else {})
        inputs = {name: weight(self, name, (D, count, H), D) for name, count in heads.items()}
        of = dict(zip(inputs, products(self, "in", x, inputs, fused=ctx.slots is None)))
        for name in ("query", "key"):
            if name in of:
                of[name] = RMSNorm(arch, name=f"{name}_norm")(of[name]) if arch.qk_norm else of[name]
                of[name] = rope(of[name], ctx.positions, arch.rope_theta) if block.rope else of[name]
        of |= {name: checkpoint_name(of[name], name) for name in ("query", "key", "value") if name in of}
        if block.borrows:
            keys = shared[block.kind_of_keys]
        elif cache is None:
            keys = Keys(of["key"], of["value"])
        else:
            cache, keys = cache.append(of["key"], of["value"], ctx.slots)
        if shared is not None:
            shared = shared | {block.kind_of_keys: keys}
        mixed = checkpoint_name(_attend(arch, block, of["query"], keys, ctx), "mixed")
        if arch.output_gate:
            mixed *= jax.nn.sigmoid(of["gate"])
        out = weight(self, "out", (N, H, D), N * H, residual_scale(arch))
        return *products(self, "out", mixed, {"out": out}), cache, shared

    @staticmethod
    def empty_cache(arch: Architecture, block: Block, batch: int, size: int) -> KVCache | None:
        """See models/mixers.py; a block that borrows keeps nothing, one with a window no more than that."""
        slots = min(size, block.window or size)
        return None if block.borrows else empty_kv(batch, arch.kv_heads, slots, arch.head_dim, arch.compute)


def _attend(arch: Architecture, block: Block, query: Array, keys: Keys, ctx: Context) -> Array:
    T = query.shape[1]
    if keys.segments is not None:
        return cached_attention(
            query, keys.key, keys.value, query_segments=ctx.segments, key_segments=keys.segments, query_index=ctx.slots.index,
            key_index=keys.index, window=block.window,
        )  # fmt: skip
    kernel, most, usual = arch.attention, arch.max_segments, arch.usual_segments
    if ctx.slots is not None:  # the first piece of a prompt
        kernel = "blockwise" if T % TILE or len(query) % ways(*BATCH) else kernel
        most, usual = 1, 1
    return attention(
        query, keys.key, keys.value, query_segments=ctx.segments, key_segments=ctx.segments, kernel=kernel, max_segments=most,
        usual_segments=usual, window=block.window,
    )  # fmt: skip
