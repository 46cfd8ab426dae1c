"""cuDNN's fused attention over packed rows: the one place that touches JAX's private interface to it."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError
from slmjax.parallel.mesh import per_device_heads


def cudnn_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    max_segments: int,
) -> Float[Array, "B T N H"]:
    """Causal attention within segments. Segments of a row are contiguous and count 1, 2, ...; padding (0) stands at the end.

    Tokens of segments beyond `max_segments` (which the row plan never makes) would come out as zeros.
    Raises: UserError where this version of JAX has another interface than the one that was tested (0.10 and 0.11).
    """
    try:
        from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention
    except ImportError as error:
        raise UserError("config.model.attention=cudnn: this version of JAX has no fused attention here; use blockwise.") from error

    def kernel(q, k, v, seg):
        lengths, offsets = _layout(seg, max_segments)
        known = ((seg > 0) & (seg <= max_segments))[:, :, None, None]
        q, k, v = (jnp.where(known, a, 0) for a in (q, k, v))  # cuDNN leaves padding unwritten, in the gradients too: zero them
        # JAX 0.10 and 0.11 scale the keys' offsets by the queries' heads, so that fewer key/value heads read from wrong places.
        k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], axis=2) for a in (k, v))
        out = dot_product_attention(
            q, k, v, q_seqlen=lengths, kv_seqlen=lengths, q_offsets=offsets, kv_offsets=offsets, scale=q.shape[-1] ** -0.5,
            mask_type=MaskType.PADDING_CAUSAL,
        )  # fmt: skip
        return jnp.where(known, out, 0)

    return per_device_heads(kernel)(query, key, value, segments)


def _layout(segments, max_segments):
    """Lengths [B, M] and start offsets [B, M+1] of each row's segments; -1 where a row has fewer."""
    number = jnp.arange(1, max_segments + 1)
    lengths = (segments[:, :, None] == number[None, None]).sum(1, dtype=jnp.int32)
    ends = jnp.cumsum(lengths, axis=1)
    present = lengths > 0
    offsets = jnp.pad(jnp.where(present, ends - lengths, -1), ((0, 0), (0, 1)), constant_values=-1)
    return jnp.where(present, lengths, -1), offsets
