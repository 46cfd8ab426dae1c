"""A run that starts from another run's parameters: --init_from, and the line of ancestors."""

import dataclasses
import os

import jax

from slmjax.checkpoint import Checkpoints, RestoredItems, checkpoint_hash, named
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

    Buffers with a forward channel are part of the model, as parameters are: all that this model
    declares are taken. Where the parent has no such buffers, they start anew, and a line says so.
    Buffers with a cotangent channel (the scales of float8) always start anew: they follow this
    run's batches within its first steps, and parent and child may differ in
    config.precision.products. Buffers that only the parent has are left behind.

    Args:
      init_from: work directory of the other run, the parent, or the folder of its export.
      state: the new run's before its first step.
      shapes: the state's shapes and shardings.
      declared: declarations of the buffers.
      tokenizer: hash of the new run's tokenizer.
    Returns: (state, the run's ancestors, sentences on damaged checkpoints that were passed over).
    Raises: UserError where the parent's parameters or buffers have other names or shapes, its
      tokenizer is another one, or none of its checkpoints can be read.
    """
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
        raise _unreadable(init_from, damaged)
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
    return state, _ancestors(init_from, checkpoint.step, checkpoint.meta), faults


def lineage(checkpoints: Checkpoints, start: Start, init_from: str) -> list[dict]:
    """Return the run's ancestors, nearest first.

    A new run has those that --init_from gives it, a later start those in its checkpoint.
    Raises: UserError where --init_from names another run than the one that this run started from.
    """
    if not start.step:
        return parents(init_from) if init_from else []
    readable = (step for step in reversed(checkpoints.steps()) if checkpoints.meta(step))
    # Checkpoints of old versions have no ancestors recorded.
    recorded = checkpoints.meta(next(readable)).get("parents", [])
    if init_from and not (recorded and _is_parent(init_from, recorded[0])):
        raise UserError(
            f"--init_from={init_from}: '{checkpoints.root.parent}' already holds a run that did "
            "not start from it; use another --workdir, or go on without --init_from."
        )
    return recorded


def parents(init_from: str) -> list[dict]:
    """Return the ancestors of a run that starts from another one, nearest first; see `inherit`.

    Reads meta items only, so that a wrong --init_from ends a run before text is prepared.
    Raises: UserError where no checkpoint can be read.
    """
    checkpoints = checkpoints_of(init_from)
    if not checkpoints.steps():
        raise UserError(
            f"--init_from={init_from}: there is no checkpoint; expected the work directory of a "
            "training run, or its export."
        )
    newest, damaged = checkpoints.newest(checkpoints.steps(), lambda step, meta: (step, meta))
    if newest is None:
        raise _unreadable(init_from, damaged)
    return _ancestors(init_from, *newest)


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


def _ancestors(init_from: str, step: int, meta: dict) -> list[dict]:
    """Return work directory, step and hash of a checkpoint, then those of its ancestors."""
    parent = {"workdir": init_from, "step": step, "hash": checkpoint_hash(meta)}
    return [parent, *meta.get("parents", [])]


def _unreadable(init_from: str, damaged: list[str]) -> UserError:
    return UserError(
        f"--init_from={init_from}: none of its checkpoints can be read: {'; '.join(damaged)}."
    )
