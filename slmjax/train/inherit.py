"""A run that starts from the parameters of other runs: --init_from, and the line of ancestors."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from slmjax.checkpoint import Checkpoints, RestoredItems, ancestors, checkpoint_hash, named
from slmjax.config import FIELDS, as_today, parent_folders
from slmjax.errors import UserError
from slmjax.exported.read_export import checkpoints_of
from slmjax.models.declare import keep_channel, merged
from slmjax.parallel import hosts
from slmjax.train.resume import Start
from slmjax.train.state import TrainState


def inherit(
    init_from: str, state: TrainState, shapes: TrainState, declared: dict, tokenizer: str
) -> tuple[TrainState, list[dict], list[str]]:
    """Return a new run's state with parameters and buffers of another run's newest checkpoint.

    Several parents make a soup: the mean of their parameters, and of their buffers of floating
    point, computed in float32; whole numbers among the buffers are those of the first parent.

    Buffers with a forward channel are part of the model, as parameters are: all that this model
    declares are taken. Where the parent has no such buffers, they start anew, and a line says so.
    Buffers with a cotangent channel (the scales of float8) always start anew: they follow this
    run's batches within its first steps, and parent and child may differ in
    config.precision.products. Buffers that only the parent has are left behind.

    Args:
      init_from: work directory of the other run, the parent, or the folder of its export; several
        with commas between them.
      state: the new run's before its first step.
      shapes: the state's shapes and shardings.
      declared: declarations of the buffers.
      tokenizer: hash of the new run's tokenizer.
    Returns: (state, the run's ancestors, sentences on damaged checkpoints that were passed over).
    Raises: UserError where the parent's parameters or buffers have other names or shapes, its
      tokenizer is another one, or none of its checkpoints can be read.
    Source: Wortsman et al. 2022 (model soups), section 2: the uniform soup.
    """
    read = [
        _inherit_one(folder, state, shapes, declared, tokenizer)
        for folder in parent_folders(init_from)
    ]
    states, lines, faults = zip(*read, strict=True)
    if len(states) > 1:
        models = [{"params": one.params, "buffers": one.buffers} for one in states]
        state = dataclasses.replace(state, **mean_tree(models))
    else:
        state = states[0]
    return state, _joined_ancestors(lines), [fault for some in faults for fault in some]


def mean_tree(trees: Sequence[dict]) -> dict:
    """Return the mean of trees of arrays, in float32; whole numbers are those of the first tree."""

    def mean(*leaves: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
            return leaves[0]
        total = sum(leaf.astype(jnp.float32) for leaf in leaves)
        return (total / len(leaves)).astype(leaves[0].dtype)

    # Each device adds up its own parts.
    where = jax.tree.map(lambda leaf: leaf.sharding, trees[0])
    return jax.jit(functools.partial(jax.tree.map, mean), out_shardings=where)(*trees)


def _inherit_one(
    init_from: str, state: TrainState, shapes: TrainState, declared: dict, tokenizer: str
) -> tuple[TrainState, list[dict], list[str]]:
    """Return what `inherit` does, of one parent."""
    checkpoints = checkpoints_of(init_from)
    forward = keep_channel(declared, shapes.buffers, "forward")
    cotangent = keep_channel(declared, state.buffers, "cotangent")

    def read(step: int, meta: dict) -> RestoredItems:
        if meta["tokenizer"] != tokenizer:
            raise UserError(
                f"--init_from={init_from}: its parameters were trained with another tokenizer, so "
                "its tokens mean other text; leave config.data.tokenizer empty to take the "
                "parent's."
            )
        # The optimizer's state stays behind: the child has its own schedule.
        items = {"params": shapes.params}
        _check_fit(init_from, "parameters", shapes.params, checkpoints.shapes(step, "params"))
        if forward and "buffers" in meta["digests"]:
            # The parent's buffers as stored, whole on every device.
            stored = checkpoints.shapes(step, "buffers", shapes.step.sharding)
            # There is nothing to take where the parent only has buffers that start anew.
            if named(stored).keys() - named(cotangent).keys():
                _check_fit(init_from, "buffers", forward, stored, parent_may_have_more=True)
                # Storage knows no named tuples: equal buffers are read in this model's structure.
                are_equal = _types_and_shapes(stored) == _types_and_shapes(shapes.buffers)
                items["buffers"] = shapes.buffers if are_equal else stored
        return checkpoints.restore(step, items)

    checkpoint, damaged = checkpoints.newest(checkpoints.steps(), read)
    if checkpoint is None:
        raise unreadable_parent(init_from, damaged)
    # Sentences for the run's records, and notes for the terminal.
    faults = [f"--init_from={init_from}, {fault}" for fault in damaged]
    notes = [f"{fault}; this checkpoint is damaged and was passed over" for fault in faults]
    buffers = state.buffers
    if "buffers" in checkpoint.items:
        buffers = merged(cotangent, _like(forward, checkpoint.items["buffers"]))
    elif forward:
        name = next(iter(named(forward)))
        notes.append(f"--init_from={init_from} has no buffers ({name}); they start anew")
    if hosts.is_first():
        for note in notes:
            print(f"slmjax: {note}")
    state = dataclasses.replace(state, params=checkpoint.items["params"], buffers=buffers)
    return state, ancestors(init_from, checkpoint.step, checkpoint.meta), faults


def lineage(checkpoints: Checkpoints, start: Start, init_from: str) -> list[dict]:
    """Return the run's ancestors, nearest first.

    A new run has those that --init_from gives it, a later start those in its checkpoint.
    Raises: UserError where --init_from names another run than the one that this run started from.
    """
    if start.kind == "fresh":
        return parents(init_from) if init_from else []
    readable = (step for step in reversed(checkpoints.steps()) if checkpoints.meta(step))
    # Checkpoints of old versions have no ancestors recorded.
    recorded = checkpoints.meta(next(readable)).get("parents", [])
    folders = parent_folders(init_from)
    are_parents = [_is_parent(folder, entry) for folder, entry in zip(folders, recorded)]
    if len(are_parents) < len(folders) or not all(are_parents):
        raise UserError(
            f"--init_from={init_from}: '{checkpoints.root.parent}' already holds a run that did "
            "not start from it; use another --workdir, or go on without --init_from."
        )
    return recorded


def parents(init_from: str) -> list[dict]:
    """Return the ancestors of a run that starts from another one, nearest first; see `inherit`.

    Reads meta items only, so that a wrong --init_from ends a run before text is prepared.
    Raises: UserError where no checkpoint can be read, and where several parents have different
      architectures.
    """
    lines = []
    models = []
    for folder in parent_folders(init_from):
        step, meta = _newest_meta(folder)
        lines.append(ancestors(folder, step, meta))
        models.append((folder, as_today(meta["config"])))
    for other in models[1:]:
        _check_one_architecture(models[0], other)
    return _joined_ancestors(lines)


def _newest_meta(init_from: str) -> tuple[int, dict]:
    """Return (step, meta item) of a run's newest checkpoint. Raises: UserError, see `parents`."""
    checkpoints = checkpoints_of(init_from)
    if not checkpoints.steps():
        raise UserError(
            f"--init_from={init_from}: there is no checkpoint; expected the work directory of a "
            "training run, or its export."
        )
    newest, damaged = checkpoints.newest(checkpoints.steps(), lambda step, meta: (step, meta))
    if newest is None:
        raise unreadable_parent(init_from, damaged)
    return newest


def _check_one_architecture(first: tuple[str, dict], other: tuple[str, dict]) -> None:
    """Raises: UserError naming a field of the model in which two parents of a soup differ.

    Args:
      first, other: (work directory, {field: value}).
    """
    for name, field in FIELDS.items():
        if field.group != "model" or field.affects != "learning":
            continue
        values = [config.get(name) for _, config in (first, other)]
        if values[0] != values[1]:
            raise UserError(
                f"--init_from: runs of different architectures have no mean: {name} is "
                f"{values[0]} in '{first[0]}' and {values[1]} in '{other[0]}'."
            )


def _joined_ancestors(lines: Sequence[list[dict]]) -> list[dict]:
    """Return the ancestors of a run with several parents: all parents, then each older one once."""
    if len(lines) == 1:
        return lines[0]
    joined = [line[0] | {"how": f"soup of {len(lines)}"} for line in lines]
    seen = set()
    for line in lines:
        for older in line[1:]:
            if older["hash"] not in seen:
                joined.append(older)
            seen.add(older["hash"])
    return joined


def _is_parent(init_from: str, recorded: dict) -> bool:
    """Return whether a work directory is the recorded parent.

    The checkpoint's hash decides; where the checkpoint is gone, the directory's name.
    """
    meta = checkpoints_of(init_from).meta(recorded["step"])
    if meta:
        return checkpoint_hash(meta) == recorded["hash"]
    return os.path.abspath(init_from) == os.path.abspath(recorded["workdir"])


def _check_fit(
    init_from: str, what: str, own: dict, theirs: dict, *, parent_may_have_more: bool = False
) -> None:
    """Raises: UserError naming an array that one run lacks, or whose type or shape differs."""
    own_shapes, their_shapes = _types_and_shapes(own), _types_and_shapes(theirs)
    names = set(own_shapes)
    if not parent_may_have_more:
        names |= set(their_shapes)
    for name in sorted(names):
        there = their_shapes.get(name, "missing")
        here = own_shapes.get(name, "missing")
        if there != here:
            raise UserError(
                f"--init_from={init_from}: its {what} do not fit config.model: {name} is {there} "
                f"there and {here} here."
            )


def _types_and_shapes(tree: dict) -> dict[str, str]:
    """Return {name of an array: its type and shape, such as "float32[8, 4]"}."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named(tree).items()}


def _like(tree: dict, values: dict) -> dict:
    """Return, in the structure of `tree`, the leaves of `values` that have its names."""
    by_name = named(values)
    leaves = [by_name[name] for name in named(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def unreadable_parent(init_from: str, damaged: Sequence[str]) -> UserError:
    return UserError(
        f"--init_from={init_from}: none of its checkpoints can be read: {'; '.join(damaged)}."
    )
