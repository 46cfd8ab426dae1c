"""The gated linear recurrence of ops/recurrence.py in chunks of C tokens, as products of matrices.

With g_i the sum of decays from a chunk's start to token i, S the memory before the chunk, and
`values` the caller's (for the delta rule, beta v), a chunk computes

    A = tril(Q K^T * exp(g_i - g_j))              what token i reads of token j: `attend`
    M = tril(beta K K^T * exp(g_i - g_j), -1)     what token i erases of token j
    T = (I + M)^-1                                the delta rule's UT transform
    U = T values                                  `written`
    W = T (beta K exp(g))                         `erased`
    new = U - W S                                 values after erasing
    out = (Q exp(g)) S + A new
    S  <- exp(g_C) S + (K exp(g_C - g))^T new     `whole` and `writing`

Without erase, new = values and M, T, W fall away: the state-space duality of Mamba-2. Where decays
differ by channel, exp(g) stays inside the sums over K (ops/decayed.py). Where a chunk holds several
documents, masks cut all of this at their borders (`Masks`).

Axes: N chunks, B rows, G query/key heads, R value heads for each of them, C tokens of a chunk (two
of them: i, the later token, then j), K and V channels. k is K, or 1 for a gate without channels.

Source: Dao and Gu 2024 (Mamba-2), section 6; Yang et al. 2024 (parallelizing linear transformers
with the delta rule), section 3.2; Yang et al. 2024 (gated DeltaNet), section 3.3.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slmjax.ops import triton_walk
from slmjax.ops.chunk_products import decayed_products
from slmjax.ops.chunk_walk import dot, walk
from slmjax.ops.recurrence_layout import (
    cut_heads,
    cut_tokens,
    join_chunks,
    merge_heads,
    split_heads,
    with_channel_axis,
    with_head_axes,
    with_leading_axes,
    with_value_head_axis,
)
from slmjax.ops.triangular_inverse import unit_triangular_inverse

# Chunks of keys, values and gates (one number for a token, or one for each channel), and of pairs
# of tokens (i, j).
Keys = Float[Array, "N B G C K"]
Values = Float[Array, "N B G R C V"]
KeysByValueHead = Float[Array, "N B G R C K"]
Gates = Float[Array, "N B G R C ..."]
WideGates = Float[Array, "N B G R C k"]
Pairs = Float[Array, "N B G R C C"]
PairMask = Bool[Array, "N B 1 1 C C"]


class Masks(NamedTuple):
    """Which tokens of a chunk see each other, and which share a segment with a memory."""

    real: Any  # [N,B,C] bool: no padding
    memory: Any  # [N+1,B] int32: segment of the memory before each chunk, and after the last
    reads: Any  # [N,B,1,1,C,1] bool: tokens of the segment of the memory before the chunk
    writes: Any  # [N,B,1,1,C,1] bool: tokens of the segment of the memory after the chunk
    same: Any  # [N,B,C,C] bool: j <= i, one segment; padding counts to the segment before it

    def visible(self) -> PairMask:
        """Return which real token i sees which real token j."""
        visible = self.same & self.real[..., :, None]
        visible &= self.real[..., None, :]
        return visible[:, :, None, None]


class Eraser(NamedTuple):
    """The keys that a token erases along, and how strongly."""

    key: Any  # [N,B,G,C,K], or [N,B,G,R,C,K] with the strength in it, where it differs by channel
    strength: Any  # [N,B,G,R,C,1], or 1 where the key holds it


def run_chunks(
    query: Float[Array, "B T G K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T G R V"],
    decay: Float[Array, "B T G R ..."],
    erase: Float[Array, "B T G R ..."] | None,
    segments: Int[Array, "B T"],
    state: Float[Array, "B G R K V"],
    segment: Int[Array, "B"],
    *,
    chunk: int,
    kernel: str,
) -> tuple[Float[Array, "B T G R V"], Float[Array, "B G R K V"], Int[Array, "B"]]:
    """Return (outputs, memory after the last token, its segment) of any number of tokens.

    Args:
      segment: the segment that the incoming memory, `state`, belongs to.
      chunk: tokens of a chunk, a power of two.
      kernel: as in `recurrence`; sizes that Triton does not take are scanned.
    """
    B, T, G, R, V = value.shape
    K = key.shape[-1]
    dtype = value.dtype
    if not _fits_triton(chunk, K, V):
        kernel = "scan"
    query = cut_heads(query, chunk, axes=1)  # [N,B,G,C,K]
    key = cut_heads(key, chunk, axes=1)
    value = cut_heads(value, chunk, axes=2)  # [N,B,G,R,C,V]
    decay = cut_heads(decay, chunk, axes=2)
    masks = _masks(cut_tokens(segments, chunk), segment)
    total = _total_decay(masks, decay)
    visible = masks.visible()
    eraser = None
    if erase is not None:
        erase = cut_heads(erase, chunk, axes=2)
        eraser = _eraser(erase, key, dtype)

    # Inside of the chunks.
    lefts = (query,) if eraser is None else (query, eraser.key)
    # [N,B,G,R,C,C] of the query with the key, then of the erasing key with the key.
    products = decayed_products(kernel, lefts, key, total, masks.same)
    attend = jnp.where(visible, products[0], 0.0)
    attend = attend.astype(dtype)
    total = with_channel_axis(total, 5)  # [N,B,G,R,C,k]
    # exp(g), 0 for tokens that do not see the memory before the chunk.
    from_start = jnp.where(masks.reads, jnp.exp(total), 0.0)
    written, erased = value, None
    if eraser is not None:
        written, erased = _ut_transform(kernel, eraser, products[1], visible, from_start, value)

    # From chunk to chunk, with the axes B, G, R as one.
    # What tokens read of the memory before the chunk: Q exp(g).
    reading = (with_value_head_axis(query) * from_start).astype(dtype)
    writing, whole = _to_the_end(masks, key, total, dtype)
    memories, new, state = walk(
        kernel,
        merge_heads(written, 1),
        None if erased is None else merge_heads(erased, 1),
        merge_heads(writing, 1),
        merge_heads(whole, 1),
        merge_heads(state, 0),
    )

    # Q exp(g) S + A new.
    memories = split_heads(memories, (B, G, R))
    from_memory = dot("...ik,...kv->...iv", reading, memories)
    new = split_heads(new, (B, G, R))
    from_chunk = dot("...ij,...jv->...iv", attend, new)
    out = (from_memory + from_chunk).astype(dtype)
    out = join_chunks(out, T)
    state = state.reshape(B, G, R, K, V)
    return out, state, masks.memory[-1]


def _fits_triton(*sizes: int) -> bool:
    """Return whether Triton's products take matrices with these sides."""
    for size in sizes:
        is_power_of_two = size & (size - 1) == 0
        if size < triton_walk.LEAST or not is_power_of_two:
            return False
    return True


def _masks(segments: Int[Array, "N B C"], segment: Int[Array, "B"]) -> Masks:
    """Return the masks of the chunks; the memory before the first chunk belongs to `segment`."""
    real = segments != 0
    filled = _filled(segments)
    # The segment of the incoming memory, then that of each chunk's end; 0: the chunk is padding.
    ends = jnp.concatenate([segment[None], filled[..., -1]])  # [N+1,B]
    memory = _latest(ends)
    reads = (segments == memory[:-1, :, None]) & real
    reads = with_head_axes(reads)
    writes = (segments == memory[1:, :, None]) & real
    writes = with_head_axes(writes)
    one_segment = filled[..., :, None] == filled[..., None, :]
    causal = jnp.tri(segments.shape[2], dtype=bool)
    same = one_segment & with_leading_axes(causal, 4)
    return Masks(real, memory, reads, writes, same)


def _filled(segments: Int[Array, "N B C"]) -> Int[Array, "N B C"]:
    """Return segments with padding counted to the segment before it; 0 before a chunk's first."""
    real = segments != 0
    index = with_leading_axes(jnp.arange(segments.shape[2]), 3)
    index = jnp.where(real, index, 0)
    latest = jax.lax.cummax(index, axis=2)  # index of the latest real token
    return jnp.take_along_axis(segments, latest, axis=2)


def _latest(segments: Int[Array, "N B"]) -> Int[Array, "N B"]:
    """Return segments with each 0 replaced by the number before it along N, where there is one."""
    known = segments != 0
    index = jnp.arange(len(segments))[:, None]
    index = jnp.where(known, index, 0)
    latest = jax.lax.cummax(index, axis=0)
    return jnp.take_along_axis(segments, latest, axis=0)


def _total_decay(masks: Masks, decay: Gates) -> Gates:
    """Return g: the sum of decays from the first token of i's segment in the chunk up to i.

    It is a product with a mask and not a running sum over the chunk, so that other documents do not
    change even its rounding.
    """
    same = masks.same.astype(jnp.float32)
    return dot("nbij,nbgrj...->nbgri...", same, decay)


def _eraser(erase: Gates, key: Keys, dtype: Any) -> Eraser:
    """Return the Eraser of a gate; a gate by channel is multiplied into the key."""
    if erase.ndim == 6:  # [N,B,G,R,C,K]
        erasing = erase * with_value_head_axis(key)
        return Eraser(erasing.astype(dtype), 1.0)
    return Eraser(key, erase[..., None])


def _ut_transform(
    kernel: str,
    eraser: Eraser,
    overlap: Pairs,
    visible: PairMask,
    from_start: WideGates,
    value: Values,
) -> tuple[Values, KeysByValueHead]:
    """Return U = T value and W = T (beta K exp(g)): a chunk of the delta rule as two products.

    T = (I + M)^-1 solves "each token erases what the tokens before it have written" at once.

    Args:
      overlap: products of the erasing key of i with the key of j, decayed.
      from_start: exp(g), 0 for tokens that do not see the memory.
    """
    dtype = value.dtype
    earlier = jnp.tri(value.shape[4], k=-1, dtype=bool)  # [C,C]: j < i
    strict = visible & with_leading_axes(earlier, 6)
    below = jnp.where(strict, eraser.strength * overlap, 0.0)  # M
    inverse = unit_triangular_inverse(kernel, dtype, below)
    written = dot("...ij,...jv->...iv", inverse, value, dtype)
    key = with_value_head_axis(eraser.key)
    erasing = eraser.strength * from_start * key
    erasing = erasing.astype(dtype)
    erased = dot("...ij,...jk->...ik", inverse, erasing, dtype)
    return written, erased


def _to_the_end(
    masks: Masks, key: Keys, total: WideGates, dtype: Any
) -> tuple[KeysByValueHead, Float[Array, "N B G R k"]]:
    """Return (K exp(g_C - g), the keys that write the next memory; exp(g_C), the old one's decay).

    Both are 0 where a token, or the old memory, is not of the next memory's segment.
    """
    # The exponent of a masked token could be positive, so it is masked before and after exp.
    exponent = jnp.where(masks.writes, total[..., -1:, :] - total, 0.0)
    decayed = with_value_head_axis(key) * jnp.exp(exponent)
    writing = jnp.where(masks.writes, decayed, 0.0)
    writing = writing.astype(dtype)
    same_segment = with_head_axes(masks.memory[1:] == masks.memory[:-1])
    whole = jnp.where(same_segment, jnp.exp(total[..., -1, :]), 0.0)
    return writing, whole
