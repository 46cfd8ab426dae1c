"""Model, optimizer and train step for a mesh, from the config alone: what the launcher runs, the bench times and a plan compiles."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from slmjax.errors import UserError
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.models.mixers import mixer_class
from slmjax.models.resolve import resolve
from slmjax.objectives.lm import objective
from slmjax.ops.cross_entropy import chunks_for
from slmjax.parallel.mesh import DeviceKind, batch_sharding, device_kind
from slmjax.train.optimizer import Optimizer
from slmjax.train.state import TrainState
from slmjax.train.step import init_state, jit_step, make_step, state_shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """A train step that is described and not yet compiled."""

    config: ConfigDict
    mesh: Mesh
    device: DeviceKind
    arch: Architecture
    reasons: list[str]  # of what was chosen for these devices, one line each
    chunks: int  # pieces of a row whose logits exist at once
    make: Callable[[], TrainState]
    shapes: TrainState  # of ShapeDtypeStructs with shardings
    where: TrainState  # of shardings

    @property
    def flops_per_token(self) -> float:
        """Of a training step, see sizes.train_flops_per_token."""
        return sizes.train_flops_per_token(self.arch, self.config.data.seq_len)

    def mfu(self, tokens_per_second: float) -> float | None:
        """Share of the devices' peak in the compute type (also under float8); None where the peak is not known."""
        peak = sizes.peak_flops(self.device.name, self.arch.compute)
        return sizes.mfu(tokens_per_second, self.flops_per_token, peak and peak * self.mesh.size)

    def init(self) -> TrainState:
        """The state before the first step, on the mesh."""
        with jax.set_mesh(self.mesh):
            return jax.jit(self.make, out_shardings=self.where)()

    def roomy(self) -> "Program":
        """The same with places for as many documents as any row may hold, for the rare batch that has more than usual."""
        return dataclasses.replace(self, arch=dataclasses.replace(self.arch, usual_segments=self.arch.max_segments))

    def compile(self) -> Any:
        """step(state, batch) -> (state, metrics) as one executable; the state is given up."""
        c = self.config
        of = objective(self.arch, z_loss=c.train.z_loss, chunks=self.chunks)
        step = make_step(of, Optimizer(c.train, c.model.multipliers, c.precision.optimizer), c, self.where, self.arch.compute)
        jitted = jit_step(step, self.where, self.mesh, self.device, c.train.deterministic)
        with jax.set_mesh(self.mesh):
            return jitted.lower(self.shapes, batch_shapes((c.train.batch, c.data.seq_len), batch_sharding(self.mesh))).compile()


def make_program(config: ConfigDict, mesh: Mesh, tokenizer_size: int, segments: tuple[int, int]) -> Program:
    """The program of a config on a mesh; nothing is computed here, and its own methods set the mesh.

    Args:
      tokenizer_size: tokens of the vocabulary; the embedding may have more rows.
      segments: most documents in a row and places kept for one, from the row plan; (1, 1) where every row is one document.
    Raises: UserError where config and devices do not fit.
    """
    device = device_kind(mesh)
    arch, reasons = resolve(config, mesh, tokenizer_size, segments)
    check_kernel(arch.attention, device)
    chunks = config.train.loss_chunks or chunks_for(
        device_rows(config, mesh),
        config.data.seq_len,
        arch.vocab_size // mesh.shape["tensor"],
        device.memory,
        jnp.dtype(arch.compute).itemsize,
    )
    optimizer = Optimizer(config.train, config.model.multipliers, config.precision.optimizer)

    def make() -> TrainState:
        return init_state(lambda: lm.init(arch, jax.random.key(config.seed)), optimizer, lambda: lm.init_buffers(arch))

    shapes = jax.eval_shape(make)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes.params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = jax.tree_util.keystr(path)
            raise UserError(f"the parameter {name} is of type {leaf.dtype}; what is trained must be floating-point numbers.")
    try:
        where = state_shardings(shapes, mesh)
    except ValueError as error:
        raise UserError(f"config.mesh does not fit config.model: {error}.") from error
    shapes = jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, where)
    return Program(config, mesh, device, arch, reasons, chunks, make, shapes, where)


def cuts(config: ConfigDict, mesh: Mesh) -> tuple[int, int]:
    """(microbatches, ways in which the rows of each are split over devices)."""
    return config.train.microbatches, mesh.shape["data"] * mesh.shape["fsdp"]


def device_rows(config: ConfigDict, mesh: Mesh) -> int:
    """Rows that a device holds of one microbatch."""
    return config.train.batch // math.prod(cuts(config, mesh))


def batch_shapes(shape: tuple[int, int], sharding: jax.sharding.Sharding) -> dict:
    """The train step's batch, described."""
    kinds = {"tokens": np.int32, "targets": np.int32, "segments": np.int32, "positions": np.int32, "weights": np.float32}
    return {name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding) for name, kind in kinds.items()}


def check_model(config: ConfigDict, mesh: Mesh) -> None:
    """Raises: UserError where model and devices do not fit, whatever the text is.

    It is asked before the text is prepared, which may take hours.
    """
    arch, _ = resolve(config, mesh, tokenizer_size=0)
    check_kernel(arch.attention, device_kind(mesh))
    lm.remat(arch.remat)
    for block in arch.blocks:
        mixer_class(block.mixer)


def check_kernel(attention: str, device: DeviceKind) -> None:
    """Raises: UserError for an attention kernel of another kind of device."""
    needs = {"cudnn": "gpu", "splash": "tpu"}.get(attention, device.platform)
    if needs != device.platform:
        here = device.platform.upper()
        raise UserError(f"config.model.attention is '{attention}', which runs on a {needs.upper()}; this is a {here}: use auto.")
