"""One block: norm, token mixer, residual, norm, channel mixer, residual."""

from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture, Block
from slmjax.models.layers import Context, RMSNorm
from slmjax.models.mixers import CHANNELS, MIXERS, channel_of, check_output, mixer_of


class Out(NamedTuple):
    """What leaves a block besides the residual stream.

    cache: the token mixer's, or None in training.
    terms: {name: Term} of the channel mixer.
    seen: observations of its forward buffers, laid out as the block's buffers.
    """

    cache: Any
    terms: dict
    seen: dict


class DecoderBlock(nn.Module):
    """block(x, lent, ctx, cache) -> (x, lent, Out), with norms before the mixers (Xiong et al. 2020).

    The token mixer's parameters lie under "mixer", those of one that is not the library's under
    "own", where saved runs have them.
    """

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], lent: dict | None = None, *, ctx: Context, cache: Any = None
    ):
        arch, block = self.arch, self.block
        normed = RMSNorm(arch, name="mixer_norm")(x)
        mixer = mixer_of(arch, block, name="mixer" if block.mixer in MIXERS else "own")
        output = mixer(normed, ctx=ctx, cache=cache, shared=lent or {})
        if block.mixer not in MIXERS:
            check_output(block.mixer, output, normed.shape)
        mixed, cache, lent = output
        x = x + mixed.astype(x.dtype)  # an own mixer may give float32
        if block.channel == "none":
            return x, lent, Out(cache, {}, {})
        normed = RMSNorm(arch, name="channel_norm")(x)
        output = channel_of(arch, block, name="channel")(normed, ctx=ctx)
        if block.channel not in CHANNELS:
            check_output(block.channel, output, normed.shape)
        y, terms, seen = output
        return x + y.astype(x.dtype), lent, Out(cache, terms, {"channel": seen} if seen else {})
