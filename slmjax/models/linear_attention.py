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
        if kind == "gla":
            gates = (self._low_rank(x, "decay", GLA_RANK, K),)
        else:
            steps = self._low_rank(x, "decay", V, K) if kind == "kda" else x @ weight(self, "decay", (D, H), D)
            gates = steps, x @ weight(self, "erase", (D, H), D)
        gate = self._low_rank(x, "gate", V, V) if kind == "kda" else gate[0]
        # What lies between products of x and products with `out` is long to keep, and little to compute once more beside them.
        out, cache = nn.remat(LinearAttention._mixed)(self, query, key, value, gates, ctx, cache)
        return nn.remat(LinearAttention._gated)(self, checkpoint_name(out, "mixed"), gate), cache, shared

    def _mixed(self, query, key, value, gates, ctx, cache):
        erase, dtype = None, jnp.dtype(self.arch.params)
        if self.block.mixer == "gla":
            bias = self.param("decay_bias", nn.initializers.zeros, gates[0].shape[2:], dtype)
            decay = jax.nn.log_sigmoid(gates[0].astype(jnp.float32) + bias.astype(jnp.float32)[None, None]) / GLA_TEMPER
        else:
            (query, key, value), cache = recurrent.convolved(self, {"query": query, "key": key, "value": value}, ctx, cache)
            query, key, erase = _unit(query), _unit(key), jax.nn.sigmoid(gates[1].astype(jnp.float32))
            value = (value * erase[..., None]).astype(value.dtype)
            decay = recurrent.decay_of(self, recurrent.step_sizes(self, "decay_bias", gates[0]))
        return recurrent.run(self.arch, query * key.shape[-1] ** -0.5, key, value, decay, erase, ctx, cache)

    def _gated(self, out, gate):
        act = jax.nn.sigmoid if self.block.mixer == "kda" else jax.nn.silu
        out = RMSNorm(self.arch, name="out_norm")(out) * act(gate)
        matrix = weight(self, "out", (*out.shape[2:], self.arch.width), out.shape[2] * out.shape[3], residual_scale(self.arch))
        return products(self, "out", out, {"out": matrix})[0]

    @staticmethod
    def empty_cache(arch: Architecture, block: Block, batch: int, size: int) -> recurrent.RecurrentCache:
        """See models/mixers.py."""
        H, K, V = recurrent_sizes(arch, block)
        channels = {} if block.mixer == "gla" else {"query": H * K, "key": H * K, "value": H * V}
        return recurrent.empty_cache(batch, H, K, V, channels, arch.compute)

    def _low_rank(self, x: Array, name: str, rank: int, channels: int) -> Float[Array, "B T H c"]:
        H = recurrent_sizes(self.arch, self.block)[0]
        down = weight(self, f"{name}_down", (self.arch.width, rank), self.arch.width)
        return jnp.tensordot(x @ down, weight(self, f"{name}_up", (rank, H, channels), rank), 1)


def _unit(x: Array) -> Array:
    """x over its length, by heads; the 1e-6 lies inside the root, as in every published implementation."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)
