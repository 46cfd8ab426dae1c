"""Layers and tasks as users write them, without touching a file of the library."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from slmjax.models.declare import buffer, weight
from slmjax.models.layers import ChannelMixer, Term, TokenMixer
from slmjax.tasks.language_modeling import LanguageModeling


class Counted(ChannelMixer):
    """A gate by position in one of `bins`, which counts how many tokens each bin had, and a penalty on its output."""

    bins: int = 4
    penalty: float = 0.25

    @nn.compact
    def __call__(self, x, *, ctx):
        counts = buffer(self, "counts", lambda: jnp.zeros(self.bins, jnp.int32), update=jnp.add)
        D = self.arch.width
        scale = weight(
            self,
            "scale",
            (self.bins, D),
            axes=(None, "width"),
            init=nn.initializers.ones,
            group="vector",
        )
        mix = weight(self, "mix", (D, D), axes=("width", "ff"), inputs=(0,), outputs=(1,))
        bin_of = ctx.positions % self.bins
        y = (x * scale[bin_of].astype(x.dtype)) @ mix
        real = ctx.segments > 0
        # What was counted before changes what comes out: a buffer that is lost or late is noticed.
        y = y * (1 + 0.01 * (counts.sum() % 7)).astype(y.dtype)
        seen = jnp.zeros(self.bins, jnp.int32).at[bin_of].add(real.astype(jnp.int32))
        squares = jnp.where(real, jnp.mean(jnp.square(y.astype(jnp.float32)), -1), 0.0)
        return y, {"output": Term(squares.sum(), self.penalty)}, {"counts": seen}


class Halves(TokenMixer):
    """Each token's own channels through two matrices that are split over `tensor` and decay; `rate` is a float option."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, *, ctx, cache=None, shared=None):
        D, F = self.arch.width, self.arch.ff_width
        read = weight(self, "read", (D, F), axes=("width", "ff"), inputs=(0,), outputs=(1,))
        write = weight(self, "write", (F, D), axes=("ff", "width"), inputs=(0,), outputs=(1,))
        return self.rate * (jax.nn.silu(x @ read) @ write), cache, shared

    def empty_cache(self, batch, size):
        return None


class Residual(TokenMixer):
    """Lends its values to the next repeats, as value residuals do: a running mean over the layers before."""

    @nn.compact
    def __call__(self, x, *, ctx, cache=None, shared=None):
        D = self.arch.width
        value = x @ weight(self, "value", (D, D), axes=("width", None), inputs=(0,), outputs=(1,))
        value = value + 0.5 * shared["values"].astype(value.dtype)
        out = weight(self, "out", (D, D), axes=(None, "width"), inputs=(0,), outputs=(1,))
        return jnp.tanh(value) @ out, cache, shared | {"values": value}

    def lends_across(self, batch, length):
        return {"values": jax.ShapeDtypeStruct((batch, length, self.arch.width), self.arch.compute)}

    def empty_cache(self, batch, size):
        return None


class TwoParts(LanguageModeling):
    """Next-token prediction, and a tenth of the mean squared activation at the ends of documents: another denominator."""

    def totals(self, batch):
        return super().totals(batch) | {"ends": self.ends(batch).sum()}

    def ends(self, batch):
        following = jnp.pad(batch["segments"][:, 1:], ((0, 0), (0, 1)))
        return ((batch["segments"] > 0) & (following != batch["segments"])).astype(jnp.float32)

    def of_hidden(self, model, params, hidden, batch, totals):
        ends = self.ends(batch)
        part = (ends * jnp.mean(jnp.square(hidden.astype(jnp.float32)), -1)).sum()
        return (
            super()
            .of_hidden(model, params, hidden, batch, totals)
            .plus("ends", 0.1, (part, ends.sum()), totals)
        )
