"""The token and channel mixers by name, and a user's own by import path."""

import importlib
import inspect
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from slmjax.errors import UserError, first_line, line_of_the_user
from slmjax.models.architecture import Architecture, Block
from slmjax.models.attention import Attention
from slmjax.models.linear_attention import LinearAttention
from slmjax.models.mlp import MLP
from slmjax.models.ssm import SSM

MIXERS = {"attention": Attention, "ssm": SSM, "gla": LinearAttention, "gdn": LinearAttention, "kda": LinearAttention}
CHANNELS = {"mlp": MLP}


def mixer_class(name: str) -> type[nn.Module]:
    """The class of a token mixer: one of the library's, or of an import path "module:Class".

    A class has the fields arch and block, `__call__(x, *, ctx, cache=None, shared=None) -> (y, cache, shared)`, and for decoding a static
    method `empty_cache(arch, block, batch, size)` that returns what it keeps of a row (any pytree).
    Raises: UserError where the path leads nowhere, the module fails, or it is no Flax module.
    """
    if name in MIXERS:
        return MIXERS[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the user's own module runs here
        place = line_of_the_user(error)
        where = f"'{place[0]}', line {place[1]}: {type(error).__name__}: " if place else ""
        raise UserError(f"config.model.pattern names the mixer '{name}': {where}{first_line(error).rstrip('.')}.") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"config.model.pattern names the mixer '{name}', which is {found!r}; expected a class of flax.linen.Module.")
    _check_signature(name, found)
    return found


def _check_signature(name: str, mixer: type[nn.Module]) -> None:
    """Raises: UserError for a class that cannot be made or called as the library's blocks do it."""
    if missing := [field for field in ("arch", "block") if field not in mixer.__dataclass_fields__]:
        raise UserError(f"the mixer '{name}' has no field '{missing[0]}'; expected the fields arch and block.")
    try:
        inspect.signature(mixer.__call__).bind(None, "x", ctx=None, cache=None, shared=None)
    except TypeError as error:
        raise UserError(
            f"the mixer '{name}' cannot be called ({error}); expected __call__(self, x, *, ctx, cache=None, shared=None)."
        ) from None


def check_output(name: str, output: Any, shape: tuple[int, ...]) -> None:
    """Raises: UserError where what a mixer returned is not (y, cache, shared) with a y like its input."""
    if not (isinstance(output, tuple) and len(output) == 3):
        raise UserError(f"the mixer '{name}' returned {type(output).__name__}; expected (y, cache, shared).")
    found = getattr(output[0], "shape", None)
    if found != shape:
        raise UserError(f"the mixer '{name}' returned y of shape {found}; expected its input's, {shape}.")
    if not jnp.issubdtype(output[0].dtype, jnp.floating):
        raise UserError(f"the mixer '{name}' returned y of type {output[0].dtype}; expected floating-point numbers.")


def empty_cache(arch: Architecture, block: Block, batch: int, size: int):
    """What the block's mixer keeps of `batch` rows before their first token; see models/cache.py.

    Raises: UserError for a user's mixer that cannot decode.
    """
    mixer = mixer_class(block.mixer)
    if not hasattr(mixer, "empty_cache"):
        raise UserError(f"the mixer '{block.mixer}' has no empty_cache(arch, block, batch, size): it can be trained, but not generate.")
    return mixer.empty_cache(arch, block, batch, size)
