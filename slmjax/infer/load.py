"""A trained model from its work directory, for everything that only reads one."""

import dataclasses

import jax
from etils import epath
from ml_collections import ConfigDict

from slmjax.checkpoint import Checkpoints
from slmjax.config import from_dict
from slmjax.data import tokenizer as tokenizers
from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.parallel.mesh import make_mesh


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A trained model, ready to be read."""

    config: ConfigDict
    arch: Architecture
    params: dict
    buffers: dict
    tokenizer: tokenizers.Tokenizer
    step: int


def load_model(workdir: str, step: int | None = None) -> Loaded:
    """The newest model of a work directory (or that of `step`), in the compute type of this machine's first device.

    Raises: UserError where there is no checkpoint, the step is not there, or the tokenizer is not the one the model was trained with.
    """
    root = epath.Path(workdir)
    checkpoints = Checkpoints(root)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"'{workdir}' has no checkpoint; expected the work directory of a training run.")
    if step is not None and step not in steps:
        raise UserError(f"'{workdir}' has no checkpoint of step {step}; there are {', '.join(map(str, steps))}.")
    step = steps[-1] if step is None else step
    meta = checkpoints.meta(step)
    config = from_dict(meta["config"])
    tokenizer = tokenizers.load(str(root / "tokenizer.json"))
    if tokenizer.sha256 != meta["tokenizer"]:
        raise UserError(f"'{root / 'tokenizer.json'}' is not the tokenizer that the checkpoint of step {step} was trained with.")
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    arch, _ = resolve(config, mesh, tokenizer.vocab_size)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda: lm.init(arch, jax.random.key(0)))
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    params = checkpoints.restore(step, shapes).params
    checkpoints.close()
    return Loaded(config, arch, params, {}, tokenizer, step)
