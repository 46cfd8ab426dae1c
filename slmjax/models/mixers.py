"""The token and channel mixers by name, and a user's own by import path."""

import importlib

import flax.linen as nn

from slmjax.errors import UserError
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
    Raises: UserError where the path leads nowhere.
    """
    if name in MIXERS:
        return MIXERS[name]
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"config.model.pattern names the mixer '{name}': {error}.") from error


def empty_cache(arch: Architecture, block: Block, batch: int, size: int):
    """What the block's mixer keeps of `batch` rows before their first token; see models/cache.py.

    Raises: UserError for a user's mixer that cannot decode.
    """
    mixer = mixer_class(block.mixer)
    if not hasattr(mixer, "empty_cache"):
        raise UserError(f"the mixer '{block.mixer}' has no empty_cache(arch, block, batch, size): it can be trained, but not generate.")
    return mixer.empty_cache(arch, block, batch, size)
