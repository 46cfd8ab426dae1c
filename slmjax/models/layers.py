"""The small parts that every block uses: RMSNorm, products, what a token mixer is, and the context of the tokens."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slmjax.errors import UserError
from slmjax.models.architecture import Architecture
from slmjax.models.declare import buffer, weight
from slmjax.ops import fp8
from slmjax.parallel.mesh import ways


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer may know about its tokens: segments [B,T] (0 is padding), positions [B,T], and per-token ids made on the host.

    With a cache, also the slots that the tokens take in it (cache.Slots). places: documents that a
    device holds at most, where an attention kernel asks (see data/rows.py, `text_fields`).
    """

    segments: Any
    positions: Any
    ids: Any = None
    slots: Any = None
    places: int | None = dataclasses.field(default=None, metadata={"static": True})


class TokenMixer(nn.Module):
    """What mixes tokens of a row: attention, a recurrence, or a user's own.

    A subclass defines `__call__`; further fields are the options that config.model.pattern may set
    (bool, int, float or str), each with its default.
    """

    arch: Architecture

    def __call__(
        self, x: Array, *, ctx: Context, cache: Any = None, shared: dict | None = None
    ) -> tuple[Array, Any, dict | None]:
        """Return (y [B,T,D], cache, shared); see the classes of the library.

        Args:
          x: [B,T,D], normed.
          cache: what `empty_cache` returned, or a call before; None in training.
          shared: {name: value} of what blocks before lend; a lender returns it with its own added.
        """
        raise NotImplementedError

    def empty_cache(self, batch: int, size: int) -> Any:
        """Return what is kept of `batch` rows before their first token; `size` is the most tokens.

        Padding must change nothing in it.
        Raises: UserError where the mixer does not say; it can be trained, but not generate.
        """
        raise UserError(
            f"the mixer '{type(self).__module__}:{type(self).__qualname__}' has no "
            "empty_cache(self, batch, size): it can be trained, but not generate."
        )

    def flops(self, seq_len: int, *, causal: bool = True) -> float:
        """Return FLOPs of a token in products that no parameter takes part in.

        Args:
          seq_len: T of training.
          causal: False counts products with later tokens too, as the dense reference computes them.
        """
        return 0.0

    def lends(self) -> tuple[str, ...]:
        """Names that it adds to `shared`, for later blocks of the same repeat of the pattern."""
        return ()

    def lends_across(self, batch: int, length: int) -> dict[str, Any]:
        """{name: tree of ShapeDtypeStructs} of what it lends to later repeats as well.

        Before the first block that lends, such a name holds zeros.
        """
        return {}

    def borrowed(self) -> tuple[str, ...]:
        """Names that it reads from `shared`."""
        return ()


class Term(NamedTuple):
    """An auxiliary term of a layer: a sum over real tokens, logged as their mean.

    coefficient: times the sum, it is added to the loss.
    """

    sum: Any
    coefficient: float = 0.0


class ChannelMixer(nn.Module):
    """What mixes the channels of each token: an MLP, experts, or a user's own.

    A subclass defines `__call__(x, *, ctx) -> (y, terms, seen)`: terms is {name: Term}, seen the
    observation of each buffer with a forward channel by its name. Fields are options, as in
    TokenMixer.
    """

    arch: Architecture


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32. Source: Zhang and Sennrich 2019."""

    arch: Architecture

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = weight(self, "scale", x.shape[-1:], init=nn.initializers.ones, group="vector")
        scale = jnp.expand_dims(scale, range(x.ndim - 1))
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (
            wide * jax.lax.rsqrt(mean_square + self.arch.norm_eps) * scale.astype(wide.dtype)
        ).astype(x.dtype)


def project(
    module: nn.Module, site: str, x: Array, weights: dict[str, Array], *, fused: bool = False
) -> tuple[Array, ...]:
    """x [B,T,...I] times each of a module's weights [...I, ...O], named as its parameters; in float8 where there are scales for the `site`.

    The scales of inputs and gradients are buffers; those of weights are in the collection
    "weight_scales", which lm.forward makes from the parameters.

    Args:
      fused: one product with the weights side by side, unless they are split over devices: better for narrow weights, worse for wide ones,
        whose gradients then have to be laid side by side.
    """
    inner = x.ndim - 2
    if module.is_initializing() and module.arch.products == "float8":
        buffer(
            module,
            site,
            fp8.initial_scales,
            channel="cotangent",
            combine="max",
            update=fp8.next_scales,
        )
    float8 = module.has_variable("buffers", site) and not module.is_initializing()
    joined = fused and ways("tensor") == 1
    if not float8 and not joined:
        return tuple(jnp.tensordot(x, w, inner) for w in weights.values())
    shapes = [w.shape[inner:] for w in weights.values()]
    flat = tuple(w.reshape(math.prod(w.shape[:inner]), -1) for w in weights.values())
    widths = [w.shape[1] for w in flat]
    x, flat = x.reshape(*x.shape[:2], -1), (jnp.concatenate(flat, axis=1),) if joined else flat
    if float8:
        of_weights = tuple(module.get_variable("weight_scales", name) for name in weights)
        of_weights = (functools.reduce(jnp.maximum, of_weights),) if joined else of_weights
        out = fp8.products(x, flat, module.get_variable("buffers", site), of_weights)
    else:
        out = (x @ flat[0],)
    out = jax.lax.split(out[0], widths, axis=2) if joined else out
    return tuple(y.reshape(*y.shape[:2], *shape) for y, shape in zip(out, shapes))


def residual_scale(arch: Architecture) -> float:
    """Initial scale of matrices that write into the residual stream. Source: Radford et al. 2019 (GPT-2), section 2.3."""
    return (2 * len(arch.applications)) ** -0.5
