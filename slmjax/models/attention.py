"""The attention mixer: grouped queries, rotary positions or none, a window, optional norm on queries and keys, optional output gate."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture
from slmjax.models.attention_refusals import checked_attention as attention
from slmjax.models.cache import Keys, KVCache, empty_kv
from slmjax.models.declare import weight
from slmjax.models.layers import Context, RMSNorm, TokenMixer, project, residual_scale
from slmjax.ops.cached_attention import cached_attention
from slmjax.ops.rope import rope as rotate
from slmjax.parallel.mesh import BATCH, ways

TILE = 128  # a first piece of a multiple of this takes the training kernel: splash needs it, and shorter pieces gain nothing


class Attention(TokenMixer):
    """Attention of grouped queries over the keys before, in the same document.

    rope: rotate queries and keys by their positions.
    window: tokens that a query sees, its own among them; 0: all.
    borrows: take keys and values from the last block before it in the pattern that has the same
      rope and window.
    Source: Ainslie et al. 2023 (grouped queries); Henry et al. 2020 and Qwen3 (norm on queries and
    keys, per head, before rotation); Qiu et al. 2025 (sigmoid gate on the heads' outputs); Kazemnejad
    et al. 2023 (no positions); Beltagy et al. 2020 (window); Brandon et al. 2024 (keys and values of
    a layer before).
    """

    rope: bool = True
    window: int = 0
    borrows: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        ctx: Context,
        cache: KVCache | None = None,
        shared: dict | None = None,
    ):
        arch = self.arch
        D, N, K, H = arch.width, arch.heads, arch.kv_heads, arch.head_dim
        heads = (
            {"query": N}
            | ({} if self.borrows else {"key": K, "value": K})
            | ({"gate": N} if arch.output_gate else {})
        )
        inputs = {}
        for name, count in heads.items():
            axes = ("width", "kv_heads" if name in ("key", "value") else "heads", None)
            inputs[name] = weight(self, name, (D, count, H), axes=axes, inputs=(0,), outputs=(1, 2))
        of = dict(zip(inputs, project(self, "in", x, inputs, fused=ctx.slots is None)))
        for name in ("query", "key"):
            if name in of:
                of[name] = (
                    RMSNorm(arch, name=f"{name}_norm")(of[name]) if arch.qk_norm else of[name]
                )
                of[name] = (
                    rotate(of[name], ctx.positions, arch.rope_theta) if self.rope else of[name]
                )
        of |= {
            name: checkpoint_name(of[name], name)
            for name in ("query", "key", "value")
            if name in of
        }
        if self.borrows:
            keys = shared[self.kind_of_keys]
        elif cache is None:
            keys = Keys(of["key"], of["value"])
        else:
            cache, keys = cache.append(of["key"], of["value"], ctx.slots)
        mixed = checkpoint_name(_attend(arch, self.window, of["query"], keys, ctx), "mixed")
        if arch.output_gate:
            mixed *= jax.nn.sigmoid(of["gate"])
        out = weight(
            self,
            "out",
            (N, H, D),
            axes=("heads", None, "width"),
            inputs=(0, 1),
            outputs=(2,),
            init=residual_scale(arch),
        )
        return *project(self, "out", mixed, {"out": out}), cache, shared | {self.kind_of_keys: keys}

    @property
    def kind_of_keys(self) -> str:
        """Attention blocks that agree in it can share keys and values."""
        return f"keys rope={self.rope} window={self.window}"

    def lends(self) -> tuple[str, ...]:
        return (self.kind_of_keys,)

    def borrowed(self) -> tuple[str, ...]:
        return (self.kind_of_keys,) if self.borrows else ()

    def empty_cache(self, batch: int, size: int) -> KVCache | None:
        """A block that borrows keeps nothing, one with a window no more than that."""
        slots = min(size, self.window or size)
        return (
            None
            if self.borrows
            else empty_kv(batch, self.arch.kv_heads, slots, self.arch.head_dim, self.arch.compute)
        )

    def flops(self, seq_len: int, *, causal: bool = True) -> float:
        """Queries times keys, and weights times values; a token sees half of the keys on average."""
        window = self.window if 0 < self.window < seq_len else seq_len
        keys = (
            window - window * window / (2 * seq_len) if causal else seq_len
        )  # the first tokens see fewer than a window
        return 2 * 2 * keys * self.arch.heads * self.arch.head_dim


def _attend(arch: Architecture, window: int, query: Array, keys: Keys, ctx: Context) -> Array:
    T = query.shape[1]
    if keys.segments is not None:
        return cached_attention(
            query,
            keys.key,
            keys.value,
            query_segments=ctx.segments,
            key_segments=keys.segments,
            query_index=ctx.slots.index,
            key_index=keys.index,
            window=window,
        )
    kernel, places = arch.attention, ctx.places
    if ctx.slots is not None:  # the first piece of a prompt: one document a row
        kernel = "blockwise" if T % TILE or len(query) % ways(*BATCH) else kernel
        places = len(query) // ways(*BATCH)
    return attention(
        query,
        keys.key,
        keys.value,
        query_segments=ctx.segments,
        key_segments=ctx.segments,
        kernel=kernel,
        places=places,
        window=window,
    )
