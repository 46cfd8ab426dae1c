"""Load a trained model from its work directory or its export, for commands that only read it."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from slmjax.checkpoint import DamagedCheckpoint, StoredModel, ancestors
from slmjax.config import Config, check_trust, freeze, from_dict
from slmjax.errors import HOW_TO_RESTORE, UserError
from slmjax.exported.read_export import checkpoints_of
from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.parallel.hosts import check_devices
from slmjax.parallel.mesh import make_mesh
from slmjax.text import tokenizer as tokenizers


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model, ready to be read."""

    config: Config
    arch: Architecture
    params: dict
    buffers: dict
    tokenizer: tokenizers.Tokenizer | None  # None if the model's task has no text
    step: int
    # Work directory, step and hash of this checkpoint, then those of its ancestors, nearest first.
    lineage: list[dict]


def load_model(
    workdir: str,
    step: int | None = None,
    trust: Sequence[str] = (),
    text: bool = True,
) -> Loaded:
    """Return the newest model of a work directory, or that of `step`; an export's is its only one.

    Its compute type and kernels are chosen for this machine's first device. Damaged checkpoints
    are passed over with a line on stderr, as in training.

    Args:
      trust: "module:Class" of code that may be imported although only the checkpoint names it; a
        checkpoint may be somebody else's.
      text: the model must have a tokenizer.
    Raises: UserError if no checkpoint can be read, the step does not exist, the tokenizer is
      missing or not the one that the model was trained with, or the checkpoint names code that is
      not trusted.
    """
    check_devices()
    root = epath.Path(workdir)
    checkpoints = checkpoints_of(root)

    def load(candidate: int, meta: dict) -> Loaded:
        return _load(root, checkpoints, candidate, meta, trust, text)

    return read_newest(checkpoints, workdir, step, load)


def read_newest(
    checkpoints: StoredModel,
    workdir: str,
    step: int | None,
    read: Callable[[int, dict], Any],
) -> Any:
    """Return what `read` makes of the newest checkpoint, or of that of `step`, and close.

    Damaged checkpoints are passed over with a line on stderr.

    Args:
      workdir: that the user named, for messages.
      read: see StoredModel.newest.
    Raises: UserError if no checkpoint can be read or the step does not exist.
    """
    steps = checkpoints.steps()
    if not steps:
        expected = "expected the work directory of a training run, or its export"
        raise UserError(f"'{workdir}' has no checkpoint; {expected}.")
    if step is not None and step not in steps:
        known = ", ".join(map(str, steps))
        raise UserError(f"'{workdir}' has no checkpoint of step {step}; there are {known}.")
    wanted = steps if step is None else [step]
    with contextlib.closing(checkpoints):
        result, damaged = checkpoints.newest(wanted, read)
    if result is None:
        faults = "; ".join(damaged)
        if step is None:
            raise UserError(
                f"none of the checkpoints in '{checkpoints.root}' can be read: {faults}."
            )
        raise UserError(f"the checkpoint in '{checkpoints.root}' cannot be read: {faults}.")
    for fault in damaged:
        line = f"slmjax: the checkpoint of {fault}; it is damaged and was passed over"
        print(line, file=sys.stderr)
    return result


def _load(
    root: epath.Path,
    checkpoints: StoredModel,
    step: int,
    meta: dict,
    trust: Sequence[str],
    text: bool,
) -> Loaded:
    """Return the model of one checkpoint.

    Args:
      meta: the checkpoint's own record of its config and tokenizer.
    Raises: DamagedCheckpoint, after which `load_model` tries an older one; UserError for any other
      fault.
    """
    place = str(checkpoints.place(step))
    try:
        config = freeze(from_dict(meta["config"]))
        tokenizer_hash = meta["tokenizer"]  # empty where the task has no tokenizer
    except UserError as error:
        # The config is of another version, or somebody changed it.
        raise UserError(f"the checkpoint '{place}': {error}") from error
    except Exception as error:
        # A damaged file may hold anything.
        raise DamagedCheckpoint("its meta item cannot be read") from error
    check_trust(config, trust, place)
    if text and not tokenizer_hash:
        fault = f"was trained by the task '{config.task}', which has no tokenizer"
        raise UserError(f"'{root}' {fault}, so the model reads and writes no text.")
    tokenizer = None
    if tokenizer_hash:
        tokenizer = checked_tokenizer(root, step, tokenizer_hash)
        vocab_size = tokenizer.vocab_size
    else:
        # The rows of the embedding, as there is no tokenizer to ask.
        vocab_size = checkpoints.shapes(step, "params")["embedding"].shape[0]
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    deterministic = config.train.deterministic
    # With the compute type and kernels of this machine, which may not be those of training.
    arch, _ = resolve(config.model, config.precision, mesh, vocab_size, deterministic)
    # A model without buffers has no such item in its checkpoint.
    items = {"params": _shapes_to_load(lambda: lm.init(arch, jax.random.key(0)))}
    if lm.declare_buffers(arch):
        items["buffers"] = _shapes_to_load(lambda: lm.init_buffers(arch))
    restored = checkpoints.restore(step, items).items
    buffers = restored.get("buffers", {})
    lineage = ancestors(str(root), step, meta)
    return Loaded(config, arch, restored["params"], buffers, tokenizer, step, lineage)


def _shapes_to_load(make: Callable[[], dict]) -> dict:
    """Return the shapes of the tree that `make` returns, to be loaded onto the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def on_device(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=device)

    return jax.tree.map(on_device, jax.eval_shape(make))


def checked_tokenizer(
    root: epath.Path,
    step: int,
    tokenizer_hash: str,
) -> tokenizers.Tokenizer:
    """Return the work directory's tokenizer.

    Raises: UserError where it is missing, or not the one that the checkpoint was trained with.
    """
    file = root / "tokenizer.json"
    if not file.exists():
        raise UserError(f"'{root}' has lost its tokenizer.json; {HOW_TO_RESTORE}.")
    tokenizer = tokenizers.load_tokenizer(str(file))
    if tokenizer.sha256 != tokenizer_hash:
        fault = f"is not the tokenizer that the checkpoint of step {step} was trained with"
        raise UserError(f"'{file}' {fault}.")
    return tokenizer
