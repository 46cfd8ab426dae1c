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
from slmjax.models.recurrent import RecurrentCache, RecurrentMixer

# Yang et al. 2023, section 4.4.
GLA_RANK = 16  # of the projection that makes GLA's decays
GLA_TEMPER = 16.0  # divides the logarithms of the decays


class LinearAttention(RecurrentMixer):
    """The common part of gla, gdn and kda; a subclass sets `kind`.

    Each of H heads has K key and V value channels. Erasing is that of the delta rule.

    | kind | decays         | erases | convolutions | output gate             |
    |------|----------------|--------|--------------|-------------------------|
    | gla  | by key channel | no     | no           | silu                    |
    | gdn  | by head        | yes    | yes          | silu                    |
    | kda  | by key channel | yes    | yes          | sigmoid, of rank V      |
    """

    kind: ClassVar[str]

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        ctx: Context,
        cache: RecurrentCache | None = None,
        shared: dict | None = None,
    ) -> tuple[Float[Array, "B T D"], RecurrentCache | None, dict | None]:
        kind, V = self.kind, self.sizes[2]
        matrices = self._in_matrices()
        heads = dict(zip(matrices, project(self, "in", x, matrices)))
        # Inputs of the decays: [B,T,H] for gdn, [B,T,rank] for the others.
        if kind == "gdn":
            decay = x @ self._head_matrix("decay")
        elif kind == "gla":
            decay = x @ self._down_matrix("decay_down", GLA_RANK)
        else:
            decay = x @ self._down_matrix("decay_down", V)
        # Input of the sigmoid that says how much of a key's old value is erased, one number a head.
        erase = None
        if kind != "gla":
            erase = x @ self._head_matrix("erase")
        # The output gate, [B,T,H,V], or for kda its input [B,T,V].
        if kind == "kda":
            gate = x @ self._down_matrix("gate_down", V)
        else:
            gate = heads["gate"]
        query, key, value = heads["query"], heads["key"], heads["value"]
        # Rematerialised: these activations are large and cheap to recompute.
        mix = nn.remat(LinearAttention._mixed)
        out, cache = mix(self, query, key, value, decay, erase, ctx, cache)
        out = checkpoint_name(out, "mixed")
        y = nn.remat(LinearAttention._gated)(self, out, gate)
        return y, cache, shared

    def _in_matrices(self) -> dict[str, Float[Array, "D H _"]]:
        """Return the matrices of query, key, value and, except for kda, the output gate."""
        H, K, V = self.sizes
        widths = {"query": K, "key": K, "value": V}
        if self.kind != "kda":
            widths["gate"] = V
        matrices = {}
        for name, width in widths.items():
            heads_axis = "heads" if name in ("query", "gate") else "kv_heads"
            axes = ("width", heads_axis, None)
            shape = (self.arch.width, H, width)
            matrices[name] = weight(
                self,
                name,
                shape,
                axes=axes,
                inputs=(0,),
                outputs=(1, 2),
            )
        return matrices

    def _mixed(
        self,
        query: Float[Array, "B T H K"],
        key: Float[Array, "B T H K"],
        value: Float[Array, "B T H V"],
        decay: Float[Array, "B T _"],
        erase: Float[Array, "B T H"] | None,
        ctx: Context,
        cache: RecurrentCache | None,
    ) -> tuple[Float[Array, "B T H V"], RecurrentCache | None]:
        """Return the recurrence's outputs, and the cache with these tokens.

        Args:
          decay, erase: inputs of the decays and of the erasing, as `__call__` makes them.
        """
        heads = key.shape[2:]  # (H, K)
        if self.kind != "gdn":
            decay = self._up_projection(decay, "decay_up", heads)
        if self.kind == "gla":
            bias = weight(
                self,
                "decay_bias",
                heads,
                init=nn.initializers.zeros,
                group="vector",
            )
            # Float32: the recurrence sums them over a chunk, where rounding would add up.
            decay = decay.astype(jnp.float32)
            bias = bias.astype(jnp.float32)[None, None]  # [H,K] -> [1,1,H,K]
            decay = decay + bias
            decay = jax.nn.log_sigmoid(decay) / GLA_TEMPER
        else:
            streams = {"query": query, "key": key, "value": value}
            unit = ("query", "key")
            (query, key, value), cache = recurrent.convolved(self, streams, ctx, cache, unit=unit)
            erase = jax.nn.sigmoid(erase.astype(jnp.float32))
            # The delta rule writes the same share of the new value as it erases of the old one.
            written = value * erase[..., None]
            value = written.astype(value.dtype)
            steps = recurrent.step_sizes(self, "decay_bias", decay)
            decay = recurrent.decay_of(self, steps)
        # As in attention: products of queries and keys do not grow with K.
        query = query * key.shape[-1] ** -0.5
        return recurrent.run_recurrence(self.arch, query, key, value, decay, erase, ctx, cache)

    def _gated(
        self, out: Float[Array, "B T H V"], gate: Float[Array, "B T ..."]
    ) -> Float[Array, "B T D"]:
        """Return the normed and gated outputs, multiplied with the matrix `out`."""
        heads = out.shape[2:]  # (H, V)
        if self.kind == "kda":
            gate = jax.nn.sigmoid(self._up_projection(gate, "gate_up", heads))
        else:
            gate = jax.nn.silu(gate)
        out = RMSNorm(self.arch, name="out_norm")(out) * gate
        matrix = weight(
            self,
            "out",
            (*heads, self.arch.width),
            axes=("heads", None, "width"),
            inputs=(0, 1),
            outputs=(2,),
            init=residual_scale(self.arch),
            group="residual",
        )
        return project(self, "out", out, {"out": matrix})[0]

    # The matrices of the next three methods make gates. They are declared without outputs, so that
    # AdamW updates them, also where Muon updates the other matrices.

    def _head_matrix(self, name: str) -> Float[Array, "D H"]:
        """Return a matrix whose product with a token is one number for each head."""
        H = self.sizes[0]
        shape = (self.arch.width, H)
        return weight(
            self,
            name,
            shape,
            axes=("width", "heads"),
            inputs=(0,),
        )

    def _down_matrix(self, name: str, rank: int) -> Float[Array, "D r"]:
        """Return the first matrix of a low-rank projection."""
        shape = (self.arch.width, rank)
        return weight(
            self,
            name,
            shape,
            axes=("width", None),
            inputs=(0,),
        )

    def _up_projection(
        self,
        x: Float[Array, "B T r"],
        name: str,
        heads: tuple[int, int],
    ) -> Float[Array, "B T H c"]:
        """Return x times the second matrix of a low-rank projection."""
        shape = (x.shape[-1], *heads)
        matrix = weight(
            self,
            name,
            shape,
            axes=(None, "heads", None),
            inputs=(0,),
        )
        return jnp.tensordot(x, matrix, 1)


class GatedLinearAttention(LinearAttention):
    """GLA: a decay for each key channel, from a projection of rank 16.

    It has no convolutions, and no norm on queries and keys. Its keys are half as wide as its values
    by default. Source: Yang et al. 2023 (GLA), section 4.
    """

    kind: ClassVar[str] = "gla"

    @property
    def sizes(self) -> tuple[int, int, int]:
        V = self.value_dim or self.arch.head_dim
        K = self.key_dim or max(1, V // 2)
        return self.heads or self.arch.heads, K, V

    def channels(self) -> dict[str, int]:
        return {}


class GatedDeltaNet(LinearAttention):
    """Gated DeltaNet: one decay, and one share that is erased, for each head.

    It has short convolutions, and divides queries and keys by their length.
    Source: Yang et al. 2024 (gated DeltaNet), section 3.
    """

    kind: ClassVar[str] = "gdn"
    state_products: ClassVar[int] = 3


class KimiDeltaAttention(LinearAttention):
    """Kimi delta attention: gdn with a decay for each key channel, and a sigmoid output gate.

    Both come from projections of rank V, a head's value channels.
    Source: Kimi team 2025 (Kimi Linear), section 4.
    """

    kind: ClassVar[str] = "kda"
    state_products: ClassVar[int] = 3
