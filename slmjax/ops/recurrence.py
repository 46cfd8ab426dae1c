"""The gated linear recurrence behind Mamba-2, GLA, gated DeltaNet and KDA: in chunks for training, token by token for decoding.

A memory S [K,V] for each head goes from token to token:

    S <- diag(exp(decay)) S
    S <- S + key (value - S^T (erase * key))^T        (without erase: S + key value^T)
    out = S^T query

with decay a number or K numbers a head, and erase absent, a number or K numbers. Mamba-2 (Dao and Gu 2024): query C, key B, value dt x,
decay dt A, no erase. GLA (Yang et al. 2023): K decays, no erase. Gated DeltaNet (Yang et al. 2024): one decay, erase beta, value beta v.
KDA (Kimi team 2025): K decays, erase beta, value beta v. Gates that multiply values or outputs are the caller's.

Documents: a token sees and erases only what its own segment wrote. That is a mask on segment ids in every product, also against the memory
that comes in; a large negative decay instead would lose all later differences of its running sum. Padding (segment 0) changes nothing and
gives zeros.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK = 64
SUB = 16  # tokens whose K-wise decays are differenced pair by pair
LEAST = -30.0  # a decay below it is as good as forgetting all (1e-13), and would cost the sums of a chunk their precision


class Memory(NamedTuple):
    """What a row remembers, and of which segment."""

    state: Any  # [B,H,K,V] float32
    segment: Any  # [B] int32; 0: nothing was seen yet


def empty(batch: int, heads: int, key: int, value: int) -> Memory:
    """The memory before the first token."""
    return Memory(jnp.zeros((batch, heads, key, value), jnp.float32), jnp.zeros(batch, jnp.int32))


def recurrence(
    query: Float[Array, "B T G K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T H V"],
    decay: Float[Array, "B T H ..."],
    *,
    erase: Float[Array, "B T H ..."] | None = None,
    segments: Int[Array, "B T"],
    memory: Memory | None = None,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "B T H V"], Memory]:
    """(outputs in value's type, memory after the last token).

    T = 1 takes one step. Else chunks: products inside all chunks at once, then a scan over chunks that carries the memory in float32.
    Products have operands of value's type and sums of float32. The backward pass keeps the arguments only and computes the rest again,
    so that a model's layers never hold their chunks' memories together; an own backward pass would save that second forward, and is worth
    writing where a kernel is.

    Args:
      query, key: G divides H; a query/key head serves H / G value heads that follow each other.
      decay: at most 0, natural logarithm, float32; [B,T,H] or [B,T,H,K]. Below -30 it counts as -30.
      erase: float32; [B,T,H] or [B,T,H,K].
      segments: equal ids are one document and stand together, but for padding.
      memory: of earlier tokens; None: there were none.
      chunk: tokens of a chunk, a multiple of 16; T need not be one of it, and where T is shorter, so is the chunk.
    Source: Dao and Gu 2024 (Mamba-2), section 6; Yang et al. 2024 (parallelizing linear transformers with the delta rule), section 3.
    """
    B, T, G, K = query.shape
    H, V = value.shape[2:]
    memory = empty(B, H, K, V) if memory is None else memory
    run = _step if T == 1 else functools.partial(_chunks, chunk=min(chunk, -(-T // SUB) * SUB))

    @jax.checkpoint
    def whole(query, key, value, decay, erase, segments, memory):
        padding = jnp.expand_dims(segments == 0, range(2, decay.ndim))
        decay = jnp.where(padding, 0.0, jnp.maximum(decay, LEAST))
        value, decay, erase = (x if x is None else x.reshape(B, T, G, H // G, *x.shape[3:]) for x in (value, decay, erase))
        state = memory.state.reshape(B, G, H // G, K, V)
        out, state, segment = run(query, key, value, decay, erase, segments, state, memory.segment)
        return out.reshape(B, T, H, V).astype(value.dtype), Memory(state.reshape(B, H, K, V), segment)

    return whole(query, key, value, decay, erase, segments, memory)


class Span(NamedTuple):
    """What a span of tokens makes of a memory S that it does not know yet, while `segment` stays the row's: see `span`."""

    out: Any  # [B,T,H,V]; with S, the outputs are out + S^T readout
    readout: Any  # [B,T,H,K]
    state: Any  # [B,H,K,V] float32; with S, the memory after the span is state + transition S
    transition: Any  # [B,H,K,K] float32


def span(query, key, value, decay, *, erase=None, segments, segment: Int[Array, "B"], chunk: int = CHUNK) -> Span:
    """The recurrence over a part of the sequence as a linear map of the memory that comes in, for parts that are on other devices.

    Arguments as of `recurrence`. The map is the recurrence itself on K more value channels that start as the unit matrix and write nothing.
    Args:
      segment: of the last token before the span.
    """
    B, T, _, K = query.shape
    H, V = value.shape[2:]
    both = jnp.concatenate([value, jnp.zeros((B, T, H, K), value.dtype)], axis=-1)
    unit = jnp.broadcast_to(jnp.eye(K, V + K, k=V), (B, H, K, V + K))
    out, after = recurrence(query, key, both, decay, erase=erase, segments=segments, memory=Memory(unit, segment), chunk=chunk)
    return Span(out[..., :V], out[..., V:], after.state[..., :V], after.state[..., V:])


def _step(query, key, value, decay, erase, segments, state, segment):
    """One token; the axes are [B,1,G,R,...] and [B,G,R,K,V] of the memory, R value heads for each query/key head."""
    wide = functools.partial(jax.tree.map, lambda x: x[:, 0].astype(jnp.float32))
    query, key, value, decay, erase = wide((query, key, value, decay, erase))
    now = segments[:, 0]
    real = (now != 0)[:, None, None, None, None]
    key = key[:, :, None]
    before = jnp.where((now == segment)[:, None, None, None, None], state, 0.0) * jnp.exp(_wide(decay, 3))[..., None]
    told = value if erase is None else value - jnp.einsum("bgrkv,bgrk->bgrv", before, _wide(erase, 3) * key)
    after = before + key[..., None] * told[..., None, :]
    out = jnp.einsum("bgrkv,bgk->bgrv", after, query)
    out = jnp.where(real[..., 0], out, 0.0)[:, None]
    return out, jnp.where(real, after, state), jnp.where(now == 0, segment, now)


def _chunks(query, key, value, decay, erase, segments, state, segment, *, chunk):
    """Any number of tokens; the axes are [B,T,G,R,...], R value heads for each query/key head."""
    T, dtype = value.shape[1], value.dtype
    cut = functools.partial(_cut, chunk=chunk)
    query, key = (jnp.moveaxis(cut(x), 2, 3) for x in (query, key))  # [N,B,G,C,K]
    value, decay = (jnp.moveaxis(cut(x), 2, 4) for x in (value, decay))  # [N,B,G,R,C,...]
    segments = cut(segments)  # [N,B,C]
    real, filled = segments != 0, _filled(segments)
    same = (filled[..., :, None] == filled[..., None, :]) & _lead(jnp.tri(chunk, dtype=bool), 4)
    # Of each token's own segment, from its first token in the chunk on: what other documents hold does not even change a rounding.
    total = _dot("nbij,nbgrj...->nbgri...", same.astype(jnp.float32), decay)
    seen = (same & real[..., :, None] & real[..., None, :])[:, :, None, None]
    attend = jnp.where(seen, _decayed(query, key, total, same, dtype), 0.0).astype(dtype)
    shrunk, written, erased = jnp.exp(_wide(total, 5)), value, None
    if erase is not None:
        weighted = _wide(jnp.moveaxis(cut(erase), 2, 4), 5) * key[:, :, :, None]
        strict = seen & _lead(jnp.tri(chunk, k=-1, dtype=bool), 6)
        inverse = _inverse(jnp.where(strict, _decayed(weighted, key, total, same, jnp.float32), 0.0)).astype(dtype)
        written = _dot("...ij,...jv->...iv", inverse, value)
        erased = _dot("...ij,...jk->...ik", inverse, (weighted * shrunk).astype(dtype)).astype(dtype)
    reading = (query[:, :, :, None] * shrunk).astype(dtype)
    last = filled[..., -1]  # 0 in a chunk of padding
    kept = (real & (segments == last[..., None]))[:, :, None, None, :, None]
    rest = jnp.where(kept, _wide(total, 5)[..., -1:, :] - _wide(total, 5), 0.0)
    writing = jnp.where(kept, key[:, :, :, None] * jnp.exp(rest), 0.0).astype(dtype)

    def walk(carry, xs):
        state, before = carry
        attend, written, erased, reading, writing, whole, segments, last = xs
        last = jnp.where(last == 0, before, last)
        old = ((segments == before[:, None]) & (segments != 0))[:, None, None, :, None]
        memory = state.astype(dtype)
        if erased is not None:
            written = jnp.where(old, written - _dot("...ik,...kv->...iv", erased, memory), written)
        new = written.astype(dtype)
        out = jnp.where(old, _dot("...ik,...kv->...iv", reading, memory), 0.0) + _dot("...ij,...jv->...iv", attend, new)
        state = jnp.where((last == before)[:, None, None, None, None], whole[..., None] * state, 0.0)
        return (state + _dot("...ik,...iv->...kv", writing, new), last), out.astype(dtype)

    xs = (attend, written, erased, reading, writing, shrunk[..., -1, :], segments, last)
    (state, segment), out = jax.lax.scan(walk, (state, segment), xs)
    out = jnp.moveaxis(jnp.moveaxis(out, 4, 2), 0, 1)  # [B,N,C,G,R,V]
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :T], state, segment


def _decayed(left, right, total, same, dtype):
    """sum over K of left_i right_j exp(total_i - total_j) for tokens j <= i of one segment in a chunk, float32; other places mean nothing.

    left is [N,B,G,(R,)C,K], right [N,B,G,C,K], total [N,B,G,R,C] or [N,B,G,R,C,K], same [N,B,C,C]: j <= i and one segment; the result is
    [N,B,G,R,C,C]. Every exponent is at most 0 before it is taken: there is nothing to overflow that a mask would have to undo.
    """
    same = same[:, :, None, None]
    if total.ndim == 5:
        apart = jnp.where(same, total[..., :, None] - total[..., None, :], 0.0)
        right = right if left.ndim == 5 else right[:, :, :, None]
        products = _dot("...ik,...jk->...ij", left.astype(dtype), right.astype(dtype))
        return (products[:, :, :, None] if left.ndim == 5 else products) * jnp.exp(apart)
    left, right = left if left.ndim == 6 else left[:, :, :, None], right[:, :, :, None]
    rows, chunk = [], right.shape[-2]
    for start in range(0, chunk, SUB):
        here = slice(start, start + SUB)
        apart = jnp.where(same[..., here, here, None], total[..., here, None, :] - total[..., None, here, :], 0.0)
        near = jnp.sum(left[..., here, None, :].astype(jnp.float32) * right[..., None, here, :] * jnp.exp(apart), axis=-1)
        parts = [near, jnp.zeros((*near.shape[:-1], chunk - start - SUB))]
        if start:  # by way of the token before this block of rows, so that both factors only shrink
            at = total[..., start - 1 : start, :]
            down = jnp.where(same[..., here, start - 1, None], total[..., here, :] - at, 0.0)
            up = jnp.where(same[..., start - 1, :start, None], at - total[..., :start, :], 0.0)
            down, up = left[..., here, :] * jnp.exp(down), right[..., :start, :] * jnp.exp(up)
            parts.insert(0, _dot("...ik,...jk->...ij", down.astype(dtype), up.astype(dtype)))
        rows.append(jnp.concatenate(parts, axis=-1))
    return jnp.concatenate(rows, axis=-2)


def _inverse(below: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """(I + below)^-1 of strictly lower triangular matrices, in float32: blocks of twice the size from those of the size before.

    Powers of `below` are never formed: they could be huge where their sum is not.
    """
    size = below.shape[-1]
    place, inverse, block = jnp.arange(size), jnp.broadcast_to(jnp.eye(size), below.shape), 1
    while block < size:
        of = place // block
        corner = (of[:, None] == of[None, :] + 1) & (of[:, None] % 2 == 1)
        corner = jnp.where(_lead(corner, below.ndim), below, 0.0)
        inverse = inverse - _dot("...ij,...jk->...ik", inverse, _dot("...ij,...jk->...ik", corner, inverse))
        block *= 2
    return inverse


def _dot(spec, a, b):
    """A product with sums of float32, of float32 operands not in a shorter type."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.einsum(spec, a, b, precision=precision, preferred_element_type=jnp.float32)


def _cut(x, *, chunk):
    """[B,T,...] as [N,B,C,...], zeros behind the end."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _wide(gate, axes):
    """A gate with a channel axis behind its first `axes`: one number for all channels where it has none."""
    return gate[..., None] if gate.ndim == axes else gate


def _lead(x, axes):
    """With axes of one in front, up to `axes` of them all."""
    return jnp.expand_dims(x, range(axes - x.ndim))


def _filled(segments):
    """[N,B,C] with each place of padding in the segment before it; 0 where the chunk begins with padding."""
    place = jax.lax.cummax(jnp.where(segments != 0, _lead(jnp.arange(segments.shape[2]), 3), 0), axis=2)
    return jnp.take_along_axis(segments, place, axis=2)
