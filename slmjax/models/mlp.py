"""The SwiGLU channel mixer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture, Block
from slmjax.models.layers import Context, residual_scale, weight


class MLP(nn.Module):
    """channel(x, ctx) -> (y, aux): down(silu(gate(x)) * up(x)). Source: Shazeer 2020 (GLU variants)."""

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, ctx: Context) -> tuple[Float[Array, "B T D"], dict]:
        D, F = self.arch.width, self.arch.ff_width
        gate = checkpoint_name(jnp.einsum("btd,df->btf", x, weight(self, "gate", (D, F), D)), "gate")
        up = checkpoint_name(jnp.einsum("btd,df->btf", x, weight(self, "up", (D, F), D)), "up")
        down = weight(self, "down", (F, D), F, residual_scale(self.arch))
        return jnp.einsum("btf,fd->btd", jax.nn.silu(gate) * up, down), {}
