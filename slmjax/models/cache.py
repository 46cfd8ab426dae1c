"""Decode state: one entry for each layer application, and the slots that all of them share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

# Fields are annotated as Any, because shapes and shardings travel in the same trees as arrays.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Where a piece of T tokens goes, the same in every layer."""

    index: Any  # [B,T] number of each token in its row
    segments: Any  # [B,S] of all tokens, those of this piece included
    length: Any  # [B] tokens once this piece is there
    # True: nothing was there before, so that the piece sees itself alone.
    first: bool = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys and values that queries attend over, and that a block lends to later ones."""

    key: Any  # [B,T,K,H] of the piece itself, or [B,K,S,H] of a cache
    value: Any
    segments: Any = None  # [B,S] of a cache's keys; None: the keys are the piece's
    index: Any = None  # [B,S] their tokens' numbers; None: 0, 1, ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """One layer's keys and values [B,K,S,H].

    A head's slots lie one after the other, so that a matrix product reads them where they are.
    Token number a is in slot a. Where a window needs fewer slots than a row has tokens, the slots
    are a ring, and it is in slot a modulo S.
    """

    key: Any
    value: Any

    def append(
        self,
        key: Float[Array, "B T K H"],
        value: Float[Array, "B T K H"],
        slots: Slots,
    ) -> tuple["KVCache", Keys]:
        """Return the cache with T more tokens, and the keys that their queries attend over."""
        T = key.shape[1]
        size = self.key.shape[2]  # slots of this layer
        row = slots.segments.shape[1]  # tokens of a row at most
        dtype = self.key.dtype
        new = KVCache(_heads_first(key, dtype), _heads_first(value, dtype))
        if size == row:
            cache = KVCache(
                _place(self.key, new.key, slots.index, slots.first),
                _place(self.value, new.value, slots.index, slots.first),
            )
            if slots.first and T > 1:
                return cache, Keys(key, value)
            return cache, Keys(cache.key, cache.value, slots.segments)
        if T == 1:
            # The token whose slot it takes has left the window.
            cache = KVCache(
                _place(self.key, new.key, slots.index % size, False),
                _place(self.value, new.value, slots.index % size, False),
            )
            held = _held(size, slots.index[:, 0] + 1)
            return cache, _keys(cache.key, cache.value, held, slots.segments)
        before = slots.index[:, 0]
        cache = self._after_piece(new, before, slots.length)
        if slots.first:
            return cache, Keys(key, value)
        # A query of the piece may see tokens that the piece pushes out of the ring: it attends over
        # the ring as it was, followed by the piece.
        both_keys = jnp.concatenate([self.key, new.key], axis=2)
        both_values = jnp.concatenate([self.value, new.value], axis=2)
        held = _held(size, before)
        numbers = jnp.concatenate([held, slots.index], axis=1)
        return cache, _keys(both_keys, both_values, numbers, slots.segments)

    def _after_piece(
        self,
        new: "KVCache",
        before: Int[Array, "B"],
        length: Int[Array, "B"],
    ) -> "KVCache":
        """Return the ring after a piece [B,K,T,H]: each slot takes its newest token.

        Args:
          before, length: tokens before the piece, and after it.
        """
        size = self.key.shape[2]
        T = new.key.shape[2]
        after = _held(size, length)
        # [B,S] -> [B,1,S,1]: the place in the piece of each slot's token, and whether it is there.
        place = jnp.clip(after - before[:, None], 0, T - 1)
        place = place[:, None, :, None]
        fresh = after >= before[:, None]
        fresh = fresh[:, None, :, None]
        keys = jnp.take_along_axis(new.key, place, axis=2)
        keys = jnp.where(fresh, keys, self.key)
        values = jnp.take_along_axis(new.value, place, axis=2)
        values = jnp.where(fresh, values, self.value)
        return KVCache(keys, values)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The decode state of a batch of at most S tokens a row.

    Slots from `length` on are dead: their content is never seen.
    """

    layers: tuple  # each application's own cache, see TokenMixer.empty_cache; never stacked
    segments: Any  # [B,S] of the tokens so far
    length: Any  # [B] tokens so far
    empty: bool = dataclasses.field(default=False, metadata={"static": True})

    def slots(self, segments: Int[Array, "B T"]) -> Slots:
        """Return the slots of the next T tokens. There must be room for `length + T`.

        A row's real tokens come first. Its padding (segment 0) changes nothing that is ever read.
        """
        T = segments.shape[1]
        index = self.length[:, None] + jnp.arange(T)[None]
        real = segments != 0
        length = self.length + real.sum(1, dtype=jnp.int32)
        # [B,S] -> [B,1,S]: `_place` wants an axis of heads.
        before = self.segments[:, None]
        piece = segments[:, None]
        placed = _place(before, piece, index, self.empty)
        return Slots(index, placed[:, 0], length, self.empty)

    def after(self, layers: tuple, slots: Slots) -> "Cache":
        """Return the state once the layers hold the tokens of `slots`."""
        return Cache(layers, slots.segments, slots.length)


def empty_kv(
    batch: int,
    heads: int,
    size: int,
    head_dim: int,
    dtype: Any,
) -> KVCache:
    """Return keys and values before the first token."""
    shape = (batch, heads, size, head_dim)
    # Two arrays: a donated cache may hold no array twice.
    keys = jnp.zeros(shape, dtype)
    values = jnp.zeros(shape, dtype)
    return KVCache(keys, values)


def _heads_first(piece: Float[Array, "B T K H"], dtype: Any) -> Float[Array, "B K T H"]:
    return piece.astype(dtype).swapaxes(1, 2)


def _place(
    old: Shaped[Array, "B K S ..."],
    new: Shaped[Array, "B K T ..."],
    index: Int[Array, "B T"],
    first: bool,
) -> Shaped[Array, "B K S ..."]:
    """Return `old` with a piece written into the slots from each row's `index[:, 0]` on."""
    if first:
        # A static place: XLA knows that the piece starts at slot 0.
        return old.at[:, :, : new.shape[2]].set(new)

    def one_row(row: Array, piece: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(row, piece, start, 1)

    return jax.vmap(one_row)(old, new, index[:, 0])


def _held(size: int, length: Int[Array, "B"]) -> Int[Array, "B s"]:
    """Return the number of the token that each of `size` slots holds, after `length` tokens.

    It is negative where a slot holds none yet.
    """
    last = length[:, None] - 1
    return last - (last - jnp.arange(size)[None]) % size


def _keys(
    key: Array,
    value: Array,
    index: Int[Array, "B s"],
    segments: Int[Array, "B S"],
) -> Keys:
    """Return the keys of the tokens of these numbers, with their segments."""
    last = segments.shape[1] - 1
    known = jnp.clip(index, 0, last)
    key_segments = jnp.take_along_axis(segments, known, axis=1)
    # A slot that holds no token yet is padding.
    key_segments = jnp.where(index < 0, 0, key_segments)
    return Keys(key, value, key_segments, index)
