"""A trained model from its work directory, for everything that only reads one."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence

import jax
from etils import epath

from slmjax.checkpoint import Checkpoints, DamagedCheckpoint
from slmjax.config import Config, check_trust, freeze, from_dict
from slmjax.errors import ANEW, UserError
from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.parallel.hosts import check_devices
from slmjax.parallel.mesh import make_mesh
from slmjax.text import tokenizer as tokenizers


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model, ready to be read.

    tokenizer: None for a model that was trained by a task without text.
    """

    config: Config
    arch: Architecture
    params: dict
    buffers: dict
    tokenizer: tokenizers.Tokenizer | None
    step: int


def load_model(
    workdir: str, step: int | None = None, trust: Sequence[str] = (), text: bool = True
) -> Loaded:
    """The newest model of a work directory (or that of `step`), in the compute type of this machine's first device.

    A newest checkpoint that is damaged is passed over with a line on stderr, as training does.

    Args:
      trust: "module:Class" of code that may be imported though the checkpoint names it; a checkpoint may be somebody else's.
      text: the model must have a tokenizer.
    Raises: UserError where there is no checkpoint that can be read, the step is not there, the tokenizer is not the one the model
      was trained with or there is none, or the checkpoint names code that is not trusted.
    """
    check_devices()
    root = epath.Path(workdir)
    checkpoints = Checkpoints(root)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(
            f"'{workdir}' has no checkpoint; expected the work directory of a training run."
        )
    if step is not None and step not in steps:
        raise UserError(
            f"'{workdir}' has no checkpoint of step {step}; there are {', '.join(map(str, steps))}."
        )
    with contextlib.closing(checkpoints):
        loaded, damaged = checkpoints.newest(
            steps if step is None else [step],
            lambda candidate, meta: _load(root, checkpoints, candidate, meta, trust, text),
        )
    if loaded is None:
        which = "the checkpoint" if step is not None else "none of the checkpoints"
        raise UserError(
            f"{which} in '{checkpoints.root}' can{'not' if step is not None else ''} be read: {'; '.join(damaged)}."
        )
    for fault in damaged:
        print(
            f"slmjax: the checkpoint of {fault}; it is damaged and was passed over", file=sys.stderr
        )
    return loaded


def _load(
    root: epath.Path,
    checkpoints: Checkpoints,
    step: int,
    meta: dict,
    trust: Sequence[str],
    text: bool,
) -> Loaded:
    try:
        config, trained_with = freeze(from_dict(meta["config"])), meta["tokenizer"]
    except UserError as error:  # of another version, or of somebody who changed it
        raise UserError(f"the checkpoint '{checkpoints.root / str(step)}': {error}") from error
    except Exception as error:  # whatever a damaged file holds
        raise DamagedCheckpoint("its meta item cannot be read") from error
    check_trust(config, trust, str(checkpoints.root / str(step)))
    if text and not trained_with:
        raise UserError(
            f"'{root}' was trained by the task '{config.task}', which has no tokenizer, so the model reads and writes no text."
        )
    tokenizer = _tokenizer(root, step, trained_with) if trained_with else None
    vocab_size = (
        tokenizer.vocab_size
        if tokenizer
        else checkpoints.shapes(step, "params")["embedding"].shape[0]
    )
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    arch, _ = resolve(config.model, config.precision, mesh, vocab_size, config.train.deterministic)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def described(make):
        shapes = jax.eval_shape(make)
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes
        )

    items = {"params": described(lambda: lm.init(arch, jax.random.key(0)))}
    if lm.declare_buffers(arch):
        items["buffers"] = described(lambda: lm.init_buffers(arch))
    found = checkpoints.restore(step, items).items
    return Loaded(config, arch, found["params"], found.get("buffers", {}), tokenizer, step)


def _tokenizer(root: epath.Path, step: int, trained_with: str) -> tokenizers.Tokenizer:
    """The work directory's tokenizer, whose hash must be the one of the checkpoint."""
    file = root / "tokenizer.json"
    if not file.exists():
        raise UserError(f"'{root}' has lost its tokenizer.json; {ANEW}.")
    tokenizer = tokenizers.load_tokenizer(str(file))
    if tokenizer.sha256 != trained_with:
        raise UserError(
            f"'{file}' is not the tokenizer that the checkpoint of step {step} was trained with."
        )
    return tokenizer
