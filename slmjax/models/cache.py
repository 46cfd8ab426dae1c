"""Decode state: one entry per layer application, and the slots that all of them share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Where a piece of T tokens goes, the same in every layer."""

    index: Any  # [B,T] number of each token in its row
    segments: Any  # [B,S] of all tokens, those of this piece included
    length: Any  # [B] tokens once this piece is there
    first: bool = dataclasses.field(
        metadata={"static": True}
    )  # nothing was there before: the piece sees itself alone


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """What queries attend over, and a block lends to those that borrow."""

    key: Any  # [B,T,K,H] of the piece itself, or [B,K,S,H] of a cache
    value: Any
    segments: Any = None  # [B,S] of a cache's keys; None: the keys are the piece's
    index: Any = None  # [B,S] their tokens' numbers; None: 0, 1, ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """One layer's keys and values [B,K,S,H]: a head's slots lie one after the other, so that a matrix product reads them where they are.

    Token number a is in slot a, or, where a window needs fewer slots than a row has tokens, in slot a modulo S.
    """

    key: Any  # Any, because shapes and shardings travel in the same tree as arrays
    value: Any

    def append(
        self, key: Float[Array, "B T K H"], value: Float[Array, "B T K H"], slots: Slots
    ) -> tuple["KVCache", Keys]:
        """(the cache with T more tokens, what their queries attend over)."""
        size, T, S = self.key.shape[2], key.shape[1], slots.segments.shape[1]
        new = [x.astype(self.key.dtype).swapaxes(1, 2) for x in (key, value)]
        if size == S:
            cache = KVCache(
                *(
                    _place(old, x, slots.index, slots.first)
                    for old, x in zip((self.key, self.value), new)
                )
            )
            return cache, Keys(key, value) if slots.first and T > 1 else Keys(
                cache.key, cache.value, slots.segments
            )
        if T == 1:  # the token that it replaces has left the window
            cache = KVCache(
                *(
                    _place(old, x, slots.index % size, False)
                    for old, x in zip((self.key, self.value), new)
                )
            )
            return cache, _keys(
                cache.key, cache.value, _held(size, slots.index[:, 0] + 1), slots.segments
            )
        before, after = slots.index[:, 0], _held(size, slots.length)
        place = jnp.clip(after - before[:, None], 0, T - 1)[:, None, :, None]
        fresh = (after >= before[:, None])[:, None, :, None]
        held = zip((self.key, self.value), new)
        cache = KVCache(
            *(jnp.where(fresh, jnp.take_along_axis(x, place, axis=2), old) for old, x in held)
        )
        if slots.first:
            return cache, Keys(key, value)
        both = (jnp.concatenate([old, x], axis=2) for old, x in zip((self.key, self.value), new))
        return cache, _keys(
            *both, jnp.concatenate([_held(size, before), slots.index], axis=1), slots.segments
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The decode state of a batch of at most S tokens a row.

    Slots from `length` on are dead: whatever stands there is never seen.
    """

    layers: tuple  # of what each application's mixer keeps, never stacked
    segments: Any  # [B,S] of the tokens so far
    length: Any  # [B] how many there are
    empty: bool = dataclasses.field(default=False, metadata={"static": True})

    def slots(self, segments: Int[Array, "B T"]) -> Slots:
        """Slots of the next T tokens; a row's real tokens come first, its padding (segment 0) changes nothing that is ever read.

        There must be room for `length + T` slots.
        """
        index = self.length[:, None] + jnp.arange(segments.shape[1])[None]
        length = self.length + (segments != 0).sum(1, dtype=jnp.int32)
        return Slots(
            index,
            _place(self.segments[:, None], segments[:, None], index, self.empty)[:, 0],
            length,
            self.empty,
        )

    def after(self, layers: tuple, slots: Slots) -> "Cache":
        """The state once the layers hold those tokens."""
        return Cache(layers, slots.segments, slots.length)


def empty_kv(batch: int, heads: int, size: int, head_dim: int, dtype: Any) -> KVCache:
    """Keys and values before the first token."""
    return KVCache(*(jnp.zeros((batch, heads, size, head_dim), dtype) for _ in range(2)))


def _place(
    old: Shaped[Array, "B K S ..."],
    new: Shaped[Array, "B K T ..."],
    index: Int[Array, "B T"],
    first: bool,
) -> Array:
    if first:
        return old.at[:, :, : new.shape[2]].set(new)
    return jax.vmap(
        lambda row, piece, start: jax.lax.dynamic_update_slice_in_dim(row, piece, start, 1)
    )(old, new, index[:, 0])


def _held(size: int, length: Int[Array, "B"]) -> Int[Array, "B s"]:
    """Number of the token that each of `size` slots holds, after `length` tokens; negative: none yet."""
    last = length[:, None] - 1
    return last - (last - jnp.arange(size)[None]) % size


def _keys(key: Array, value: Array, index: Int[Array, "B s"], segments: Int[Array, "B S"]) -> Keys:
    of = jnp.take_along_axis(segments, jnp.clip(index, 0, segments.shape[1] - 1), axis=1)
    return Keys(key, value, jnp.where(index < 0, 0, of), index)
