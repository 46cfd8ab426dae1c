"""Decode state: one entry for each layer application, and the slots that all of them share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

# Fields are annotated as Any, because shapes and shardings travel in the same trees as arrays.
# Axes: B rows, T new tokens (a piece), S slots (one for each token that a row may have), s slots of
# a layer with a window, K key/value heads, H head size. A token's number is its place in its row.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Where a piece of T tokens goes, the same in every layer."""

    index: Any  # [B,T] number of each token in its row
    segments: Any  # [B,S] of all tokens, those of this piece included
    length: Any  # [B] tokens of each row, those of this piece included
    # True: the rows were empty before, so that the piece sees itself alone.
    first: bool = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys and values that queries attend over, and that a block lends to later ones."""

    key: Any  # [B,T,K,H] of the piece itself, or [B,K,S,H] of a cache
    value: Any
    segments: Any = None  # [B,S] of a cache's keys; None: the keys are those of the piece
    index: Any = None  # [B,S] numbers of the keys' tokens; None: 0, 1, ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """One layer's keys and values [B,K,S,H].

    A head's slots lie one after the other, so that a matrix product reads them in place. Token
    number a is in slot a. A layer whose window is shorter than a row has only the s slots of the
    window. They are a ring: token number a is in slot a modulo s.
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
        dtype = self.key.dtype
        new = KVCache(_heads_first(key, dtype), _heads_first(value, dtype))
        T = key.shape[1]
        most_tokens = slots.segments.shape[1]  # of a row
        is_ring = self.key.shape[2] < most_tokens
        if is_ring and T == 1:
            return self._ring_with_token(new, slots)
        if is_ring:
            cache = self._ring_after_piece(new, slots)
        else:
            cache = self._written(new, slots.index, slots.first)
        if slots.first and T > 1:
            # The rows were empty: the piece attends over itself alone.
            return cache, Keys(key, value)
        if is_ring:
            return cache, self._ring_and_piece(new, slots)
        return cache, Keys(cache.key, cache.value, slots.segments)

    def _written(self, new: "KVCache", index: Int[Array, "B T"], first: bool) -> "KVCache":
        """Return the cache with a piece [B,K,T,H] in the slots from `index[:, 0]` on."""
        keys = _write(self.key, new.key, index, first)
        values = _write(self.value, new.value, index, first)
        return KVCache(keys, values)

    def _ring_with_token(self, new: "KVCache", slots: Slots) -> tuple["KVCache", Keys]:
        """Return the ring with one more token a row, and its keys."""
        size = self.key.shape[2]
        # The token that had the slot before has left the window.
        cache = self._written(new, slots.index % size, False)
        numbers = _numbers_in_ring(size, slots.index[:, 0] + 1)
        return cache, _keys_of(cache, numbers, slots.segments)

    def _ring_after_piece(self, new: "KVCache", slots: Slots) -> "KVCache":
        """Return the ring after a piece [B,K,T,H]: each slot takes its newest token."""
        size = self.key.shape[2]
        T = new.key.shape[2]
        before = slots.index[:, :1]  # [B,1] tokens before the piece
        numbers = _numbers_in_ring(size, slots.length)
        # [B,s] -> [B,1,s,1]: the place in the piece of each slot's token, and whether it is there.
        place = jnp.clip(numbers - before, 0, T - 1)
        place = place[:, None, :, None]
        is_new = numbers >= before
        is_new = is_new[:, None, :, None]
        keys = jnp.take_along_axis(new.key, place, axis=2)
        keys = jnp.where(is_new, keys, self.key)
        values = jnp.take_along_axis(new.value, place, axis=2)
        values = jnp.where(is_new, values, self.value)
        return KVCache(keys, values)

    def _ring_and_piece(self, new: "KVCache", slots: Slots) -> Keys:
        """Return the keys of the ring as it was, followed by those of a piece [B,K,T,H].

        A query of the piece may see tokens that the piece pushes out of the ring.
        """
        keys = jnp.concatenate([self.key, new.key], axis=2)
        values = jnp.concatenate([self.value, new.value], axis=2)
        in_ring = _numbers_in_ring(self.key.shape[2], slots.index[:, 0])
        numbers = jnp.concatenate([in_ring, slots.index], axis=1)
        return _keys_of(KVCache(keys, values), numbers, slots.segments)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The decode state of a batch of at most S tokens a row.

    Slots from `length` on are dead: their content is never seen.
    """

    layers: tuple  # each application's own cache, see TokenMixer.empty_cache; never stacked
    segments: Any  # [B,S] of the tokens so far
    length: Any  # [B] tokens so far
    # Whether no token has been appended.
    empty: bool = dataclasses.field(default=False, metadata={"static": True})

    def slots(self, segments: Int[Array, "B T"]) -> Slots:
        """Return the slots of the next T tokens. There must be room for `length + T`.

        A row's real tokens come first. Its padding (segment 0) changes nothing that is ever read.
        """
        T = segments.shape[1]
        index = self.length[:, None] + jnp.arange(T)[None]
        real = segments != 0
        length = self.length + real.sum(1, dtype=jnp.int32)
        # [B,S] -> [B,1,S]: `_write` wants an axis of heads.
        before = self.segments[:, None]
        piece = segments[:, None]
        written = _write(before, piece, index, self.empty)
        return Slots(index, written[:, 0], length, self.empty)

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
    """Return the zeros [B,K,S,H] that a layer has before the first token; S is `size`."""
    shape = (batch, heads, size, head_dim)
    # Two arrays: a donated cache may hold no array twice.
    keys = jnp.zeros(shape, dtype)
    values = jnp.zeros(shape, dtype)
    return KVCache(keys, values)


def _heads_first(piece: Float[Array, "B T K H"], dtype: Any) -> Float[Array, "B K T H"]:
    return piece.astype(dtype).swapaxes(1, 2)


def _write(
    old: Shaped[Array, "B K S ..."],
    new: Shaped[Array, "B K T ..."],
    index: Int[Array, "B T"],
    first: bool,
) -> Shaped[Array, "B K S ..."]:
    """Return `old` with a piece `new` in the slots from each row's `index[:, 0]` on.

    The rows' `first` piece starts at slot 0.
    """
    if first:
        # A static slice: XLA knows where the piece goes.
        return old.at[:, :, : new.shape[2]].set(new)

    def one_row(row: Array, piece: Array, start: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(row, piece, start, 1)

    return jax.vmap(one_row)(old, new, index[:, 0])


def _numbers_in_ring(size: int, length: Int[Array, "B"]) -> Int[Array, "B s"]:
    """Return the number of the token in each of a ring's `size` slots, after `length` tokens.

    It is negative where a slot holds no token yet.
    """
    # The newest number that is the slot's modulo `size`.
    last = length[:, None] - 1
    return last - (last - jnp.arange(size)[None]) % size


def _keys_of(
    cache: KVCache,
    numbers: Int[Array, "B s"],
    segments: Int[Array, "B S"],
) -> Keys:
    """Return the cache's keys and values with the segments of their tokens.

    Args:
      numbers: of the tokens whose keys they are, see `_numbers_in_ring`.
      segments: of all tokens of the rows, by their numbers.
    """
    last = segments.shape[1] - 1
    known = jnp.clip(numbers, 0, last)
    key_segments = jnp.take_along_axis(segments, known, axis=1)
    # A slot that holds no token yet is padding.
    key_segments = jnp.where(numbers < 0, 0, key_segments)
    return Keys(cache.key, cache.value, key_segments, numbers)
