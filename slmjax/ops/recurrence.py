"""The gated linear recurrence behind Mamba-2, GLA, gated DeltaNet and KDA.

Each head carries a memory S [K,V] from token to token:

    S <- diag(exp(decay)) S
    S <- S + key (value - S^T (erase * key))^T        (without erase: S + key value^T)
    out = S^T query

`decay`, a logarithm, is one number or K numbers a head; `erase` is absent, one number or K numbers.

    Mamba-2 (Dao and Gu 2024): query C, key B, value dt x, decay dt A, no erase
    GLA (Yang et al. 2023): K decays, no erase
    gated DeltaNet (Yang et al. 2024): one decay, erase beta, value beta v
    KDA (Kimi team 2025): K decays, erase beta, value beta v

Gates that multiply values or outputs are the caller's.

Documents: a token sees and erases only what its own segment wrote. Every product is masked by
segment ids, also the products with the memory that comes in. A large negative decay at a document's
start would not do: the running sum of decays would lose all later differences. Padding (segment 0)
changes nothing and gives zeros.

Axes: B rows, T tokens, G query/key heads, H value heads, R = H / G value heads for each of G, K key
channels, V value channels.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slmjax.ops.recurrence_chunks import run_chunks
from slmjax.ops.recurrence_layout import with_channel_axis

CHUNK = 64  # tokens
# Decays below this are raised to it. They would forget no more (exp(-30) is 1e-13), but cost the
# sums of a chunk's decays their precision.
LEAST = -30.0


class Memory(NamedTuple):
    """A row's memory, and the segment that wrote it."""

    state: Any  # [B,H,K,V] float32
    segment: Any  # [B] int32; 0: nothing was seen yet


def empty_memory(batch: int, heads: int, key: int, value: int) -> Memory:
    """Return the memory before the first token, for `key` key channels and `value` value channels.

    Args:
      heads: value heads, as each has a memory.
    """
    state = jnp.zeros((batch, heads, key, value), jnp.float32)
    return Memory(state, jnp.zeros(batch, jnp.int32))


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
    """Return (outputs in value's type, memory after the last token).

    T = 1 takes one step of the recurrence. Longer sequences are computed in chunks: the products
    inside all chunks at once, then a walk over the chunks that carries the memory in float32.
    Products have operands of value's type and sums of float32.

    Only the arguments are kept for the backward pass, which computes the chunks again before it
    walks back. So a layer never keeps its chunks' memories while other layers run. Walking forward
    a second time costs a tenth of the operator's whole time.

    Args:
      query, key: G divides H; a query/key head serves H / G consecutive value heads.
      decay: natural logarithm, at most 0, float32; [B,T,H] or [B,T,H,K]. Clamped to -30.
      erase: float32; [B,T,H] or [B,T,H,K].
      segments: tokens of one document have equal ids and are contiguous, but for padding (0).
      memory: of earlier tokens; None: there were none.
      chunk: tokens of a chunk, a power of two; T need not be a multiple. A shorter T shortens it.
      kernel: "scan" (plain XLA) or "triton" (NVIDIA GPUs; K, V and chunk must be powers of two and
        at least 16, other sizes are scanned). "interpret" runs Triton's kernels anywhere, slowly.

    Source: Dao and Gu 2024 (Mamba-2), section 6; Yang et al. 2024 (parallelizing linear
    transformers with the delta rule), section 3.
    """
    B, T, G, K = query.shape
    H, V = value.shape[2:]
    if memory is None:
        memory = empty_memory(B, H, K, V)
    if T == 1:
        run = _step
    else:
        next_power_of_two = 1 << (T - 1).bit_length()
        chunk = min(chunk, next_power_of_two)
        run = functools.partial(run_chunks, chunk=chunk, kernel=kernel)

    def group_heads(x):
        """Return [B,T,H,...] as [B,T,G,R,...]."""
        _, _, _, *channels = x.shape
        return x.reshape(B, T, G, H // G, *channels)

    @jax.checkpoint
    def run_grouped(query, key, value, decay, erase, segments, memory):
        # Padding neither decays nor, by its masks, writes.
        padding = jnp.expand_dims(segments == 0, range(2, decay.ndim))
        decay = jnp.maximum(decay, LEAST)
        decay = jnp.where(padding, 0.0, decay)
        grouped = jax.tree.map(group_heads, (value, decay, erase))
        state = memory.state.reshape(B, G, H // G, K, V)
        out, state, segment = run(query, key, *grouped, segments, state, memory.segment)
        out = out.reshape(B, T, H, V).astype(value.dtype)
        state = state.reshape(B, H, K, V)
        return out, Memory(state, segment)

    return run_grouped(query, key, value, decay, erase, segments, memory)


class Span(NamedTuple):
    """A span of tokens as a linear map of the memory S before it.

    The outputs are out + S^T readout, the memory after the span is state + transition S.
    """

    out: Any  # [B,T,H,V]
    readout: Any  # [B,T,H,K]
    state: Any  # [B,H,K,V] float32
    transition: Any  # [B,H,K,K] float32


def span(
    query: Float[Array, "B T G K"],
    key: Float[Array, "B T G K"],
    value: Float[Array, "B T H V"],
    decay: Float[Array, "B T H ..."],
    *,
    erase: Float[Array, "B T H ..."] | None = None,
    segments: Int[Array, "B T"],
    segment: Int[Array, "B"],
    chunk: int = CHUNK,
) -> Span:
    """Return the recurrence over a part of the sequence as a linear map of the memory before it.

    For parts of a sequence on several devices: each computes its map before it knows the memory.
    The map comes from the recurrence itself with K more value channels, whose memory is the unit
    matrix at first and whose values are 0.

    Args:
      query, key, value, decay, erase, segments, chunk: as in `recurrence`.
      segment: id of the last token before the span.
    """
    B, T, _, K = query.shape
    H, V = value.shape[2:]
    zeros = jnp.zeros((B, T, H, K), value.dtype)
    values = jnp.concatenate([value, zeros], axis=-1)  # [B,T,H,V+K]
    # [K,V+K]: zeros for the V channels of `value`, the unit matrix for the K channels after them.
    start = jnp.eye(K, V + K, k=V)
    start = jnp.broadcast_to(start, (B, H, K, V + K))
    out, after = recurrence(
        query,
        key,
        values,
        decay,
        erase=erase,
        segments=segments,
        memory=Memory(start, segment),
        chunk=chunk,
    )
    return Span(
        out=out[..., :V],
        readout=out[..., V:],
        state=after.state[..., :V],
        transition=after.state[..., V:],
    )


def _step(
    query: Float[Array, "B 1 G K"],
    key: Float[Array, "B 1 G K"],
    value: Float[Array, "B 1 G R V"],
    decay: Float[Array, "B 1 G R ..."],
    erase: Float[Array, "B 1 G R ..."] | None,
    segments: Int[Array, "B 1"],
    state: Float[Array, "B G R K V"],
    segment: Int[Array, "B"],
) -> tuple[Float[Array, "B 1 G R V"], Float[Array, "B G R K V"], Int[Array, "B"]]:
    """Return (outputs, memory after them, that memory's segment) for one token of each row."""

    def token(x):
        return x[:, 0].astype(jnp.float32)

    arrays = (query, key, value, decay, erase)
    query, key, value, decay, erase = jax.tree.map(token, arrays)
    token_segment = segments[:, 0]
    real = _with_state_axes(token_segment != 0)
    key = key[:, :, None]  # [B,G,1,K]
    # A memory of another document is forgotten. Padding too has another segment: its results are
    # replaced at the end.
    own_state = jnp.where(_with_state_axes(token_segment == segment), state, 0.0)
    factor = jnp.exp(with_channel_axis(decay, 3))[..., None]  # [B,G,R,k,1], k = K or 1
    before = own_state * factor
    written = value
    if erase is not None:
        erasing = with_channel_axis(erase, 3) * key  # [B,G,R,K]
        written = value - jnp.einsum("bgrkv,bgrk->bgrv", before, erasing)
    after = before + key[..., None] * written[..., None, :]
    out = jnp.einsum("bgrkv,bgk->bgrv", after, query)
    out = jnp.where(real[..., 0], out, 0.0)
    out = out[:, None]  # [B,1,G,R,V]
    state = jnp.where(real, after, state)
    return out, state, jnp.where(token_segment == 0, segment, token_segment)


def _with_state_axes(rows: Bool[Array, "B"]) -> Bool[Array, "B 1 1 1 1"]:
    return rows[:, None, None, None, None]
