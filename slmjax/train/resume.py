"""Where a run starts: anew, from its newest checkpoint, from the trunk of a shorter run, or nowhere because it is finished."""

import dataclasses
import hashlib
import json
import os
from typing import NamedTuple

import jax

from slmjax.checkpoint import Checkpoints, RestoredItems, named
from slmjax.config import FIELDS, Config, freeze, from_dict, to_dict
from slmjax.data.rows import Rows
from slmjax.errors import UserError
from slmjax.models.declare import keep_channel, merged
from slmjax.parallel import hosts
from slmjax.train import schedule
from slmjax.train.state import TrainState, restored, saved


class Start(NamedTuple):
    """How a run starts.

    kind: fresh, resume, extend or finished; step: of the checkpoint to go on from; before: total
    steps of the run that is extended; window: {"terms": ..., "skips": ...} of each step since the
    last line of metrics, as the checkpoint has them.
    """

    kind: str
    step: int
    before: int = 0
    window: tuple[dict, ...] = ()


def decide(checkpoints: Checkpoints, config: Config) -> Start:
    """What the checkpoints of the work directory and the config together ask for.

    A run of other length goes back to the newest checkpoint that both lengths share: at or before both decays' starts.
    Raises: UserError for a config that does not fit, naming the fields, and for another length where nothing is shared.
    """
    steps = checkpoints.steps()
    if not steps:
        return Start("fresh", 0)
    newest = steps[-1]
    sound = [step for step in steps if checkpoints.meta(step)]  # restore reports the others
    if not sound:
        raise UserError(
            f"none of the checkpoints in '{checkpoints.root}' can be read; remove them or use another --workdir."
        )
    meta = checkpoints.meta(sound[-1])
    fits(meta["config"], config)
    before, now = meta["config"]["train"]["steps"], config.train.steps
    if before == now:
        return Start("finished" if newest == now else "resume", newest)
    if config.train.schedule != "wsd":
        raise UserError(
            f"config.train.steps was {before} and is {now}: a {config.train.schedule} schedule knows its length from the first step. "
            "Use another --workdir, or train with --config.train.schedule=wsd, which can be made longer."
        )
    shared = min(schedule.trunk(config.train), schedule.decay_start(before, config.train.decay))
    usable = [step for step in steps if step <= shared]
    if not usable:
        raise UserError(
            f"config.train.steps was {before} and is {now}, but no checkpoint up to step {shared} is left: use another --workdir."
        )
    return Start("extend", usable[-1], before)


def fits(saved: dict, config: Config) -> None:
    """Raises: UserError naming every field that differs from the checkpoint's and may not; one that is younger had its default."""
    try:
        saved, now = to_dict(freeze(from_dict(saved))), to_dict(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the config of the newest checkpoint cannot be read ({error}).") from error
    different = [name for name in _differing(saved, now) if _decides(name)]
    if different:
        told = "; ".join(
            f"{name} was {_at(saved, name)} and is {_at(now, name)}" for name in different
        )
        advice = "Use another --workdir, or --init_from to start from its parameters."
        raise UserError(f"this config does not fit the checkpoint: {told}. {advice}")


def _decides(name: str) -> bool:
    """Whether a run goes on with the same value of a field only; name may lie below a field."""
    field = next(
        (known for known in FIELDS.values() if f"{name}.".startswith(f"{known.name}.")), None
    )
    return field is None or field.affects in ("learning", "chance")


def restore(
    checkpoints: Checkpoints, start: Start, shapes: TrainState, rows: Rows, meta: dict
) -> tuple:
    """(state or None, where it starts, sentences on damaged checkpoints that were passed over).

    Raises: UserError where the data or the tokenizer is not what the checkpoint was trained on, or nothing can be read.
    """

    def read(step: int, found: dict) -> RestoredItems:
        check_identity(found, step, rows, meta["tokenizer"])
        return checkpoints.restore(step, saved(shapes))

    got, damaged = checkpoints.newest(
        (step for step in checkpoints.steps() if step <= start.step), read
    )
    if got is None:
        raise UserError(
            f"none of the checkpoints in '{checkpoints.root}' can be read: {'; '.join(damaged)}."
        )
    if hosts.is_first():
        for fault in damaged:
            print(f"slmjax: the checkpoint of {fault}; it is damaged and was passed over")
    state = restored(got.items)
    if damaged or start.kind == "extend":
        checkpoints.set_aside(got.step)
    kind = start.kind
    if kind != "extend":
        kind = "finished" if got.step == meta["config"]["train"]["steps"] else "resume"
    window = tuple(of_window(step) for step in got.meta.get("window", ()))
    return state, start._replace(kind=kind, step=got.step, window=window), damaged


def of_window(saved: dict | list) -> dict:
    """A step of the checkpoint's window; older checkpoints have (cross-entropy, skips)."""
    if isinstance(saved, dict):
        return saved
    loss, skips = saved
    return {"terms": {"loss": loss}, "skips": skips}


def check_identity(meta: dict, step: int, rows: Rows, tokenizer: str) -> None:
    """Raises: UserError where a checkpoint was trained on other text or with another tokenizer."""
    if meta["tokenizer"] != tokenizer:
        raise UserError(
            "the tokenizer is not the one that the checkpoint was trained with; use another --workdir."
        )
    if meta["fingerprint"] != rows.fingerprint(step):
        raise UserError(
            f"the data of the first {step} steps is not what the checkpoint was trained on; use another --workdir."
        )


def lineage(checkpoints: Checkpoints, start: Start, init_from: str) -> list[dict]:
    """The run's ancestors, nearest first: those of its checkpoint, or of a new run's --init_from.

    Raises: UserError where --init_from names another run than the one that this run started from.
    """
    if not start.step:
        return parents(init_from) if init_from else []
    known = (step for step in reversed(checkpoints.steps()) if checkpoints.meta(step))
    recorded = checkpoints.meta(next(known)).get("parents", [])
    if init_from and not (recorded and _is_parent(init_from, recorded[0])):
        raise UserError(
            f"--init_from={init_from}: '{checkpoints.root.parent}' already holds a run that did "
            "not start from it; use another --workdir, or go on without --init_from."
        )
    return recorded


def _is_parent(init_from: str, recorded: dict) -> bool:
    """Whether a work directory is the recorded parent: by the checkpoint, else by its name."""
    meta = Checkpoints(init_from).meta(recorded["step"])
    if meta:
        return _hash(meta) == recorded["hash"]
    return os.path.abspath(init_from) == os.path.abspath(recorded["workdir"])


def inherit(
    init_from: str, state: TrainState, shapes: TrainState, of_buffers: dict, tokenizer: str
) -> tuple[TrainState, list[dict], list[str]]:
    """A new run's state with parameters and buffers of another run, the newest that can be read.

    Buffers with a forward channel are part of the model, as parameters are: all that this model
    declares are taken. Where the parent has no such buffers they start anew, and a line says so.
    Buffers with a cotangent channel (the scales of float8) always start anew: they follow this run's
    batches within its first steps, and parent and child may differ in config.precision.products.
    Buffers that only the parent has are left behind.

    Args:
      state: before the first step; shapes: its shapes and shardings.
      of_buffers: declarations of the buffers.
      tokenizer: the hash of the new run's.
    Returns: (state, the run's ancestors, sentences on damaged checkpoints that were passed over).
    Raises: UserError where the parent's parameters or buffers have other names or shapes or its
      tokenizer is another one, or none of its checkpoints can be read.
    """
    checkpoints = Checkpoints(init_from)
    forward = keep_channel(of_buffers, shapes.buffers, "forward")
    cotangent = keep_channel(of_buffers, state.buffers, "cotangent")

    def read(step: int, meta: dict) -> RestoredItems:
        if meta["tokenizer"] != tokenizer:
            raise UserError(
                f"--init_from={init_from}: its parameters were trained with another tokenizer, so its "
                "tokens mean other text; leave config.data.tokenizer empty to take the parent's."
            )
        items = {"params": shapes.params}
        _check_fit(init_from, "parameters", shapes.params, checkpoints.shapes(step, "params"))
        if forward and "buffers" in meta["digests"]:
            theirs = checkpoints.shapes(step, "buffers", shapes.step.sharding)
            if named(theirs).keys() - named(cotangent).keys():
                _check_fit(init_from, "buffers", forward, theirs, others=True)
                same = _described(theirs) == _described(shapes.buffers)
                items["buffers"] = (
                    shapes.buffers if same else theirs
                )  # storage knows no named tuples
        return checkpoints.restore(step, items)

    got, damaged = checkpoints.newest(checkpoints.steps(), read)
    if got is None:
        raise _none_reads(init_from, damaged)
    faults = [f"--init_from={init_from}, {fault}" for fault in damaged]
    notes = [f"{fault}; this checkpoint is damaged and was passed over" for fault in faults]
    buffers = state.buffers
    if "buffers" in got.items:
        buffers = merged(cotangent, _like(forward, got.items["buffers"]))
    elif forward:
        notes.append(
            f"--init_from={init_from} has no buffers ({next(iter(named(forward)))}); they start anew"
        )
    if hosts.is_first():
        for note in notes:
            print(f"slmjax: {note}")
    state = dataclasses.replace(state, params=got.items["params"], buffers=buffers)
    return state, _ancestors(init_from, got.step, got.meta), faults


def _check_fit(init_from: str, what: str, own: dict, theirs: dict, *, others: bool = False) -> None:
    """Raises: UserError naming an array that parent and child do not both have in one shape and type.

    others: the parent may have more arrays.
    """
    own, theirs = _described(own), _described(theirs)
    for name in sorted(own.keys() if others else own.keys() | theirs.keys()):
        there, here = theirs.get(name, "missing"), own.get(name, "missing")
        if there != here:
            fault = f"{name} is {there} there and {here} here"
            raise UserError(
                f"--init_from={init_from}: its {what} do not fit config.model: {fault}."
            )


def _described(tree: dict) -> dict[str, str]:
    """Type and shape of each array by its name."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named(tree).items()}


def _like(tree: dict, values: dict) -> dict:
    """The values that have a tree's names, in its structure."""
    by_name = named(values)
    return jax.tree.unflatten(jax.tree.structure(tree), [by_name[name] for name in named(tree)])


def parents(init_from: str) -> list[dict]:
    """The ancestors of a run that starts from another one, nearest first; see `inherit`.

    It is asked before text is prepared. Raises: UserError where no checkpoint can be read.
    """
    checkpoints = Checkpoints(init_from)
    if not checkpoints.steps():
        raise UserError(
            f"--init_from={init_from}: there is no checkpoint; expected the work directory of a training run."
        )
    found, damaged = checkpoints.newest(checkpoints.steps(), lambda step, meta: (step, meta))
    if found is None:
        raise _none_reads(init_from, damaged)
    return _ancestors(init_from, *found)


def _ancestors(init_from: str, step: int, meta: dict) -> list[dict]:
    """Work directory, step, and the hash of what identifies the checkpoint; then the same of its own ancestors."""
    return [{"workdir": init_from, "step": step, "hash": _hash(meta)}, *meta.get("parents", [])]


def _none_reads(init_from: str, damaged: list[str]) -> UserError:
    return UserError(
        f"--init_from={init_from}: none of its checkpoints can be read: {'; '.join(damaged)}."
    )


def _hash(meta: dict) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]


def _differing(a: dict, b: dict, prefix: str = "") -> list[str]:
    names = []
    for name in sorted(a.keys() | b.keys()):
        x, y = a.get(name), b.get(name)
        if isinstance(x, dict) and isinstance(y, dict):
            names += _differing(x, y, f"{prefix}{name}.")
        elif (x != y and name in a and name in b) or (
            (name in a) != (name in b) and prefix.count(".")
        ):
            names.append(prefix + name)
    return names


def _at(tree: dict, name: str):
    for part in name.split("."):
        tree = tree.get(part, {}) if isinstance(tree, dict) else {}
    return "not set" if tree == {} else tree
