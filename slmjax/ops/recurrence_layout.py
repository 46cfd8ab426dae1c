"""The layouts of the chunked recurrence: chunks in front, tokens of a chunk behind the heads.

    query, key                    [B,T,G,K]        <->  [N,B,G,C,K]
    value, decay, erase           [B,T,G,R,...]    <->  [N,B,G,R,C,...]
    segments                      [B,T]            <->  [N,B,C]

N chunks of C tokens, G query/key heads, R value heads for each of them, K and V channels.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Sequence = Shaped[Array, "B T ..."]
Chunks = Shaped[Array, "N B ..."]


def cut_tokens(x: Sequence, chunk: int) -> Shaped[Array, "N B C ..."]:
    """Return the chunks of a sequence, with zeros behind its end."""
    B, T, *rest = x.shape
    # Nothing is padded along the other axes.
    whole = [(0, 0)] * len(rest)
    x = jnp.pad(x, [(0, 0), (0, -T % chunk), *whole])
    x = x.reshape(B, -1, chunk, *rest)
    return jnp.moveaxis(x, 1, 0)


def cut_heads(x: Sequence, chunk: int, *, axes: int) -> Chunks:
    """Return the chunks of a sequence whose `axes` axes behind T are heads, with C behind them."""
    x = cut_tokens(x, chunk)  # [N,B,C,heads...,channels]
    return jnp.moveaxis(x, 2, 2 + axes)


def joined(x: Float[Array, "N B G R C V"], length: int) -> Float[Array, "B T G R V"]:
    """Return the sequence of these chunks, cut to `length`."""
    _, B, G, R, _, V = x.shape
    x = jnp.moveaxis(x, 4, 2)  # [N,B,C,G,R,V]
    x = jnp.moveaxis(x, 0, 1)  # [B,N,C,G,R,V]
    x = x.reshape(B, -1, G, R, V)
    return x[:, :length]


def for_value_heads(x: Chunks) -> Chunks:
    """Return [N,B,G,C,K] with an axis for value heads, of size 1 as they share it.

    An array that has the axis, [N,B,G,R,C,K], stays as it is.
    """
    if x.ndim == 6:
        return x
    return jnp.expand_dims(x, 3)


def for_heads(x: Shaped[Array, "N B *C"]) -> Shaped[Array, "N B 1 1 *C 1"]:
    """Return a mask of rows or tokens with axes for heads and channels: [N,B,G,R,(C,)K]."""
    channels = x.ndim + 2
    return jnp.expand_dims(x, (2, 3, channels))


def widened(gate: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
    """Return a gate with a channel axis behind its first `axes`, of size 1 if it has none."""
    if gate.ndim == axes:
        return gate[..., None]
    return gate


def led(x: Shaped[Array, "..."], axes: int) -> Shaped[Array, "..."]:
    """Return x with axes of size 1 in front, `axes` in all."""
    missing = axes - x.ndim
    return jnp.expand_dims(x, range(missing))


def merge_heads(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Return x with the axes B, G, R, which begin at `axis`, as one: P independent walks."""
    before, after = x.shape[:axis], x.shape[axis + 3 :]
    return x.reshape(*before, -1, *after)


def split_heads(x: Float[Array, "N P a b"], heads: tuple[int, int, int]) -> Chunks:
    """Return x with the axis P as B, G, R again: [N,B,G,R,a,b]."""
    N, _, a, b = x.shape
    return x.reshape(N, *heads, a, b)
