"""The state-space mixer: Mamba-2, whose scan over the state is the chunked recurrence of ops/recurrence.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models import recurrent
from slmjax.models.architecture import Architecture, Block, recurrent_sizes
from slmjax.models.layers import Context, RMSNorm, products, residual_scale, weight


class SSM(nn.Module):
    """mixer(x, ctx, cache, shared) -> (y, cache, shared).

    The paper's names: value is x, write is B and read is C (one for all heads), gate is z, step is dt, decay_log is the logarithm of -A,
    and skip is D. Source: Dao and Gu 2024 (Mamba-2), section 7.
    """

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, ctx: Context, cache: recurrent.RecurrentCache | None = None, shared=None):
        arch, D = self.arch, self.arch.width
        H, K, V = recurrent_sizes(arch, self.block)
        shapes = {"gate": (H, V), "value": (H, V), "write": (1, K), "read": (1, K)}
        inputs = {name: weight(self, name, (D, *shape), D) for name, shape in shapes.items()}
        gate, value, write, read = products(self, "in", x, inputs)
        steps = x @ weight(self, "step", (D, H), D)
        # What lies between products of x and products with `out` is long to keep, and little to compute once more beside them.
        out, cache = nn.remat(SSM._mixed)(self, value, write, read, steps, ctx, cache)
        return nn.remat(SSM._gated)(self, checkpoint_name(out, "mixed"), gate), cache, shared

    def _mixed(self, value, write, read, steps, ctx, cache):
        streams = {"value": value, "write": write, "read": read}
        (value, write, read), cache = recurrent.convolved(self, streams, ctx, cache, bias=True)
        step = recurrent.step_sizes(self, "step_bias", steps)
        stepped = (value * step[..., None]).astype(value.dtype)
        out, cache = recurrent.run(self.arch, read, write, stepped, recurrent.decay_of(self, step), None, ctx, cache)
        skip = self.param("skip", nn.initializers.ones, value.shape[2:3], jnp.dtype(self.arch.params))
        return out + value * skip[None, None, :, None].astype(value.dtype), cache

    def _gated(self, out, gate):
        H, V = out.shape[2:]
        out = RMSNorm(self.arch, name="out_norm")((out * jax.nn.silu(gate)).reshape(*out.shape[:2], H * V)).reshape(out.shape)
        matrix = weight(self, "out", (H, V, self.arch.width), H * V, residual_scale(self.arch))
        return products(self, "out", out, {"out": matrix})[0]

    @staticmethod
    def empty_cache(arch: Architecture, block: Block, batch: int, size: int) -> recurrent.RecurrentCache:
        """See models/mixers.py."""
        H, K, V = recurrent_sizes(arch, block)
        return recurrent.empty_cache(batch, H, K, V, {"value": H * V, "write": K, "read": K}, arch.compute)
