"""Causal grouped-query attention within segments: a dense reference, a memory-bounded XLA path, and the choice of a kernel per device.

All backends compute: softmax over the keys s with index_s <= index_t and segment_s == segment_t != 0. Padding (segment 0) gives zeros, or
with cudnn anything finite: nothing may read it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError

MASKED = -1e30  # finite, so that a row with no visible key gives no NaN; its output is zeroed below
BLOCK = 512  # queries whose scores exist at once on the blockwise path
GROUPS = 8  # causal prefixes of different length: the share of wasted products is 1/(2 * GROUPS)


class KernelChoice(NamedTuple):
    """A kernel and the reason for it, printed at start."""

    kernel: str
    reason: str


def choose(
    platform: str,
    capability: float | None,
    compute: str,
    head_dim: int,
    deterministic: bool = False,
) -> KernelChoice:
    """The attention kernel for a device.

    Args:
      platform: "cpu", "gpu", "tpu", as the mesh's devices say.
      capability: CUDA compute capability (9.0 for H100), None elsewhere.
      compute: type of the matrix products, "bfloat16" or "float32".
      head_dim: head size H.
      deterministic: the same bits in every run are asked for.
    """
    if platform == "tpu":
        return KernelChoice("splash", "TPU: Pallas splash attention keeps scores on chip")
    if platform != "gpu":
        return KernelChoice(
            "blockwise", f"{platform}: plain XLA, scores in blocks of {BLOCK} queries"
        )
    if capability is None or capability < 9.0:
        return KernelChoice(
            "blockwise",
            f"GPU of compute capability {capability}: cuDNN's fused attention over packed rows needs 9.0 or newer",
        )
    if compute != "bfloat16":
        return KernelChoice(
            "blockwise", f"compute in {compute}: cuDNN's fused attention needs bfloat16"
        )
    if head_dim % 8 or head_dim > 128:
        return KernelChoice(
            "blockwise",
            f"head size {head_dim}: cuDNN's fused attention needs a multiple of 8, at most 128",
        )
    if deterministic:
        return KernelChoice(
            "blockwise",
            "train.deterministic: cuDNN adds in an order that changes between runs (3.0 times the step of a 24M model on an H200)",
        )
    return KernelChoice(
        "cudnn", f"GPU of compute capability {capability} and {compute}: cuDNN's fused attention"
    )


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
    """Attention of N query heads over K key/value heads (N a multiple of K), scaled by H^-1/2.

    Args:
      query_index: each query's slot among the keys; None where T == S and slot t is key t.
      kernel: reference, blockwise, cudnn or splash (the last two only without query_index).
      places: segments that a device keeps places for; only cudnn asks, see there.
      window: tokens that a query sees, its own among them; 0: all.
    Source: Ainslie et al. 2023 (grouped-query attention), section 2.
    """
    if query_index is not None or kernel in ("reference", "blockwise"):
        run = reference if kernel == "reference" else blockwise
        return run(query, key, value, query_segments, key_segments, query_index, window)
    if kernel == "cudnn":
        from slmjax.ops.cudnn_attention import cudnn_attention

        if places is None:
            raise ValueError("the kernel 'cudnn' needs the number of places for segments")
        return cudnn_attention(query, key, value, query_segments, places, window)
    if kernel == "splash":
        from slmjax.ops.splash_attention import splash_attention

        return splash_attention(query, key, value, query_segments, window)
    raise UserError(f"config.model.attention: there is no kernel '{kernel}'.")


def reference(query, key, value, query_segments, key_segments, query_index=None, window=0):
    """All T x S scores at once, in float32: slow, obvious, for tests."""
    index = _index(query_segments) if query_index is None else query_index
    return _dense(query, key, value, query_segments, key_segments, index, window).astype(
        query.dtype
    )


def blockwise(query, key, value, query_segments, key_segments, query_index=None, window=0):
    """At most BLOCK queries' scores exist at once, in the backward pass too (each block is computed again there)."""
    B, T, N, H = query.shape
    causal_prefix = (
        query_index is None
    )  # then query t sees keys 0..t only, and later keys need no products
    index = _index(query_segments) if query_index is None else query_index
    if T <= BLOCK:
        return _dense(query, key, value, query_segments, key_segments, index, window).astype(
            query.dtype
        )
    # float32 here, so that the blocks' gradients add up in float32
    wide_key, wide_value = key.astype(jnp.float32), value.astype(jnp.float32)
    blocks = -(-T // BLOCK)
    padding = blocks * BLOCK - T
    pad = functools.partial(_pad_and_split, padding=padding, blocks=blocks)
    queries, segments, indices = pad(query), pad(query_segments), pad(index)
    per_group = -(-blocks // GROUPS)
    out = []
    for first in range(0, blocks, per_group):
        last = min(first + per_group, blocks)
        start = max(0, first * BLOCK - window + 1) if causal_prefix and window else 0
        seen = slice(start, min(last * BLOCK, key.shape[1]) if causal_prefix else key.shape[1])

        @jax.checkpoint
        def attend(block, seen=seen):
            q, q_segments, q_index = block
            k, v = wide_key[:, seen].astype(key.dtype), wide_value[:, seen].astype(value.dtype)
            return _dense(
                q, k, v, q_segments, key_segments[:, seen], q_index, window, seen.start
            ).astype(query.dtype)

        out.append(
            jax.lax.map(attend, (queries[first:last], segments[first:last], indices[first:last]))
        )
    out = jnp.concatenate(out).swapaxes(0, 1).reshape(B, blocks * BLOCK, N, H)
    return out[:, :T]


def _dense(query, key, value, query_segments, key_segments, query_index, window=0, first_key=0):
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    grouped = query.reshape(B, T, K, N // K, H)
    scores = (
        jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32) * H**-0.5
    )
    visible = (query_segments[:, :, None] == key_segments[:, None, :]) & (
        query_segments[:, :, None] != 0
    )
    back = query_index[:, :, None] - (first_key + jnp.arange(S))[None, None, :]
    visible &= (back >= 0) & (back < window) if window else back >= 0
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, MASKED), axis=-1).astype(
        value.dtype
    )
    out = jnp.einsum("bkgts,bskh->btkgh", weights, value, preferred_element_type=jnp.float32)
    return jnp.where((query_segments != 0)[:, :, None, None], out.reshape(B, T, N, H), 0.0)


def _index(segments):
    return jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)


def _pad_and_split(x, *, padding: int, blocks: int):
    padded = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
    return padded.reshape(x.shape[0], blocks, -1, *x.shape[2:]).swapaxes(0, 1)
