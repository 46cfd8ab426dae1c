"""The layouts of the chunked recurrence: chunks in front, tokens of a chunk behind the heads.

    query, key                    [B,T,G,K]        <->  [N,B,G,C,K]
    value, decay, erase           [B,T,G,R,...]    <->  [N,B,G,R,C,...]
    segments                      [B,T]            <->  [N,B,C]

Axes as in ops/recurrence_chunks.py.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

BySequence = Shaped[Array, "B T ..."]
ByChunk = Shaped[Array, "N B ..."]


def cut_tokens(x: BySequence, chunk: int) -> Shaped[Array, "N B C ..."]:
    """Return x in chunks of `chunk` tokens, the last one filled up with zeros."""
    B, T, *rest = x.shape
    unpadded = [(0, 0)] * len(rest)
    x = jnp.pad(x, [(0, 0), (0, -T % chunk), *unpadded])
    x = x.reshape(B, -1, chunk, *rest)
    return jnp.moveaxis(x, 1, 0)


def cut_heads(x: BySequence, chunk: int, *, axes: int) -> ByChunk:
    """Return x in chunks as cut_tokens does, with the axis C behind those of heads.

    Args:
      axes: how many axes of heads follow T in x: 1 (G) or 2 (G, R).
    """
    x = cut_tokens(x, chunk)  # [N,B,C,heads...,channels]
    return jnp.moveaxis(x, 2, 2 + axes)


def join_chunks(x: Float[Array, "N B G R C V"], length: int) -> Float[Array, "B T G R V"]:
    """Return the chunks as a sequence again, cut to `length` tokens."""
    _, B, G, R, _, V = x.shape
    x = jnp.moveaxis(x, 4, 2)  # [N,B,C,G,R,V]
    x = jnp.moveaxis(x, 0, 1)  # [B,N,C,G,R,V]
    x = x.reshape(B, -1, G, R, V)
    return x[:, :length]


def with_value_head_axis(x: ByChunk) -> ByChunk:
    """Return [N,B,G,C,K] as [N,B,G,1,C,K], since all value heads of a query/key head share it.

    An array that has the axis, [N,B,G,R,C,K], stays as it is.
    """
    if x.ndim == 6:
        return x
    return jnp.expand_dims(x, 3)


def with_head_axes(x: Shaped[Array, "N B *C"]) -> Shaped[Array, "N B 1 1 *C 1"]:
    """Return a mask of rows or of tokens with axes of size 1 for G and R, and for channels."""
    channels = x.ndim + 2  # the last axis of the result
    return jnp.expand_dims(x, (2, 3, channels))


def with_channel_axis(gate: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
    """Return a gate with a channel axis behind its `axes` other ones, of size 1 if it has none."""
    if gate.ndim == axes:
        return gate[..., None]
    return gate


def with_leading_axes(x: Shaped[Array, "..."], axes: int) -> Shaped[Array, "..."]:
    """Return x with axes of size 1 in front, `axes` in all."""
    missing = axes - x.ndim
    return jnp.expand_dims(x, range(missing))


def merge_heads(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Return x with the axes B, G, R, which begin at `axis`, as one: P independent walks."""
    before, after = x.shape[:axis], x.shape[axis + 3 :]
    return x.reshape(*before, -1, *after)


def split_heads(x: Float[Array, "N P a b"], heads: tuple[int, int, int]) -> ByChunk:
    """Return x with the axis P as `heads`, the sizes of B, G and R, again: [N,B,G,R,a,b]."""
    N, _, a, b = x.shape
    return x.reshape(N, *heads, a, b)
