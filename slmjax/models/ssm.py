"""The state-space mixer Mamba-2: its scan over the state is that of ops/recurrence.py."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models import recurrent
from slmjax.models.declare import weight
from slmjax.models.layers import Context, RMSNorm, project, residual_scale
from slmjax.models.recurrent import RecurrentCache, RecurrentMixer


class SSM(RecurrentMixer):
    """Mamba-2.

    The paper's names: value is x, write is B and read is C (one for all heads), gate is z, step is
    dt, decay_log is the logarithm of -A, and skip is D. By default the values of all heads are
    together twice as wide as the model, and K, the size of the state, is 128.
    Source: Dao and Gu 2024 (Mamba-2), section 7.
    """

    @property
    def sizes(self) -> tuple[int, int, int]:
        V = self.value_dim or self.arch.head_dim
        H = self.heads or 2 * self.arch.width // V
        return H, self.key_dim or 128, V

    def channels(self) -> dict[str, int]:
        H, K, V = self.sizes
        return {"value": H * V, "write": K, "read": K}

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        ctx: Context,
        cache: RecurrentCache | None = None,
        shared: dict | None = None,
    ) -> tuple[Float[Array, "B T D"], RecurrentCache | None, dict | None]:
        D = self.arch.width
        H, K, V = self.sizes
        # (heads, channels of a head) of each stream.
        head_shapes = {
            "gate": (H, V),
            "value": (H, V),
            # One head of write and read serves all heads of values.
            "write": (1, K),
            "read": (1, K),
        }
        heads_axes = {"gate": "heads", "value": "kv_heads", "write": None, "read": None}
        matrices = {}
        for name, shape in head_shapes.items():
            axes = ("width", heads_axes[name], None)
            matrices[name] = weight(
                self,
                name,
                (D, *shape),
                axes=axes,
                inputs=(0,),
                outputs=(1, 2),
            )
        gate, value, write, read = project(self, "in", x, matrices)
        # Declared without outputs: AdamW updates it, also where Muon updates the other matrices.
        step_matrix = weight(
            self,
            "step",
            (D, H),
            axes=("width", "heads"),
            inputs=(0,),
        )
        steps = x @ step_matrix
        # Rematerialised: these activations are large and cheap to recompute.
        mix = nn.remat(SSM._mixed)
        out, cache = mix(self, value, write, read, steps, ctx, cache)
        out = checkpoint_name(out, "mixed")
        return nn.remat(SSM._gated)(self, out, gate), cache, shared

    def _mixed(
        self,
        value: Float[Array, "B T H V"],
        write: Float[Array, "B T 1 K"],
        read: Float[Array, "B T 1 K"],
        steps: Float[Array, "B T H"],
        ctx: Context,
        cache: RecurrentCache | None,
    ) -> tuple[Float[Array, "B T H V"], RecurrentCache | None]:
        """Return the recurrence's outputs plus skip * value, and the cache with these tokens."""
        streams = {"value": value, "write": write, "read": read}
        (value, write, read), cache = recurrent.convolved(self, streams, ctx, cache, has_bias=True)
        step = recurrent.step_sizes(self, "step_bias", steps)
        # Discretised: dt * x enters the state, whose logarithm of decay is dt * A.
        stepped = value * step[..., None]
        stepped = stepped.astype(value.dtype)
        decay = recurrent.decay_of(self, step)
        out, cache = recurrent.run_recurrence(
            self.arch, read, write, stepped, decay, None, ctx, cache
        )
        skip = weight(
            self,
            "skip",
            value.shape[2:3],
            init=nn.initializers.ones,
            group="vector",
        )
        skip = skip[None, None, :, None]  # [H] -> [1,1,H,1]
        return out + value * skip.astype(value.dtype), cache

    def _gated(
        self, out: Float[Array, "B T H V"], gate: Float[Array, "B T H V"]
    ) -> Float[Array, "B T D"]:
        """Return the gated outputs, normed over all heads, multiplied with the matrix `out`."""
        H, V = out.shape[2:]
        gated = out * jax.nn.silu(gate)
        # [B,T,H,V] -> [B,T,HV] and back: the norm is over all heads.
        gated = gated.reshape(*out.shape[:2], H * V)
        normed = RMSNorm(self.arch, name="out_norm")(gated)
        normed = normed.reshape(out.shape)
        matrix = weight(
            self,
            "out",
            (H, V, self.arch.width),
            axes=("heads", None, "width"),
            inputs=(0, 1),
            outputs=(2,),
            init=residual_scale(self.arch),
            group="residual",
        )
        (y,) = project(self, "out", normed, {"out": matrix})
        return y
