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

from slmjax.ops import triton_walk
from slmjax.ops.chunk_walk import dot as _dot
from slmjax.ops.chunk_walk import walk
from slmjax.ops.decayed import decayed

CHUNK = 64
LEAST = -30.0  # a decay below it is as good as forgetting all (1e-13), and would cost the sums of a chunk their precision


class Memory(NamedTuple):
    """What a row remembers, and of which segment."""

    state: Any  # [B,H,K,V] float32
    segment: Any  # [B] int32; 0: nothing was seen yet


def empty_memory(batch: int, heads: int, key: int, value: int) -> Memory:
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
    kernel: str = "scan",
) -> tuple[Float[Array, "B T H V"], Memory]:
    """(outputs in value's type, memory after the last token).

    T = 1 takes one step. Else chunks: products inside all chunks at once, and a walk over the chunks that carries the memory in float32.
    Products have operands of value's type and sums of float32. The backward pass keeps the arguments only, computes the chunks again and
    walks back: a layer then never keeps chunks' memories for the time in which others run, and one more walk costs a tenth of the whole.

    Args:
      query, key: G divides H; a query/key head serves H / G value heads that follow each other.
      decay: at most 0, natural logarithm, float32; [B,T,H] or [B,T,H,K]. Below -30 it counts as -30.
      erase: float32; [B,T,H] or [B,T,H,K].
      segments: equal ids are one document and stand together, but for padding.
      memory: of earlier tokens; None: there were none.
      chunk: tokens of a chunk, a power of two; T need not be a multiple of it, and where T is shorter, so is the chunk.
      kernel: "scan", plain XLA, or "triton", kernels of an NVIDIA GPU, which take powers of two from 16 on for K, V and the chunk; other
        sizes are scanned. "interpret" runs the same kernels anywhere, slowly, for tests.
    Source: Dao and Gu 2024 (Mamba-2), section 6; Yang et al. 2024 (parallelizing linear transformers with the delta rule), section 3.
    """
    B, T, G, K = query.shape
    H, V = value.shape[2:]
    memory = empty_memory(B, H, K, V) if memory is None else memory
    run = (
        _step
        if T == 1
        else functools.partial(_chunks, chunk=min(chunk, 1 << (T - 1).bit_length()), kernel=kernel)
    )

    @jax.checkpoint
    def whole(query, key, value, decay, erase, segments, memory):
        padding = jnp.expand_dims(segments == 0, range(2, decay.ndim))
        decay = jnp.where(padding, 0.0, jnp.maximum(decay, LEAST))
        value, decay, erase = (
            x if x is None else x.reshape(B, T, G, H // G, *x.shape[3:])
            for x in (value, decay, erase)
        )
        state = memory.state.reshape(B, G, H // G, K, V)
        out, state, segment = run(query, key, value, decay, erase, segments, state, memory.segment)
        return out.reshape(B, T, H, V).astype(value.dtype), Memory(
            state.reshape(B, H, K, V), segment
        )

    return whole(query, key, value, decay, erase, segments, memory)


class Span(NamedTuple):
    """What a span of tokens makes of a memory S that it does not know yet, while `segment` stays the row's: see `span`."""

    out: Any  # [B,T,H,V]; with S, the outputs are out + S^T readout
    readout: Any  # [B,T,H,K]
    state: Any  # [B,H,K,V] float32; with S, the memory after the span is state + transition S
    transition: Any  # [B,H,K,K] float32


def span(
    query, key, value, decay, *, erase=None, segments, segment: Int[Array, "B"], chunk: int = CHUNK
) -> Span:
    """The recurrence over a part of the sequence as a linear map of the memory that comes in, for parts that are on other devices.

    Arguments as of `recurrence`. The map is the recurrence itself on K more value channels that start as the unit matrix and write nothing.
    Args:
      segment: of the last token before the span.
    """
    B, T, _, K = query.shape
    H, V = value.shape[2:]
    both = jnp.concatenate([value, jnp.zeros((B, T, H, K), value.dtype)], axis=-1)
    unit = jnp.broadcast_to(jnp.eye(K, V + K, k=V), (B, H, K, V + K))
    out, after = recurrence(
        query,
        key,
        both,
        decay,
        erase=erase,
        segments=segments,
        memory=Memory(unit, segment),
        chunk=chunk,
    )
    return Span(out[..., :V], out[..., V:], after.state[..., :V], after.state[..., V:])


def _step(query, key, value, decay, erase, segments, state, segment):
    """One token; the axes are [B,1,G,R,...] and [B,G,R,K,V] of the memory, R value heads for each query/key head."""
    wide = functools.partial(jax.tree.map, lambda x: x[:, 0].astype(jnp.float32))
    query, key, value, decay, erase = wide((query, key, value, decay, erase))
    now = segments[:, 0]
    real = (now != 0)[:, None, None, None, None]
    key = key[:, :, None]
    before = (
        jnp.where((now == segment)[:, None, None, None, None], state, 0.0)
        * jnp.exp(_wide(decay, 3))[..., None]
    )
    told = (
        value
        if erase is None
        else value - jnp.einsum("bgrkv,bgrk->bgrv", before, _wide(erase, 3) * key)
    )
    after = before + key[..., None] * told[..., None, :]
    out = jnp.einsum("bgrkv,bgk->bgrv", after, query)
    out = jnp.where(real[..., 0], out, 0.0)[:, None]
    return out, jnp.where(real, after, state), jnp.where(now == 0, segment, now)


def _chunks(query, key, value, decay, erase, segments, state, segment, *, chunk, kernel):
    """Any number of tokens; the axes are [B,T,G,R,...], R value heads for each query/key head."""
    B, T, G, R, V = value.shape
    dtype, K = value.dtype, key.shape[-1]
    if not all(size >= triton_walk.LEAST and size & (size - 1) == 0 for size in (chunk, K, V)):
        kernel = "scan"
    cut = functools.partial(_cut, chunk=chunk)
    query, key = (jnp.moveaxis(cut(x), 2, 3) for x in (query, key))  # [N,B,G,C,K]
    value, decay = (jnp.moveaxis(cut(x), 2, 4) for x in (value, decay))  # [N,B,G,R,C,...]
    segments = cut(segments)  # [N,B,C]
    real, filled = segments != 0, _filled(segments)
    last = jnp.concatenate([segment[None], filled[..., -1]])  # 0 of a chunk of padding
    before = _latest(
        last
    )  # [N+1,B]: the segment that the memory before each chunk, and after the last, is of
    own = _heads((segments == before[:-1, :, None]) & real)  # [N,B,1,1,C,1]: of that segment
    kept = _heads((segments == before[1:, :, None]) & real)
    same = (filled[..., :, None] == filled[..., None, :]) & _lead(jnp.tri(chunk, dtype=bool), 4)
    # Of each token's own segment, from its first token in the chunk on: what other documents hold does not even change a rounding.
    total = _dot("nbij,nbgrj...->nbgri...", same.astype(jnp.float32), decay)
    seen = (same & real[..., :, None] & real[..., None, :])[:, :, None, None]
    strength, erasing = 1.0, key
    if erase is not None:
        strength = jnp.moveaxis(cut(erase), 2, 4)  # [N,B,G,R,C,...]
        if strength.ndim == 6:
            strength, erasing = 1.0, (strength * key[:, :, :, None]).astype(dtype)
        else:
            strength = strength[..., None]
    products = _decayed(kernel, (query,) if erase is None else (query, erasing), key, total, same)
    attend = jnp.where(seen, products[0], 0.0).astype(dtype)
    total = _wide(total, 5)
    shrunk, written, erased = jnp.where(own, jnp.exp(total), 0.0), value, None
    if erase is not None:
        strict = seen & _lead(jnp.tri(chunk, k=-1, dtype=bool), 6)
        inverse = _inverse(kernel, dtype, jnp.where(strict, strength * products[1], 0.0))
        written = _dot("...ij,...jv->...iv", inverse, value, dtype)
        erasing = erasing if erasing.ndim == 6 else erasing[:, :, :, None]
        erased = _dot(
            "...ij,...jk->...ik", inverse, (strength * shrunk * erasing).astype(dtype), dtype
        )
    reading = (query[:, :, :, None] * shrunk).astype(dtype)
    rest = jnp.where(kept, total[..., -1:, :] - total, 0.0)
    writing = jnp.where(kept, key[:, :, :, None] * jnp.exp(rest), 0.0).astype(dtype)
    whole = jnp.where(_heads(before[1:] == before[:-1]), jnp.exp(total[..., -1, :]), 0.0)

    flat = lambda x, axis: (
        None if x is None else x.reshape(*x.shape[:axis], B * G * R, *x.shape[axis + 3 :])
    )
    memories, new, state = walk(
        kernel, *(flat(x, 1) for x in (written, erased, writing, whole)), flat(state, 0)
    )
    deep = lambda x: x.reshape(-1, B, G, R, *x.shape[2:])
    out = _dot("...ik,...kv->...iv", reading, deep(memories)) + _dot(
        "...ij,...jv->...iv", attend, deep(new)
    )
    out = jnp.moveaxis(jnp.moveaxis(out.astype(dtype), 4, 2), 0, 1)  # [B,N,C,G,R,V]
    return out.reshape(B, -1, G, R, V)[:, :T], state.reshape(B, G, R, K, V), before[-1]


def _decayed(kernel, lefts, right, total, same):
    """sum over K of left_i right_j exp(total_i - total_j), float32, of each of `lefts`; only places that `same` holds mean something.

    A left is [N,B,G,C,K] or [N,B,G,R,C,K], right [N,B,G,C,K], total [N,B,G,R,C] or [N,B,G,R,C,K], and same [N,B,C,C]: j <= i and one
    segment; a result is [N,B,G,R,C,C]. Every exponent is at most 0 before it is taken: nothing overflows that a mask had to undo.
    """
    if total.ndim == 6:
        rows = lambda x: x.reshape(-1, *x.shape[-2:])
        found = decayed(kernel, tuple(map(rows, lefts)), rows(right), rows(total))
        return [x.reshape(*total.shape[:-1], -1) for x in found]
    lefts = [left if left.ndim == 6 else left[:, :, :, None] for left in lefts]
    return [
        _scaled(
            _dot("...ik,...jk->...ij", left, right[:, :, :, None]), total, same[:, :, None, None]
        )
        for left in lefts
    ]


@jax.custom_vjp
def _scaled(products, total, same):
    """products exp(total_i - total_j): [N,B,G,R or 1,C,C], [N,B,G,R,C] and [N,B,1,1,C,C]."""
    return products * jnp.exp(jnp.where(same, total[..., :, None] - total[..., None, :], 0.0))


def _scaled_forward(products, total, same):
    return _scaled(products, total, same), (products, total, same)


def _scaled_backward(kept, gradient):
    products, total, same = kept
    scaled = _scaled(gradient, total, same)
    # On its own: a GPU's program for sums over rows and columns at once was ten times slower than both.
    change = jax.lax.optimization_barrier(jnp.where(same, scaled * products, 0.0))
    of_products = scaled if products.shape == scaled.shape else scaled.sum(3, keepdims=True)
    return of_products, change.sum(-1) - change.sum(-2), None


_scaled.defvjp(_scaled_forward, _scaled_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _inverse(kernel: str, dtype: Any, below: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """(I + below)^-1 of strictly lower triangular matrices, computed in float32, as `dtype`. Its gradient needs only the result itself."""
    if kernel != "scan":
        flat = below.reshape(-1, *below.shape[-2:])
        return (
            triton_walk.unit_inverse(flat, interpret=kernel == "interpret")
            .reshape(below.shape)
            .astype(dtype)
        )
    return _doubled(below).astype(dtype)


def _inverse_forward(kernel, dtype, below):
    inverse = _inverse(kernel, dtype, below)
    return inverse, inverse


def _inverse_backward(kernel, dtype, inverse, gradient):
    half = _dot("...ji,...jk->...ik", inverse, gradient, dtype)
    return (-_dot("...ij,...kj->...ik", half, inverse),)


_inverse.defvjp(_inverse_forward, _inverse_backward)


def _doubled(below):
    """The inverse from blocks of twice the size from those of the size before. Powers of `below` could be huge where their sum is not."""
    size = below.shape[-1]
    place, inverse, block = jnp.arange(size), jnp.broadcast_to(jnp.eye(size), below.shape), 1
    while block < size:
        of = place // block
        corner = (of[:, None] == of[None, :] + 1) & (of[:, None] % 2 == 1)
        corner = jnp.where(_lead(corner, below.ndim), below, 0.0)
        inverse = inverse - _dot(
            "...ij,...jk->...ik", inverse, _dot("...ij,...jk->...ik", corner, inverse)
        )
        block *= 2
    return inverse


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
    place = jax.lax.cummax(
        jnp.where(segments != 0, _lead(jnp.arange(segments.shape[2]), 3), 0), axis=2
    )
    return jnp.take_along_axis(segments, place, axis=2)


def _latest(segment):
    """[N,B] with each 0 replaced by the number before it along N, where there is one."""
    place = jax.lax.cummax(jnp.where(segment != 0, jnp.arange(len(segment))[:, None], 0), axis=0)
    return jnp.take_along_axis(segment, place, axis=0)


def _heads(of_rows):
    """[N,B] or [N,B,C] beside [N,B,G,R,(C,)K]."""
    return jnp.expand_dims(of_rows, (2, 3, of_rows.ndim + 2))
