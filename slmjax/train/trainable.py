"""Which parameters a run trains: config.train.trainable, and the split of parameters by it."""

import fnmatch
from collections.abc import Sequence

from slmjax.errors import UserError, nearest
from slmjax.models.declare import GROUPS, PART_OF
from slmjax.parallel.rules import flatten_tree, unflatten


def trainable_paths(declared: dict, chosen: Sequence[str]) -> frozenset[str]:
    """Return the paths of the parameters that config.train.trainable names; all where it is empty.

    Args:
      declared: the declaration of every parameter.
      chosen: groups (see models/declare.py), or patterns of paths, such as "stack/*/channel/*".
        Layers at the same position of the model's pattern are stacked in one parameter: they are
        trained together or not at all.
    Raises: UserError for an entry that matches no parameter.
    """
    groups = {path: weight.group for path, weight in flatten_tree(declared).items()}
    if not chosen:
        return frozenset(groups)
    paths: set[str] = set()
    for entry in chosen:
        # An entry is a group's name or a pattern, in which "*" also matches "/", unlike in a shell.
        matching = {
            path
            for path, group in groups.items()
            if entry in (group, PART_OF.get(group)) or fnmatch.fnmatchcase(path, entry)
        }
        if not matching:
            near = nearest(entry, [*GROUPS, *groups])
            raise UserError(
                f"config.train.trainable: '{entry}' is no group and matches no parameter; groups "
                f"are {', '.join(GROUPS)}, and a path is such as {next(iter(groups))}.{near}"
            )
        paths |= matching
    return frozenset(paths)


def split(tree: dict, paths: frozenset[str]) -> tuple[dict, dict]:
    """Return (the leaves at `paths`, the others), each a nested dict without empty branches."""
    flat = flatten_tree(tree)
    inside = {path: leaf for path, leaf in flat.items() if path in paths}
    outside = {path: leaf for path, leaf in flat.items() if path not in paths}
    return unflatten(inside), unflatten(outside)
