"""Decode state: one entry per layer application, and the slots that all of them share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from slmjax.models.architecture import Architecture


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Where a piece of T tokens goes, the same in every layer."""

    index: Any  # [B,T] slot of each token
    segments: Any  # [B,S] of all slots, those of this piece included
    first: bool = dataclasses.field(metadata={"static": True})  # nothing was there before: the piece sees itself alone


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """One layer's keys and values [B,K,S,H]: a head's slots lie one after the other, so that a matrix product reads them where they are."""

    key: Any  # Any, because shapes and shardings travel in the same tree as arrays
    value: Any

    def append(self, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"], slots: Slots) -> "KVCache":
        """The cache with T more tokens at `slots`."""
        key, value = (new.astype(self.key.dtype).swapaxes(1, 2) for new in (key, value))
        return KVCache(_place(self.key, key, slots.index, slots.first), _place(self.value, value, slots.index, slots.first))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The decode state of a batch of at most S tokens a row.

    Slots from `length` on are dead: whatever stands there is never seen.
    """

    layers: tuple  # of what each block's mixer keeps, never stacked
    segments: Any  # [B,S] of the tokens so far
    length: Any  # [B] how many there are
    empty: bool = dataclasses.field(default=False, metadata={"static": True})

    def slots(self, segments: Int[Array, "B T"]) -> Slots:
        """Slots of the next T tokens; a row's real tokens come first, its padding (segment 0) changes nothing that is ever read.

        There must be room for `length + T` slots.
        """
        index = self.length[:, None] + jnp.arange(segments.shape[1])[None]
        return Slots(index, _place(self.segments[:, None], segments[:, None], index, self.empty)[:, 0], self.empty)

    def after(self, layers: tuple, segments: Int[Array, "B T"], slots: Slots) -> "Cache":
        """The state once the layers hold those tokens."""
        return Cache(layers, slots.segments, self.length + (segments != 0).sum(1, dtype=jnp.int32))


def init_cache(arch: Architecture, batch: int, size: int) -> Cache:
    """An empty cache for `batch` rows of at most `size` tokens, in the compute type."""
    shape = (batch, arch.kv_heads, size, arch.head_dim)

    def one() -> KVCache:  # arrays of its own for each layer, so that a donated cache gives back every one of them
        return KVCache(jnp.zeros(shape, arch.compute), jnp.zeros(shape, arch.compute))

    return Cache(tuple(one() for _ in arch.blocks), jnp.zeros((batch, size), jnp.int32), jnp.zeros((batch,), jnp.int32), empty=True)


def _place(old: Shaped[Array, "B K S ..."], new: Shaped[Array, "B K T ..."], index: Int[Array, "B T"], first: bool) -> Array:
    if first:
        return old.at[:, :, : new.shape[2]].set(new)
    return jax.vmap(lambda row, piece, start: jax.lax.dynamic_update_slice_in_dim(row, piece, start, 1))(old, new, index[:, 0])
