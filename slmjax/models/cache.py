"""Decode state: a tuple with one entry per layer application."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.models.architecture import Architecture


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values [B,S,K,H] of the tokens so far, their segments [B,S], and how many there are [B].

    Slots from `length` on are dead: whatever stands there is never seen.
    """

    key: Any  # Any, because shapes and shardings travel in the same tree as arrays
    value: Any
    segments: Any
    length: Any

    def append(self, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"], segments: Int[Array, "B T"]) -> "KVCache":
        """The cache after T more tokens; a row's real tokens come first, its padding (segment 0) changes nothing that is ever read.

        There must be room for `length + T` slots.
        """
        place = jax.vmap(lambda old, new, start: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, 0))
        return KVCache(
            place(self.key, key, self.length), place(self.value, value, self.length), place(self.segments, segments, self.length),
            self.length + (segments != 0).sum(1, dtype=jnp.int32),
        )  # fmt: skip


def init_cache(arch: Architecture, batch: int, size: int) -> tuple[KVCache, ...]:
    """An empty cache for `batch` rows of at most `size` tokens, in the compute type."""
    shape = (batch, size, arch.kv_heads, arch.head_dim)

    def one() -> KVCache:  # arrays of its own for each layer, so that a donated cache gives back every one of them
        return KVCache(
            jnp.zeros(shape, arch.compute),
            jnp.zeros(shape, arch.compute),
            jnp.zeros((batch, size), jnp.int32),
            jnp.zeros((batch,), jnp.int32),
        )

    return tuple(one() for _ in arch.blocks)
