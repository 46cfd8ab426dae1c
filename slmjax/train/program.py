"""Model, optimizer and train step for a mesh: what the launcher runs and the bench times."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from slmjax.config import Config, ModelConfig, PrecisionConfig, TrainConfig
from slmjax.config.run_phases import RunPhase, run_phases, tokens_before
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
from slmjax.train import schedule
from slmjax.train.optimizer import Optimizer
from slmjax.train.schedule import Rates
from slmjax.train.state import TrainState
from slmjax.train.step import init_state, jit_step, make_step, state_shardings

# Attention kernels that run on one kind of device only; the others run on all.
KERNEL_PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that a train step is made of, not compiled yet.

    reasons: what was chosen for these devices and why, one line for each choice.
    make: computes the state before the first step.
    shapes: the state as ShapeDtypeStructs with shardings.
    where: the state's shardings alone.
    declared: (declarations of the parameters, declarations of the buffers), see models/declare.py.
    """

    config: Config
    mesh: Mesh
    device: DeviceKind
    model: Model
    reasons: list[str]
    make: Callable[[], TrainState]
    shapes: TrainState
    where: TrainState
    declared: tuple[dict, dict]
    optimizer: Optimizer

    @property
    def arch(self) -> Architecture:
        return self.model.arch

    @property
    def place_cuts(self) -> tuple[int, int] | None:
        """The result of `cuts`, for the attention kernel whose batches have a field "places".

        That is "cudnn": its program is compiled for a fixed number of documents on each device.
        None for the other kernels.
        """
        if self.arch.attention != "cudnn":
            return None
        return cuts(self.config.train, self.mesh)

    @functools.cached_property
    def phases(self) -> tuple[RunPhase, ...]:
        """The phases of the run, in steps."""
        return run_phases(self.config.data, self.config.train)

    @functools.cached_property
    def flops_per_token(self) -> float:
        """FLOPs of a token in rows of config.data.seq_len, see sizes.train_flops_per_token."""
        return sizes.train_flops_per_token(self.arch, self.config.data.seq_len)

    @functools.cached_property
    def flops_by_length(self) -> dict[int, float]:
        """FLOPs of a token in the rows of each phase, by their length."""
        lengths = {phase.seq_len for phase in self.phases}
        return {length: sizes.train_flops_per_token(self.arch, length) for length in lengths}

    def spent(self, done: int) -> tuple[int, float]:
        """Return (tokens, FLOPs) of the first `done` steps."""
        tokens, flops = 0, 0.0
        for length, count in tokens_before(self.phases, done).items():
            tokens += count
            flops += count * self.flops_by_length[length]
        return tokens, flops

    def mfu(self, tokens_per_second: float) -> float | None:
        """Return `utilisation` at a speed in rows of config.data.seq_len."""
        return self.utilisation(tokens_per_second * self.flops_per_token)

    def utilisation(self, flops_per_second: float) -> float | None:
        """Return the share of the devices' peak FLOPs, None where the peak is not known.

        It is the peak of the compute type, under float8 too, so that runs can be compared.
        """
        peak = devices.peak_flops(self.device.name, self.arch.compute)
        if peak:
            peak *= self.mesh.size
        return devices.mfu(flops_per_second, 1, peak)

    def init(self) -> TrainState:
        """Return the state before the first step, on the mesh."""
        with jax.set_mesh(self.mesh):
            return jax.jit(self.make, out_shardings=self.where)()

    def compile(self, task: Task, step: int = 0) -> Any:
        """Return step(state, batch, rates) -> (state, metrics) as one executable.

        It donates the state and takes batches that are shaped as that of `step`.
        """
        return self.lower(task, step).compile()

    def rates(self, step: int) -> Rates:
        """Return what the compiled step takes as its third argument at a step."""
        return schedule.rates(self.config.train, step, self.phases)

    def lower(self, task: Task, step: int = 0) -> Any:
        """Return the step before compilation."""
        config, fields = self.config, task.rows.shapes(step)
        function = make_step(
            task,
            self._model_at(step),
            self.optimizer,
            config.train,
            config.seed,
            self.where,
            self.declared,
        )
        deterministic = config.train.deterministic
        jitted = jit_step(function, self.where, fields, self.mesh, self.device, deterministic)
        with jax.set_mesh(self.mesh):
            return jitted.lower(self.shapes, batch_shapes(fields, self.mesh), self.rates(step))

    def _model_at(self, step: int) -> Model:
        """Return the model for the batches of the phase that a step is in."""
        config = self.config
        usual = config.train.batch, config.data.seq_len
        for phase in self.phases:
            shape = phase.batch, phase.seq_len
            if phase.first <= step < phase.stop and shape != usual:
                return make_model(config, self.arch, self.mesh, self.device, *shape)
        return self.model


def make_program(config: Config, mesh: Mesh, tokenizer_size: int) -> Program:
    """Return the program of a config on a mesh. Nothing is computed here.

    Args:
      tokenizer_size: tokens of the vocabulary; the embedding may have more rows.
    Raises: UserError where config and devices do not fit.
    """
    device = device_kind(mesh)
    arch, reasons = resolve(
        config.model, config.precision, mesh, tokenizer_size, config.train.deterministic
    )
    check_kernel(arch.attention, device)
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

    # No array is made: the state may be larger than this host's memory.
    shapes = jax.eval_shape(make)
    check_types(shapes.params)
    try:
        where = state_shardings(shapes, declared[0], mesh)
    except ValueError as error:
        raise UserError(f"config.mesh does not fit config.model: {error}.") from error

    # With shardings, so that the step can be compiled before any state exists.
    def placed(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return Program(
        config=config,
        mesh=mesh,
        device=device,
        model=make_model(config, arch, mesh, device, config.train.batch, config.data.seq_len),
        reasons=reasons,
        make=make,
        shapes=jax.tree.map(placed, shapes, where),
        where=where,
        declared=declared,
        optimizer=optimizer,
    )


def make_model(
    config: Config, arch: Architecture, mesh: Mesh, device: DeviceKind, batch: int, seq_len: int
) -> Model:
    """Return the model for batches of one shape.

    It makes the logits in pieces of a row: all at once may not fit into a device's memory.
    """
    microbatches, ways = cuts(config.train, mesh)
    chunks = chunks_for(
        batch // (microbatches * ways),  # rows of a microbatch on one device
        seq_len,
        arch.vocab_size // mesh.shape["tensor"],  # columns of the logits on one device
        device.memory,
        jnp.dtype(arch.compute).itemsize,
    )
    return Model(arch, chunks)


def cuts(train: TrainConfig, mesh: Mesh) -> tuple[int, int]:
    """Return how a batch is cut: (microbatches, devices over which the rows of each are split)."""
    return train.microbatches, math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))


def batch_shapes(fields: Fields, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the train step's batch as ShapeDtypeStructs with shardings."""
    where = field_shardings(fields, mesh)
    shapes = {}
    for name, field in fields.items():
        shapes[name] = jax.ShapeDtypeStruct(field.shape, field.dtype, sharding=where[name])
    return shapes


def check_model(
    model: ModelConfig, precision: PrecisionConfig, mesh: Mesh, deterministic: bool
) -> None:
    """Check that model and devices fit, before the text is prepared, which may take hours.

    Raises: UserError where they do not.
    """
    # The tokenizer is not known yet, and any size of it will do here.
    arch, _ = resolve(model, precision, mesh, tokenizer_size=1, deterministic=deterministic)
    check_kernel(arch.attention, device_kind(mesh))
    # Both raise for an unknown name, the second also where a user's own mixer cannot be imported.
    lm.remat(arch.remat)
    for block in arch.blocks:
        mixer_class(block.mixer)


def check_kernel(attention: str, device: DeviceKind) -> None:
    """Raises: UserError for an attention kernel of another kind of device."""
    platform = KERNEL_PLATFORMS.get(attention, device.platform)
    if platform != device.platform:
        raise UserError(
            f"config.model.attention is '{attention}', which runs on a {platform.upper()}; this is "
            f"a {device.platform.upper()}: use auto."
        )


def check_types(params: dict) -> None:
    """Raises: UserError for a parameter that is not of a floating-point type."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            name = jax.tree_util.keystr(path)
            raise UserError(
                f"the parameter {name} is of type {leaf.dtype}; what is trained must be "
                "floating-point numbers."
            )
