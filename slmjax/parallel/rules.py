"""Sharding as a table: regular expressions over parameter paths give partition specs."""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

KV = "tensor or whole"  # split over tensor where it divides the heads, whole on each device where it exceeds them

# Specs name a layer's own axes and are right-aligned: axes that stack layers stay whole.
RULES = (
    (r"embedding", ("tensor", "fsdp")),
    (r"stack/.*/mixer/(query|gate)", ("fsdp", "tensor", None)),
    (r"stack/.*/mixer/(key|value)", ("fsdp", KV, None)),
    (r"stack/.*/mixer/(write|read)", ("fsdp", None, None)),
    (r"stack/.*/mixer/out", ("tensor", None, "fsdp")),
    (r"stack/.*/mixer/(erase|step|decay)", ("fsdp", "tensor")),
    (r"stack/.*/mixer/(decay|gate)_down", ("fsdp", None)),
    (r"stack/.*/mixer/(decay|gate)_up", (None, "tensor", None)),
    (r"stack/.*/mixer/conv_\w+", (KV, None)),
    (r"stack/.*/mixer/(decay_log|decay_bias|step_bias|skip)", ()),
    (r"stack/.*/own/.*", ()),
    (r"stack/.*/channel/(gate|up)", ("fsdp", "tensor")),
    (r"stack/.*/channel/down", ("tensor", "fsdp")),
    (r"(.*/)?(\w+_)?norm/scale", (None,)),
    (r"head", ("fsdp", "tensor")),
)


def shardings(params: Any, mesh: Mesh, rules: tuple | None = None) -> Any:
    """NamedShardings in the shape of a parameter tree (arrays or ShapeDtypeStructs).

    Args:
      rules: of one model; None: the table above, which holds all mixers' and is checked by a test.
    Raises: ValueError naming the path for a parameter that no rule matches or a dimension that an axis does not divide, and the rule of
    `rules` that matches nothing.
    """
    used = set()

    def one(path, leaf):
        name = path_name(path)
        for pattern, spec in RULES if rules is None else rules:
            if re.fullmatch(pattern, name):
                used.add(pattern)
                return NamedSharding(mesh, _spec(name, leaf.shape, spec, mesh))
        raise ValueError(f"no sharding rule matches parameter '{name}' of shape {leaf.shape}; add one to parallel/rules.py")

    tree = jax.tree_util.tree_map_with_path(one, params)
    idle = [pattern for pattern, _ in rules or () if pattern not in used]
    if idle:
        raise ValueError(f"sharding rule '{idle[0]}' matches no parameter")
    return tree


def like_parameters(tree: Any, params: Any, param_shardings: Any, mesh: Mesh) -> Any:
    """NamedShardings for optimizer state: a leaf under a parameter's path, of its shape, takes its spec; the rest is whole everywhere.

    Optimizer state keeps parameters in flat dicts whose keys are parameter paths ("stack/0/0/mixer/query").
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    by_path = {path_name(path): (leaf.shape, s) for (path, leaf), s in zip(leaves, jax.tree.leaves(param_shardings), strict=True)}

    def one(path, leaf):
        last = getattr(path[-1], "key", None) if path else None
        shape, sharding = by_path.get(last, (None, None))
        return sharding if shape == leaf.shape else NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(one, tree)


def path_name(path: tuple) -> str:
    """ "stack/0/0/mixer/query" of a key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def flatten(tree: dict) -> dict:
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


def _spec(name: str, shape: tuple, spec: tuple, mesh: Mesh) -> P:
    entries = [None] * (len(shape) - len(spec)) + list(spec)
    for i, (size, entry) in enumerate(zip(shape, entries, strict=True)):
        if entry == KV:
            entries[i] = "tensor" if size % mesh.shape["tensor"] == 0 else None
            if entries[i] is None and mesh.shape["tensor"] % size:
                raise ValueError(
                    f"parameter '{name}': {size} key/value heads neither divide nor are divided by the axis tensor={mesh.shape['tensor']}"
                )
        elif entry is not None and size % mesh.shape[entry]:
            raise ValueError(f"parameter '{name}': dimension {i} of {shape} is not divisible by the axis {entry}={mesh.shape[entry]}")
    return P(*entries)
