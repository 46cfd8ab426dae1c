"""The stage `train`: build all that a run needs, then call the loop (loop.py)."""

import dataclasses
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

import slmjax
from slmjax import config as configs
from slmjax.checkpoint import Checkpoints, digest
from slmjax.config import Config, TrainConfig
from slmjax.config.run_phases import parse_phases
from slmjax.data.rows import HeldRows, shape_key
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
from slmjax.tasks.task import Facts, Task, TaskBuilder
from slmjax.text.claims import Claim
from slmjax.text.files import write_atomic
from slmjax.text.tokenizer import Tokenizer
from slmjax.train import loop, resume
from slmjax.train.branch import branch, check_branch
from slmjax.train.builders import builder_of, task_of
from slmjax.train.inherit import inherit, lineage
from slmjax.train.leave import Leave
from slmjax.train.loop import Run
from slmjax.train.program import Program, check_model, cuts, make_program
from slmjax.train.resume import Start
from slmjax.train.state import TrainState, saved


@dataclasses.dataclass(frozen=True)
class Built:
    """What a run is made of, before its checkpoints are read.

    steps, state: the compiled steps (see `compile_all`) and the state before the first step, where
      a caller has made them already.
    facts: what the caller wants on record, as {event: its fields}.
    """

    builder: TaskBuilder
    program: Program
    task: Task
    steps: dict[tuple, Callable] = dataclasses.field(default_factory=dict)
    state: TrainState | None = None
    facts: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def run_train(
    config: Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    began: float | None = None,
    claim: Claim | None = None,
    devices: Sequence[jax.Device] | None = None,
    leave: Leave | None = None,
    built: Built | None = None,
) -> int:
    """Train, or print that the run is finished; return the exit status.

    Args:
      command: the launcher's command, for the records.
      began: Unix time at which the process started, see Goodput.
      claim: this process's claim on the work directory; None: nothing is claimed.
      devices: those of the run's mesh; None: all.
      leave: says when to save and leave; None: a signal does. A run in a thread needs one, as only
        the main thread hears signals.
      built: what this config makes, for a new run whose step was compiled to be timed; None: it is
        made here.
    Raises: UserError for a config that cannot be trained here, see `build_run` and `loop.train`.
    """
    use_compile_cache()
    folder = epath.Path(workdir)
    resume.refuse_export(workdir)
    in_thread = leave is not None
    checkpoints = Checkpoints(folder, config.checkpoint.keep, background=not in_thread)
    checkpoints.remove_unfinished()
    start = resume.decide(checkpoints, config)
    if start.kind == "fresh":
        check_start(config, init_from)
    run = build_run(
        config,
        folder,
        checkpoints,
        start,
        init_from=init_from,
        command=command,
        began=began,
        claim=claim or Claim(),
        devices=devices,
        built=built,
    )
    if run is None:
        _print_finished(folder, config.train)
        return 0
    with jax.set_mesh(run.program.mesh):
        if leave is not None:
            return loop.train(run, leave)
        with Leave() as leave:
            return loop.train(run, leave)


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
    devices: Sequence[jax.Device] | None,
    built: Built | None = None,
) -> Run | None:
    """Build task, model, step and state of a run; restore what can be restored.

    The step is compiled, and the records of the start are written.
    Returns: the run; None where it is finished and has its last records.
    Raises: UserError where config, devices, checkpoints and --init_from do not fit.
    """
    # Whatever can be refused is refused before text is prepared, which may take hours.
    parents = lineage(checkpoints, start, init_from)
    # Records of earlier sessions; None for a new run.
    past = records.read(folder)
    past = past if past.all else None
    mesh = make_mesh(dataclasses.asdict(config.mesh), devices)
    check_batch(config, mesh)
    check_model(config.model, config.precision, mesh, config.train.deterministic)
    if config.log.wandb and hosts.is_first():
        records.import_wandb(config.log.wandb)
    # It counts the time since the process began, so the time before this line too.
    goodput = Goodput(past, from_step=start.step, began=began)

    if built is None:
        # Text is prepared here; its vocabulary gives the embedding's size.
        built = build(config, mesh, builder_of(config, str(folder), init_from))
    builder, program, task = built.builder, built.program, built.task
    tokenizer = builder.tokenizer
    # What identifies the run in every checkpoint.
    meta = {
        "config": configs.to_dict(config),
        "tokenizer": tokenizer.sha256 if tokenizer else "",
        "parents": parents,
    }
    with jax.set_mesh(mesh):
        state = None
        # Sentences on damaged checkpoints; they go to the records, once these are open.
        damaged = []
        with goodput.spent("restore"):
            if start.kind != "fresh":
                state, start, damaged = resume.restore(
                    checkpoints, start, program.shapes, task.rows, meta
                )
                goodput.from_step = start.step
        # All processes must return here or none: what follows is collective.
        is_complete = has_last_records(folder, past, start.step, tokenizer)
        if start.kind == "finished" and hosts.all_agree(is_complete):
            return None
        if state is None:
            if config.train.branch:
                state, start, meta["parents"], damaged = branch(
                    init_from, config, program.shapes, task.rows, meta["tokenizer"]
                )
                goodput.from_step = start.step
            else:
                state = built.state or program.init()
            if init_from and not config.train.branch:
                state, meta["parents"], damaged = inherit(
                    init_from, state, program.shapes, program.declared[1], meta["tokenizer"]
                )
        with goodput.spent("compile"):
            steps = built.steps or compile_all(program, task, start, state)
    # Nothing is written before the step has compiled: a run that cannot start leaves no trace.
    facts = builder.facts(task)
    writer = open_records(config, folder, tokenizer, start, resumed=past is not None)
    run = Run(
        config=config,
        workdir=folder,
        program=program,
        tokenizer=tokenizer,
        task=task,
        held=held_rows(program),
        state=state,
        steps=steps,
        checkpoints=checkpoints,
        writer=writer,
        goodput=goodput,
        start=start,
        meta=meta,
        command=command,
        skipped=_skipped_before(past, start.step),
        claim=claim,
    )
    _record_start(run, facts, damaged)
    for name, fields in built.facts.items():
        writer.event(name, start.step, **fields)
    _print_banner(run, facts)
    return run


def build(config: Config, mesh: Mesh, builder: TaskBuilder) -> Built:
    """Return what a config makes on a mesh; nothing is compiled. Raises: UserError."""
    program = make_program(config, mesh, builder.vocab_size)
    return Built(builder, program, task_of(builder, program))


def compile_all(
    program: Program, task: Task, start: Start, state: TrainState
) -> dict[tuple, Callable]:
    """Compile the training step, and what evaluations and checkpoints need.

    The step is compiled for the first batch and for that of each later phase, so that a phase that
    does not fit into memory ends the run now and not after days.

    Returns: {shape_key of a batch: the step for it}, that of the first batch first; {} where only
      the last records are missing.
    """
    message = "compiling the training step and the evaluations; later starts are faster"
    with said_if_long(message, active=hosts.is_first()), ThreadPoolExecutor(1) as pool:
        # XLA compiles outside of Python, so that a thread compiles the step at the same time as
        # this one compiles the evaluations.
        compiling = {}
        if start.step < program.config.train.steps:
            later = [phase.first for phase in program.phases if phase.first > start.step]
            for step in (start.step, *later):
                shapes = shape_key(task.rows.shapes(step))
                if shapes not in compiling:
                    compiling[shapes] = pool.submit(program.compile, task, step)
        for evaluation in task.evaluations:
            evaluation.warm(program.model, state.params, state.buffers)
        for item in saved(state).values():
            # Compiles the checksum of a checkpoint's item.
            digest(item)
        return {shapes: compiled.result() for shapes, compiled in compiling.items()}


def _record_start(run: Run, facts: Facts, damaged: Sequence[str]) -> None:
    """Write the events of a session's start.

    Args:
      facts: about the task's data.
      damaged: sentences on damaged checkpoints that were passed over.
    """
    step, program, event = run.start.step, run.program, run.writer.event
    event(
        "start",
        step,
        command=run.command,
        environment=environment(program.device),
        parameters=sizes.parameters(program.arch)._asdict(),
        choices=program.reasons,
    )
    event("data", step, **facts.record)
    event("lineage", step, parents=run.meta["parents"])
    for message in damaged:
        event("damaged", step, message=message)
    if run.start.kind == "extend":
        steps = run.config.train.steps
        event("extended", step, from_step=step, steps=steps, before=run.start.before)


def _print_banner(run: Run, facts: Facts) -> None:
    """Print what the run is: model, devices, choices, data, start and ancestors."""
    program, mesh = run.program, run.program.mesh
    axes = "".join(f", {axis}={size}" for axis, size in mesh.shape.items() if size > 1)
    lines = {
        "model": sizes.describe(program.arch),
        "devices": f"{mesh.size} x {program.device.name}{axes}",
    }
    # A reason's first word is the name of what was chosen.
    chosen = (*run.config.train.chosen, *run.config.model.transfer)
    for reason in (*chosen, *program.reasons):
        name, _, sentence = reason.partition(" ")
        lines[name] = sentence
    pieces = program.model.chunks
    lines["loss"] = f"logits in {pieces} pieces along a row"
    if pieces == 1:
        lines["loss"] = "logits in 1 piece along a row"
    lines |= facts.lines
    lines["start"] = start_sentence(run.start)
    parents = []
    for parent in run.meta["parents"]:
        parents.append(f"{parent['workdir']} step {parent['step']} ({parent['hash']})")
    lines["parents"] = ", ".join(parents)
    banner(f"slmjax {slmjax.__version__}: {run.workdir}", lines, active=hosts.is_first())


def open_records(
    config: Config, folder: epath.Path, tokenizer: Tokenizer | None, start: Start, *, resumed: bool
) -> records.MetricsWriter:
    """Write config.json and tokenizer.json and open metrics.jsonl, on the first process.

    Args:
      start: where the run goes on from.
      resumed: whether an earlier session has written records.
    """
    if hosts.is_first():
        write_atomic(folder / "config.json", configs.to_json(config))
        if tokenizer:
            tokenizer.save(os.fspath(folder / "tokenizer.json"))
        if start.kind == "fresh":
            # A file that is there belongs to a run that this one replaces.
            (folder / "heldout.npz").unlink(missing_ok=True)
    return records.MetricsWriter(
        folder,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        config=configs.to_dict(config),
        # Readers drop what an earlier session recorded about later steps.
        resume_step=start.step if resumed else None,
        active=hosts.is_first(),
    )


def check_start(config: Config, init_from: str) -> None:
    """Raises: UserError where a new run has no parent that it needs, or one that it cannot use."""
    if config.train.branch:
        check_branch(init_from, config)
    elif not config.train.steps and not init_from:
        raise UserError(
            "config.train.steps is 0, so nothing is trained; give the model to evaluate as "
            "--init_from=WORKDIR, or a number of steps."
        )


def held_rows(program: Program) -> HeldRows:
    """Return which rows of every batch this process holds."""
    sharding = batch_sharding(program.mesh)
    phases = program.phases
    rows = [hosts.local_rows(sharding, phase.batch, phase.seq_len) for phase in phases]
    return HeldRows(tuple(phase.first for phase in phases), tuple(rows))


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raises: UserError where a microbatch's rows do not divide over the devices."""
    microbatches, ways = cuts(config.train, mesh)
    smallest = microbatches * ways
    batches = {"config.train.batch": config.train.batch}
    for number, phase in enumerate(parse_phases(config.data.phases)):
        batches[f"config.data.phases[{number}].batch"] = phase.batch
    for name, batch in batches.items():
        if batch % smallest:
            nearest = max(1, round(batch / smallest)) * smallest
            raise UserError(
                f"{name} is {batch}, which does not divide into {microbatches} microbatches over "
                f"{ways} devices (mesh data x fsdp); the nearest that does is {nearest}."
            )


def has_last_records(
    folder: epath.Path, past: records.Records | None, total: int, tokenizer: Tokenizer | None
) -> bool:
    """Return whether a finished run of `total` steps has its files and the records of its end."""
    if past is None:
        return False
    # "finish" is the last of these records, so that it stands for all of them.
    if not any(event["step"] == total for event in records.events(past, "finish")):
        return False
    names = ["config.json", "heldout.npz"]
    if tokenizer:
        names.append("tokenizer.json")
    return all((folder / name).exists() for name in names)


def environment(device: DeviceKind) -> dict[str, Any]:
    """Return what the report prints about the machine."""
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
    """Return how the run starts, in words."""
    if start.kind == "extend":
        return (
            f"goes back to step {start.step}, before the decay, and on from there on another "
            f"schedule (was {start.before} steps)"
        )
    if start.kind == "branch":
        return f"branches from its parent's step {start.step}, with its optimizer and its data"
    if start.kind == "finished":
        return f"only the last records are missing, after step {start.step}"
    if start.step:
        return f"goes on from step {start.step}"
    return "anew"


def _skipped_before(past: records.Records | None, step: int) -> int:
    """Return the number of skipped steps up to `step` that earlier sessions recorded."""
    if past is None:
        return 0
    return sum(event["step"] <= step for event in records.events(past, "skipped"))


def _print_finished(folder: epath.Path, train: TrainConfig) -> None:
    if hosts.is_first():
        report = write_report(folder, defaults=configs.to_dict(Config()))
        steps = train.steps
        print(f"This run is finished: {steps} steps. Its report: {report}")
        if train.minutes:
            print("For another one, --workdir=DIR.")
            return
        longer = f"For a longer one, --config.train.steps={2 * steps}; for" if steps else "For"
        print(f"{longer} another, --workdir=DIR.")
