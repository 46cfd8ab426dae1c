"""The stage `train`: everything that a run needs is built here; `loop.train` runs it."""

import dataclasses
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

import slmjax
from slmjax import config as configs
from slmjax.checkpoint import Checkpoints, digest
from slmjax.compiling import use_compile_cache
from slmjax.config import Config
from slmjax.data.loader import BatchPlan
from slmjax.data.prepare import Prepared
from slmjax.data.rows import shapes_of
from slmjax.data.stage import batch_plan, facts, prepared_text
from slmjax.data.work import Claim, write_atomic
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.parallel import hosts
from slmjax.parallel.mesh import DeviceKind, batch_sharding, make_mesh
from slmjax.readable import said_if_long
from slmjax.tasks.lm import LanguageModeling
from slmjax.tasks.task import Task
from slmjax.train import metrics as records
from slmjax.train import resume, shares
from slmjax.train.evaluation import HeldOut, Samples, TextbookAnswers, TextbookBaseline
from slmjax.train.goodput import Goodput
from slmjax.train.program import Program, check_model, cuts, make_program, place_cuts
from slmjax.train.progress import banner
from slmjax.train.report import write_report
from slmjax.train.resume import Start
from slmjax.train.state import TrainState, saved

FILES = ("config.json", "tokenizer.json", "heldout.npz")  # of a finished run, next to its checkpoints and records


@dataclasses.dataclass
class Run:
    """A training run, ready to go on from `start.step`."""

    config: Config
    workdir: epath.Path
    program: Program
    prepared: Prepared
    task: Task
    held: np.ndarray
    state: TrainState
    steps: dict[tuple, Callable]  # compiled, by the batch's shapes; empty where only the last records are to be made
    prompt: str  # an example for the terminal
    checkpoints: Checkpoints
    writer: records.MetricsWriter
    goodput: Goodput
    start: Start
    meta: dict[str, Any]
    command: str
    skipped: int  # steps skipped in earlier sessions and not done again since
    claim: Claim  # on the work directory


def run(
    config: Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    began: float | None = None,
    claim: Claim | None = None,
) -> int:
    """Train, or say that the run is finished; returns the exit status."""
    from slmjax.train import loop

    use_compile_cache()
    folder = epath.Path(workdir)
    checkpoints = Checkpoints(folder, config.checkpoint.keep)
    checkpoints.remove_unfinished()
    start = resume.decide(checkpoints, config)
    claim = claim or Claim()
    ready = build(config, folder, checkpoints, start, init_from=init_from, command=command, began=began, claim=claim)
    if ready is None:
        if hosts.is_first():
            report = write_report(folder, defaults=configs.to_dict(Config()))
            print(f"This run is finished: {config.train.steps} steps. Its report: {report}")
            print(f"For a longer one, --config.train.steps={2 * config.train.steps}; for another, --workdir=DIR.")
        return 0
    with jax.set_mesh(ready.program.mesh):
        return loop.train(ready)


def build(
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
    """Data, model, step and state of a run, restored where there is something to restore.

    The step is compiled and the first records are written. Returns: None for a run that is finished
    and has its last records.
    """
    lineage = resume.lineage(checkpoints, start, init_from)
    past = records.read(folder)
    past = past if past.all else None
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    check_batch(config, mesh)
    check_model(config, mesh)
    if config.log.wandb and hosts.is_first():
        records.import_wandb(config.log.wandb)
    goodput = Goodput(past, from_step=start.step, began=began)
    prepared = prepared_text(config.data, str(folder), init_from=init_from, process=jax.process_index(), processes=jax.process_count())
    program = make_program(config, mesh, prepared.tokenizer.vocab_size)
    arch, device = program.arch, program.device
    plan = batch_plan(config, prepared, place_cuts(config, mesh, arch.attention))
    task = language_modeling(program, prepared, plan)
    meta = {"config": configs.to_dict(config), "tokenizer": prepared.tokenizer.sha256, "parents": lineage}
    shape = (config.train.batch, config.data.seq_len)
    with jax.set_mesh(mesh):
        state, damaged = None, []
        with goodput.spent("restore"):
            if start.step:
                state, start, damaged = resume.restore(checkpoints, start, program.shapes, plan, meta)
                goodput.from_step = start.step
        finished = start.kind == "finished"
        if finished and hosts.all_agree(has_last_records(folder, past, start.step)):
            return None
        if state is None:
            state = program.init()
            if init_from:
                of_buffers, tokenizer = program.declared[1], prepared.tokenizer.sha256
                state, lineage, damaged = resume.inherit(init_from, state, program.shapes, of_buffers, tokenizer)
                meta["parents"] = lineage
        what = "compiling the training step and the evaluations; later starts are faster"
        with said_if_long(what, active=hosts.is_first()), goodput.spent("compile"), ThreadPoolExecutor(1) as beside:
            # XLA compiles outside of Python, the step longest.
            compiling = None if finished else beside.submit(program.compile, task, start.step)
            for evaluation in task.evaluations:
                evaluation.warm(program.model, state.params, state.buffers)
            for item in saved(state).values():
                digest(item)  # its program too is there before the first step
            steps = {shapes_of(task.rows.shapes(start.step)): compiling.result()} if compiling else {}
    writer = open_records(config, folder, prepared, start.step, resumed=past is not None)
    told_sizes = sizes.parameters(arch)._asdict()
    writer.event("start", start.step, command=command, environment=environment(device), parameters=told_sizes, choices=program.reasons)
    told_sources = shares.told(plan)
    sources = facts(prepared, plan.epochs())
    writer.event("data", start.step, sources=sources, folder=str(prepared.folder), told=told_sources, shares=plan.shares())
    writer.event("lineage", start.step, parents=lineage)
    for message in damaged:
        writer.event("damaged", start.step, message=message)
    if start.kind == "extend":
        writer.event("extended", start.step, from_step=start.step, steps=config.train.steps, before=start.before)
    tokens = sum(shards.tokens for shards in prepared.train.values())
    lines = {
        "model": sizes.describe(arch),
        "devices": f"{mesh.size} x {device.name}" + "".join(f", {axis}={size}" for axis, size in mesh.shape.items() if size > 1),
        **{reason.partition(" ")[0]: reason.partition(" ")[2] for reason in program.reasons},
        "loss": f"logits in {program.model.chunks} piece{'s' * (program.model.chunks > 1)} along a row",
        "data": f"{tokens:,} tokens; a step reads {shape[0] * shape[1]:,}",
        **{f"data {name}": sentence for name, sentence in told_sources.items()},
        "left out": dropped(plan),
        "start": told(start),
        "parents": ", ".join(f"{parent['workdir']} step {parent['step']} ({parent['hash']})" for parent in lineage),
    }
    banner(f"slmjax {slmjax.__version__}: {folder}", lines, active=hosts.is_first())
    held = hosts.local_rows(batch_sharding(mesh), *shape)
    prompt = next((prompt for one in task.evaluations if isinstance(one, Samples) for prompt in one.prompts()), "Once")
    skipped = sum(event["step"] <= start.step for event in records.events(past, "skipped")) if past else 0
    return Run(
        config=config, workdir=folder, program=program, prepared=prepared, task=task, held=held, state=state, steps=steps,
        prompt=prompt, checkpoints=checkpoints, writer=writer, goodput=goodput, start=start, meta=meta, command=command,
        skipped=skipped, claim=claim,
    )  # fmt: skip


def open_records(config: Config, folder: epath.Path, prepared: Prepared, step: int, *, resumed: bool) -> records.MetricsWriter:
    """Write config.json and tokenizer.json and open metrics.jsonl, on the first process."""
    if hosts.is_first():
        write_atomic(folder / "config.json", configs.to_json(config))
        prepared.tokenizer.save(os.fspath(folder / "tokenizer.json"))
        if not step:  # of a run that this one replaces
            (folder / "heldout.npz").unlink(missing_ok=True)
    return records.MetricsWriter(
        folder, tensorboard=config.log.tensorboard, wandb=config.log.wandb, config=configs.to_dict(config),
        resume_step=step if resumed else None, active=hosts.is_first(),
    )  # fmt: skip


def language_modeling(program: Program, prepared: Prepared, plan: BatchPlan) -> LanguageModeling:
    """The task of pretraining on prepared text."""
    config = program.config
    heldout = HeldOut(program, prepared, plan.max_segments)
    evaluations = [heldout, Samples(program, prepared)]
    embedded = not config.data.sources
    if embedded or config.eval.textbook:
        evaluations.append(TextbookAnswers(prepared, compared=embedded))
    if embedded:
        evaluations.append(TextbookBaseline(heldout))
    return LanguageModeling(plan, evaluations, config.train.z_loss)


def check_batch(config: Config, mesh: Mesh) -> None:
    """Raises: UserError where a microbatch's rows do not divide over the devices."""
    parts, ways = cuts(config, mesh)
    if config.train.batch % (parts * ways):
        raise UserError(
            f"config.train.batch is {config.train.batch}, which does not divide into {parts} microbatches over {ways} devices "
            f"(mesh data x fsdp); the nearest that does is {max(1, round(config.train.batch / (parts * ways))) * parts * ways}."
        )


def has_last_records(folder: epath.Path, past: records.Records | None, total: int) -> bool:
    """Whether a finished run has its files and the records of its end, of which "finish" is the last."""
    ended = past is not None and any(event["step"] == total for event in records.events(past, "finish"))
    return ended and all((folder / name).exists() for name in FILES)


def environment(device: DeviceKind) -> dict[str, Any]:
    """What the report says of the machine."""
    return {
        "slmjax": slmjax.__version__, "python": platform.python_version(), "jax": jax.__version__, "device": device.name,
        "devices": jax.device_count(), "processes": jax.process_count(), "cpu cores": os.cpu_count(), "system": platform.platform(),
    }  # fmt: skip


def told(start: Start) -> str:
    """How the run starts, in words."""
    if start.kind == "extend":
        return f"goes back to step {start.step}, before the decay, and on from there on another schedule (was {start.before} steps)"
    if start.kind == "finished":
        return f"only the last records are missing, after step {start.step}"
    return f"goes on from step {start.step}" if start.step else "anew"


def dropped(plan: BatchPlan) -> str:
    """Sources of which some text does not fit the rows' bound on documents; "" where there is none."""
    plans = ((name, rows, rows.dropped_share()) for name, rows in zip(plan.train, plan.row_plans, strict=True))
    return ", ".join(f"{name} {share:.2%} (more than {rows.max_segments} documents in a row)" for name, rows, share in plans if share)
