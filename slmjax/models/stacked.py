"""Stacked layers taken apart and put together, and the rematerialisation of blocks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError

# Activations that remat can keep: the mixers give them these names with checkpoint_name.
NAMES = ("query", "key", "value", "mixed", "gate", "up")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(tree: Any, repeats: int) -> list:
    """Return the trees of the `repeats` layers of a stacked tree.

    Its gradient is written by hand, as one concatenation. JAX's own, of slices, would be `repeats`
    sums of full arrays.
    """
    return [jax.tree.map(lambda leaf, r=r: leaf[r], tree) for r in range(repeats)]


# The forward pass saves nothing for the backward pass: a slice is linear.
def _unstack_forward(tree, repeats):
    return unstack(tree, repeats), None


def _unstack_backward(repeats, _, gradients):
    return (stack(gradients),)


unstack.defvjp(_unstack_forward, _unstack_backward)


def stack(trees: list) -> Any:
    """Return one tree with a leading layer axis from the trees of single layers."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def remat(name: str) -> Callable:
    """Return the transformation of a block's function that config.model.remat names.

    Args:
      name: none, full (keep nothing), dots (keep products), or comma-separated names of activations
        to keep, among NAMES. What is not kept is computed again in the backward pass.
    Raises: UserError for another name.
    """
    if name == "none":
        return lambda function: function
    policies = jax.checkpoint_policies
    if name == "full":
        policy = policies.nothing_saveable
    elif name == "dots":
        policy = policies.dots_with_no_batch_dims_saveable
    else:
        names = tuple(part.strip() for part in name.split(","))
        if not set(names) <= set(NAMES):
            expected = f"none, full, dots, or names among {', '.join(NAMES)}"
            raise UserError(f"config.model.remat is '{name}'; it can be {expected}.")
        policy = policies.save_only_these_names(*names)
    return functools.partial(jax.checkpoint, policy=policy)
