"""Stacked layers and rematerialisation: how a scan or an unrolled loop runs over the stack."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.errors import UserError

NAMES = ("query", "key", "value", "mixed", "gate", "up")  # activations that remat can keep


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unstack(tree: Any, repeats: int) -> list:
    """Return the trees of the `repeats` layers of a stacked tree.

    Its gradient is one concatenation. That of slices would be `repeats` sums of full arrays.
    """
    return [jax.tree.map(lambda leaf, r=r: leaf[r], tree) for r in range(repeats)]


# The forward pass keeps nothing: a slice is linear.
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
        to keep, among NAMES.
    Raises: UserError for another name.
    """
    if name == "none":
        return lambda f: f
    # What is not kept is computed again in the backward pass.
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
