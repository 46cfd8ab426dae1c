"""The attention mixer: grouped queries, rotary positions, windows, norms and an output gate."""

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

# A first piece of a multiple of it takes the training kernel. Splash needs that, and shorter
# pieces gain nothing.
TILE = 128


class Attention(TokenMixer):
    """Attention of grouped queries over the keys before, in the same document.

    rope: rotate queries and keys by their positions.
    window: tokens that a query sees, its own among them; 0: all.
    borrows: take keys and values from the last block before it in the pattern that has the same
      rope and window.
    Source: Ainslie et al. 2023 (grouped queries); Henry et al. 2020 and Qwen3 (norm on queries and
    keys, per head, before rotation); Qiu et al. 2025 (sigmoid gate on the heads' outputs);
    Kazemnejad et al. 2023 (no positions); Beltagy et al. 2020 (window); Brandon et al. 2024 (keys
    and values of a layer before).
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
    ) -> tuple[Float[Array, "B T D"], KVCache | None, dict]:
        arch = self.arch
        heads = self._heads(x, ctx)
        # Keys of the piece itself, of a block before, or of all tokens in the cache.
        if self.borrows:
            keys = shared[self.kind_of_keys]
        elif cache is None:
            keys = Keys(heads["key"], heads["value"])
        else:
            cache, keys = cache.append(heads["key"], heads["value"], ctx.slots)
        mixed = _attend(arch, self.window, heads["query"], keys, ctx)
        mixed = checkpoint_name(mixed, "mixed")
        if arch.output_gate:
            mixed *= jax.nn.sigmoid(heads["gate"])
        matrices = {"out": self._out_matrix()}
        (y,) = project(self, "out", mixed, matrices)
        # It lends what it borrowed, too: later blocks read the newest entry of their kind.
        return y, cache, shared | {self.kind_of_keys: keys}

    def _heads(self, x: Float[Array, "B T D"], ctx: Context) -> dict[str, Float[Array, "B T _ H"]]:
        """Return query, key, value and gate, those of them that this block makes."""
        arch = self.arch
        counts = {"query": arch.heads}
        if not self.borrows:
            counts |= {"key": arch.kv_heads, "value": arch.kv_heads}
        if arch.output_gate:
            counts["gate"] = arch.heads
        matrices = {}
        for name, count in counts.items():
            heads_axis = "kv_heads" if name in ("key", "value") else "heads"
            shape = (arch.width, count, arch.head_dim)
            axes = ("width", heads_axis, None)
            matrices[name] = weight(
                self,
                name,
                shape,
                axes=axes,
                inputs=(0,),
                outputs=(1, 2),
            )
        # One product while training. Decoding reads each matrix in place instead.
        made = project(self, "in", x, matrices, fused=ctx.slots is None)
        heads = dict(zip(matrices, made))
        for name in ("query", "key"):
            if name not in heads:
                continue
            if arch.qk_norm:
                heads[name] = RMSNorm(arch, name=f"{name}_norm")(heads[name])
            if self.rope:
                heads[name] = rotate(heads[name], ctx.positions, arch.rope_theta)
        # Names that config.model.remat can keep.
        for name in ("query", "key", "value"):
            if name in heads:
                heads[name] = checkpoint_name(heads[name], name)
        return heads

    def _out_matrix(self) -> Float[Array, "N H D"]:
        arch = self.arch
        return weight(
            self,
            "out",
            (arch.heads, arch.head_dim, arch.width),
            axes=("heads", None, "width"),
            inputs=(0, 1),
            outputs=(2,),
            init=residual_scale(arch),
        )

    @property
    def kind_of_keys(self) -> str:
        """The name under which it lends keys. Blocks that agree in it can share them."""
        return f"keys rope={self.rope} window={self.window}"

    def lends(self) -> tuple[str, ...]:
        return (self.kind_of_keys,)

    def borrowed(self) -> tuple[str, ...]:
        return (self.kind_of_keys,) if self.borrows else ()

    def empty_cache(self, batch: int, size: int) -> KVCache | None:
        """Return room for keys and values: none if it borrows them, at most a window's."""
        if self.borrows:
            return None
        arch = self.arch
        slots = min(size, self.window or size)
        return empty_kv(batch, arch.kv_heads, slots, arch.head_dim, arch.compute)

    def flops(self, seq_len: int, *, causal: bool = True) -> float:
        """Return FLOPs of queries times keys and of weights times values.

        A token sees half of the keys on average.
        """
        window = self.window if 0 < self.window < seq_len else seq_len
        keys = seq_len
        if causal:
            # The first tokens see fewer than a window: half of it on average.
            keys = window - window * window / (2 * seq_len)
        # 2 for a multiplication and its sum, 2 for the two products.
        return 2 * 2 * keys * self.arch.heads * self.arch.head_dim


def _attend(
    arch: Architecture,
    window: int,
    query: Float[Array, "B T N H"],
    keys: Keys,
    ctx: Context,
) -> Float[Array, "B T N H"]:
    """Return the heads' outputs, from the keys of a cache or of the piece itself."""
    if keys.segments is not None:
        # Keys of a cache: they have segments and numbers of their own.
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
    rows, T = query.shape[:2]
    kernel, places = arch.attention, ctx.places
    if ctx.slots is not None:
        # The first piece of a prompt: one document a row.
        if T % TILE or rows % ways(*BATCH):
            kernel = "blockwise"
        places = rows // ways(*BATCH)
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
