"""The token and channel mixers by name, and a user's own by import path."""

import dataclasses
import functools
import inspect
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from slmjax.errors import UserError, imported
from slmjax.models.architecture import Architecture, Block
from slmjax.models.attention import Attention
from slmjax.models.layers import ChannelMixer, TokenMixer
from slmjax.models.linear_attention import GatedDeltaNet, GatedLinearAttention, KimiDeltaAttention
from slmjax.models.mlp import MLP
from slmjax.models.ssm import SSM

MIXERS = {
    "attention": Attention,
    "ssm": SSM,
    "gla": GatedLinearAttention,
    "gdn": GatedDeltaNet,
    "kda": KimiDeltaAttention,
}
CHANNELS = {"mlp": MLP}
OPTIONS = (bool, int, float, str)  # the kinds of values that a pattern may give


def mixer_class(name: str) -> type[TokenMixer]:
    """Return the class of a token mixer: one of the library's, or of an import path "module:Class".

    Raises: UserError where the path leads nowhere, the module fails, or it is no TokenMixer, or
      Flax module with the fields arch and block.
    """
    return MIXERS.get(name) or _as_token_mixer(_imported(name, "mixer", TokenMixer))


def channel_class(name: str) -> type[ChannelMixer]:
    """Return the class of a channel mixer, as `mixer_class` does."""
    return CHANNELS.get(name) or _imported(name, "channel mixer", ChannelMixer)


def mixer_of(arch: Architecture, block: Block, **flax: Any) -> TokenMixer:
    """Return a block's token mixer with its options."""
    kind = mixer_class(block.mixer)
    return kind(arch, **_of(kind, block), **flax)


def channel_of(arch: Architecture, block: Block, **flax: Any) -> ChannelMixer:
    """Return a block's channel mixer with its options; the block must have one."""
    kind = channel_class(block.channel)
    return kind(arch, **_of(kind, block), **flax)


def options_of(mixer: str, channel: str) -> dict[str, type]:
    """Return {option: kind of its value} that a block of these two takes.

    Raises: UserError where both have a field of the same name.
    """
    token = _fields(mixer_class(mixer))
    other = {} if channel == "none" else _fields(channel_class(channel))
    both = sorted(token.keys() & other.keys())
    if both:
        raise UserError(
            f"config.model.pattern: '{mixer}' and '{channel}' both have the option '{both[0]}'; rename one of them."
        )
    return token | other


def check_output(name: str, output: Any, shape: tuple[int, ...]) -> None:
    """Raises: UserError where what a user's mixer returned is not (y, ., .) with a y like its input."""
    if not (isinstance(output, tuple) and len(output) == 3):
        raise UserError(
            f"the mixer '{name}' returned {type(output).__name__}; expected (y, cache, shared), or (y, terms, seen) of a channel mixer."
        )
    found = getattr(output[0], "shape", None)
    if found != shape:
        raise UserError(
            f"the mixer '{name}' returned y of shape {found}; expected its input's, {shape}."
        )
    if not jnp.issubdtype(output[0].dtype, jnp.floating):
        raise UserError(
            f"the mixer '{name}' returned y of type {output[0].dtype}; expected floating-point numbers."
        )


def _imported(name: str, what: str, base: type) -> type:
    found = imported(name, f"config.model.pattern names the {what}")
    older = (
        base is TokenMixer
        and isinstance(found, type)
        and issubclass(found, nn.Module)
        and {"arch", "block"} <= _names(found)
    )
    if not older and not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"config.model.pattern names the {what} '{name}', which is {found!r}; expected a "
            f"subclass of slmjax.models.layers.{base.__name__}."
        )
    call = {"cache": None, "shared": None} if base is TokenMixer else {}
    try:
        inspect.signature(found.__call__).bind(None, "x", ctx=None, **call)
    except TypeError as error:
        expected = ", cache=None, shared=None" if call else ""
        raise UserError(
            f"the {what} '{name}' cannot be called ({error}); expected __call__(self, x, *, ctx{expected})."
        ) from None
    return found


@functools.cache
def _as_token_mixer(found: type[nn.Module]) -> type[TokenMixer]:
    """The class itself, or a TokenMixer of a Flax module with the fields arch and block.

    Such a module has a static method `empty_cache(arch, block, batch, size)`, or cannot decode.
    """
    if issubclass(found, TokenMixer):
        return found

    class Adapted(found, TokenMixer):
        def empty_cache(self, *sizes: Any) -> Any:
            if not hasattr(found, "empty_cache"):
                return TokenMixer.empty_cache(self, *sizes)
            return found.empty_cache(
                *(sizes if len(sizes) == 4 else (self.arch, self.block, *sizes))
            )

    Adapted.__module__, Adapted.__qualname__ = found.__module__, found.__qualname__
    return Adapted


def _names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _fields(kind: type) -> dict[str, type]:
    """The options of a mixer's class: its own fields with a default, and the default's type."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.name not in ("arch", "parent", "name") and type(field.default) in OPTIONS:
            found[field.name] = type(field.default)
    return found


def _of(kind: type, block: Block) -> dict[str, Any]:
    known = _fields(kind)
    given = {name: value for name, value in block.options if name in known}
    return given | ({"block": block} if "block" in _names(kind) else {})
