"""The stage `train`: everything that a run needs is built here; `loop.train` runs it."""

import dataclasses
import functools
import os
import platform
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

import slmjax
from slmjax import config as configs
from slmjax.checkpoint import Checkpoints
from slmjax.data.loader import BatchPlan
from slmjax.data.prepare import Prepared
from slmjax.data.stage import facts, prepared_text
from slmjax.errors import UserError
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.objectives.lm import objective
from slmjax.ops.cross_entropy import chunks_for
from slmjax.parallel import hosts
from slmjax.parallel.mesh import DeviceKind, batch_sharding, device_kind, make_mesh
from slmjax.train import metrics as records
from slmjax.train import resume
from slmjax.train.evaluation import Evaluator
from slmjax.train.goodput import Goodput
from slmjax.train.optimizer import Optimizer
from slmjax.train.progress import banner
from slmjax.train.report import write_report
from slmjax.train.resume import Start
from slmjax.train.state import TrainState
from slmjax.train.step import init_state, jit_step, make_step, state_shardings


@dataclasses.dataclass
class Run:
    """A training run, ready to go on from `start.step`."""

    config: ConfigDict
    workdir: epath.Path
    mesh: Mesh
    device: DeviceKind
    arch: Architecture
    prepared: Prepared
    plan: BatchPlan
    held: np.ndarray
    state: TrainState
    step: Callable
    evaluator: Evaluator
    checkpoints: Checkpoints
    writer: records.MetricsWriter
    goodput: Goodput
    start: Start
    meta: dict[str, Any]
    command: str
    skipped: int  # steps skipped in earlier sessions and not done again since

    @property
    def flops_per_token(self) -> float:
        return sizes.train_flops_per_token(self.arch, self.config.data.seq_len)


def run(config: ConfigDict, workdir: str, *, init_from: str = "", command: str = "", began: float | None = None) -> int:
    """Train, or say that the run is finished; returns the exit status."""
    from slmjax.train import loop

    use_compile_cache()
    folder = epath.Path(workdir)
    checkpoints = Checkpoints(folder, config.checkpoint.keep)
    start = resume.decide(checkpoints, config)
    if start.kind == "finished":
        if hosts.is_first():
            print(f"This run is finished: {start.step} steps. Its report: {write_report(folder, defaults=configs.to_dict(configs.base()))}")
            print(f"For a longer one, --config.train.steps={2 * start.step}; for another, --workdir=DIR.")
        return 0
    check_writable(folder)
    ready = build(config, folder, checkpoints, start, init_from=init_from, command=command, began=began)
    with jax.set_mesh(ready.mesh):
        return loop.train(ready)


def build(
    config: ConfigDict, folder: epath.Path, checkpoints: Checkpoints, start: Start, *, init_from: str, command: str, began: float | None
) -> Run:
    """Data, model, step and state of a run: restored where there is something to restore, compiled, its first records written."""
    past = records.read(folder)
    past = past if past.all else None
    mesh = make_mesh(config.mesh.to_dict())
    device = device_kind(mesh)
    check_batch(config, mesh)
    goodput = Goodput(past, from_step=start.step, began=began)
    prepared = prepared_text(config, str(folder), init_from=init_from, process=jax.process_index(), processes=jax.process_count())
    plan = batch_plan(config, prepared)
    arch, reasons = resolve(config, mesh, prepared.tokenizer.vocab_size)
    check_kernel(arch.attention, device)
    lineage = resume.parents(init_from) if init_from and not start.step else records.parents(past)
    meta = {"config": configs.to_dict(config), "tokenizer": prepared.tokenizer.sha256, "parents": lineage}
    shape = (config.train.batch, config.data.seq_len)
    local = (config.train.batch // config.train.microbatches // (mesh.shape["data"] * mesh.shape["fsdp"]), config.data.seq_len)
    chunks = config.train.loss_chunks or chunks_for(*local, arch.vocab_size // mesh.shape["tensor"], device.memory)
    with jax.set_mesh(mesh):
        optimizer = Optimizer(config.train, config.model.multipliers, config.precision.optimizer)
        init = functools.partial(lm.init, arch, jax.random.key(config.seed))
        make = functools.partial(init_state, init, optimizer, functools.partial(lm.init_buffers, arch))
        shapes = jax.eval_shape(make)
        try:
            where = state_shardings(shapes, mesh)
        except ValueError as error:
            raise UserError(f"config.mesh does not fit config.model: {error}.") from error
        shapes = jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, where)
        state, damaged = None, []
        with goodput.spent("restore"):
            if start.step:
                state, start, damaged = resume.restore(checkpoints, start, shapes, plan, meta)
                goodput.from_step = start.step
        if state is None:
            state = jax.jit(make, out_shardings=where)()
            if init_from:
                state = dataclasses.replace(state, params=resume.inherit(init_from, shapes.params))
        with goodput.spent("compile"):
            of = objective(arch, z_loss=config.train.z_loss, chunks=chunks)
            step = jit_step(make_step(of, optimizer, config, where, arch.compute), where, mesh, device, config.train.deterministic)
            step = step.lower(shapes, batch_shapes(shape, batch_sharding(mesh))).compile()
            evaluator = Evaluator(config, arch, mesh, prepared, chunks, where.params)
            evaluator.warm(state.params)
    writer = open_records(config, folder, prepared, start if past else None)
    told_sizes = sizes.parameters(arch)._asdict()
    writer.event("start", start.step, command=command, environment=environment(device), parameters=told_sizes, choices=reasons)
    writer.event("data", start.step, sources=facts(prepared, plan.epochs(config.train.steps)), folder=str(prepared.folder))
    writer.event("lineage", start.step, parents=lineage)
    for message in damaged:
        writer.event("damaged", start.step, message=message)
    if start.kind == "extend":
        writer.event("extended", start.step, from_step=start.step, steps=config.train.steps, before=start.before)
    tokens = sum(shards.tokens for shards in prepared.train.values())
    lines = {
        "model": sizes.describe(arch),
        "devices": f"{mesh.size} x {device.name}" + "".join(f", {axis}={size}" for axis, size in mesh.shape.items() if size > 1),
        **{reason.partition(" ")[0]: reason.partition(" ")[2] for reason in reasons},
        "loss": f"logits in {chunks} piece{'s' * (chunks > 1)} along a row",
        "data": f"{tokens:,} tokens; a step reads {shape[0] * shape[1]:,}",
        "epochs": ", ".join(f"{name} {n:.2f}" for name, n in plan.epochs(config.train.steps).items()),
        "left out": dropped(plan),
        "start": told(start),
        "parents": ", ".join(f"{parent['workdir']} step {parent['step']} ({parent['hash']})" for parent in lineage),
    }
    banner(f"slmjax {slmjax.__version__}: {folder}", lines, active=hosts.is_first())
    held = hosts.local_rows(batch_sharding(mesh), *shape)
    skipped = sum(event["step"] <= start.step for event in records.events(past, "skipped")) if past else 0
    return Run(
        config=config, workdir=folder, mesh=mesh, device=device, arch=arch, prepared=prepared, plan=plan, held=held, state=state, step=step,
        evaluator=evaluator, checkpoints=checkpoints, writer=writer, goodput=goodput, start=start, meta=meta, command=command,
        skipped=skipped,
    )  # fmt: skip


def open_records(config: ConfigDict, folder: epath.Path, prepared: Prepared, resumed: Start | None) -> records.MetricsWriter:
    """Write config.json and tokenizer.json and open metrics.jsonl, on the first process."""
    if hosts.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(configs.to_json(config))
        prepared.tokenizer.save(os.fspath(folder / "tokenizer.json"))
    return records.MetricsWriter(
        folder, tensorboard=config.log.tensorboard, wandb=config.log.wandb, config=configs.to_dict(config),
        resume_step=resumed.step if resumed else None, active=hosts.is_first(),
    )  # fmt: skip


def batch_shapes(shape: tuple[int, int], sharding: jax.sharding.Sharding) -> dict:
    """The train step's batch, described."""
    kinds = {"tokens": np.int32, "targets": np.int32, "segments": np.int32, "positions": np.int32, "weights": np.float32}
    return {name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding) for name, kind in kinds.items()}


def batch_plan(config: ConfigDict, prepared: Prepared) -> BatchPlan:
    """The batches of every step of a run."""
    weights = {name: (dict(source).get("weight") if source else None) for name, source in config.data.sources.items()}
    return BatchPlan(
        prepared.train, seq_len=config.data.seq_len, batch=config.train.batch, steps=config.train.steps, seed=config.seed,
        packing=config.data.packing, phases=[(until, dict(of)) for until, of in config.data.phases], weights=weights or None,
    )  # fmt: skip


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Raises: UserError where a microbatch's rows do not divide over the devices."""
    parts, ways = config.train.microbatches, mesh.shape["data"] * mesh.shape["fsdp"]
    if config.train.batch % (parts * ways):
        raise UserError(
            f"config.train.batch is {config.train.batch}, which does not divide into {parts} microbatches over {ways} devices "
            f"(mesh data x fsdp); the nearest that does is {max(1, round(config.train.batch / (parts * ways))) * parts * ways}."
        )


def check_writable(folder: epath.Path) -> None:
    """Raises: UserError where the work directory cannot be made or written; asked before minutes of work, not after."""
    if "://" in os.fspath(folder):
        return
    place = epath.Path(folder).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise UserError(f"--workdir={folder}: '{place}' is not a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--workdir={folder}: '{place}' cannot be written; choose a folder that you may write to.")


def check_kernel(attention: str, device: DeviceKind) -> None:
    """Raises: UserError for an attention kernel of another kind of device."""
    needs = {"cudnn": "gpu", "splash": "tpu"}.get(attention, device.platform)
    if needs != device.platform:
        here = device.platform.upper()
        raise UserError(f"config.model.attention is '{attention}', which runs on a {needs.upper()}; this is a {here}: use auto.")


def environment(device: DeviceKind) -> dict[str, Any]:
    """What the report says of the machine."""
    return {
        "slmjax": slmjax.__version__, "python": platform.python_version(), "jax": jax.__version__, "device": device.name,
        "devices": jax.device_count(), "processes": jax.process_count(), "cpu cores": os.cpu_count(), "system": platform.platform(),
    }  # fmt: skip


def told(start: Start) -> str:
    """How the run starts, in words."""
    if start.kind == "extend":
        return f"continues from the trunk at step {start.step}, on another schedule (was {start.before} steps)"
    return f"goes on from step {start.step}" if start.step else "anew"


def dropped(plan: BatchPlan) -> str:
    """Sources of which some text does not fit the rows' bound on documents; "" where there is none."""
    shares = {name: rows.dropped_share() for name, rows in zip(plan.train, plan.row_plans, strict=True)}
    found = ", ".join(f"{name} {share:.2%}" for name, share in shares.items() if share > 0)
    return f"{found} (more than {plan.max_segments} documents in a row)" if found else ""


def use_compile_cache() -> None:
    """Keep compiled programs between runs (JAX_COMPILATION_CACHE_DIR, else a folder in the user's cache)."""
    if not jax.config.jax_compilation_cache_dir:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(base, "slmjax", "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
