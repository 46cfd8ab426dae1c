"""The stage `train`: everything that a run needs is built here; `loop.train` runs it."""

import dataclasses
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

import slmjax
from slmjax import config as configs
from slmjax.checkpoint import Checkpoints, digest
from slmjax.config import Config, TrainConfig
from slmjax.data.rows import shape_key
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.parallel import hosts
from slmjax.parallel.compiling import use_compile_cache
from slmjax.parallel.mesh import DeviceKind, batch_sharding, make_mesh
from slmjax.readable import said_if_long
from slmjax.record import metrics as records
from slmjax.record.goodput import Goodput
from slmjax.record.progress import banner
from slmjax.record.report import write_report
from slmjax.tasks.task import Facts, Task
from slmjax.text.claims import Claim
from slmjax.text.files import write_atomic
from slmjax.text.tokenizer import Tokenizer
from slmjax.train import loop, resume
from slmjax.train.builders import builder_of, task_of
from slmjax.train.loop import Run
from slmjax.train.program import Program, check_model, cuts, make_program
from slmjax.train.resume import Start
from slmjax.train.state import TrainState, saved


def run_train(
    config: Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    began: float | None = None,
    claim: Claim | None = None,
) -> int:
    """Train, or say that the run is finished; returns the exit status."""
    use_compile_cache()
    folder = epath.Path(workdir)
    checkpoints = Checkpoints(folder, config.checkpoint.keep)
    checkpoints.remove_unfinished()
    start = resume.decide(checkpoints, config)
    claim = claim or Claim()
    ready = build_run(
        config,
        folder,
        checkpoints,
        start,
        init_from=init_from,
        command=command,
        began=began,
        claim=claim,
    )
    if ready is None:
        if hosts.is_first():
            report = write_report(folder, defaults=configs.to_dict(Config()))
            print(f"This run is finished: {config.train.steps} steps. Its report: {report}")
            print(
                f"For a longer one, --config.train.steps={2 * config.train.steps}; for another, --workdir=DIR."
            )
        return 0
    with jax.set_mesh(ready.program.mesh):
        return loop.train(ready)


def build_run(
    config: Config,
    folder: epath.Path,
    checkpoints: Checkpoints,
    start: Start,
    *,
    init_from: str,
    command: str,
    began: float | None,
    claim: Claim,
) -> Run | None:
    """Task, model, step and state of a run, restored where there is something to restore.

    The step is compiled and the first records are written. Returns: None for a run that is finished
    and has its last records.
    """
    lineage = resume.lineage(checkpoints, start, init_from)
    past = records.read(folder)
    past = past if past.all else None
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    check_batch(config.train, mesh)
    check_model(config, mesh)
    if config.log.wandb and hosts.is_first():
        records.import_wandb(config.log.wandb)
    goodput = Goodput(past, from_step=start.step, began=began)
    builder = builder_of(config, str(folder), init_from)
    tokenizer = builder.tokenizer
    program = make_program(config, mesh, builder.vocab_size)
    task = task_of(builder, program)
    meta = {
        "config": configs.to_dict(config),
        "tokenizer": tokenizer.sha256 if tokenizer else "",
        "parents": lineage,
    }
    with jax.set_mesh(mesh):
        state, damaged = None, []
        with goodput.spent("restore"):
            if start.step:
                state, start, damaged = resume.restore(
                    checkpoints, start, program.shapes, task.rows, meta
                )
                goodput.from_step = start.step
        if start.kind == "finished" and hosts.all_agree(
            has_last_records(folder, past, start.step, tokenizer)
        ):
            return None
        if state is None:
            state = program.init()
            if init_from:
                arguments = init_from, state, program.shapes, program.declared[1], meta["tokenizer"]
                state, meta["parents"], damaged = resume.inherit(*arguments)
        with goodput.spent("compile"):
            steps = compile_all(program, task, start, state)
    facts = builder.facts(task)
    writer = open_records(config, folder, tokenizer, start.step, resumed=past is not None)
    skipped = (
        sum(event["step"] <= start.step for event in records.events(past, "skipped")) if past else 0
    )
    ready = Run(
        config=config,
        workdir=folder,
        program=program,
        tokenizer=tokenizer,
        task=task,
        held=hosts.local_rows(batch_sharding(mesh), config.train.batch, config.data.seq_len),
        state=state,
        steps=steps,
        checkpoints=checkpoints,
        writer=writer,
        goodput=goodput,
        start=start,
        meta=meta,
        command=command,
        skipped=skipped,
        claim=claim,
    )
    begin_records(ready, facts, damaged)
    return ready


def compile_all(
    program: Program, task: Task, start: Start, state: TrainState
) -> dict[tuple, Callable]:
    """Compile the training step, and what evaluations and checkpoints need.

    Returns: {shape_key of a batch: the step for it}; {} where only the last records are missing.
    """
    what = "compiling the training step and the evaluations; later starts are faster"
    with said_if_long(what, active=hosts.is_first()), ThreadPoolExecutor(1) as beside:
        # XLA compiles outside of Python, the step longest.
        compiling = (
            None if start.kind == "finished" else beside.submit(program.compile, task, start.step)
        )
        for evaluation in task.evaluations:
            evaluation.warm(program.model, state.params, state.buffers)
        for item in saved(state).values():
            digest(item)  # its program too is there before the first step
        return {shape_key(task.rows.shapes(start.step)): compiling.result()} if compiling else {}


def begin_records(run: Run, facts: Facts, damaged: Sequence[str]) -> None:
    """Write the events of a session's start, and print its banner.

    Args:
      facts: of the task's data.
      damaged: sentences on damaged checkpoints that were passed over.
    """
    start, program, event = run.start, run.program, run.writer.event
    mesh, device, parents = program.mesh, program.device, run.meta["parents"]
    counts = sizes.parameters(program.arch)._asdict()
    event(
        "start",
        start.step,
        command=run.command,
        environment=environment(device),
        parameters=counts,
        choices=program.reasons,
    )
    event("data", start.step, **facts.record)
    event("lineage", start.step, parents=parents)
    for message in damaged:
        event("damaged", start.step, message=message)
    if start.kind == "extend":
        event(
            "extended",
            start.step,
            from_step=start.step,
            steps=run.config.train.steps,
            before=start.before,
        )
    axes = [f", {axis}={size}" for axis, size in mesh.shape.items() if size > 1]
    pieces = program.model.chunks
    lines = {
        "model": sizes.describe(program.arch),
        "devices": f"{mesh.size} x {device.name}{''.join(axes)}",
        **{reason.partition(" ")[0]: reason.partition(" ")[2] for reason in program.reasons},
        "loss": f"logits in {pieces} piece{'s' * (pieces > 1)} along a row",
        **facts.lines,
        "start": start_sentence(start),
        "parents": ", ".join(
            f"{parent['workdir']} step {parent['step']} ({parent['hash']})" for parent in parents
        ),
    }
    banner(f"slmjax {slmjax.__version__}: {run.workdir}", lines, active=hosts.is_first())


def open_records(
    config: Config, folder: epath.Path, tokenizer: Tokenizer | None, step: int, *, resumed: bool
) -> records.MetricsWriter:
    """Write config.json and tokenizer.json and open metrics.jsonl, on the first process."""
    if hosts.is_first():
        write_atomic(folder / "config.json", configs.to_json(config))
        if tokenizer:
            tokenizer.save(os.fspath(folder / "tokenizer.json"))
        if not step:  # of a run that this one replaces
            (folder / "heldout.npz").unlink(missing_ok=True)
    return records.MetricsWriter(
        folder,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        config=configs.to_dict(config),
        resume_step=step if resumed else None,
        active=hosts.is_first(),
    )


def check_batch(train: TrainConfig, mesh: Mesh) -> None:
    """Raises: UserError where a microbatch's rows do not divide over the devices."""
    parts, ways = cuts(train, mesh)
    if train.batch % (parts * ways):
        raise UserError(
            f"config.train.batch is {train.batch}, which does not divide into {parts} microbatches over {ways} devices "
            f"(mesh data x fsdp); the nearest that does is {max(1, round(train.batch / (parts * ways))) * parts * ways}."
        )


def has_last_records(
    folder: epath.Path, past: records.Records | None, total: int, tokenizer: Tokenizer | None
) -> bool:
    """Whether a finished run has its files and the records of its end, of which "finish" is the last."""
    ended = past is not None and any(
        event["step"] == total for event in records.events(past, "finish")
    )
    names = ["config.json", "heldout.npz", *(["tokenizer.json"] if tokenizer else [])]
    return ended and all((folder / name).exists() for name in names)


def environment(device: DeviceKind) -> dict[str, Any]:
    """What the report says of the machine."""
    return {
        "slmjax": slmjax.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": device.name,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu cores": os.cpu_count(),
        "system": platform.platform(),
    }


def start_sentence(start: Start) -> str:
    """How the run starts, in words."""
    if start.kind == "extend":
        return f"goes back to step {start.step}, before the decay, and on from there on another schedule (was {start.before} steps)"
    if start.kind == "finished":
        return f"only the last records are missing, after step {start.step}"
    return f"goes on from step {start.step}" if start.step else "anew"
