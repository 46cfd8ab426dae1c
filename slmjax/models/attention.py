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
from slmjax.models.rope_scaling import scaled_frequencies
from slmjax.ops.cached_attention import cached_attention
from slmjax.ops.rope import rope as rotate
from slmjax.parallel.mesh import BATCH, ways

# A prompt's first piece goes through the training kernel if its length is a multiple of TILE.
# Splash needs such a length, and shorter pieces would gain nothing.
TILE = 128


class Attention(TokenMixer):
    """Causal attention of grouped queries, within each document.

    rope: rotate queries and keys by their positions.
    window: tokens that a query sees, its own included; 0: all.
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
        if self.borrows:
            keys = shared[self.kind_of_keys]
        elif cache is None:
            # Training: the keys of these tokens.
            keys = Keys(heads["key"], heads["value"])
        else:
            # Generation: the keys of all tokens so far.
            cache, keys = cache.append(heads["key"], heads["value"], ctx.slots)
        mixed = _attend(arch, self.window, heads["query"], keys, ctx)
        mixed = checkpoint_name(mixed, "mixed")
        if arch.output_gate:
            mixed *= jax.nn.sigmoid(heads["gate"])
        matrices = {"out": self._out_matrix()}
        (y,) = project(self, "out", mixed, matrices)
        # Borrowed keys are lent on; a block's own keys replace those lent before it.
        return y, cache, shared | {self.kind_of_keys: keys}

    def _heads(self, x: Float[Array, "B T D"], ctx: Context) -> dict[str, Float[Array, "B T _ H"]]:
        """Return the heads by name: query, key and value unless borrowed, gate if there is one."""
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
        # Training makes one fused product. Decoding, which has slots, reads each matrix in place.
        products = project(self, "in", x, matrices, fused=ctx.slots is None)
        heads = dict(zip(matrices, products))
        for name in ("query", "key"):
            if name not in heads:
                continue
            if arch.qk_norm:
                heads[name] = RMSNorm(arch, name=f"{name}_norm")(heads[name])
            if self.rope:
                heads[name] = rotate(heads[name], ctx.positions, *self._frequencies())
        # Names that config.model.remat can keep.
        for name in ("query", "key", "value"):
            if name in heads:
                heads[name] = checkpoint_name(heads[name], name)
        return heads

    def _frequencies(self) -> tuple[Float[Array, " pairs"], float]:
        """Return frequencies and scale of `rotate`; positions in a window stay as trained."""
        scaling = "" if self.window else self.arch.rope_scaling
        return scaled_frequencies(self.arch.head_dim, self.arch.rope_theta, scaling)

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
            group="residual",
        )

    @property
    def kind_of_keys(self) -> str:
        """The name in `shared` of the keys that it lends. Blocks of one name can share keys."""
        return f"keys rope={self.rope} window={self.window}"

    def lends(self) -> tuple[str, ...]:
        return (self.kind_of_keys,)

    def borrowed(self) -> tuple[str, ...]:
        return (self.kind_of_keys,) if self.borrows else ()

    def empty_cache(self, batch: int, size: int) -> KVCache | None:
        """Return empty keys and values of `size` or a window's tokens; None if it borrows them."""
        if self.borrows:
            return None
        arch = self.arch
        slots = min(size, self.window or size)
        return empty_kv(batch, arch.kv_heads, slots, arch.head_dim, arch.compute)

    def flops(self, seq_len: int, *, causal: bool = True) -> float:
        """Return a token's FLOPs of queries times keys and of weights times values.

        A token sees its window, or half of the row on average; if not causal, all of the row.
        """
        window = self.window if 0 < self.window < seq_len else seq_len
        keys = seq_len
        if causal:
            # The first `window` tokens see half of a window on average, all others a whole one.
            keys = window - window * window / (2 * seq_len)
        # 2 for a multiplication and an addition, 2 for the two products.
        return 2 * 2 * keys * self.arch.heads * self.arch.head_dim


def _attend(
    arch: Architecture,
    window: int,
    query: Float[Array, "B T N H"],
    keys: Keys,
    ctx: Context,
) -> Float[Array, "B T N H"]:
    """Return the heads' outputs, from the keys of a cache or of the tokens themselves."""
    if keys.segments is not None:
        # Keys of a cache have segments and token numbers of their own.
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
    kernel = arch.attention
    places = ctx.places  # documents that a device holds at most
    if ctx.slots is not None:
        # The first piece of a prompt: one document a row. Training's kernel needs whole tiles of
        # tokens, and equally many rows on each device.
        rows, T = query.shape[:2]
        devices = ways(*BATCH)
        if T % TILE or rows % devices:
            kernel = "blockwise"
        places = rows // devices
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
