"""Linear attention with gates: GLA, gated DeltaNet (gdn) and Kimi delta attention (kda)."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models import recurrent
from slmjax.models.declare import weight
from slmjax.models.layers import Context, RMSNorm, project, residual_scale

GLA_RANK = 16  # of the projection that makes GLA's decays; Yang et al. 2023, section 4.4
GLA_TEMPER = 16.0  # divides the decays' logarithms; Yang et al. 2023, section 4.4


class LinearAttention(recurrent.RecurrentMixer):
    """What the three have in common; `kind` says which it is."""

    kind: ClassVar[str]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        ctx: Context,
        cache: recurrent.RecurrentCache | None = None,
        shared=None,
    ):
        kind, D = self.kind, self.arch.width
        H, K, V = self.sizes
        widths = {"query": K, "key": K, "value": V} | ({} if kind == "kda" else {"gate": V})
        inputs = {}
        for name, width in widths.items():
            axes = ("width", "heads" if name in ("query", "gate") else "kv_heads", None)
            inputs[name] = weight(self, name, (D, H, width), axes=axes, inputs=(0,), outputs=(1, 2))
        query, key, value, *gate = project(self, "in", x, inputs)
        rank = {"gla": GLA_RANK, "kda": V}.get(kind)  # of the projection for decays
        decay = x @ (self._down("decay_down", rank) if rank else self._by_head("decay"))
        erase = None if kind == "gla" else x @ self._by_head("erase")
        gate = x @ self._down("gate_down", V) if kind == "kda" else gate[0]
        # Rematerialised: these activations are large and cheap to recompute.
        out, cache = nn.remat(LinearAttention._mixed)(
            self, query, key, value, decay, erase, ctx, cache
        )
        return (
            nn.remat(LinearAttention._gated)(self, checkpoint_name(out, "mixed"), gate),
            cache,
            shared,
        )

    def _mixed(self, query, key, value, decay, erase, ctx, cache):
        if self.kind != "gdn":
            decay = self._up(decay, "decay_up", key.shape[2:])
        if self.kind == "gla":
            bias = weight(
                self, "decay_bias", key.shape[2:], init=nn.initializers.zeros, group="vector"
            )
            decay = (
                jax.nn.log_sigmoid(decay.astype(jnp.float32) + bias.astype(jnp.float32)[None, None])
                / GLA_TEMPER
            )
        else:
            streams = {"query": query, "key": key, "value": value}
            (query, key, value), cache = recurrent.convolved(
                self, streams, ctx, cache, unit=("query", "key")
            )
            erase = jax.nn.sigmoid(erase.astype(jnp.float32))
            value = (value * erase[..., None]).astype(value.dtype)
            decay = recurrent.decay_of(self, recurrent.step_sizes(self, "decay_bias", decay))
        return recurrent.run_recurrence(
            self.arch, query * key.shape[-1] ** -0.5, key, value, decay, erase, ctx, cache
        )

    def _gated(self, out, gate):
        kda = self.kind == "kda"
        gate = (
            jax.nn.sigmoid(self._up(gate, "gate_up", out.shape[2:])) if kda else jax.nn.silu(gate)
        )
        out = RMSNorm(self.arch, name="out_norm")(out) * gate
        shape, scale = (*out.shape[2:], self.arch.width), residual_scale(self.arch)
        matrix = weight(
            self,
            "out",
            shape,
            axes=("heads", None, "width"),
            inputs=(0, 1),
            outputs=(2,),
            init=scale,
        )
        return project(self, "out", out, {"out": matrix})[0]

    # These three have no outputs, so that AdamW updates them also beside Muon: they make gates, one
    # vector for each of them.
    def _by_head(self, name: str) -> Float[Array, "D H"]:
        return weight(
            self, name, (self.arch.width, self.sizes[0]), axes=("width", "heads"), inputs=(0,)
        )

    def _down(self, name: str, rank: int) -> Float[Array, "D r"]:
        return weight(self, name, (self.arch.width, rank), axes=("width", None), inputs=(0,))

    def _up(
        self, x: Float[Array, "B T r"], name: str, shape: tuple[int, ...]
    ) -> Float[Array, "B T H c"]:
        matrix = weight(self, name, (x.shape[-1], *shape), axes=(None, "heads", None), inputs=(0,))
        return jnp.tensordot(x, matrix, 1)


class GatedLinearAttention(LinearAttention):
    """Decays for each key channel, from a projection of rank 16; no convolution, no norm on queries and keys.

    Its keys are half as wide as its values by default. Source: Yang et al. 2023 (GLA), section 4.
    """

    kind: ClassVar[str] = "gla"

    @property
    def sizes(self) -> tuple[int, int, int]:
        V = self.value_dim or self.arch.head_dim
        return self.heads or self.arch.heads, self.key_dim or max(1, V // 2), V

    def channels(self) -> dict[str, int]:
        return {}


class GatedDeltaNet(LinearAttention):
    """One decay and one strength of erasing a head; short convolutions; queries and keys of length 1.

    Source: Yang et al. 2024 (gated DeltaNet), section 3.
    """

    kind: ClassVar[str] = "gdn"
    reads: ClassVar[int] = 3


class KimiDeltaAttention(LinearAttention):
    """As gdn, with decays for each key channel, and a sigmoid output gate; both are projections of a head's rank.

    Source: Kimi team 2025 (Kimi Linear), section 4.
    """

    kind: ClassVar[str] = "kda"
    reads: ClassVar[int] = 3
