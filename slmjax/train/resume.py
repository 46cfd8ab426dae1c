"""Where a run starts: anew, at its newest checkpoint, or at one that two lengths of it share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from slmjax.checkpoint import Checkpoints, RestoredItems
from slmjax.config import FIELDS, Config, freeze, from_dict, to_dict
from slmjax.data.rows import Rows
from slmjax.errors import UserError
from slmjax.exported.read_export import is_export
from slmjax.parallel import hosts
from slmjax.train import schedule
from slmjax.train.state import TrainState, restored, saved

ANOTHER_WORKDIR = "use another --workdir"


class Start(NamedTuple):
    """How a run starts.

    kind: fresh, resume, extend, branch or finished.
    step: the checkpoint's step to go on from; 0 for a fresh run.
    before: total steps of the run that is extended.
    window: the checkpoint's {"terms": ..., "skips": ...} of each step since the last line of
      metrics.
    """

    kind: str
    step: int
    before: int = 0
    window: tuple[dict, ...] = ()


def decide(checkpoints: Checkpoints, config: Config) -> Start:
    """Return how a run with this config starts in a work directory with these checkpoints.

    A run of another length, or with other rates of its phases, goes back to the newest checkpoint
    up to which the learning rates are the same.
    Raises: UserError for a config that does not fit, naming the fields; where no checkpoint can be
      read; and for another length where no checkpoint is shared.
    """
    steps = checkpoints.steps()
    if not steps:
        return Start("fresh", 0)
    newest = steps[-1]
    # `restore` reports those that cannot be read.
    readable = [step for step in steps if checkpoints.meta(step)]
    if not readable:
        raise UserError(
            f"none of the checkpoints in '{checkpoints.root}' can be read; remove them or "
            f"{ANOTHER_WORKDIR}."
        )
    config_then = checkpoints.meta(readable[-1])["config"]
    # This compares neither config.train.steps nor phases: a run may change its length.
    then = check_config_fits(config_then, config)
    before, now = then.train.steps, config.train.steps
    # Up to here both schedules have the same learning rates.
    shared = newest
    if config.train.schedule == "phases":
        shared = schedule.shared_steps(then, config)
    elif before != now and config.train.schedule == "wsd":
        shared = min(schedule.trunk(then.train), schedule.trunk(config.train))
    if before == now and newest <= shared:
        return Start("finished" if newest == now else "resume", newest)
    new_length = f"config.train.steps was {before} and is {now}"
    if before == now:
        new_length = "the rates of config.data.phases are not what they were"
    if config.train.schedule == "cosine":
        raise UserError(
            f"{new_length}: a {config.train.schedule} schedule knows its length from the first "
            "step. Use another --workdir, or train with --config.train.schedule=wsd, which can be "
            "made longer."
        )
    usable = [step for step in steps if step <= shared]
    if not usable:
        raise UserError(
            f"{new_length}, but no checkpoint up to step {shared} is left: {ANOTHER_WORKDIR}."
        )
    return Start("extend", usable[-1], before)


def refuse_export(workdir: str) -> None:
    """Raise a UserError for the folder of an export, in which no run can go on."""
    if is_export(workdir):
        raise UserError(
            f"--workdir={workdir} is an export, which has no optimizer's state to go on from; use "
            f"another --workdir with --init_from={workdir}."
        )


def check_config_fits(stored: dict, config: Config) -> Config:
    """Check that a run can go on with this config, and return the stored one.

    Args:
      stored: the checkpoint's config. A field that is younger than the checkpoint had its default.
    Raises: UserError naming every field that may not change and has.
    """
    try:
        frozen = freeze(from_dict(stored))
        then, now = to_dict(frozen), to_dict(config)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the config of the newest checkpoint cannot be read ({error}).") from error
    differences = differing_fields(then, now, ("learning", "chance"))
    if differences:
        raise UserError(
            f"this config does not fit the checkpoint: {'; '.join(differences.values())}. "
            "Use another --workdir, or --init_from to start from its parameters."
        )
    return frozen


def differing_fields(then: dict, now: dict, affects: Sequence[str]) -> dict[str, str]:
    """Return {field: "field was this and is that"} of the fields that differ.

    Args:
      then, now: two configs as dicts.
      affects: only fields that affect one of these, see config.fields.AFFECTS.
    """
    differences = {}
    for name in _differing(then, now):
        if affects_of(name) in affects:
            differences[name] = f"{name} was {_value(then, name)} and is {_value(now, name)}"
    return differences


def restore(
    checkpoints: Checkpoints, start: Start, shapes: TrainState, rows: Rows, meta: dict
) -> tuple[TrainState, Start, list[str]]:
    """Restore the newest checkpoint that can be read.

    Args:
      start: as `decide` returned it: no checkpoint after its step is read.
      shapes: the state's shapes, with shardings.
      meta: this run's; its tokenizer is compared with the checkpoint's.
    Returns: (state, the start from that checkpoint, sentences on damaged checkpoints that were
      passed over).
    Raises: UserError where the data or the tokenizer is not what the checkpoint was trained on, or
      no checkpoint can be read.
    """

    def read(step: int, checkpoint_meta: dict) -> RestoredItems:
        check_identity(checkpoint_meta, step, rows, meta["tokenizer"])
        return checkpoints.restore(step, saved(shapes))

    steps = (step for step in checkpoints.steps() if step <= start.step)
    checkpoint, damaged = checkpoints.newest(steps, read)
    if checkpoint is None:
        raise UserError(
            f"none of the checkpoints in '{checkpoints.root}' can be read: {'; '.join(damaged)}."
        )
    if hosts.is_first():
        for fault in damaged:
            print(f"slmjax: the checkpoint of {fault}; it is damaged and was passed over")
    state = restored(checkpoint.items)
    # Later checkpoints are damaged or belong to the other length: they are moved, not deleted.
    if damaged or start.kind == "extend":
        checkpoints.set_aside(checkpoint.step)
    # A finished run whose newest checkpoint is damaged is unfinished again.
    kind = start.kind
    if kind != "extend":
        total = meta["config"]["train"]["steps"]
        kind = "finished" if checkpoint.step == total else "resume"
    window = tuple(window_step(stored) for stored in checkpoint.meta.get("window", ()))
    return state, start._replace(kind=kind, step=checkpoint.step, window=window), damaged


def window_step(stored: dict | list) -> dict:
    """Return a step of a checkpoint's window; older checkpoints have (cross-entropy, skips)."""
    if isinstance(stored, dict):
        return stored
    loss, skips = stored
    return {"terms": {"loss": loss}, "skips": skips}


def check_identity(meta: dict, step: int, rows: Rows, tokenizer: str) -> None:
    """Raises: UserError where a checkpoint was trained on other text or with another tokenizer."""
    if meta["tokenizer"] != tokenizer:
        raise UserError(
            f"the tokenizer is not the one that the checkpoint was trained with; {ANOTHER_WORKDIR}."
        )
    if meta["fingerprint"] != rows.fingerprint(step):
        raise UserError(
            f"the data of the first {step} steps is not what the checkpoint was trained on; "
            f"{ANOTHER_WORKDIR}."
        )


def affects_of(name: str) -> str:
    """Return what a field affects, see config.fields.AFFECTS.

    Args:
      name: dotted, of a field or of a key below a field, such as "data.sources.books".
    """
    for field in FIELDS.values():
        # The dots keep "data.seq" from matching "data.seq_len".
        if f"{name}.".startswith(f"{field.name}."):
            return field.affects
    # Of no known field, so perhaps of one that decides what is learned.
    return "learning"


def _differing(a: dict, b: dict, prefix: str = "") -> list[str]:
    """Return the dotted names of values that differ; a group that only one has does not count."""
    names = []
    # Names at the top are groups, which may be younger than the checkpoint.
    below_group = bool(prefix)
    for name in sorted(a.keys() | b.keys()):
        x, y = a.get(name), b.get(name)
        in_both = name in a and name in b
        if isinstance(x, dict) and isinstance(y, dict):
            names += _differing(x, y, f"{prefix}{name}.")
        elif (in_both and x != y) or (not in_both and below_group):
            names.append(prefix + name)
    return names


def _value(tree: dict, name: str) -> Any:
    """Return the value of a dotted name, "not set" where a nested dict has none."""
    for part in name.split("."):
        tree = tree.get(part, {}) if isinstance(tree, dict) else {}
    return "not set" if tree == {} else tree
