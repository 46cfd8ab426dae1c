"""The training loop."""

import contextlib
import dataclasses
import gc
import math
import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from slmjax import config as configs
from slmjax.checkpoint import Checkpoints
from slmjax.config import Config
from slmjax.data.loader import local_batches
from slmjax.data.rows import Arrays, Fields, NamedRows, shape_key
from slmjax.errors import UserError
from slmjax.parallel import hosts
from slmjax.parallel.rules import field_shardings
from slmjax.record import metrics as records
from slmjax.record.goodput import Goodput
from slmjax.record.progress import Progress
from slmjax.record.report import write_report
from slmjax.tasks.task import DrawingTask, Task
from slmjax.text.claims import Claim
from slmjax.text.tokenizer import Tokenizer
from slmjax.train import schedule
from slmjax.train.drawn import DrawnBatches
from slmjax.train.evaluation import Evaluator
from slmjax.train.leave import Leave
from slmjax.train.next_commands import next_commands
from slmjax.train.program import Program
from slmjax.train.resume import Start
from slmjax.train.state import TrainState, saved

DOCUMENTS_NAMED = 5  # of a batch whose step ends the run


@dataclasses.dataclass
class Run:
    """A training run, ready to go on from `start.step`.

    held: rows of the global batch that this process holds.
    steps: compiled steps by the batch's shapes; empty where only the last records are missing.
    meta: what each checkpoint records of the run.
    command: the launcher's command.
    skipped: steps skipped in earlier sessions and not done again since.
    claim: on the work directory.
    """

    config: Config
    workdir: epath.Path  # local or gs://
    program: Program
    tokenizer: Tokenizer | None
    task: Task
    held: np.ndarray
    state: TrainState | None
    steps: dict[tuple, Callable]
    checkpoints: Checkpoints
    writer: records.MetricsWriter
    goodput: Goodput
    start: Start
    meta: dict[str, Any]
    command: str
    skipped: int
    claim: Claim


def train(run: Run) -> int:
    """Train from run.start.step to config.train.steps.

    Returns: 0, or 128 + signal when told to leave (then it is saved, and can go on).
    """
    loop = _Loop(run)
    # Closed also where the loop ends in an error: a checkpoint that is being written in the
    # background is finished first.
    with (
        contextlib.closing(run.writer),
        contextlib.closing(run.checkpoints),
        loop.batches,
        loop.progress,
        Leave() as leave,
    ):
        try:
            status = loop.go(leave)
        finally:
            # The process may go on, as a study's or a notebook's does.
            loop.stop_profiling()
            gc.unfreeze()
    if hosts.is_first():
        report = write_report(run.workdir, defaults=configs.to_dict(Config()))
        print(_last_words(run, status, report))
    return status


class _Loop:
    def __init__(self, run: Run):
        config = run.config
        self.run = run
        self.config = config
        self.state = run.state
        run.state = None  # donated to the first step
        self.task = run.task
        self.model = run.program.model
        self.total = config.train.steps
        self.tokens_per_step = config.train.batch * config.data.seq_len
        # The last step that a longer run would share; its checkpoint is kept. None without one.
        self.trunk = schedule.trunk(config.train)
        # Shardings of a batch's fields: names and axes are the same at every step.
        self.where = field_shardings(run.task.rows.shapes(0), run.program.mesh)
        self.evaluator = Evaluator(self.task, self.model, run.workdir / "heldout.npz")

        # A batch is read ahead of its step, unless its rows depend on the model.
        self.drawn = None
        self.batches: Any = contextlib.nullcontext()
        if isinstance(self.task, DrawingTask):
            self.drawn = DrawnBatches(run.workdir / "drawn", self.task)
        else:
            self.batches = local_batches(
                run.task.rows,
                start_step=run.start.step,
                stop_step=self.total,
                local_rows=run.held.tolist(),
                workers=config.data.workers,
            )
        self.progress = Progress(
            self.total, start=run.start.step, every=config.log.every, active=hosts.is_first()
        )
        self.window = list(run.start.window)  # values of the steps since the last line
        self.last: dict[str, Any] | None = None  # values of the step that was read last
        self.skipped = run.skipped
        self.profile: tuple[int, ...] = ()  # first step to profile, and first one after that
        if config.log.profile:
            self.profile = tuple(map(int, config.log.profile.split(":")))
        self.tracing = False
        self.clock = (run.start.step, time.monotonic())  # (step, time) at which the speed begins

    def go(self, leave: Leave) -> int:
        """Train to the end, or to where the process is told to leave; returns the exit status."""
        run, goodput = self.run, self.run.goodput
        pending: tuple[int, dict] | None = None
        self.clock = (run.start.step, time.monotonic())  # where the measured speed begins
        for step in range(run.start.step, self.total):
            # Only a device that is idle waits for data.
            device_waits = pending is None or pending[1]["loss"].is_ready()
            waiting = goodput.spent("data_wait") if device_waits else contextlib.nullcontext()
            with waiting:
                local = self.next_rows(step)
            self.profiling(step)
            fields = self.task.rows.shapes(step)
            # Dispatch returns at once; the device works while this thread prepares the next step.
            batch = hosts.global_batch(local, fields, self.where, run.held)
            self.state, metrics = self.step_for(step, fields)(self.state, batch)
            if pending is not None:
                self.read(*pending)  # one step late, so that the device always has a step to do
            pending = (step, metrics)
            done = step + 1
            # All processes leave after the same step, or the others would wait in a collective.
            leaving = hosts.leaving_together(done, leave.asked)
            if leaving or self.is_boundary(done):
                self.read(*pending)
                pending = None
                goodput.step()
                self.at_boundary(done, leaving)
            else:
                goodput.step()
            if step == run.start.step:
                gc.freeze()  # what exists now stays: later collections need not look at it
            if leaving and done < self.total:
                run.checkpoints.wait()
                run.writer.event("preempted", done)
                return leave.status
        # "finish" must not be recorded before the last checkpoint is on disk.
        run.checkpoints.wait()
        self.finish()
        return 0

    def next_rows(self, step: int) -> Arrays:
        """Return this process's rows of a step's batch."""
        if self.drawn is None:
            return next(self.batches)
        return self.drawn.rows(step, self.state, self.run.held)

    def step_for(self, step: int, fields: Fields) -> Callable:
        """Return the compiled step for batches of these shapes.

        Rare shapes are compiled when the first such batch comes.
        """
        run, shapes = self.run, shape_key(fields)
        if shapes not in run.steps:
            first_shapes = next(iter(run.steps))
            changed = [name for name, shape in shapes if (name, shape) not in first_shapes]
            names = ", ".join(changed)
            self.progress.note(f"step {step + 1} has other shapes ({names}): compiling for them")
            with run.goodput.spent("compile"):
                run.steps[shapes] = run.program.compile(self.task, step)
        return run.steps[shapes]

    def is_boundary(self, done: int) -> bool:
        """Return whether logging, evaluation or saving is due: the loop then waits for the step."""
        return self.is_logged(done) or self.is_evaluated(done) or self.is_saved(done)

    def is_logged(self, done: int) -> bool:
        return done % self.config.log.every == 0 or done == self.total

    def is_evaluated(self, done: int) -> bool:
        every = self.config.eval.every
        return done == self.total or (every > 0 and done % every == 0)

    def is_saved(self, done: int) -> bool:
        return done % self.config.checkpoint.every == 0 or done in (self.trunk, self.total)

    def at_boundary(self, done: int, leaving: bool) -> None:
        """Log, evaluate and save, as far as they are due after `done` steps."""
        goodput = self.run.goodput
        if self.is_logged(done):
            self.log(done)
        if self.is_evaluated(done):
            with goodput.spent("evaluation"):
                self.evaluate(done)
        if leaving or self.is_saved(done):
            with goodput.spent("checkpoint"):
                self.save(done)
            self.clock = (done, time.monotonic())

    def read(self, step: int, metrics: dict) -> None:
        """Take a step's metrics from the device.

        Raises: UserError where too many steps in a row were skipped.
        """
        values = jax.tree.map(float, jax.device_get(metrics))
        if values["skips"]:
            self.skipped += 1
            reason = f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
            self.run.writer.event("skipped", step + 1, reason=reason)
            self.progress.note(f"step {step + 1} skipped: {reason}")
            most = self.config.train.max_skips
            if values["skips"] >= most:
                self.stop(
                    step + 1,
                    f"{most} steps in a row were skipped (config.train.max_skips), the last one, "
                    f"step {step + 1}, for {reason}{self.batch_of(step)}.",
                )
        self.last = values
        self.window.append(values)

    def stop(self, step: int, sentence: str) -> None:
        """Record why the run ends, and end it. Raises: UserError with the sentence."""
        self.run.writer.event("stopped", step, reason=sentence)
        self.run.writer.flush()
        raise UserError(sentence)

    def batch_of(self, step: int) -> str:
        """Return what a step's batch holds, in words, where its rows can say it."""
        if not isinstance(self.task.rows, NamedRows):
            return ""
        documents = self.task.rows.documents(step)
        named = ", ".join(documents[:DOCUMENTS_NAMED])
        if len(documents) > DOCUMENTS_NAMED:
            named += f" and {len(documents) - DOCUMENTS_NAMED} more"
        return f"; its batch holds {named}"

    def log(self, done: int) -> None:
        """Write the means over the steps since the last log line, and begin a new window."""
        since, began = self.clock
        latest = self.window[-1]
        # Skipped steps would spoil the means. Only if all were skipped are they what is logged.
        kept = [values for values in self.window if not values["skips"]]
        kept = kept or self.window
        tokens = done * self.tokens_per_step
        speed = (done - since) * self.tokens_per_step / (time.monotonic() - began)
        metrics: dict[str, Any] = {f"train/{name}": mean_of(name, kept) for name in latest["terms"]}
        metrics |= {
            "train/tokens": tokens,
            "train/flops": tokens * self.run.program.flops_per_token,
            "train/learning_rate": latest["learning_rate"],
            "train/grad_norm": latest["grad_norm"],
            "train/skipped": self.skipped,
            "perf/tokens_per_second": speed,
            "perf/goodput": self.run.goodput.share(),
            "perf/peak_memory_bytes": _peak_memory(),
        }
        utilisation = self.run.program.mfu(speed)
        if utilisation is not None:
            metrics["perf/mfu"] = utilisation
        self.run.writer.write(done, metrics)
        self.run.writer.event("goodput", done, **self.run.goodput.record())
        self.progress.update(done, metrics)
        self.window, self.clock = [], (done, time.monotonic())

    def evaluate(self, done: int) -> None:
        """Run the task's evaluations, except those that run only at the end (see `finish`)."""
        writer = self.run.writer
        scores, events = self.evaluator.score(
            self.state.params, self.state.buffers, done, self.progress.note
        )
        tokens = done * self.tokens_per_step
        spent = {"train/tokens": tokens, "train/flops": tokens * self.run.program.flops_per_token}
        writer.write(done, scores | spent)
        for name, facts in events.items():
            writer.event(name, done, **facts)
        # The time of an evaluation does not count in the next line's speed.
        self.clock = (done, time.monotonic())
        if done == self.total:
            self.refuse_what_is_not_finite(scores)

    def refuse_what_is_not_finite(self, scores: dict[str, float]) -> None:
        """Raises: UserError where the run ends with a loss or a score that is not finite."""
        values = dict(scores)
        if self.last["skips"]:
            values = {"loss": self.last["loss"], **values}
        for name, value in values.items():
            if not math.isfinite(value):
                self.stop(
                    self.total,
                    f"after the last step, {self.total}, {name} is {value:g}, so the run is not "
                    f"finished and its last step is not saved; {self.skipped} of its steps were "
                    "skipped. Try another --workdir with a smaller config.train.lr or a longer "
                    "warmup.",
                )

    def save(self, done: int) -> None:
        """Save a checkpoint in the background and prune older ones."""
        run = self.run
        # In a bucket nothing locks the directory: a later start may own it by now.
        if not hosts.all_agree(run.claim.mine()):
            raise UserError(
                f"--workdir={run.workdir}: another start has taken the work directory over, or it "
                f"was deleted, so this run stops before step {done} is saved; use another "
                "--workdir."
            )
        # A resumed run averages over the same steps in its next line as an undisturbed one.
        window = [{"terms": values["terms"], "skips": values["skips"]} for values in self.window]
        meta = run.meta | {
            "fingerprint": run.task.rows.fingerprint(done),
            "trunk": done == self.trunk,  # never pruned
            "window": window,
        }
        run.checkpoints.save(done, saved(self.state), meta)
        run.checkpoints.prune(self.trunk)
        if self.drawn is not None:
            # Checkpoint `done` is still being written: a kill goes back to the one before.
            on_disk = [step for step in run.checkpoints.steps() if step != done]
            self.drawn.prune(min(on_disk, default=0))
        run.writer.event("goodput", done, **run.goodput.record())
        run.writer.flush()

    def finish(self) -> None:
        """Run the evaluations of the end, and record that the run is finished.

        Records that a killed session has written already stay; "finish" comes last.
        """
        run, state = self.run, self.state
        past = []  # records of the last step that are on disk already
        if run.start.kind == "finished":
            kept = records.read(run.workdir).kept
            past = [record for record in kept if record["step"] == self.total]
            run.checkpoints.prune(self.trunk)
            if not hosts.all_agree((run.workdir / "heldout.npz").exists()):
                # Somebody has deleted it.
                self.evaluator.score(state.params, state.buffers, self.total, _silent)
        recorded = {record["event"]: record for record in past if "event" in record}
        note = _silent if "finish" in recorded else self.progress.note
        for evaluation in self.task.evaluations:
            if not evaluation.at_end:
                continue
            evaluated = evaluation(
                self.model,
                state.params,
                state.buffers,
                step=self.total,
                note=note,
                there=recorded,
            )
            for name, facts in evaluated.events.items():
                run.writer.event(name, self.total, **facts)
                recorded[name] = facts
            # A killed session may have written the metrics, but not yet "finish".
            names = evaluated.metrics.keys()
            if names and not any(names <= record.keys() for record in past):
                run.writer.write(self.total, dict(evaluated.metrics))
        if "finish" not in recorded:
            run.writer.event("goodput", self.total, **run.goodput.record())
            run.writer.event("finish", self.total)

    def profiling(self, step: int) -> None:
        """Start or stop JAX's profiler: config.log.profile is "first:last", without the last."""
        if not self.profile:
            return
        first, last = self.profile
        if not self.tracing and first <= step < last:
            jax.profiler.start_trace(os.fspath(self.run.workdir / "profile"))
            self.tracing = True
        elif self.tracing and step >= last:
            self.stop_profiling()

    def stop_profiling(self) -> None:
        """Write the profile where one was begun."""
        if self.tracing:
            jax.profiler.stop_trace()
            self.tracing, self.profile = False, ()


def mean_of(name: str, window: Sequence[dict]) -> float:
    """Return the mean of a term over the steps that have it.

    Checkpoints of older versions have the loss only.
    """
    return float(np.mean([values["terms"][name] for values in window if name in values["terms"]]))


def _silent(text: str) -> None:
    """Print nothing."""


def _peak_memory() -> int:
    """Return the largest number of bytes in use on the first device.

    Where the device does not count them, it is the peak memory of this process.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if peak := stats.get("peak_bytes_in_use"):
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _last_words(run: Run, status: int, report: str | os.PathLike) -> str:
    if status:
        return (
            f"Saved and left as asked; the same command goes on from here. Report so far: {report}"
        )
    lines = [f"Report: {report}"]
    if run.tokenizer is not None:  # the commands are about text
        lines += next_commands(
            run.config, run.program.arch, run.task, workdir=run.workdir, command=run.command
        )
    return "\n".join(lines)
