"""The layouts of the chunked recurrence: chunks in front, tokens of a chunk behind the heads.

    query, key                    [B,T,G,K]        <->  [N,B,G,C,K]
    value, decay, erase           [B,T,G,R,...]    <->  [N,B,G,R,C,...]
    segments                      [B,T]            <->  [N,B,C]

N chunks of C tokens, G query/key heads, R value heads for each of them.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def cut_tokens(x: Shaped[Array, "B T ..."], chunk: int) -> Shaped[Array, "N B C ..."]:
    """Return the chunks of a sequence, with zeros behind its end."""
    missing = -x.shape[1] % chunk
    x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def cut_heads(x: Float[Array, "B T ..."], chunk: int, *, axes: int) -> Float[Array, "N B ..."]:
    """Return the chunks of a sequence whose `axes` axes behind T are heads, with C behind them."""
    return jnp.moveaxis(cut_tokens(x, chunk), 2, 2 + axes)


def joined(x: Float[Array, "N B G R C V"], length: int) -> Float[Array, "B T G R V"]:
    """Return the sequence of these chunks, cut to `length`."""
    x = jnp.moveaxis(jnp.moveaxis(x, 4, 2), 0, 1)  # [B,N,C,G,R,V]
    B, _, _, G, R, V = x.shape
    return x.reshape(B, -1, G, R, V)[:, :length]


def for_value_heads(x: Float[Array, "N B G *R C K"]) -> Float[Array, "N B G _ C K"]:
    """Return x with an axis for value heads, of size 1 where they share it."""
    return x if x.ndim == 6 else x[:, :, :, None]


def for_heads(x: Shaped[Array, "N B *C"]) -> Shaped[Array, "N B 1 1 *C 1"]:
    """Return a mask of rows or tokens with axes for heads and channels: [N,B,G,R,(C,)K]."""
    return jnp.expand_dims(x, (2, 3, x.ndim + 2))


def widened(gate: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
    """Return a gate with a channel axis behind its first `axes`, of size 1 if it has none."""
    return gate[..., None] if gate.ndim == axes else gate


def led(x: Shaped[Array, "..."], axes: int) -> Shaped[Array, "..."]:
    """Return x with axes of size 1 in front, `axes` in all."""
    return jnp.expand_dims(x, range(axes - x.ndim))


def merge_heads(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Return x with the axes B, G, R, which begin at `axis`, as one: P independent walks."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 3 :])


def split_heads(
    x: Float[Array, "N P a b"], heads: tuple[int, int, int]
) -> Float[Array, "N B G R a b"]:
    """Return x with the axis P as B, G, R again."""
    return x.reshape(-1, *heads, *x.shape[2:])
