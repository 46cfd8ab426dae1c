"""The parts from which blocks are made: mixers' interfaces, RMSNorm, and products with weights.

A user's own mixer is a subclass of TokenMixer (or ChannelMixer) that config.model.pattern names by
its import path, "module:Class". It declares its parameters with `weight`, and the library derives
sharding, optimizer, counts and FLOPs from that. `slmjax.testing.check_mixer` checks it.

    class Mean(TokenMixer):
        \"\"\"The mean of a document's tokens so far, times a matrix.\"\"\"

        @nn.compact
        def __call__(self, x, *, ctx, cache=None, shared=None):
            D, T = x.shape[-1], x.shape[1]
            mix = weight(self, "mix", (D, D), axes=("width", None), inputs=(0,), outputs=(1,))
            same = ctx.segments[:, :, None] == ctx.segments[:, None, :]  # [B,T,S]
            seen = (same & jnp.tri(T, dtype=bool)[None]).astype(x.dtype)
            mean = seen @ x / seen.sum(-1, keepdims=True)
            return mean @ mix, cache, shared
"""

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
    """What a layer may know about the tokens of a batch, besides their activations.

    A layer must use `segments`: no token may see another document, in attention, convolutions and
    recurrent states alike.
    """

    segments: Any  # [B,T] document of each token in its row, from 1 on; 0 is padding
    positions: Any  # [B,T], counted from 0 in each document
    ids: Any = None  # ids computed on the host for each token, such as n-gram ids
    slots: Any = None  # cache.Slots that the tokens take, with a cache only
    # Documents that a device holds at most, for cuDNN's attention; see data/rows.text_fields.
    places: int | None = dataclasses.field(default=None, metadata={"static": True})


class TokenMixer(nn.Module):
    """The base class of what mixes the tokens of a row: attention, a recurrence, or a user's own.

    A subclass defines `__call__`. Its further fields are the options that config.model.pattern may
    set (bool, int, float or str), each with its default: "gdn heads=2". To generate text it also
    defines `empty_cache`. Training, prefill in pieces and decoding of single tokens all use
    `__call__`; the last two pass the cache that the previous call returned.
    """

    arch: Architecture

    def __call__(
        self,
        x: Array,
        *,
        ctx: Context,
        cache: Any = None,
        shared: dict | None = None,
    ) -> tuple[Array, Any, dict | None]:
        """Return (y [B,T,D], the cache with these tokens, what later blocks find as `shared`).

        Args:
          x: [B,T,D], normed.
          cache: from `empty_cache`, or from the call before; None in training. A call's T tokens
            may be any number, and rows may end with padding, which must not change the cache.
          shared: {name: value} that earlier blocks lend. A lender returns it with its own added.
        """
        raise NotImplementedError

    def empty_cache(self, batch: int, size: int) -> Any:
        """Return the decode state of `batch` rows before their first token; any tree of arrays.

        Args:
          size: the most tokens that a row will have.
        Raises: UserError if the subclass does not define it: it can be trained, but not generate.
        """
        raise UserError(
            f"the mixer '{type(self).__module__}:{type(self).__qualname__}' has no "
            "empty_cache(self, batch, size): it can be trained, but not generate."
        )

    def flops(self, seq_len: int, *, causal: bool = True) -> float:
        """Return FLOPs of a token in products without parameters, such as queries times keys.

        Args:
          seq_len: T of training.
          causal: False counts products with later tokens too, as the dense reference makes them.
        """
        return 0.0

    def lends(self) -> tuple[str, ...]:
        """Return the names that it adds to `shared`, for later blocks of the same repeat."""
        return ()

    def lends_across(self, batch: int, length: int) -> dict[str, Any]:
        """Return {name: tree of ShapeDtypeStructs} of what it lends to later repeats as well.

        Before the first block that lends, such a name holds zeros.
        """
        return {}

    def borrowed(self) -> tuple[str, ...]:
        """Return the names that it reads from `shared`."""
        return ()


class Term(NamedTuple):
    """An auxiliary term of a layer: a sum over real tokens, logged as the mean of a token."""

    sum: Any
    coefficient: float = 0.0  # coefficient times the sum is added to the loss


class ChannelMixer(nn.Module):
    """The base class of what mixes the channels of each token: an MLP, experts, or a user's own.

    A subclass defines `__call__(x, *, ctx) -> (y, terms, seen)`. terms is {name: Term}. seen is
    {name: observation} of the buffers with a forward channel (see declare.buffer). Fields are
    options, as in TokenMixer.
    """

    arch: Architecture


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in float32. Source: Zhang and Sennrich 2019."""

    arch: Architecture

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = weight(
            self,
            "scale",
            x.shape[-1:],
            init=nn.initializers.ones,
            group="vector",
        )
        scale = jnp.expand_dims(scale, range(x.ndim - 1))  # [D] -> [1,...,D]
        # A mean of squares in bfloat16 would lose digits.
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.arch.norm_eps)
        return (normed * scale.astype(wide.dtype)).astype(x.dtype)


def project(
    module: nn.Module,
    site: str,
    x: Array,
    weights: dict[str, Array],
    *,
    fused: bool = False,
) -> tuple[Array, ...]:
    """Return the products of x [B,T,...I] with each of a module's weights [...I, ...O].

    If the module has scales for the `site`, the products are in float8. The scales of inputs and
    gradients are buffers. Those of weights are in the collection "weight_scales", which lm.forward
    makes from the parameters.

    Args:
      site: name of these products in the module; x has one scale there.
      weights: by the names of the parameters.
      fused: make one product with the weights side by side, unless they are split over devices.
        This is faster for narrow weights, and slower for wide ones, whose gradients then have to be
        laid side by side.
    """
    summed_axes = x.ndim - 2  # how many dimensions I has
    if module.is_initializing() and module.arch.products == "float8":
        _declare_scales(module, site)
    # Scales of weights do not exist yet while the module is initialised.
    float8 = module.has_variable("buffers", site) and not module.is_initializing()
    joined = fused and ways("tensor") == 1
    if not float8 and not joined:
        # One product for each weight, which may be split over devices by its heads.
        return tuple(jnp.tensordot(x, w, summed_axes) for w in weights.values())

    # Plain matrices: [...I, ...O] -> [I,O] and [B,T,...I] -> [B,T,I].
    shapes, matrices, widths = [], [], []
    for w in weights.values():
        matrix = w.reshape(math.prod(w.shape[:summed_axes]), -1)
        matrices.append(matrix)
        shapes.append(w.shape[summed_axes:])
        widths.append(matrix.shape[1])
    x = x.reshape(*x.shape[:2], -1)
    if joined:
        matrices = [jnp.concatenate(matrices, axis=1)]
    if float8:
        weight_scales = tuple(module.get_variable("weight_scales", name) for name in weights)
        if joined:
            # The joined matrix has one scale: the largest suits the values of every part.
            weight_scales = (functools.reduce(jnp.maximum, weight_scales),)
        scales = module.get_variable("buffers", site)
        flat_products = fp8.products(x, tuple(matrices), scales, weight_scales)
    else:
        # Not float8, so `joined` is True and there is one matrix.
        flat_products = (x @ matrices[0],)
    if joined:
        # Split the joined product [B,T,sum of O] into one for each weight.
        flat_products = jax.lax.split(flat_products[0], widths, axis=2)
    # [B,T,O] -> [B,T,...O].
    products = []
    for y, shape in zip(flat_products, shapes):
        products.append(y.reshape(*y.shape[:2], *shape))
    return tuple(products)


def _declare_scales(module: nn.Module, site: str) -> None:
    """Create the buffer of a site's float8 scales. Its 'gradient' is the step's largest values."""
    buffer(
        module,
        site,
        fp8.initial_scales,
        channel="cotangent",
        combine="max",
        update=fp8.next_scales,
    )


def residual_scale(arch: Architecture) -> float:
    """Return the factor on the initial deviation of matrices that write into the residual stream.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    # A block writes twice: its token mixer and its channel mixer.
    return (2 * len(arch.applications)) ** -0.5
