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
        query, key, value, *gate = products(self, "in", x, inputs, fused=cache is None)
        erase = None
        if kind == "gla":
            decay = jax.nn.log_sigmoid(self._low_rank(x, "decay", GLA_RANK, K).astype(jnp.float32) + self._bias(H, K)) / GLA_TEMPER
        else:
            (query, key, value), cache = recurrent.convolved(self, {"query": query, "key": key, "value": value}, ctx, cache)
            query, key = _unit(query), _unit(key)
            erase = jax.nn.sigmoid((x @ weight(self, "erase", (D, H), D)).astype(jnp.float32))
            value = (value * erase[..., None]).astype(value.dtype)
            steps = self._low_rank(x, "decay", V, K) if kind == "kda" else x @ weight(self, "decay", (D, H), D)
            decay = recurrent.decay_of(self, recurrent.step_sizes(self, "decay_bias", steps))
        gate = self._low_rank(x, "gate", V, V) if kind == "kda" else gate[0]
        out, cache = recurrent.run(query * K**-0.5, key, value, decay, erase, ctx, cache)
        out = RMSNorm(arch, name="out_norm")(out) * (jax.nn.sigmoid if kind == "kda" else jax.nn.silu)(gate)
        out = checkpoint_name(out, "mixed")
        matrix = weight(self, "out", (H, V, D), H * V, residual_scale(arch))
        return *products(self, "out", out, {"out": matrix}), cache, shared

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

    def _bias(self, *shape: int) -> Array:
        return self.param("decay_bias", nn.initializers.zeros, shape, jnp.dtype(self.arch.params)).astype(jnp.float32)[None, None]


def _unit(x: Array) -> Array:
    """x over its length, by heads; the 1e-6 lies inside the root, as in every published implementation."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)
