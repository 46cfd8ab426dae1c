"""The attention op for models: its refusals name the field of the config that leads to them."""

from jaxtyping import Array, Float

from slmjax.errors import UserError
from slmjax.ops.cudnn_attention import NoFusedAttention
from slmjax.ops.softmax_attention import attention
from slmjax.ops.splash_attention import UnfitLength


def checked_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    **options,
) -> Float[Array, "B T N H"]:
    """Return ops.softmax_attention.attention of the same arguments.

    Raises: UserError where the kernel does not take this number of tokens, or JAX lacks it.
    """
    try:
        return attention(query, key, value, **options)
    except UnfitLength as error:
        way_out = "--config.model.attention=blockwise"
        raise UserError(
            f"config.data.seq_len is {query.shape[1]}; {error} (or {way_out})."
        ) from error
    except NoFusedAttention as error:
        raise UserError(f"config.model.attention=cudnn: {error}; use blockwise.") from error
