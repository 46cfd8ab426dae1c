"""Causal grouped-query attention within segments: reference, blockwise XLA, choice of a kernel.

All kernels compute the softmax over the keys s with index_s <= index_t and segment_s == segment_t
!= 0. Padding (segment 0) gives zeros, or with cudnn any finite number: nothing may read it.

Axes: B rows, T queries, S keys, N query heads, K key/value heads, G = N / K, H head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

MASKED = -1e30  # finite: a query without a visible key gives no NaN, but a number that is zeroed
BLOCK = 512  # queries whose scores exist at once on the blockwise path
# Groups of blocks, each with its own number of keys. All queries of a group are multiplied with the
# keys of its last one: of all T x S products, 1 / (2 * GROUPS) are computed for nothing.
GROUPS = 8


class KernelChoice(NamedTuple):
    """A kernel and the reason for it, printed at start."""

    kernel: str
    reason: str


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    query_index: Int[Array, "B T"] | None = None,
    kernel: str = "blockwise",
    places: int | None = None,
    window: int = 0,
) -> Float[Array, "B T N H"]:
    """Return attention of N query heads over K key/value heads, scaled by H^-1/2; K divides N.

    Args:
      query_index: the index of the key that is each query's own token; None where T == S and query
        t has key t.
      kernel: reference, blockwise, cudnn or splash. With query_index all but the reference give way
        to blockwise.
      places: for cudnn only: segments that a device keeps places for, see cudnn_attention.
      window: tokens that a query sees, its own among them; 0: all.

    Raises: ValueError for an unknown kernel; UnfitLength or NoFusedAttention, both ValueErrors, as
      the kernels do.
    Source: Ainslie et al. 2023 (grouped-query attention), section 2.
    """
    if kernel == "reference":
        return reference(query, key, value, query_segments, key_segments, query_index, window)
    if kernel == "blockwise" or query_index is not None:
        return blockwise(query, key, value, query_segments, key_segments, query_index, window)
    # The two are imported late: each needs a part of JAX that is not on every machine.
    if kernel == "cudnn":
        from slmjax.ops.cudnn_attention import cudnn_attention

        if places is None:
            raise ValueError("the kernel 'cudnn' needs the number of places for segments")
        return cudnn_attention(query, key, value, query_segments, places, window)
    if kernel == "splash":
        from slmjax.ops.splash_attention import splash_attention

        return splash_attention(query, key, value, query_segments, window)
    raise ValueError(f"there is no kernel '{kernel}'")


def choose(
    platform: str,
    capability: float | None,
    compute: str,
    head_dim: int,
    deterministic: bool = False,
) -> KernelChoice:
    """Return the attention kernel for a device.

    Args:
      platform: "cpu", "gpu" or "tpu", as the mesh's devices say.
      capability: CUDA compute capability (9.0 for H100), None elsewhere.
      compute: type of the matrix products, "bfloat16" or "float32".
      head_dim: head size H.
      deterministic: every run must give the same bits.
    """
    if platform == "tpu":
        return KernelChoice("splash", "TPU: Pallas splash attention keeps scores on chip")
    if platform != "gpu":
        reason = f"{platform}: plain XLA, scores in blocks of {BLOCK} queries"
        return KernelChoice("blockwise", reason)
    device = f"GPU of compute capability {capability}"
    if capability is None or capability < 9.0:
        reason = f"{device}: cuDNN's fused attention over packed rows needs 9.0 or newer"
    elif compute != "bfloat16":
        reason = f"compute in {compute}: cuDNN's fused attention needs bfloat16"
    elif head_dim % 8 or head_dim > 128:
        need = "a multiple of 8, at most 128"
        reason = f"head size {head_dim}: cuDNN's fused attention needs {need}"
    elif deterministic:
        cost = "3.0 times the step of a 24M model on an H200"
        reason = f"deterministic: cuDNN adds in an order that changes between runs ({cost})"
    else:
        return KernelChoice("cudnn", f"{device} and {compute}: cuDNN's fused attention")
    return KernelChoice("blockwise", reason)


def reference(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    query_index: Int[Array, "B T"] | None = None,
    window: int = 0,
) -> Float[Array, "B T N H"]:
    """Return attention from all T x S scores at once, in float32: slow, obvious, for tests."""
    index = _index(query_segments) if query_index is None else query_index
    out = _dense(query, key, value, query_segments, key_segments, index, window)
    return out.astype(query.dtype)


def blockwise(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    query_index: Int[Array, "B T"] | None = None,
    window: int = 0,
) -> Float[Array, "B T N H"]:
    """Return attention with the scores of at most BLOCK queries at once.

    That holds for the backward pass too, where each block is computed again.
    """
    B, T, N, H = query.shape
    if T <= BLOCK:
        return reference(query, key, value, query_segments, key_segments, query_index, window)
    S = key.shape[1]
    # Without query_index, query t sees keys 0..t only, and later keys need no products.
    causal_prefix = query_index is None
    index = _index(query_segments) if query_index is None else query_index
    # float32 until each block casts its keys: so the blocks' gradients add up in float32.
    wide_key = key.astype(jnp.float32)
    wide_value = value.astype(jnp.float32)
    blocks = -(-T // BLOCK)
    queries = _split(query, blocks)
    segments = _split(query_segments, blocks)
    indices = _split(index, blocks)
    blocks_a_group = -(-blocks // GROUPS)

    def attend_group(first: int, last: int) -> Float[Array, "_ B _ N H"]:
        """Return the outputs for the queries of blocks[first:last]."""
        start, end = 0, S  # of the keys that these queries can see
        if causal_prefix:
            end = min(last * BLOCK, S)
            if window:  # the first query sees no key before this one
                start = max(0, first * BLOCK - window + 1)

        @jax.checkpoint
        def attend(block):
            q, q_segments, q_index = block
            k = wide_key[:, start:end].astype(key.dtype)
            v = wide_value[:, start:end].astype(value.dtype)
            k_segments = key_segments[:, start:end]
            out = _dense(q, k, v, q_segments, k_segments, q_index, window, start)
            return out.astype(query.dtype)

        group = (queries[first:last], segments[first:last], indices[first:last])
        return jax.lax.map(attend, group)

    # Groups of blocks, as the number of keys must be known when the loop over blocks is compiled.
    out = []
    for first in range(0, blocks, blocks_a_group):
        last = min(first + blocks_a_group, blocks)
        out.append(attend_group(first, last))
    joined = jnp.concatenate(out)  # [blocks,B,BLOCK,N,H]
    joined = joined.swapaxes(0, 1)
    joined = joined.reshape(B, blocks * BLOCK, N, H)
    return joined[:, :T]


def _dense(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    query_index: Int[Array, "B T"],
    window: int = 0,
    first_key: int = 0,
) -> Float[Array, "B T N H"]:
    """Return attention from all scores at once, as float32.

    Args:
      first_key: index of the first of these keys among all keys.
    """
    B, T, N, H = query.shape
    K = key.shape[2]
    grouped = query.reshape(B, T, K, N // K, H)  # [B,T,K,G,H]
    products = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = products * H**-0.5  # [B,K,G,T,S]
    visible = _visible(query_segments, key_segments, query_index, window, first_key)
    visible = visible[:, None, None]  # [B,1,1,T,S]
    masked = jnp.where(visible, scores, MASKED)
    weights = jax.nn.softmax(masked, axis=-1)
    weights = weights.astype(value.dtype)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, value, preferred_element_type=jnp.float32)
    real = (query_segments != 0)[:, :, None, None]
    out = out.reshape(B, T, N, H)
    return jnp.where(real, out, 0.0)


def _visible(
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    query_index: Int[Array, "B T"],
    window: int,
    first_key: int,
) -> Bool[Array, "B T S"]:
    """Return which query sees which key."""
    same_segment = query_segments[:, :, None] == key_segments[:, None, :]
    visible = same_segment & (query_segments[:, :, None] != 0)  # padding sees nothing
    queries = query_index[:, :, None]
    keys = first_key + jnp.arange(key_segments.shape[1])
    distance = queries - keys[None, None, :]  # [B,T,S]
    if window:
        return visible & ((distance >= 0) & (distance < window))
    return visible & (distance >= 0)


def _index(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Return 0, 1, ... T - 1 for each row."""
    _, T = segments.shape
    return jnp.broadcast_to(jnp.arange(T), segments.shape)


def _split(x: Shaped[Array, "B T ..."], blocks: int) -> Shaped[Array, "_ B _ ..."]:
    """Return x in blocks of BLOCK tokens, the last one padded: [blocks,B,BLOCK,...]."""
    B, T, *rest = x.shape
    unpadded = [(0, 0)] * len(rest)
    # Padded queries are of segment 0, and `blockwise` cuts them off.
    padded = jnp.pad(x, [(0, 0), (0, blocks * BLOCK - T), *unpadded])
    split = padded.reshape(B, blocks, -1, *rest)  # [B,blocks,BLOCK,...]
    return split.swapaxes(0, 1)
