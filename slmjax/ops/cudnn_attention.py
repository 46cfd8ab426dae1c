"""cuDNN's fused attention over packed rows: the one place that touches JAX's private interface to it (0.10 and 0.11).

JAX's public call has no packed rows, and its private one repeats key/value heads wrongly and pays for every document that a row might hold:
at 16 x 2048 tokens, 16/4 heads of 64, forward and backward on an H200, 1.6 ms for one document a row, then 0.05 ms more for each
further place that is kept for one. So the two primitives below it are called here with a list of documents of the whole batch.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError
from slmjax.parallel.mesh import per_device_heads


def cudnn_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    places: int,
    window: int = 0,
) -> Float[Array, "B T N H"]:
    """Causal attention within segments. Segments of a row are contiguous and count 1, 2, ...; padding (0) stands at the end.

    Padding counts as the end of the last segment, so that every output and gradient is written: its outputs are finite and mean nothing,
    and where its cotangents are zero, so are its gradients.
    Args:
      places: segments that are kept place for, of all rows of a device; at least as many as they have (an empty row counts as one). As
        many as rows: each is one segment, and nothing but causality is asked of cuDNN.
      window: tokens that a query sees, its own among them; 0: all.
    Raises: UserError where this version of JAX has another interface.
    """

    def kernel(q, k, v, seg):
        if places == len(seg):
            local = (window - 1, 0) if window else None
            return jax.nn.dot_product_attention(
                q, k, v, is_causal=True, local_window_size=local, implementation="cudnn"
            )
        whole = -(-max(places, 2 * len(seg)) // len(seg)) * len(
            seg
        )  # JAX reads the number of places off a shape [rows, n]
        return _packed(window, q, k, v, *segment_list(seg, whole))

    return per_device_heads(kernel)(query, key, value, segments)


def segment_list(
    segments: Int[Array, "B T"], places: int
) -> tuple[Int[Array, "n"], Int[Array, "n"]]:
    """Lengths and first tokens (in the flattened batch) of n = `places` segments, longest first; unused ones are (0, B * T)."""
    B, T = segments.shape
    numbers = jnp.maximum(
        jax.lax.cummax(segments, axis=1), 1
    )  # padding joins the last segment; an empty row is one segment
    begins = jnp.pad(numbers[:, 1:] != numbers[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    (starts,) = jnp.nonzero(begins.reshape(-1), size=places, fill_value=B * T)
    starts = starts.astype(jnp.int32)
    lengths = jnp.append(starts[1:], B * T) - starts
    order = jnp.argsort(-lengths, stable=True)
    return lengths[order], starts[order]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _packed(window, q, k, v, lengths, starts):
    return _forward(window, q, k, v, lengths, starts)[0]


def _packed_forward(window, q, k, v, lengths, starts):
    out, statistics = _forward(window, q, k, v, lengths, starts)
    return out, (q, k, v, lengths, starts, out, statistics)


def _packed_backward(window, residuals, gradient):
    return *_backward(window, *residuals, gradient), None, None


_packed.defvjp(_packed_forward, _packed_backward)


def _forward(window, q, k, v, lengths, starts):
    """(output, softmax statistics); both are defined for the tokens of the listed segments only."""
    operands, options = _call(window, q, k, lengths, starts)
    return tuple(
        _private()._dot_product_attention_fwd_p.bind(
            q, k, v, *operands, is_training=True, **options
        )
    )


def _backward(window, q, k, v, lengths, starts, out, statistics, gradient):
    operands, options = _call(window, q, k, lengths, starts)
    return tuple(
        _private()._dot_product_attention_bwd_p.bind(
            q, k, v, *operands, statistics, out, gradient, **options
        )
    )


def _call(window, q, k, lengths, starts):
    B, T, N, H = q.shape
    lengths = lengths.reshape(B, -1)
    first = jnp.pad(starts, (0, B), constant_values=B * T).reshape(
        B, -1
    )  # JAX reads the number of places off this shape, less one
    none = jnp.zeros(0, q.dtype)
    options = {
        "scale": H**-0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "sliding_window_length": window or None,
        "mask_type": _private().MaskType.PADDING_CAUSAL,
        "layout": _private().AttentionLayout.BTNH.value,
    }
    return (none, lengths, lengths, first * (N * H), first * (k.shape[2] * H), none, none), options


@functools.cache
def _private():
    try:
        from jax._src.cudnn import fused_attention_stablehlo as private

        _ = (
            private._dot_product_attention_fwd_p,
            private._dot_product_attention_bwd_p,
            private.MaskType,
            private.AttentionLayout,
        )
    except (ImportError, AttributeError) as error:
        raise UserError(
            "config.model.attention=cudnn: this version of JAX has no fused attention here; use blockwise."
        ) from error
    return private
