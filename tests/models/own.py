"""Token mixers as users write them: one that is right, and one for each mistake."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from slmjax.models.layers import TokenMixer


class Mean(TokenMixer):
    """The mean of a document's tokens so far, times a learned matrix."""

    def sums(self, x, segments, before):
        """(sums over each token's document up to it, counts): before is (sum, count, segment) of the tokens before these."""
        total, count, of = before
        same = (
            (segments[:, :, None] == segments[:, None, :])
            & (segments != 0)[:, None]
            & jnp.tri(x.shape[1], dtype=bool)[None]
        )
        goes_on = ((segments == of[:, None]) & (segments != 0)).astype(x.dtype)
        sums = (
            jnp.einsum("bts,bsd->btd", same.astype(x.dtype), x)
            + goes_on[..., None] * total[:, None]
        )
        return sums, same.sum(-1) + goes_on * count[:, None]

    @nn.compact
    def __call__(self, x, *, ctx, cache=None, shared=None):
        mix = self.param("mix", nn.initializers.normal(0.1), (x.shape[-1],) * 2)
        before = self.empty_cache(len(x), 0) if cache is None else cache
        sums, counts = self.sums(x, ctx.segments, before)
        if cache is not None:
            last = jnp.maximum((ctx.segments != 0).sum(1) - 1, 0)
            real, row = (ctx.segments != 0).any(1), jnp.arange(len(x))
            after = sums[row, last], counts[row, last], ctx.segments[row, last]
            cache = jax.tree.map(
                lambda new, old: jnp.where(jnp.expand_dims(real, range(1, new.ndim)), new, old),
                after,
                before,
            )
        return (sums / jnp.maximum(counts, 1)[..., None]) @ mix, cache, shared

    def empty_cache(self, batch, size):
        return jnp.zeros((batch, self.arch.width)), jnp.zeros(batch), jnp.zeros(batch, jnp.int32)


class Lends(TokenMixer):
    """Lends values that it makes of each token; with borrows=True it takes those of the last lender of its kind."""

    kind: int = 0
    borrows: bool = False

    @nn.compact
    def __call__(self, x, *, ctx, cache=None, shared=None):
        sizes = (x.shape[-1], self.arch.kv_heads, self.arch.head_dim)
        gate = jnp.einsum(
            "btd,dkh->btkh", x, self.param("gate", nn.initializers.normal(0.3), sizes)
        )
        if self.borrows:
            value = shared[f"values {self.kind}"]
        else:
            value = jnp.einsum(
                "btd,dkh->btkh", x, self.param("value", nn.initializers.normal(0.3), sizes)
            )
        out = self.param("out", nn.initializers.normal(0.3), sizes[::-1])
        y = jnp.einsum("btkh,hkd->btd", value * nn.sigmoid(gate), out)
        return y, cache, shared | {f"values {self.kind}": value}

    def lends(self):
        return (f"values {self.kind}",)

    def borrowed(self):
        return self.lends() if self.borrows else ()

    def empty_cache(self, batch, size):
        return None


class LooksAhead(Mean):
    def sums(self, x, segments, before):
        ahead = jnp.concatenate([x[:, 1:], x[:, -1:] * 0], axis=1)
        return super().sums(x + ahead, segments, before)


class MixesDocuments(Mean):
    def sums(self, x, segments, before):
        return super().sums(x, (segments != 0).astype(jnp.int32), before)


class SeesWhereItLies(Mean):
    """A document's outputs depend on its place in the row."""

    def sums(self, x, segments, before):
        sums, counts = super().sums(x, segments, before)
        return sums, counts + jnp.arange(x.shape[1])[None]


class ForgetsBetweenPieces(Mean):
    def sums(self, x, segments, before):
        return super().sums(x, segments, jax.tree.map(jnp.zeros_like, before))


class KeepsPadding(Mean):
    """What padding at the end of a piece leaves is kept."""

    def __call__(self, x, *, ctx, cache=None, shared=None):
        y, cache, shared = super().__call__(x, ctx=ctx, cache=cache, shared=shared)
        if cache is not None:
            total, *rest = cache
            cache = (jnp.where((ctx.segments[:, -1] == 0)[:, None], 0.9 * total, total), *rest)
        return y, cache, shared


class CannotDecode(TokenMixer):
    @nn.compact
    def __call__(self, x, *, ctx, cache=None, shared=None):
        return (
            x * self.param("scale", nn.initializers.ones, x.shape[-1:])[None, None],
            cache,
            shared,
        )
