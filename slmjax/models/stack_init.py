"""Initial variables of the stack of blocks, and their declarations.

Both are laid out as {group: {position: a block's tree, each leaf [repeats, ...]}}, see lm.py.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from slmjax.models.architecture import Architecture, Block
from slmjax.models.block import DecoderBlock
from slmjax.models.declare import declarations, unboxed
from slmjax.models.layers import Context
from slmjax.models.mixers import channel_class, mixer_class, mixer_of


class Place(NamedTuple):
    """One place in the stack: a block of a group's pattern."""

    group: int
    position: int  # in the group's pattern
    block: Block
    repeats: int
    lent: dict  # {name: shapes} of what earlier blocks lend to it
    boxed: dict  # {collection: tree of shapes, boxed with their declarations} of its variables


def init_stack(arch: Architecture, key: Array, collection: str) -> dict:
    """Return the stack's initial variables of one collection, "params" or "buffers"."""
    x, ctx = _one_token(arch)
    tree: dict = {}
    for place in _places(arch):
        group_key = jax.random.fold_in(key, place.group)
        place_key = jax.random.fold_in(group_key, place.position)
        keys = jax.random.split(place_key, place.repeats)
        module = DecoderBlock(_without_kernel(arch), place.block)
        # The values do not matter: initial variables depend on shapes only.
        lent = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), place.lent)

        # The defaults bind the values of this place, as the loop goes on.
        def start(layer_key, module=module, lent=lent):
            boxed = module.init(layer_key, x, lent, ctx=ctx)
            return unboxed(boxed).get(collection, {})

        group = tree.setdefault(str(place.group), {})
        # One key for each layer gives the leaves [repeats, ...].
        group[str(place.position)] = jax.vmap(start)(keys)
    return tree


def declare_stack(arch: Architecture, collection: str) -> dict:
    """Return the declarations of the stack's variables of one collection, "params" or "buffers"."""
    tree: dict = {}
    for place in _places(arch):
        group = tree.setdefault(str(place.group), {})
        boxed = place.boxed.get(collection, {})
        group[str(place.position)] = declarations(boxed, place.repeats)
    return tree


def _places(arch: Architecture) -> Iterator[Place]:
    """Yield each place of the stack, first to last."""
    # Shapes of one row of one token, which is enough, as variables do not depend on the tokens.
    across = {}
    for block in arch.blocks:
        across |= mixer_of(arch, block).lends_across(1, 1)
    for group, (pattern, repeats) in enumerate(arch.stack):
        lent = dict(across)
        for position, block in enumerate(pattern):
            # An architecture of this block alone: equal blocks then share an entry of the cache.
            stack = (((block,), 1),)
            alone = dataclasses.replace(_without_kernel(arch), stack=stack, init_scales=())
            channel = None if block.channel == "none" else channel_class(block.channel)
            classes = (mixer_class(block.mixer), channel)
            leaves, structure = jax.tree.flatten(lent)
            lent_after, boxed = _shapes(alone, classes, structure, tuple(leaves))
            yield Place(group, position, block, repeats, lent, boxed)
            lent = lent_after


@functools.lru_cache(maxsize=512)
def _shapes(
    arch: Architecture,
    classes: tuple,
    structure: Any,
    leaves: tuple,
) -> tuple[dict, dict]:
    """Return (what is lent after the only block of `arch`, its boxed variables), as shapes.

    Args:
      classes: the block's mixers. They are part of the cache's key, because a notebook makes
        several classes of one name.
      structure, leaves: the shapes that the block is lent, flattened: a dict cannot be hashed.
    """
    x, ctx = _one_token(arch)
    module = DecoderBlock(arch, arch.blocks[0])

    def start(lent):
        return module.init_with_output(jax.random.key(0), x, lent, ctx=ctx)

    # Traced without a mesh, so that the cached shapes hold for every mesh.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        lent = jax.tree.unflatten(structure, leaves)
        (_, lent_after, _), boxed = jax.eval_shape(start, lent)
    return lent_after, boxed


def _one_token(arch: Architecture) -> tuple[Array, Context]:
    """Return activations [1,1,D] and their context: parameters do not depend on the tokens."""
    segments = jnp.ones((1, 1), jnp.int32)
    positions = jnp.zeros((1, 1), jnp.int32)
    x = jnp.zeros((1, 1, arch.width), arch.compute)
    return x, Context(segments, positions)


def _without_kernel(arch: Architecture) -> Architecture:
    """Return the architecture with the reference attention.

    A device's attention kernel can neither be vmapped nor take a single token.
    """
    return dataclasses.replace(arch, attention="reference")
