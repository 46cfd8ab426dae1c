"""Sharding as a table: from the logical axes of a parameter to the axes of a mesh."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.data.rows import Fields
from slmjax.parallel.mesh import batch_sharding

# The mesh axis of each logical axis (models/declare.py).
RULES = {
    "width": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ff": "tensor",
    "vocab": "tensor",
    "rows": "fsdp",
    "expert": "expert",
}
WHOLE_IF_FEWER = (
    "kv_heads",
)  # whole on each device where the mesh axis is a multiple of the dimension


def shardings(declared: Any, mesh: Mesh) -> Any:
    """NamedShardings of parameters, laid out as `declared`, their declarations (declare.Weight).

    Raises: ValueError naming the parameter for an unknown axis or a dimension that its mesh axis
      does not divide.
    """

    def one(path, known):
        return NamedSharding(mesh, spec(path_name(path), known.shape, known.axes, mesh))

    return jax.tree_util.tree_map_with_path(one, declared)


def spec(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh) -> P:
    """The partition of a parameter from its logical axes; a mesh axis is used by the first that names it."""
    entries: list[str | None] = []
    for i, (size, axis) in enumerate(zip(shape, axes, strict=True)):
        if axis is not None and axis not in RULES:
            raise ValueError(
                f"parameter '{name}': unknown axis '{axis}'; there is {', '.join(RULES)}"
            )
        to = RULES.get(axis)
        ways = 1 if to is None else mesh.shape[to]
        if to in entries:
            to = None
        elif size % ways and not (axis in WHOLE_IF_FEWER and ways % size == 0):
            if axis in WHOLE_IF_FEWER:
                raise ValueError(
                    f"parameter '{name}': {size} key/value heads neither divide nor are divided by the axis {to}={ways}"
                )
            raise ValueError(
                f"parameter '{name}': dimension {i} of {shape} is not divisible by the axis {to}={ways}"
            )
        elif size % ways:
            to = None
        entries.append(to)
    return P(*entries)


def field_shardings(fields: Fields, mesh: Mesh) -> dict:
    """Where a batch lies: fields with a batch axis by rows, the others whole on every device."""
    whole = NamedSharding(mesh, P())
    return {
        name: batch_sharding(mesh) if field.by_rows else whole for name, field in fields.items()
    }


def like_parameters(tree: Any, params: Any, param_shardings: Any, mesh: Mesh) -> Any:
    """NamedShardings for optimizer state: a leaf under a parameter's path, of its shape, takes its spec; the rest is whole everywhere.

    Optimizer state keeps parameters in flat dicts whose keys are parameter paths ("stack/0/0/mixer/query").
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    by_path = {
        path_name(path): (leaf.shape, s)
        for (path, leaf), s in zip(leaves, jax.tree.leaves(param_shardings), strict=True)
    }

    def one(path, leaf):
        last = getattr(path[-1], "key", None) if path else None
        shape, sharding = by_path.get(last, (None, None))
        return sharding if shape == leaf.shape else NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(one, tree)


def path_name(path: tuple) -> str:
    """ "stack/0/0/mixer/query" of a key path."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def flatten_tree(tree: dict) -> dict:
    """{path: leaf}."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: dict) -> dict:
    """The nested dict of {path: leaf}."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
