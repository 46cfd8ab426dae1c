"""The state-space mixer: Mamba-2, whose scan over the state is the chunked recurrence of ops/recurrence.py."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slmjax.models import recurrent
from slmjax.models.declare import weight
from slmjax.models.layers import Context, RMSNorm, project, residual_scale


class SSM(recurrent.RecurrentMixer):
    """Mamba-2.

    The paper's names: value is x, write is B and read is C (one for all heads), gate is z, step is
    dt, decay_log is the logarithm of -A, and skip is D. It is twice as wide as the model and has a
    state of 128 by default. Source: Dao and Gu 2024 (Mamba-2), section 7.
    """

    @property
    def sizes(self) -> tuple[int, int, int]:
        V = self.value_dim or self.arch.head_dim
        return self.heads or 2 * self.arch.width // V, self.key_dim or 128, V

    def channels(self) -> dict[str, int]:
        H, K, V = self.sizes
        return {"value": H * V, "write": K, "read": K}

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        ctx: Context,
        cache: recurrent.RecurrentCache | None = None,
        shared=None,
    ):
        D = self.arch.width
        H, K, V = self.sizes
        shapes = {"gate": (H, V), "value": (H, V), "write": (1, K), "read": (1, K)}
        axes = {"gate": "heads", "value": "kv_heads", "write": None, "read": None}
        inputs = {
            name: weight(
                self,
                name,
                (D, *shape),
                axes=("width", axes[name], None),
                inputs=(0,),
                outputs=(1, 2),
            )
            for name, shape in shapes.items()
        }
        gate, value, write, read = project(self, "in", x, inputs)
        steps = x @ weight(
            self, "step", (D, H), axes=("width", "heads"), inputs=(0,)
        )  # no outputs: AdamW updates it
        # Rematerialised: these activations are large and cheap to recompute.
        out, cache = nn.remat(SSM._mixed)(self, value, write, read, steps, ctx, cache)
        return nn.remat(SSM._gated)(self, checkpoint_name(out, "mixed"), gate), cache, shared

    def _mixed(self, value, write, read, steps, ctx, cache):
        streams = {"value": value, "write": write, "read": read}
        (value, write, read), cache = recurrent.convolved(self, streams, ctx, cache, bias=True)
        step = recurrent.step_sizes(self, "step_bias", steps)
        stepped = (value * step[..., None]).astype(value.dtype)
        out, cache = recurrent.run_recurrence(
            self.arch, read, write, stepped, recurrent.decay_of(self, step), None, ctx, cache
        )
        skip = weight(self, "skip", value.shape[2:3], init=nn.initializers.ones, group="vector")
        return out + value * skip[None, None, :, None].astype(value.dtype), cache

    def _gated(self, out, gate):
        H, V = out.shape[2:]
        out = RMSNorm(self.arch, name="out_norm")(
            (out * jax.nn.silu(gate)).reshape(*out.shape[:2], H * V)
        ).reshape(out.shape)
        shape, scale = (H, V, self.arch.width), residual_scale(self.arch)
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
