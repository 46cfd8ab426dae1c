"""One block: norm, token mixer, residual, norm, channel mixer, residual."""

import flax.linen as nn
from jaxtyping import Array, Float

from slmjax.models.architecture import MIXERS, Architecture, Block
from slmjax.models.layers import Context, RMSNorm
from slmjax.models.mixers import CHANNELS, check_output, mixer_class


class DecoderBlock(nn.Module):
    """block(x, ctx, cache, shared) -> (x, cache, shared, aux), with norms before the mixers (Xiong et al. 2020).

    A mixer that is not the library's has its parameters under "own" instead of "mixer": other rules hold there (models/groups.py,
    parallel/rules.py).
    """

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, ctx: Context, cache=None, shared=None):
        arch, block = self.arch, self.block
        normed = RMSNorm(arch, name="mixer_norm")(x)
        mixer = mixer_class(block.mixer)(arch, block, name="mixer" if block.mixer in MIXERS else "own")
        output = mixer(normed, ctx=ctx, cache=cache, shared=shared)
        if block.mixer not in MIXERS:
            check_output(block.mixer, output, normed.shape)
        mixed, cache, shared = output
        x, aux = x + mixed.astype(x.dtype), {}  # an own mixer may give float32
        if block.channel != "none":
            channel, aux = CHANNELS[block.channel](arch, block, name="channel")(RMSNorm(arch, name="channel_norm")(x), ctx=ctx)
            x = x + channel
        return x, cache, shared, aux
