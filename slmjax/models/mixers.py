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
OPTION_TYPES = (bool, int, float, str)  # of the values that a pattern may give
NOT_OPTIONS = ("arch", "parent", "name")  # fields that every mixer has


def mixer_class(name: str) -> type[TokenMixer]:
    """Return the class of a token mixer, by a name in MIXERS or an import path "module:Class".

    Raises: UserError if the path leads nowhere, the module fails, the class is neither a TokenMixer
      nor a Flax module with the fields arch and block, or a block cannot call it.
    """
    if name in MIXERS:
        return MIXERS[name]
    return _as_token_mixer(_imported(name, "mixer", TokenMixer))


def channel_class(name: str) -> type[ChannelMixer]:
    """Return the class of a channel mixer, by a name in CHANNELS or an import path "module:Class".

    Raises: UserError as `mixer_class`, but the class must be a ChannelMixer.
    """
    if name in CHANNELS:
        return CHANNELS[name]
    return _imported(name, "channel mixer", ChannelMixer)


def mixer_of(arch: Architecture, block: Block, **flax: Any) -> TokenMixer:
    """Return a block's token mixer with its options.

    Args:
      flax: arguments that every Flax module takes, such as name.
    """
    mixer_type = mixer_class(block.mixer)
    return mixer_type(arch, **_arguments(mixer_type, block), **flax)


def channel_of(arch: Architecture, block: Block, **flax: Any) -> ChannelMixer:
    """Return a block's channel mixer with its options; the block's channel is not "none"."""
    mixer_type = channel_class(block.channel)
    return mixer_type(arch, **_arguments(mixer_type, block), **flax)


def options_of(mixer: str, channel: str) -> dict[str, type]:
    """Return {option: type of its value} of a block with this token mixer and channel mixer.

    Raises: UserError if both mixers have an option of the same name.
    """
    token_options = _options(mixer_class(mixer))
    if channel == "none":
        return token_options
    channel_options = _options(channel_class(channel))
    # A block's text does not say which of its mixers an option is for.
    common = sorted(token_options.keys() & channel_options.keys())
    if common:
        fault = f"'{mixer}' and '{channel}' both have the option '{common[0]}'"
        raise UserError(f"config.model.pattern: {fault}; rename one of them.")
    return token_options | channel_options


def check_output(name: str, output: Any, shape: tuple[int, ...]) -> None:
    """Check that a user's mixer returned three values, the first an array like its input.

    Args:
      name: import path of the mixer.
      shape: of the input.
    Raises: UserError that says what was returned, and what is expected.
    """
    returned = f"the mixer '{name}' returned"
    if not (isinstance(output, tuple) and len(output) == 3):
        expected = "expected (y, cache, shared), or (y, terms, seen) of a channel mixer"
        raise UserError(f"{returned} {type(output).__name__}; {expected}.")
    y = output[0]
    y_shape = getattr(y, "shape", None)
    if y_shape != shape:
        raise UserError(f"{returned} y of shape {y_shape}; expected its input's, {shape}.")
    # Any floating-point type will do: the block casts it to that of the residual stream.
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise UserError(f"{returned} y of type {y.dtype}; expected floating-point numbers.")


def _imported(path: str, role: str, base: type) -> type:
    """Return the mixer class of an import path, which must be called as its base class is.

    Args:
      role: what the pattern uses it as, for messages.
      base: TokenMixer or ChannelMixer.
    Raises: UserError as `mixer_class` or `channel_class`.
    """
    named = f"config.model.pattern names the {role}"
    mixer_type = imported(path, named)
    if not _fits(mixer_type, base):
        expected = f"a subclass of slmjax.models.layers.{base.__name__}"
        raise UserError(f"{named} '{path}', which is {mixer_type!r}; expected {expected}.")
    # The arguments with which a block calls a mixer; their values do not matter.
    arguments = {"ctx": None}
    signature = "__call__(self, x, *, ctx)"
    if base is TokenMixer:
        arguments = {"ctx": None, "cache": None, "shared": None}
        signature = "__call__(self, x, *, ctx, cache=None, shared=None)"
    try:
        inspect.signature(mixer_type.__call__).bind("self", "x", **arguments)
    except TypeError as error:
        fault = f"cannot be called ({error}); expected {signature}"
        raise UserError(f"the {role} '{path}' {fault}.") from None
    return mixer_type


def _fits(imported_object: Any, base: type) -> bool:
    """Whether what an import path leads to is a mixer class of this base."""
    if not isinstance(imported_object, type):
        return False
    if issubclass(imported_object, base):
        return True
    # Token mixers of earlier versions were plain Flax modules with the fields arch and block.
    may_be_older = base is TokenMixer and issubclass(imported_object, nn.Module)
    return may_be_older and {"arch", "block"} <= _field_names(imported_object)


@functools.cache
def _as_token_mixer(mixer_type: type[nn.Module]) -> type[TokenMixer]:
    """Return a TokenMixer as it is, and a Flax module of an earlier version as a TokenMixer.

    Such a module has a static method `empty_cache(arch, block, batch, size)`, or cannot decode.
    """
    if issubclass(mixer_type, TokenMixer):
        return mixer_type

    class Adapted(mixer_type, TokenMixer):
        def empty_cache(self, *arguments: Any) -> Any:
            if not hasattr(mixer_type, "empty_cache"):
                return TokenMixer.empty_cache(self, *arguments)
            # The library passes (batch, size). The module's own code, which calls its static method
            # as self.empty_cache, passes (arch, block, batch, size).
            if len(arguments) == 4:
                return mixer_type.empty_cache(*arguments)
            return mixer_type.empty_cache(self.arch, self.block, *arguments)

    # Saved runs and error messages name the user's class.
    Adapted.__module__ = mixer_type.__module__
    Adapted.__qualname__ = mixer_type.__qualname__
    return Adapted


def _field_names(mixer_type: type) -> set[str]:
    return {field.name for field in dataclasses.fields(mixer_type)}


def _options(mixer_type: type) -> dict[str, type]:
    """Return {option: type of its value}: the fields of a mixer's own that have a default."""
    options = {}
    for field in dataclasses.fields(mixer_type):
        if field.name not in NOT_OPTIONS and type(field.default) in OPTION_TYPES:
            options[field.name] = type(field.default)
    return options


def _arguments(mixer_type: type, block: Block) -> dict[str, Any]:
    """Return the fields of a mixer's class that a block sets."""
    options = _options(mixer_type)
    # A block has the options of both its mixers.
    arguments = {name: value for name, value in block.options if name in options}
    if "block" in _field_names(mixer_type):
        arguments["block"] = block
    return arguments
