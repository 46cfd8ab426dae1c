"""The attention op for models: its errors name the field of the config that causes them."""

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
    """Return the heads' outputs, as ops.softmax_attention.attention of the same arguments.

    Raises: UserError where the kernel does not take rows of T tokens, or this JAX has no cuDNN
      attention.
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
