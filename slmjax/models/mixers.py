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
OPTIONS = (bool, int, float, str)  # the types of values that a pattern may give
FLAX_FIELDS = ("arch", "parent", "name")  # fields of every mixer that are no options


def mixer_class(name: str) -> type[TokenMixer]:
    """Return the class of a token mixer: one of the library's, or of an import path "module:Class".

    Raises: UserError if the path leads nowhere, the module fails, or the class is neither a
      TokenMixer nor a Flax module with the fields arch and block.
    """
    if name in MIXERS:
        return MIXERS[name]
    return _as_token_mixer(_imported(name, "mixer", TokenMixer))


def channel_class(name: str) -> type[ChannelMixer]:
    """Return the class of a channel mixer, as `mixer_class` does."""
    if name in CHANNELS:
        return CHANNELS[name]
    return _imported(name, "channel mixer", ChannelMixer)


def mixer_of(arch: Architecture, block: Block, **flax: Any) -> TokenMixer:
    """Return a block's token mixer with its options.

    Args:
      flax: arguments of every Flax module, such as name.
    """
    kind = mixer_class(block.mixer)
    return kind(arch, **_arguments(kind, block), **flax)


def channel_of(arch: Architecture, block: Block, **flax: Any) -> ChannelMixer:
    """Return a block's channel mixer with its options; the block must have one."""
    kind = channel_class(block.channel)
    return kind(arch, **_arguments(kind, block), **flax)


def options_of(mixer: str, channel: str) -> dict[str, type]:
    """Return {option: type of its value} that a block of these two takes.

    Raises: UserError if both have a field of the same name.
    """
    token_options = _options(mixer_class(mixer))
    if channel == "none":
        return token_options
    channel_options = _options(channel_class(channel))
    # In a block's text an option has no prefix that says whose it is.
    both = sorted(token_options.keys() & channel_options.keys())
    if both:
        fault = f"'{mixer}' and '{channel}' both have the option '{both[0]}'"
        raise UserError(f"config.model.pattern: {fault}; rename one of them.")
    return token_options | channel_options


def check_output(name: str, output: Any, shape: tuple[int, ...]) -> None:
    """Check the output of a user's mixer: (y, ., .) with a y like its input.

    Raises: UserError that says what was returned, and what is expected.
    """
    what = f"the mixer '{name}' returned"
    if not (isinstance(output, tuple) and len(output) == 3):
        expected = "expected (y, cache, shared), or (y, terms, seen) of a channel mixer"
        raise UserError(f"{what} {type(output).__name__}; {expected}.")
    y = output[0]
    y_shape = getattr(y, "shape", None)
    if y_shape != shape:
        raise UserError(f"{what} y of shape {y_shape}; expected its input's, {shape}.")
    # Any floating-point type is cast to that of the residual stream.
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise UserError(f"{what} y of type {y.dtype}; expected floating-point numbers.")


def _imported(name: str, what: str, base: type) -> type:
    """Return the class of an import path, which must be a mixer of this base class."""
    named = f"config.model.pattern names the {what}"
    kind = imported(name, named)
    if not _fits(kind, base):
        expected = f"a subclass of slmjax.models.layers.{base.__name__}"
        raise UserError(f"{named} '{name}', which is {kind!r}; expected {expected}.")
    call, expected = {}, ""
    if base is TokenMixer:
        call, expected = {"cache": None, "shared": None}, ", cache=None, shared=None"
    try:
        # As a block calls it; the values do not matter.
        inspect.signature(kind.__call__).bind(None, "x", ctx=None, **call)
    except TypeError as error:
        expected = f"expected __call__(self, x, *, ctx{expected})"
        raise UserError(f"the {what} '{name}' cannot be called ({error}); {expected}.") from None
    return kind


def _fits(kind: Any, base: type) -> bool:
    # An import path may lead to anything.
    if not isinstance(kind, type):
        return False
    # Mixers of earlier versions were plain Flax modules with the fields arch and block.
    older = base is TokenMixer and issubclass(kind, nn.Module)
    return issubclass(kind, base) or (older and {"arch", "block"} <= _field_names(kind))


@functools.cache
def _as_token_mixer(kind: type[nn.Module]) -> type[TokenMixer]:
    """Return the class itself, or a TokenMixer of a Flax module with the fields arch and block.

    Such a module has a static method `empty_cache(arch, block, batch, size)`, or cannot decode.
    """
    if issubclass(kind, TokenMixer):
        return kind

    class Adapted(kind, TokenMixer):
        def empty_cache(self, *sizes: Any) -> Any:
            if not hasattr(kind, "empty_cache"):
                return TokenMixer.empty_cache(self, *sizes)
            if len(sizes) == 4:
                # The module's own call of its static method.
                return kind.empty_cache(*sizes)
            return kind.empty_cache(self.arch, self.block, *sizes)

    # Saved runs and error messages name the user's class.
    Adapted.__module__, Adapted.__qualname__ = kind.__module__, kind.__qualname__
    return Adapted


def _field_names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _options(kind: type) -> dict[str, type]:
    """Return {option: type} of a mixer's class: its own fields with a default."""
    options = {}
    for field in dataclasses.fields(kind):
        if field.name not in FLAX_FIELDS and type(field.default) in OPTIONS:
            options[field.name] = type(field.default)
    return options


def _arguments(kind: type, block: Block) -> dict[str, Any]:
    """Return the fields of a mixer's class that a block sets."""
    known = _options(kind)
    # A block's options are those of both its mixers.
    arguments = {name: value for name, value in block.options if name in known}
    if "block" in _field_names(kind):
        arguments["block"] = block
    return arguments
