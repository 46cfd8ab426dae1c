"""cuDNN's fused attention over packed rows, through JAX's private interface to it (0.10, 0.11).

JAX's public function does not take packed rows. The private function behind it repeats key/value
heads wrongly, and its cost grows with the number of documents that each row might hold: at 16 x
2048 tokens, 16/4 heads of 64, forward and backward on an H200, 1.6 ms for one document a row, and
0.05 ms for each further one. So this file, the only user of the interface, calls the two primitives
below that function, with one list of the documents of the whole batch.

Axes: B rows, T tokens, N query heads, K key/value heads, H head size, n places of the list.
"""

import functools
import math
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.parallel.mesh import per_device_heads


class NoFusedAttention(ValueError):
    """This version of JAX has another interface to cuDNN's attention, or none."""


def cudnn_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    places: int,
    window: int = 0,
) -> Float[Array, "B T N H"]:
    """Return causal attention within segments.

    Segments of a row are contiguous and count 1, 2, ...; padding (0) stands at the end. Padding
    counts as the end of the last segment, so that every output and gradient is written: its outputs
    are finite and meaningless, and where its cotangents are zero, so are its gradients.

    Args:
      places: upper bound of the segments of all rows of a device together; an empty row counts as
        one. If it equals the number of rows, each row is one segment, which needs a causal mask
        only.
      window: tokens that a query sees, its own among them; 0: all.

    Raises: NoFusedAttention.
    """

    def kernel(q, k, v, seg):
        rows = len(seg)
        if places == rows:
            local = (window - 1, 0) if window else None  # keys before a query, and after it
            return jax.nn.dot_product_attention(
                q,
                k,
                v,
                is_causal=True,
                local_window_size=local,
                implementation="cudnn",
            )
        # JAX takes the list in the shape [rows, places_a_row], the latter at least 2.
        places_a_row = max(2, math.ceil(places / rows))
        lengths, starts = segment_list(seg, places_a_row * rows)
        return _packed(window, q, k, v, lengths, starts)

    return per_device_heads(kernel)(query, key, value, segments)


def segment_list(
    segments: Int[Array, "B T"], places: int
) -> tuple[Int[Array, "n"], Int[Array, "n"]]:
    """Return (lengths, first tokens in the flattened batch) of n = `places` segments.

    The longest comes first. Unused places are (0, B * T).
    """
    B, T = segments.shape
    # Padding joins the last segment, and an empty row is one segment.
    numbers = jax.lax.cummax(segments, axis=1)
    numbers = jnp.maximum(numbers, 1)
    changes = numbers[:, 1:] != numbers[:, :-1]
    # A row's first token always begins a segment.
    begins = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    begins = begins.reshape(-1)  # [B*T]
    (starts,) = jnp.nonzero(begins, size=places, fill_value=B * T)
    starts = starts.astype(jnp.int32)
    ends = jnp.append(starts[1:], B * T)
    lengths = ends - starts  # 0 in unused places
    order = jnp.argsort(-lengths, stable=True)
    return lengths[order], starts[order]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _packed(window, q, k, v, lengths, starts):
    return _bind_forward(window, q, k, v, lengths, starts)[0]


def _packed_forward(window, q, k, v, lengths, starts):
    out, statistics = _bind_forward(window, q, k, v, lengths, starts)
    residuals = (q, k, v, lengths, starts, out, statistics)
    return out, residuals


def _packed_backward(window, residuals, gradient):
    d_q, d_k, d_v = _bind_backward(window, *residuals, gradient)
    return d_q, d_k, d_v, None, None


_packed.defvjp(_packed_forward, _packed_backward)


def _bind_forward(window, q, k, v, lengths, starts):
    """Return (output, softmax statistics), both defined for tokens of the listed segments only."""
    operands, options = _operands_and_options(window, q, k, lengths, starts)
    primitive = _private()._dot_product_attention_fwd_p
    results = primitive.bind(q, k, v, *operands, is_training=True, **options)
    return tuple(results)


def _bind_backward(window, q, k, v, lengths, starts, out, statistics, gradient):
    """Return the gradients of (q, k, v)."""
    operands, options = _operands_and_options(window, q, k, lengths, starts)
    primitive = _private()._dot_product_attention_bwd_p
    results = primitive.bind(q, k, v, *operands, statistics, out, gradient, **options)
    return tuple(results)


def _operands_and_options(
    window: int,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    lengths: Int[Array, "n"],
    starts: Int[Array, "n"],
) -> tuple[tuple[Array, ...], dict]:
    """Return the operands that follow q, k and v, and the parameters, of both primitives."""
    B, T, N, H = q.shape
    K = k.shape[2]
    # cuDNN reads both lists flat; JAX wants them as [B,n/B] and [B,n/B+1]. So a row may hold
    # segments of any row of the batch, and all extra starts come last.
    lengths = lengths.reshape(B, -1)
    starts = jnp.pad(starts, (0, B), constant_values=B * T)
    starts = starts.reshape(B, -1)
    absent = jnp.zeros(0, q.dtype)
    options = {
        "scale": H**-0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),  # no bias, and no gradient of one
        "sliding_window_length": window or None,
        "mask_type": _private().MaskType.PADDING_CAUSAL,
        "layout": _private().AttentionLayout.BTNH.value,
    }
    # cuDNN counts array entries: a token is N x H of a query and K x H of a key.
    query_starts = starts * (N * H)
    key_starts = starts * (K * H)
    # Bias, lengths and starts of queries and keys, page tables of keys and values.
    operands = (absent, lengths, lengths, query_starts, key_starts, absent, absent)
    return operands, options


@functools.cache
def _private() -> ModuleType:
    """Return JAX's private module. Raises: NoFusedAttention where it lacks a name used here."""
    needed = (
        "_dot_product_attention_fwd_p",
        "_dot_product_attention_bwd_p",
        "MaskType",
        "AttentionLayout",
    )
    try:
        from jax._src.cudnn import fused_attention_stablehlo as private

        for name in needed:
            getattr(private, name)
    except (ImportError, AttributeError) as error:
        raise NoFusedAttention("this version of JAX has no fused attention here") from error
    return private
