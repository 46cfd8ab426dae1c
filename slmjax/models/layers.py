"""The small parts that every block uses: RMSNorm, parameter declaration, the context that travels with activations."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slmjax.models.architecture import Architecture
from slmjax.ops import fp8
from slmjax.parallel.mesh import ways


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer may know about its tokens: segments [B,T] (0 is padding), positions [B,T], and per-token ids made on the host.

    With a cache, also the slots that the tokens take in it (cache.Slots).
    """

    segments: Any
    positions: Any
    ids: Any = None
    slots: Any = None


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, in the reductions' type. Source: Zhang and Sennrich 2019."""

    arch: Architecture

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.dtype(self.arch.params))
        scale = jnp.expand_dims(scale, range(x.ndim - 1))
        wide = x.astype(self.arch.reductions)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.arch.norm_eps) * scale.astype(wide.dtype)).astype(x.dtype)


def weight(module: nn.Module, name: str, shape: tuple[int, ...], fan_in: int, scale: float = 1.0) -> Array:
    """A matrix drawn from a normal of deviation scale / sqrt(fan_in), cast to the compute type."""
    arch = module.arch
    deviation = scale * fan_in**-0.5 * dict(arch.init_scales).get("matrix", 1.0)
    return module.param(name, nn.initializers.normal(deviation), shape, jnp.dtype(arch.params)).astype(arch.compute)


def products(module: nn.Module, site: str, x: Array, weights: dict[str, Array], *, fused: bool = False) -> tuple[Array, ...]:
    """x [B,T,...I] times each of a module's weights [...I, ...O], named as its parameters; in float8 where there are scales for the `site`.

    The scales are read from the collections "scales" and "weight_scales", which lm.forward fills from its buffers and parameters.
    Args:
      fused: one product with the weights side by side, unless they are split over devices: better for narrow weights, worse for wide ones,
        whose gradients then have to be laid side by side.
    """
    inner = x.ndim - 2
    float8 = module.has_variable("scales", site)
    if module.is_initializing() and module.arch.products == "float8":
        module.variable("scales", site, fp8.start)
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
        out = fp8.products(x, flat, module.get_variable("scales", site), of_weights)
    else:
        out = (x @ flat[0],)
    out = jax.lax.split(out[0], widths, axis=2) if joined else out
    return tuple(y.reshape(*y.shape[:2], *shape) for y, shape in zip(out, shapes))


def residual_scale(arch: Architecture) -> float:
    """Initial scale of matrices that write into the residual stream. Source: Radford et al. 2019 (GPT-2), section 2.3."""
    return (2 * len(arch.applications)) ** -0.5
