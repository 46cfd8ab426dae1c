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
from slmjax.data.rows import Arrays, Fields, HeldRows, NamedRows, shape_key
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

# Most documents that an error about a batch names.
DOCUMENTS_NAMED = 5


@dataclasses.dataclass
class Run:
    """A training run, ready to go on from `start.step`.

    held: which rows of the global batch of a step this process holds.
    state: the loop takes it over, and sets it to None here.
    steps: {shape_key of a batch: the compiled step}; empty where only the last records are missing.
    meta: what each checkpoint records of the run.
    command: the launcher's command.
    skipped: number of steps skipped in earlier sessions and not done again since.
    claim: this process's claim on the work directory.
    """

    config: Config
    workdir: epath.Path  # local or gs://
    program: Program
    tokenizer: Tokenizer | None
    task: Task
    held: HeldRows
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


def train(run: Run, leave: Leave) -> int:
    """Train from run.start.step to config.train.steps, and write the report.

    Returns: 0, or 128 + signal where a signal asked to leave (then the run is saved and can go on).
    """
    loop = _Loop(run)
    # All are closed even where the loop ends in an error: a checkpoint that is being written in the
    # background is finished first.
    with (
        contextlib.closing(run.writer),
        contextlib.closing(run.checkpoints),
        loop.batches,
        loop.progress,
    ):
        try:
            status = loop.go(leave)
        finally:
            # The process may live on, as a study's or a notebook's does.
            loop.stop_profiler()
            gc.unfreeze()
    if hosts.is_first():
        report = write_report(run.workdir, defaults=configs.to_dict(Config()))
        print(_last_words(run, status, report))
    return status


class _Loop:
    """The loop over steps, and what it knows between them.

    A method's `step` is the 0-based number of a step, `done` the number of steps done.
    """

    def __init__(self, run: Run):
        config = run.config
        self.run = run
        self.config = config
        self.state = run.state
        run.state = None  # the first step takes its memory over
        self.task = run.task
        self.model = run.program.model
        self.total = config.train.steps
        # Number of steps that a longer run would share; the checkpoint after them is kept. None for
        # schedules that cannot be made longer.
        self.trunk = schedule.trunk(config.train, run.program.phases)
        # Shardings of a batch's fields: names and axes are the same at every step.
        self.batch_shardings = field_shardings(run.task.rows.shapes(0), run.program.mesh)
        self.evaluator = Evaluator(self.task, self.model, run.workdir / "heldout.npz")

        # Batches are read ahead of their steps, unless the rows depend on the model (`drawn`).
        self.drawn = None
        self.batches: Any = contextlib.nullcontext()
        if isinstance(self.task, DrawingTask):
            self.drawn = DrawnBatches(run.workdir / "drawn", self.task)
        else:
            self.batches = local_batches(
                run.task.rows,
                start_step=run.start.step,
                stop_step=self.total,
                local_rows=run.held,
                workers=config.data.workers,
            )
        self.progress = Progress(
            self.total, start=run.start.step, every=config.log.every, active=hosts.is_first()
        )
        # Metrics of each step since the last line of metrics, and of the newest step.
        self.window = list(run.start.window)
        self.last_values: dict[str, Any] | None = None
        self.skipped = run.skipped
        # The first step to profile, and the first one after those.
        self.profiled_steps: tuple[int, ...] = ()
        if config.log.profile:
            self.profiled_steps = tuple(map(int, config.log.profile.split(":")))
        self.is_profiling = False
        # (steps done, time) from which the next line's speed is measured.
        self.speed_start = (run.start.step, time.monotonic())

    def go(self, leave: Leave) -> int:
        """Train to the end, or to where the process is asked to leave; return the exit status."""
        run, goodput = self.run, self.run.goodput
        # The step that was dispatched last, and its metrics on the device.
        pending: tuple[int, dict] | None = None
        self.speed_start = (run.start.step, time.monotonic())
        is_new = run.start.kind in ("fresh", "branch")
        if is_new and run.meta["parents"]:
            # The parent's scores on this run's held-out data, to compare with.
            with goodput.spent("evaluation"):
                self.evaluate(run.start.step)
        if is_new and (run.start.kind == "branch" or not self.total):
            # From here on a branch needs its parent no longer. Without steps it is all there is.
            with goodput.spent("checkpoint"):
                self.save(run.start.step)
        for step in range(run.start.step, self.total):
            # Waiting for data is lost time only where the device has nothing to do.
            is_idle = pending is None or pending[1]["loss"].is_ready()
            data_wait = goodput.spent("data_wait") if is_idle else contextlib.nullcontext()
            with data_wait:
                local_rows = self.next_rows(step)
            self.start_or_stop_profiler(step)
            fields = self.task.rows.shapes(step)
            # Dispatch returns at once; the device works while this thread prepares the next step.
            batch = hosts.global_batch(local_rows, fields, self.batch_shardings, run.held(step))
            rates = run.program.rates(step)
            self.state, metrics = self.step_for(step, fields)(self.state, batch, rates)
            if pending is not None:
                # One step late, so that the device always has a step to do.
                self.read_metrics(*pending)
            pending = (step, metrics)
            done = step + 1
            # All processes leave after the same step, or the others would wait in a collective.
            leaving = hosts.leaving_together(done, leave.asked)
            if leaving or self.is_boundary(done):
                self.read_metrics(*pending)
                pending = None
                goodput.step()
                self.at_boundary(done, leaving)
            else:
                goodput.step()
            if step == run.start.step:
                # What exists after the first step stays: later collections need not look at it.
                gc.freeze()
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
        return self.drawn.rows(step, self.state, self.run.held(step))

    def step_for(self, step: int, fields: Fields) -> Callable:
        """Return the compiled step for batches of these shapes.

        Shapes other than the first batch's are compiled when the first such batch comes.
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
        """Return whether to log, evaluate or save now; the loop then waits for the device."""
        return self.is_logged(done) or self.is_evaluated(done) or self.is_saved(done)

    def is_logged(self, done: int) -> bool:
        return done % self.config.log.every == 0 or done == self.total

    def is_evaluated(self, done: int) -> bool:
        every = self.config.eval.every
        return done == self.total or (every > 0 and done % every == 0)

    def is_saved(self, done: int) -> bool:
        return done % self.config.checkpoint.every == 0 or done in (self.trunk, self.total)

    def at_boundary(self, done: int, leaving: bool) -> None:
        """Do what is due of logging, evaluating and saving; a process that leaves saves."""
        goodput = self.run.goodput
        if self.is_logged(done):
            self.log(done)
        if self.is_evaluated(done):
            with goodput.spent("evaluation"):
                self.evaluate(done)
        if leaving or self.is_saved(done):
            with goodput.spent("checkpoint"):
                self.save(done)
            self.speed_start = (done, time.monotonic())

    def read_metrics(self, step: int, metrics: dict) -> None:
        """Take a step's metrics from the device, and record it where it was skipped.

        Raises: UserError where too many steps in a row were skipped.
        """
        values = jax.tree.map(float, jax.device_get(metrics))
        values["terms"] = terms_that_count(values["terms"], values.pop("weights"))
        if values["skips"]:
            self.skipped += 1
            reason = f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
            self.run.writer.event("skipped", step + 1, reason=reason)
            self.progress.note(f"step {step + 1} skipped: {reason}")
            most = self.config.train.max_skips
            if values["skips"] >= most:
                self.end_with_error(
                    step + 1,
                    f"{most} steps in a row were skipped (config.train.max_skips), the last one, "
                    f"step {step + 1}, for {reason}{self.describe_batch(step)}.",
                )
        self.last_values = values
        self.window.append(values)

    def end_with_error(self, done: int, sentence: str) -> None:
        """Record why the run ends, and end it. Raises: UserError with the sentence, always."""
        self.run.writer.event("stopped", done, reason=sentence)
        self.run.writer.flush()
        raise UserError(sentence)

    def describe_batch(self, step: int) -> str:
        """Return in words which documents a step's batch holds, "" where its rows have no names."""
        if not isinstance(self.task.rows, NamedRows):
            return ""
        documents = self.task.rows.documents(step)
        named = ", ".join(documents[:DOCUMENTS_NAMED])
        if len(documents) > DOCUMENTS_NAMED:
            named += f" and {len(documents) - DOCUMENTS_NAMED} more"
        return f"; its batch holds {named}"

    def log(self, done: int) -> None:
        """Write means over the steps since the last line of metrics, and begin a new window."""
        start_step, start_time = self.speed_start
        latest = self.window[-1]
        # Skipped steps would spoil the means; they are logged only where all steps were skipped.
        kept = [values for values in self.window if not values["skips"]]
        kept = kept or self.window
        tokens, flops = self.run.program.spent(done)
        tokens_at_start, flops_at_start = self.run.program.spent(start_step)
        seconds = time.monotonic() - start_time
        metrics: dict[str, Any] = {}
        # Not every step has every term: in a mixture, a batch may be without pairs.
        for name in dict.fromkeys(name for values in kept for name in values["terms"]):
            metrics[f"train/{name}"] = mean_of_term(name, kept)
        metrics |= {
            "train/tokens": tokens,
            "train/flops": flops,
            "train/learning_rate": latest["learning_rate"],
            "train/grad_norm": latest["grad_norm"],
            "train/skipped": self.skipped,
            "perf/tokens_per_second": (tokens - tokens_at_start) / seconds,
            "perf/goodput": self.run.goodput.share(),
            "perf/peak_memory_bytes": _peak_memory(),
        }
        utilisation = self.run.program.utilisation((flops - flops_at_start) / seconds)
        if utilisation is not None:
            metrics["perf/mfu"] = utilisation
        self.run.writer.write(done, metrics)
        self.run.writer.event("goodput", done, **self.run.goodput.record())
        self.progress.update(done, metrics)
        self.window, self.speed_start = [], (done, time.monotonic())

    def evaluate(self, done: int) -> None:
        """Run the task's evaluations, except those that run only at the end (see `finish`)."""
        writer = self.run.writer
        scores, events = self.evaluator.score(
            self.state.params, self.state.buffers, done, self.progress.note
        )
        tokens, flops = self.run.program.spent(done)
        writer.write(done, scores | {"train/tokens": tokens, "train/flops": flops})
        for name, facts in events.items():
            writer.event(name, done, **facts)
        # The next line's speed leaves out the time of this evaluation.
        self.speed_start = (done, time.monotonic())
        if done == self.total:
            self.refuse_nonfinite_end(scores)

    def refuse_nonfinite_end(self, scores: dict[str, float]) -> None:
        """Raises: UserError where the run ends with a loss or a score that is not finite."""
        values = dict(scores)
        if self.last_values and self.last_values["skips"]:
            values = {"loss": self.last_values["loss"], **values}
        for name, value in values.items():
            if not math.isfinite(value):
                self.end_with_error(
                    self.total,
                    f"after the last step, {self.total}, {name} is {value:g}, so the run is not "
                    f"finished and its last step is not saved; {self.skipped} of its steps were "
                    "skipped. Try another --workdir with a smaller config.train.lr or a longer "
                    "warmup.",
                )

    def save(self, done: int) -> None:
        """Save a checkpoint in the background and prune older ones."""
        run = self.run
        # Nothing locks a directory in a bucket: a later start may have claimed it by now.
        if not hosts.all_agree(run.claim.mine()):
            raise UserError(
                f"--workdir={run.workdir}: another start has taken the work directory over, or it "
                f"was deleted, so this run stops before step {done} is saved; use another "
                "--workdir."
            )
        # With it, a resumed run's next line is a mean over the same steps as an undisturbed run's.
        window = [{"terms": values["terms"], "skips": values["skips"]} for values in self.window]
        meta = run.meta | {
            "fingerprint": run.task.rows.fingerprint(done),
            "trunk": done == self.trunk,  # such a checkpoint is never pruned
            "window": window,
        }
        run.checkpoints.save(done, saved(self.state), meta)
        run.checkpoints.prune(self.trunk)
        if self.drawn is not None:
            # Checkpoint `done` is still being written: after a kill, the run needs an older one.
            on_disk = [step for step in run.checkpoints.steps() if step != done]
            self.drawn.prune(min(on_disk, default=0))
        run.writer.event("goodput", done, **run.goodput.record())
        run.writer.flush()

    def finish(self) -> None:
        """Run the evaluations of the end, and record that the run is finished.

        What a killed session has recorded already is not recorded again; "finish" comes last.
        """
        run, state = self.run, self.state
        # Records of the last step that an earlier session has written.
        last_records = []
        if run.start.kind == "finished":
            kept = records.read(run.workdir).kept
            last_records = [record for record in kept if record["step"] == self.total]
            run.checkpoints.prune(self.trunk)
            if not hosts.all_agree((run.workdir / "heldout.npz").exists()):
                # Somebody has deleted it: this writes it again.
                self.evaluator.score(state.params, state.buffers, self.total, _silent)
        recorded = {record["event"]: record for record in last_records if "event" in record}
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
            # A killed session may have written these metrics, but not yet "finish".
            names = evaluated.metrics.keys()
            is_written = any(names <= record.keys() for record in last_records)
            if names and not is_written:
                run.writer.write(self.total, dict(evaluated.metrics))
        if "finish" not in recorded:
            run.writer.event("goodput", self.total, **run.goodput.record())
            run.writer.event("finish", self.total)

    def start_or_stop_profiler(self, step: int) -> None:
        """Start or stop JAX's profiler before a step, where config.log.profile says so."""
        if not self.profiled_steps:
            return
        first, end = self.profiled_steps
        if not self.is_profiling and first <= step < end:
            jax.profiler.start_trace(os.fspath(self.run.workdir / "profile"))
            self.is_profiling = True
        elif self.is_profiling and step >= end:
            self.stop_profiler()

    def stop_profiler(self) -> None:
        """Write the profile if one was begun; no other one is begun."""
        if self.is_profiling:
            jax.profiler.stop_trace()
            self.is_profiling, self.profiled_steps = False, ()


def terms_that_count(terms: dict[str, float], weights: dict[str, float]) -> dict[str, float]:
    """Return the terms of a step without those that its batch has nothing of; the loss stays.

    Args:
      weights: {name: what the term is a mean over}, 0 for nothing.
    """
    return {name: mean for name, mean in terms.items() if weights[name] != 0 or name == "loss"}


def mean_of_term(name: str, window: Sequence[dict]) -> float:
    """Return the mean of a term over the steps that have it.

    Steps from a checkpoint of an older version have only the loss, and steps whose batch has
    nothing of a term lack it.
    """
    values = [step["terms"][name] for step in window if name in step["terms"]]
    return float(np.mean(values))


def _silent(text: str) -> None:
    """Print nothing."""


def _peak_memory() -> int:
    """Return the most bytes that were in use on the first device.

    Where the device does not count them: the peak memory of this process.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if peak := stats.get("peak_bytes_in_use"):
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _last_words(run: Run, status: int, report: str | os.PathLike) -> str:
    """Return what is printed after training: where the report is, and what to do next."""
    if status:
        return (
            f"Saved and left as asked; the same command goes on from here. Report so far: {report}"
        )
    lines = [f"Report: {report}"]
    # The commands are about text, which other tasks do not have.
    if run.tokenizer is not None:
        lines += next_commands(
            run.config, run.program.arch, run.task, workdir=run.workdir, command=run.command
        )
    return "\n".join(lines)
