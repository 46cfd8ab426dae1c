"""One block: norm, token mixer, residual, norm, channel mixer, residual."""

from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture, Block
from slmjax.models.layers import Context, RMSNorm
from slmjax.models.mixers import CHANNELS, MIXERS, channel_of, check_output, mixer_of


class Out(NamedTuple):
    """A block's output besides the residual stream."""

    cache: Any  # the token mixer's, or None in training
    terms: dict  # {name: Term} of the channel mixer
    # Observations of its forward buffers (declare.Buffer), laid out as the block's buffers.
    seen: dict


class DecoderBlock(nn.Module):
    """block(x, lent, ctx, cache) -> (x, lent, Out), with norms before the mixers.

    lent is {name: value} of what earlier blocks lend, such as keys and values. The block may read
    it, and add to it for later blocks.
    Source: Xiong et al. 2020.
    """

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        lent: dict | None = None,
        *,
        ctx: Context,
        cache: Any = None,
    ) -> tuple[Float[Array, "B T D"], dict | None, Out]:
        arch, block = self.arch, self.block
        # Parameters of a library mixer lie under "mixer", those of a user's own under "own", as in
        # saved runs.
        params_name = "mixer" if block.mixer in MIXERS else "own"
        normed = RMSNorm(arch, name="mixer_norm")(x)
        mixer = mixer_of(arch, block, name=params_name)
        output = mixer(normed, ctx=ctx, cache=cache, shared=lent or {})
        if block.mixer not in MIXERS:
            check_output(block.mixer, output, normed.shape)
        mixed, cache, lent = output
        x = x + mixed.astype(x.dtype)  # a user's own mixer may return float32
        if block.channel == "none":
            return x, lent, Out(cache, {}, {})
        normed = RMSNorm(arch, name="channel_norm")(x)
        output = channel_of(arch, block, name="channel")(normed, ctx=ctx)
        if block.channel not in CHANNELS:
            check_output(block.channel, output, normed.shape)
        y, terms, seen = output
        # No entry for a mixer without buffers, so that the tree has the layout of the buffers.
        observations = {"channel": seen} if seen else {}
        x = x + y.astype(x.dtype)
        return x, lent, Out(cache, terms, observations)
