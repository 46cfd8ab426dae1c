"""A run that branches from another one: it goes on from the other's state and place in its data."""

from collections.abc import Sequence

from slmjax.checkpoint import Checkpoints, RestoredItems
from slmjax.config import Config, freeze, from_dict, to_dict
from slmjax.data.rows import Rows
from slmjax.errors import UserError
from slmjax.exported.read_export import is_export
from slmjax.train import schedule
from slmjax.train.inherit import ancestors, unreadable_parent
from slmjax.train.resume import Start, differing_fields, window_step
from slmjax.train.state import TrainState, restored, saved

# These decide the learning rate of a step, by which a branch is judged and not by their values.
OF_RATE = ("train.schedule", "train.warmup", "train.decay")
# What is the child's own to decide.
OWN = (*OF_RATE, "train.branch", "stage")


def check_branch(init_from: str, config: Config) -> list[int]:
    """Return the parent's checkpoints up to which both runs have the same learning rates.

    It reads meta items only, so that what cannot branch is refused before text is prepared.

    Args:
      init_from: work directory of the parent.
    Raises: UserError where there is no parent, it has no optimizer's state, another config, or no
      such checkpoint.
    """
    if not init_from:
        raise UserError(
            "config.train.branch is True, but there is no run to branch from; give its work "
            "directory as --init_from=WORKDIR."
        )
    if is_export(init_from):
        raise UserError(
            f"--init_from={init_from} is an export, which has no optimizer's state to branch from; "
            "give the run itself, or leave config.train.branch out."
        )
    checkpoints = Checkpoints(init_from)
    steps = [step for step in checkpoints.steps() if checkpoints.meta(step)]
    if not steps:
        raise UserError(
            f"--init_from={init_from}: it has no checkpoint that can be read, so there is nothing "
            "to branch from."
        )
    parent = freeze(from_dict(checkpoints.meta(steps[-1])["config"]))
    _check_config(init_from, parent, config)
    usable, shared = [], 0
    for step in steps:
        then = freeze(from_dict(checkpoints.meta(step)["config"]))
        shared = schedule.shared_steps(then, config)
        if step <= shared:
            usable.append(step)
    if not usable:
        raise UserError(
            f"--init_from={init_from}: the learning rates of both runs agree in the first {shared} "
            f"steps, but its checkpoints are of step {_listed(steps)}; different are "
            f"{_differing(parent, config, OF_RATE)}."
        )
    return usable


def branch(
    init_from: str, config: Config, shapes: TrainState, rows: Rows, tokenizer: str
) -> tuple[TrainState, Start, list[dict], list[str]]:
    """Return the state of the newest checkpoint of the parent that is one of this run as well.

    Up to it both runs have the same learning rates and batches, so that this run goes on as the
    parent would have with this config.

    Args:
      shapes: the state's shapes, with shardings.
      rows: of this run.
      tokenizer: hash of this run's tokenizer.
    Returns: (state, the start from that step, the run's ancestors, sentences on damaged checkpoints
      that were passed over).
    Raises: UserError where there is none, naming the fields that differ.
    """
    checkpoints = Checkpoints(init_from)
    by_rate = check_branch(init_from, config)
    steps = []
    for step in by_rate:
        meta = checkpoints.meta(step)
        if meta["tokenizer"] == tokenizer and meta["fingerprint"] == rows.fingerprint(step):
            steps.append(step)
    if not steps:
        meta = checkpoints.meta(by_rate[-1])
        what = "tokenizer" if meta["tokenizer"] != tokenizer else "data"
        parent = freeze(from_dict(meta["config"]))
        raise UserError(
            f"--init_from={init_from}: the {what} of its checkpoints (of step {_listed(by_rate)}) "
            f"is not this run's; different are {_differing(parent, config)}."
        )

    def read(step: int, meta: dict) -> RestoredItems:
        return checkpoints.restore(step, saved(shapes))

    checkpoint, damaged = checkpoints.newest(steps, read)
    if checkpoint is None:
        raise unreadable_parent(init_from, damaged)
    window = tuple(map(window_step, checkpoint.meta.get("window", ())))
    start = Start("branch", checkpoint.step, window=window)
    faults = [f"--init_from={init_from}, {fault}" for fault in damaged]
    parent, *older = ancestors(init_from, checkpoint.step, checkpoint.meta)
    return restored(checkpoint.items), start, [parent | {"how": "branch"}, *older], faults


def _check_config(init_from: str, parent: Config, config: Config) -> None:
    """Raises: UserError naming the fields that differ and must not."""
    differing = differing_fields(to_dict(parent), to_dict(config), ("learning", "chance"))
    sentences = [sentence for name, sentence in differing.items() if name not in OWN]
    if sentences:
        raise UserError(
            f"--init_from={init_from}: a branch goes on with its parent's config, but "
            f"{'; '.join(sentences)}; leave config.train.branch out to start from its parameters "
            "alone."
        )


def _differing(parent: Config, config: Config, fields: Sequence[str] = ()) -> str:
    """Return the names of the fields that differ and decide the order of the data, or `fields`."""
    stored, now = to_dict(parent), to_dict(config)
    names = list(differing_fields(stored, now, ("order",)))
    for name in differing_fields(stored, now, ("learning",)):
        if name in fields:
            names.append(name)
    return ", ".join(names) or "the texts themselves"


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))
