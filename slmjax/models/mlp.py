"""The SwiGLU channel mixer."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models.declare import weight
from slmjax.models.layers import ChannelMixer, Context, project, residual_scale


class MLP(ChannelMixer):
    """y = down(silu(gate(x)) * up(x)). Source: Shazeer 2020 (GLU variants)."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], *, ctx: Context
    ) -> tuple[Float[Array, "B T D"], dict, dict]:
        D, F = self.arch.width, self.arch.ff_width
        input_matrices = {}
        for name in ("gate", "up"):
            input_matrices[name] = weight(
                self,
                name,
                (D, F),
                axes=("width", "ff"),
                inputs=(0,),
                outputs=(1,),
            )
        # One call for both products, so that they share one float8 scale of x.
        gate, up = project(self, "in", x, input_matrices)
        # Names that config.model.remat can keep.
        gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
        down = weight(
            self,
            "down",
            (F, D),
            axes=("ff", "width"),
            inputs=(0,),
            outputs=(1,),
            init=residual_scale(self.arch),
            group="residual",
        )
        hidden = jax.nn.silu(gate) * up
        (y,) = project(self, "out", hidden, {"down": down})
        return y, {}, {}
