"""One block: norm, token mixer, residual, norm, channel mixer, residual."""

import flax.linen as nn
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture, Block
from slmjax.models.attention import Attention
from slmjax.models.layers import Context, RMSNorm
from slmjax.models.mlp import MLP

MIXERS = {"attention": Attention}
CHANNELS = {"mlp": MLP}


class DecoderBlock(nn.Module):
    """block(x, ctx, cache, shared) -> (x, cache, shared, aux), with norms before the mixers (Xiong et al. 2020)."""

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, ctx: Context, cache=None, shared=None):
        normed = RMSNorm(self.arch, name="mixer_norm")(x)
        mixed, cache, shared = MIXERS[self.block.mixer](self.arch, self.block, name="mixer")(normed, ctx=ctx, cache=cache, shared=shared)
        x = x + mixed
        channel, aux = CHANNELS[self.block.channel](self.arch, self.block, name="channel")(
            RMSNorm(self.arch, name="channel_norm")(x), ctx=ctx
        )
        return x + channel, cache, shared, aux
