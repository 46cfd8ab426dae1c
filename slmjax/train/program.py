"""Model, optimizer and train step for a mesh, from the config alone: what the launcher runs, the bench times and a plan compiles."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from slmjax.config import Config, TrainConfig
from slmjax.data.rows import Fields
from slmjax.errors import UserError
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.models.lm import Model
from slmjax.models.mixers import mixer_class
from slmjax.models.resolve import resolve
from slmjax.ops.cross_entropy import chunks_for
from slmjax.parallel import devices
from slmjax.parallel.mesh import DeviceKind, device_kind
from slmjax.parallel.rules import field_shardings
from slmjax.tasks.task import Task
from slmjax.train.optimizer import Optimizer
from slmjax.train.state import TrainState
from slmjax.train.step import init_state, jit_step, make_step, state_shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """A train step that is described and not yet compiled."""

    config: Config
    mesh: Mesh
    device: DeviceKind
    model: Model
    reasons: list[str]  # of what was chosen for these devices, one line each
    make: Callable[[], TrainState]
    shapes: TrainState  # of ShapeDtypeStructs with shardings
    where: TrainState  # of shardings
    declared: tuple[dict, dict]  # of parameters and of buffers, see models/declare.py

    @property
    def arch(self) -> Architecture:
        return self.model.arch

    @property
    def place_cuts(self) -> tuple[int, int] | None:
        """`cuts` where the attention kernel asks how many documents a device holds, else None."""
        return cuts(self.config.train, self.mesh) if self.arch.attention == "cudnn" else None

    @functools.cached_property
    def flops_per_token(self) -> float:
        """Of a training step, see sizes.train_flops_per_token."""
        return sizes.train_flops_per_token(self.arch, self.config.data.seq_len)

    def mfu(self, tokens_per_second: float) -> float | None:
        """Share of the devices' peak in the compute type (also under float8); None where the peak is not known."""
        peak = devices.peak_flops(self.device.name, self.arch.compute)
        return devices.mfu(tokens_per_second, self.flops_per_token, peak and peak * self.mesh.size)

    def init(self) -> TrainState:
        """The state before the first step, on the mesh."""
        with jax.set_mesh(self.mesh):
            return jax.jit(self.make, out_shardings=self.where)()

    def compile(self, task: Task, step: int = 0) -> Any:
        """step(state, batch) -> (state, metrics) as one executable, for batches as that of a step; the state is given up."""
        return self.lower(task, step).compile()

    def lower(self, task: Task, step: int = 0) -> Any:
        """The step before compilation."""
        c, fields = self.config, task.rows.shapes(step)
        optimizer = Optimizer(c.train, c.model.multipliers, self.declared[0], c.precision.optimizer)
        step = make_step(task, self.model, optimizer, c.train, c.seed, self.where, self.declared)
        jitted = jit_step(step, self.where, fields, self.mesh, self.device, c.train.deterministic)
        with jax.set_mesh(self.mesh):
            return jitted.lower(self.shapes, batch_shapes(fields, self.mesh))


def make_program(config: Config, mesh: Mesh, tokenizer_size: int) -> Program:
    """The program of a config on a mesh; nothing is computed here, and its own methods set the mesh.

    Args:
      tokenizer_size: tokens of the vocabulary; the embedding may have more rows.
    Raises: UserError where config and devices do not fit.
    """
    device = device_kind(mesh)
    arch, reasons = resolve(
        config.model, config.precision, mesh, tokenizer_size, config.train.deterministic
    )
    check_kernel(arch.attention, device)
    chunks = chunks_for(
        config.train.batch // math.prod(cuts(config.train, mesh)),
        config.data.seq_len,
        arch.vocab_size // mesh.shape["tensor"],
        device.memory,
        jnp.dtype(arch.compute).itemsize,
    )
    declared = lm.declare(arch), lm.declare_buffers(arch)
    optimizer = Optimizer(
        config.train, config.model.multipliers, declared[0], config.precision.optimizer
    )

    def make() -> TrainState:
        return init_state(
            lambda: lm.init(arch, jax.random.key(config.seed)),
            optimizer,
            lambda: lm.init_buffers(arch),
        )

    shapes = jax.eval_shape(make)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes.params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = jax.tree_util.keystr(path)
            raise UserError(
                f"the parameter {name} is of type {leaf.dtype}; what is trained must be floating-point numbers."
            )
    try:
        where = state_shardings(shapes, declared[0], mesh)
    except ValueError as error:
        raise UserError(f"config.mesh does not fit config.model: {error}.") from error
    shapes = jax.tree.map(
        lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, where
    )
    return Program(
        config, mesh, device, Model(arch, chunks), reasons, make, shapes, where, declared
    )


def cuts(train: TrainConfig, mesh: Mesh) -> tuple[int, int]:
    """Return (microbatches, ways in which the rows of each are split over devices)."""
    return train.microbatches, mesh.shape["data"] * mesh.shape["fsdp"]


def batch_shapes(fields: Fields, mesh: Mesh) -> dict:
    """The train step's batch, described."""
    where = field_shardings(fields, mesh)
    return {
        name: jax.ShapeDtypeStruct(field.shape, field.dtype, sharding=where[name])
        for name, field in fields.items()
    }


def check_model(config: Config, mesh: Mesh) -> None:
    """Raises: UserError where model and devices do not fit, whatever the text is.

    It is asked before the text is prepared, which may take hours.
    """
    arch, _ = resolve(config.model, config.precision, mesh, 1, config.train.deterministic)
    check_kernel(arch.attention, device_kind(mesh))
    lm.remat(arch.remat)
    for block in arch.blocks:
        mixer_class(block.mixer)


def check_kernel(attention: str, device: DeviceKind) -> None:
    """Raises: UserError for an attention kernel of another kind of device."""
    needs = {"cudnn": "gpu", "splash": "tpu"}.get(attention, device.platform)
    if needs != device.platform:
        here = device.platform.upper()
        raise UserError(
            f"config.model.attention is '{attention}', which runs on a {needs.upper()}; this is a {here}: use auto."
        )
