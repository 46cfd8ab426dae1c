"""Linear attention with gates: GLA, gated DeltaNet (gdn) and Kimi delta attention (kda)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models import recurrent
from slmjax.models.architecture import GLA_RANK, Architecture, Block, recurrent_sizes
from slmjax.models.layers import Context, RMSNorm, products, residual_scale, weight

GLA_TEMPER = 16.0  # divides the decays' logarithms; Yang et al. 2023, section 4.4


class LinearAttention(nn.Module):
    """mixer(x, ctx, cache, shared) -> (y, cache, shared); block.mixer says which.

    gla: decays for each key channel, from a projection of rank 16; no convolution, no norm on queries and keys.
    gdn: one decay and one strength of erasing a head; short convolutions; queries and keys of length 1.
    kda: as gdn, with decays for each key channel and an output gate that are projections of the rank of a head, the gate a sigmoid.
    Source: Yang et al. 2023 (GLA), section 4; Yang et al. 2024 (gated DeltaNet), section 3; Kimi team 2025 (Kimi Linear), section 4.
    """

    arch: Architecture
    block: Block

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], *, ctx: Context, cache: recurrent.RecurrentCache | None = None, shared=None):
        arch, kind, D = self.arch, self.block.mixer, self.arch.width
        H, K, V = recurrent_sizes(arch, self.block)
        widths = {"query": K, "key": K, "value": V} | ({} if kind == "kda" else {"gate": V})
        inputs = {name: weight(self, name, (D, H, width), D) for name, width in widths.items()}
        query, key, value, *gate = products(self, "in", x, inputs)
        rank = {"gla": GLA_RANK, "kda": V}.get(kind)  # of the projection for decays
        decay = x @ (weight(self, "decay_down", (D, rank), D) if rank else weight(self, "decay", (D, H), D))
        erase = None if kind == "gla" else x @ weight(self, "erase", (D, H), D)
        gate = x @ weight(self, "gate_down", (D, V), D) if kind == "kda" else gate[0]
        # What lies between products of x and products with `out` is long to keep, and little to compute once more beside them.
        out, cache = nn.remat(LinearAttention._mixed)(self, query, key, value, decay, erase, ctx, cache)
        return nn.remat(LinearAttention._gated)(self, checkpoint_name(out, "mixed"), gate), cache, shared

    def _mixed(self, query, key, value, decay, erase, ctx, cache):
        if self.block.mixer != "gdn":
            decay = self._up(decay, "decay_up", key.shape[2:])
        if self.block.mixer == "gla":
            bias = self.param("decay_bias", nn.initializers.zeros, key.shape[2:], jnp.dtype(self.arch.params))
            decay = jax.nn.log_sigmoid(decay.astype(jnp.float32) + bias.astype(jnp.float32)[None, None]) / GLA_TEMPER
        else:
            streams = {"query": query, "key": key, "value": value}
            (query, key, value), cache = recurrent.convolved(self, streams, ctx, cache, unit=("query", "key"))
            erase = jax.nn.sigmoid(erase.astype(jnp.float32))
            value = (value * erase[..., None]).astype(value.dtype)
            decay = recurrent.decay_of(self, recurrent.step_sizes(self, "decay_bias", decay))
        return recurrent.run(self.arch, query * key.shape[-1] ** -0.5, key, value, decay, erase, ctx, cache)

    def _gated(self, out, gate):
        kda = self.block.mixer == "kda"
        gate = jax.nn.sigmoid(self._up(gate, "gate_up", out.shape[2:])) if kda else jax.nn.silu(gate)
        out = RMSNorm(self.arch, name="out_norm")(out) * gate
        matrix = weight(self, "out", (*out.shape[2:], self.arch.width), out.shape[2] * out.shape[3], residual_scale(self.arch))
        return products(self, "out", out, {"out": matrix})[0]

    @staticmethod
    def empty_cache(arch: Architecture, block: Block, batch: int, size: int) -> recurrent.RecurrentCache:
        """See models/mixers.py."""
        H, K, V = recurrent_sizes(arch, block)
        channels = {} if block.mixer == "gla" else {"query": H * K, "key": H * K, "value": H * V}
        return recurrent.empty_cache(batch, H, K, V, channels, arch.compute)

    def _up(self, x: Float[Array, "B T r"], name: str, shape: tuple[int, ...]) -> Float[Array, "B T H c"]:
        return jnp.tensordot(x, weight(self, name, (x.shape[-1], *shape), x.shape[-1]), 1)
