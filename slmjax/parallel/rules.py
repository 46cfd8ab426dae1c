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
# A dimension with one of these axes is kept whole on each device where it is smaller than the mesh
# axis and divides it.
WHOLE_IF_FEWER = ("kv_heads",)


def shardings(declared: Any, mesh: Mesh) -> Any:
    """Return the NamedShardings of parameters, in the tree of their declarations (declare.Weight).

    Raises: ValueError naming the parameter for an unknown axis or a dimension that its mesh axis
      does not divide.
    """

    def sharding(path, weight):
        return NamedSharding(mesh, spec(path_name(path), weight.shape, weight.axes, mesh))

    return jax.tree_util.tree_map_with_path(sharding, declared)


def spec(name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh) -> P:
    """Return the partition of a parameter from its logical axes.

    A mesh axis is used once, by the first dimension that it splits.

    Raises: ValueError as `shardings` does.
    """
    entries: list[str | None] = []
    # Strict: a parameter has as many logical axes as dimensions.
    for dimension, (_, axis) in enumerate(zip(shape, axes, strict=True)):
        mesh_axis = _mesh_axis(name, axis)
        is_used = mesh_axis in entries  # by an earlier dimension
        is_split = not is_used and _is_split(name, shape, dimension, axis, mesh)
        entries.append(mesh_axis if is_split else None)
    return P(*entries)


def field_shardings(fields: Fields, mesh: Mesh) -> dict:
    """Return {field: sharding} of a batch: by rows, or whole where a field has no batch axis."""
    whole = NamedSharding(mesh, P())
    by_rows = batch_sharding(mesh)
    return {name: by_rows if field.by_rows else whole for name, field in fields.items()}


def like_parameters(tree: Any, params: Any, param_shardings: Any, mesh: Mesh) -> Any:
    """Return the NamedShardings of optimizer state.

    A leaf under a parameter's path, of its shape, takes the parameter's sharding. Other leaves are
    whole on every device. Optimizer state keeps parameters in flat dicts whose keys are their paths
    ("stack/0/0/mixer/query").
    """
    flat = flatten_tree(params)
    known = dict(zip(flat, jax.tree.leaves(param_shardings), strict=True))
    whole = NamedSharding(mesh, P())

    def sharding(path, leaf):
        # The key of the innermost dict; there is no path where the state is one array.
        parameter = getattr(path[-1], "key", None) if path else None
        if parameter in known and flat[parameter].shape == leaf.shape:
            return known[parameter]
        return whole

    return jax.tree_util.tree_map_with_path(sharding, tree)


def path_name(path: tuple) -> str:
    """Return a key path as text: "stack/0/0/mixer/query"."""
    return "/".join(_key_name(key) for key in path)


def flatten_tree(tree: dict) -> dict:
    """Return {path: leaf} of a nested dict, with paths as `path_name` writes them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def unflatten(flat: dict) -> dict:
    """Return the nested dict of {path: leaf}."""
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _mesh_axis(name: str, axis: str | None) -> str | None:
    """Return the mesh axis of a parameter's logical axis. Raises: ValueError if it is unknown."""
    if axis is None:
        return None
    if axis not in RULES:
        raise ValueError(f"parameter '{name}': unknown axis '{axis}'; there is {', '.join(RULES)}")
    return RULES[axis]


def _is_split(
    name: str, shape: tuple[int, ...], dimension: int, axis: str | None, mesh: Mesh
) -> bool:
    """True where the axis splits its dimension, False where each device holds the whole of it.

    Raises: ValueError where neither is possible.
    """
    if axis is None:
        return False
    size = shape[dimension]
    axis_size = mesh.shape[RULES[axis]]
    if size % axis_size == 0:
        return True
    mesh_axis = f"the axis {RULES[axis]}={axis_size}"
    if axis not in WHOLE_IF_FEWER:
        place = f"dimension {dimension} of {shape}"
        raise ValueError(f"parameter '{name}': {place} is not divisible by {mesh_axis}")
    if axis_size % size:
        fault = f"{size} key/value heads neither divide nor are divided by {mesh_axis}"
        raise ValueError(f"parameter '{name}': {fault}")
    return False


def _key_name(key: Any) -> str:
    """Return the name of a key of a dict, dataclass or sequence."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
