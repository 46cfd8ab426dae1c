"""The SwiGLU channel mixer."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture, Block
from slmjax.models.layers import Context, products, residual_scale, weight


class MLP(nn.Module):
    """channel(x, ctx) -> (y, aux): down(silu(gate(x)) * up(x)). Source: Shazeer 2020 (GLU variants)."""

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, ctx: Context) -> tuple[Float[Array, "B T D"], dict]:
        D, F = self.arch.width, self.arch.ff_width
        gate, up = products(self, "in", x, {name: weight(self, name, (D, F), D) for name in ("gate", "up")})
        gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
        down = weight(self, "down", (F, D), F, residual_scale(self.arch))
        (y,) = products(self, "out", jax.nn.silu(gate) * up, {"down": down})
        return y, {}
