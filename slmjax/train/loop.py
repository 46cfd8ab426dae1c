"""The training loop."""

import contextlib
import dataclasses
import gc
import math
import os
import resource
import shlex
import signal
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
from slmjax.models.architecture import Architecture
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
from slmjax.train.evaluation import Evaluator, Samples
from slmjax.train.program import Program
from slmjax.train.resume import Start
from slmjax.train.state import TrainState, saved


@dataclasses.dataclass
class Run:
    """A training run, ready to go on from `start.step`."""

    config: Config
    workdir: epath.Path
    program: Program
    tokenizer: Tokenizer | None
    task: Task
    held: np.ndarray
    state: TrainState
    steps: dict[
        tuple, Callable
    ]  # compiled, by the batch's shapes; empty where only the last records are to be made
    checkpoints: Checkpoints
    writer: records.MetricsWriter
    goodput: Goodput
    start: Start
    meta: dict[str, Any]
    command: str
    skipped: int  # steps skipped in earlier sessions and not done again since
    claim: Claim  # on the work directory


def train(run: Run) -> int:
    """Go from run.start.step to config.train.steps; returns 0, or 128 + signal when told to leave (saved, and to be continued)."""
    loop = _Loop(run)
    # Closed also where the loop ends in an error: a checkpoint that is being written in the background is finished first.
    with (
        contextlib.closing(run.writer),
        contextlib.closing(run.checkpoints),
        loop.batches,
        loop.progress,
        _Leave() as leave,
    ):
        status = loop.go(leave)
        loop.stop_profiling()
    gc.unfreeze()  # of a process that goes on, as a study's or a notebook's
    if hosts.is_first():
        report = write_report(run.workdir, defaults=configs.to_dict(configs.Config()))
        print(_farewell(run, status, report))
    return status


class _Loop:
    def __init__(self, run: Run):
        config = run.config
        self.run, self.config, self.state = run, config, run.state
        run.state = None  # donated to the first step
        self.total, self.tokens_per_step = (
            config.train.steps,
            config.train.batch * config.data.seq_len,
        )
        self.task, self.model = run.task, run.program.model
        self.where = field_shardings(run.task.rows.shapes(0), run.program.mesh)
        self.evaluator = Evaluator(self.task, self.model, run.workdir / "heldout.npz")
        self.journal = (
            DrawnBatches(run.workdir / "drawn", self.task)
            if isinstance(self.task, DrawingTask)
            else None
        )
        self.batches: Any = contextlib.nullcontext()
        if self.journal is None:
            settings = {"local_rows": run.held.tolist(), "workers": config.data.workers}
            self.batches = local_batches(
                run.task.rows, start_step=run.start.step, stop_step=self.total, **settings
            )
        self.progress = Progress(
            self.total, start=run.start.step, every=config.log.every, active=hosts.is_first()
        )
        self.trunk = schedule.trunk(config.train)
        self.window = list(run.start.window)
        self.last: dict[str, Any] | None = None  # of the step that was read last
        self.skipped = run.skipped
        self.profile = (
            tuple(int(n) for n in config.log.profile.split(":")) if config.log.profile else ()
        )
        self.tracing = False

    def go(self, leave: "_Leave") -> int:
        """Train to the end, or to where the process is told to leave."""
        run, goodput = self.run, self.run.goodput
        pending: tuple[int, dict] | None = None
        self.clock = (run.start.step, time.monotonic())
        for step in range(run.start.step, self.total):
            waiting = (
                pending is None or pending[1]["loss"].is_ready()
            )  # else the device is busy, and time here costs nothing
            with goodput.spent("data_wait") if waiting else contextlib.nullcontext():
                local = self.next_rows(step)
            self.profiling(step)
            fields = self.task.rows.shapes(step)
            batch = hosts.global_batch(local, fields, self.where, run.held)
            self.state, metrics = self.step_for(step, fields)(self.state, batch)
            if (
                pending is not None
            ):  # read one step late, so that the device always has a step to do
                self.read(*pending)
            pending = (step, metrics)
            done = step + 1
            leaving = hosts.leaving_together(done, leave.asked)
            if leaving or self.is_boundary(done):
                self.read(*pending)
                pending = None
                goodput.step()
                self.at_boundary(done, leaving)
            else:
                goodput.step()
            if step == run.start.step:
                gc.freeze()  # what is here now stays: later collections need not look at it
            if leaving and done < self.total:
                run.checkpoints.wait()
                run.writer.event("preempted", done)
                return leave.status
        run.checkpoints.wait()
        self.finish()
        return 0

    def next_rows(self, step: int) -> Arrays:
        """This process's rows of a step's batch."""
        if self.journal is None:
            return next(self.batches)
        return self.journal.rows(step, self.state, self.run.held)

    def step_for(self, step: int, fields: Fields) -> Callable:
        """The compiled step for batches of these shapes; rare ones are compiled when the first comes."""
        run, shapes = self.run, shape_key(fields)
        if shapes not in run.steps:
            different = [
                name for name, shape in shapes if (name, shape) not in next(iter(run.steps))
            ]
            self.progress.note(
                f"step {step + 1} has other shapes ({', '.join(different)}): compiling for them"
            )
            with run.goodput.spent("compile"):
                run.steps[shapes] = run.program.compile(self.task, step)
        return run.steps[shapes]

    def is_boundary(self, done: int) -> bool:
        """True where the loop must know the step's metrics before it goes on."""
        c = self.config
        evaluates = c.eval.every and done % c.eval.every == 0
        return bool(
            done % c.log.every == 0 or evaluates or self.is_saved(done) or done == self.total
        )

    def is_saved(self, done: int) -> bool:
        return done % self.config.checkpoint.every == 0 or done in (self.trunk, self.total)

    def at_boundary(self, done: int, leaving: bool) -> None:
        """Log, evaluate and save, as far as they are due after `done` steps."""
        run, c = self.run, self.config
        if done % c.log.every == 0 or done == self.total:
            self.log(done)
        if (c.eval.every and done % c.eval.every == 0) or done == self.total:
            with run.goodput.spent("evaluation"):
                self.evaluate(done)
        if leaving or self.is_saved(done):
            with run.goodput.spent("checkpoint"):
                self.save(done)
            self.clock = (done, time.monotonic())

    def read(self, step: int, metrics: dict) -> None:
        """Take a step's metrics from the device."""
        values = jax.tree.map(float, jax.device_get(metrics))
        if values["skips"]:
            self.skipped += 1
            reason = f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
            self.run.writer.event("skipped", step + 1, reason=reason)
            self.progress.note(f"step {step + 1} skipped: {reason}")
            if values["skips"] >= self.config.train.max_skips:
                sentence = (
                    f"{self.config.train.max_skips} steps in a row were skipped (config.train.max_skips), the last one, step {step + 1}, "
                    f"for {reason}{self.batch_of(step)}."
                )
                self.run.writer.event("stopped", step + 1, reason=sentence)
                self.run.writer.flush()
                raise UserError(sentence)
        self.last = values
        self.window.append(values)

    def batch_of(self, step: int) -> str:
        """What a step's batch holds, where its rows can say it."""
        if not isinstance(self.task.rows, NamedRows):
            return ""
        documents = self.task.rows.documents(step)
        more = f" and {len(documents) - 5} more" if len(documents) > 5 else ""
        return f"; its batch holds {', '.join(documents[:5])}{more}"

    def log(self, done: int) -> None:
        """Write the window since the last line, and start another."""
        since, began = self.clock
        latest = self.window[-1]
        kept = [values for values in self.window if not values["skips"]] or self.window
        speed = (done - since) * self.tokens_per_step / (time.monotonic() - began)
        metrics: dict[str, Any] = {
            **{f"train/{name}": mean_of(name, kept) for name in latest["terms"]},
            "train/tokens": done * self.tokens_per_step,
            "train/flops": done * self.tokens_per_step * self.run.program.flops_per_token,
            "train/learning_rate": latest["learning_rate"],
            "train/grad_norm": latest["grad_norm"],
            "train/skipped": self.skipped,
            "perf/tokens_per_second": speed,
            "perf/goodput": self.run.goodput.share(),
            "perf/peak_memory_bytes": _peak_memory(),
        }
        share = self.run.program.mfu(speed)
        if share is not None:
            metrics["perf/mfu"] = share
        self.run.writer.write(done, metrics)
        self.run.writer.event("goodput", done, **self.run.goodput.record())
        self.progress.update(done, metrics)
        self.window, self.clock = [], (done, time.monotonic())

    def evaluate(self, done: int) -> None:
        """Run the task's evaluations, but for those of the end."""
        run = self.run
        tokens = done * self.tokens_per_step
        found, events = self.evaluator.score(
            self.state.params, self.state.buffers, done, self.progress.note
        )
        run.writer.write(
            done,
            {**found, "train/tokens": tokens, "train/flops": tokens * run.program.flops_per_token},
        )
        for name, facts in events.items():
            run.writer.event(name, done, **facts)
        self.clock = (done, time.monotonic())
        if done == self.total:
            self.refuse_what_is_not_finite(found)

    def refuse_what_is_not_finite(self, metrics: dict[str, float]) -> None:
        """Raises: UserError where the run ends with a loss or a held-out score that is not finite."""
        wrong = {name: value for name, value in metrics.items() if not math.isfinite(value)}
        if self.last["skips"] and not math.isfinite(self.last["loss"]):
            wrong = {"loss": self.last["loss"], **wrong}
        if wrong:
            name, value = next(iter(wrong.items()))
            sentence = (
                f"after the last step, {self.total}, {name} is {value:g}, so the run is not finished "
                f"and its last step is not saved; {self.skipped} of its steps were skipped. "
                "Try another --workdir with a smaller config.train.lr or a longer warmup."
            )
            self.run.writer.event("stopped", self.total, reason=sentence)
            raise UserError(sentence)

    def save(self, done: int) -> None:
        """Save a checkpoint in the background and prune older ones."""
        state, run = self.state, self.run
        if not hosts.all_agree(run.claim.mine()):
            raise UserError(
                f"--workdir={run.workdir}: another start has taken the work directory over, or it was deleted, "
                f"so this run stops before step {done} is saved; use another --workdir."
            )
        meta = {
            **run.meta,
            "fingerprint": run.task.rows.fingerprint(done),
            "trunk": done == self.trunk,
            "window": [
                {"terms": values["terms"], "skips": values["skips"]} for values in self.window
            ],
        }
        run.checkpoints.save(done, saved(state), meta)
        run.checkpoints.prune(self.trunk)
        if self.journal is not None:
            on_disk = [
                step for step in run.checkpoints.steps() if step != done
            ]  # this one is still being written
            self.journal.prune(min(on_disk, default=0))
        run.writer.event("goodput", done, **run.goodput.record())
        run.writer.flush()

    def finish(self) -> None:
        """The evaluations of the end, and the record that the run is finished.

        What a session that was killed has recorded already stays; "finish" comes last.
        """
        run, state = self.run, self.state
        past = []
        if run.start.kind == "finished":
            past = [
                record for record in records.read(run.workdir).kept if record["step"] == self.total
            ]
            run.checkpoints.prune(self.trunk)
            if not hosts.all_agree(
                (run.workdir / "heldout.npz").exists()
            ):  # somebody has deleted it
                self.evaluator.score(state.params, state.buffers, self.total, _unsaid)
        there = {record["event"]: record for record in past if "event" in record}
        note = _unsaid if "finish" in there else self.progress.note
        for evaluation in self.task.evaluations:
            if not evaluation.at_end:
                continue
            one = evaluation(
                self.model, state.params, state.buffers, step=self.total, note=note, there=there
            )
            for name, facts in one.events.items():
                run.writer.event(name, self.total, **facts)
                there[name] = facts
            if one.metrics and not any(one.metrics.keys() <= record.keys() for record in past):
                run.writer.write(self.total, dict(one.metrics))
        if "finish" not in there:
            run.writer.event("goodput", self.total, **run.goodput.record())
            run.writer.event("finish", self.total)

    def profiling(self, step: int) -> None:
        """Profile config.log.profile's steps: from the first on, up to the last, without it."""
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


class _Leave:
    """SIGTERM and Ctrl-C ask the loop to save and leave; a second Ctrl-C leaves at once.

    Several processes agree through JAX's own service, which catches SIGTERM below Python: there Ctrl-C is passed on as that.
    """

    def __init__(self):
        self.asked, self.status, self.before = False, 128 + signal.SIGTERM, {}

    def __enter__(self):
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
        self.before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        self.asked, self.status = True, 128 + number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)


def _unsaid(text: str) -> None:
    """A note that nobody waits for."""


def mean_of(name: str, window: Sequence[dict]) -> float:
    """The mean of a term over the steps that have it; checkpoints of older versions have the loss only."""
    return float(np.mean([values["terms"][name] for values in window if name in values["terms"]]))


def _peak_memory() -> int:
    """Most bytes in use on the first device, or of this process where the device does not count."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (
        stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def _farewell(run: Run, status: int, report) -> str:
    if status:
        return (
            f"Saved and left as asked; the same command goes on from here. Report so far: {report}"
        )
    if run.tokenizer is None:  # what follows is about text
        return f"Report: {report}"
    words = _without(shlex.split(run.command), "--workdir")
    own = _without(words, "--config.data.sources")
    other = f"{run.workdir}-2"
    changed = other_field(run.config, run.program.arch)
    trust = [
        f"--trust={name}"
        for name in configs.named_code(run.config)
        if not name.startswith("seqio://")
    ]
    prompt = next(
        (
            prompt
            for one in run.task.evaluations
            if isinstance(one, Samples)
            for prompt in one.prompts()
        ),
        "Once",
    )
    generate = [
        "python",
        "-m",
        "slmjax.generate",
        f"--checkpoint={run.workdir}",
        *trust,
        f"--prompt={prompt}",
    ]
    again = [*words, f"--workdir={other}", changed]
    compare = ["python", "-m", "slmjax.compare", str(run.workdir), other]
    mine = [*own, "--workdir=runs/mine", "--config.data.sources=PATH"]
    lines = [
        f"Report: {report}",
        "Next:",
        f"  generate:            {shlex.join(generate)}",
        f"  change and compare:  {shlex.join(again)} && {shlex.join(compare)}",
    ]
    if run.config.task == "lm" and not run.config.data.sources:
        files = "(.txt, .jsonl, .parquet; file, folder, pattern)"
        lines.append(f"  your own text:       {shlex.join(mine)}  {files}")
    return "\n".join(lines)


def other_field(config: configs.Config, arch: Architecture) -> str:
    """An option that trains another model: attention's gate where there is attention, else the learning rate."""
    if any(block.mixer == "attention" for block in arch.blocks):
        return f"--config.model.output_gate={not config.model.output_gate}"
    return f"--config.train.lr={config.train.lr / 2:g}"


def _without(words: Sequence[str], flag: str) -> list[str]:
    """A command's words without a flag and its value, both --flag=value and --flag value, and without flags below it."""
    kept, rest = [], iter(words)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name != flag and not name.startswith(f"{flag}."):
            kept.append(word)
        elif not equals:
            next(rest, None)
    return kept
