"""Train the runs of a study, and keep their results in one small file.

A study trains many models. Each is an ordinary run in a folder of its own below `runs/`. What a run
has found goes into `results.json`, and its scores of held-out documents into `scores/`. A study
that was stopped, or whose runs were deleted, goes on from these files alone.
"""

import contextlib
import dataclasses
import io
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.parallel.mesh import make_mesh
from slmjax.readable import count, duration, flatten, said_if_long
from slmjax.record import metrics as records
from slmjax.text.files import seal_is_broken, sealed, write_atomic
from slmjax.train import run as training
from slmjax.train.leave import Leave
from slmjax.train.resume import affects_of

# Version of results.json.
FORMAT = 1


class StudyRun(NamedTuple):
    """A run of a study.

    name: of the run and of its folder; unique in the study, and valid as a file's name.
    config: of the run, whose stage is "train".
    """

    name: str
    config: configs.Config


class StudyStopped(Exception):
    """A signal asked the study to stop; its runs are saved. `status` is the exit status."""

    def __init__(self, status: int):
        self.status = status


class StudyRuns:
    """The runs of a study and their results.

    Args:
      folder: the study's work directory, local or gs://.
      config: of the study. It is written to config.json at once.
      identity: what decides results besides the configs, such as the fingerprint of the text.
      vocab_size: tokens of the runs' vocabulary, for their cost.
      command: the launcher's command, for the records.
    Attributes: results, {name: result}. A result has "diverged" (why training gave up, or ""),
      "metrics" (the values after the last step), "seconds" of training, and what `read` adds.
    Raises: UserError where results.json cannot be read, or is of another text or a newer format.
    """

    def __init__(
        self,
        folder: epath.Path,
        config: configs.Config,
        *,
        identity: str,
        vocab_size: int,
        command: str = "",
    ):
        self.folder = folder
        self.vocab_size = vocab_size
        self.command = command
        self._identity = identity
        self._file = folder / "results.json"
        self._lock = threading.Lock()
        self._stored = self._read_stored()
        self.results = {name: stored["result"] for name, stored in self._stored.items()}
        write_atomic(folder / "config.json", configs.to_json(config))

    def scores_file(self, name: str) -> epath.Path:
        """Return the file of a run's scores of held-out documents; only runs on text have one."""
        return self.folder / "scores" / f"{name}.npz"

    def run_folder(self, name: str) -> epath.Path:
        """Return the work directory of a run."""
        return self.folder / "runs" / name

    def train(
        self,
        runs: Sequence[StudyRun],
        read: Callable[[records.Records], dict[str, Any]] = lambda _: {},
    ) -> dict[str, dict[str, Any]]:
        """Train the runs that have no result yet; return the results of all of them by name.

        Runs go side by side where this host has devices for several: config.mesh says how many
        devices a run takes, 1 where it does not say.

        Args:
          read: returns what a result has besides its metrics, from the records of a finished run.
        Raises: StudyStopped where a signal asked to stop; UserError where a run cannot be trained,
          and where results.json has a run of this name with other settings.
        """
        waiting = [run for run in runs if not self._is_done(run)]
        if waiting:
            self._train_waiting(waiting, len(runs), read)
        return {run.name: self.results[run.name] for run in runs}

    def _train_waiting(
        self, waiting: Sequence[StudyRun], total: int, read: Callable[[records.Records], dict]
    ) -> None:
        lanes = device_lanes(waiting[0].config)
        progress = _StudyProgress(
            {run.name: self._flops(run) for run in waiting}, total, len(lanes), sys.stdout
        )
        progress.print_cost(sum(run_tokens(run.config) for run in waiting))
        free_lanes: queue.SimpleQueue = queue.SimpleQueue()
        for lane in lanes:
            free_lanes.put(lane)

        def train_one(run: StudyRun, leave: Leave) -> None:
            if leave.asked:
                return
            lane = free_lanes.get()
            try:
                self._train_one(run, lane, leave, read, progress)
            except BaseException:
                # The others save and leave, instead of going on for hours.
                leave.asked = True
                raise
            finally:
                free_lanes.put(lane)

        # What a run prints is dropped: it is in the run's own records and report.
        with contextlib.redirect_stdout(io.StringIO()), Leave() as leave:
            if len(lanes) == 1:
                for run in waiting:
                    train_one(run, leave)
            else:
                with ThreadPoolExecutor(len(lanes)) as pool:
                    futures = [pool.submit(train_one, run, leave) for run in waiting]
                _raise_first(futures)
        if leave.asked:
            raise StudyStopped(leave.status)

    def _train_one(
        self,
        run: StudyRun,
        devices: Sequence[jax.Device],
        leave: Leave,
        read: Callable[[records.Records], dict],
        progress: "_StudyProgress",
    ) -> None:
        folder = self.run_folder(run.name)
        began = time.time()
        refused = ""
        with said_if_long(f"training {run.name}", say=progress.say):
            try:
                training.run_train(
                    run.config,
                    str(folder),
                    command=self.command,
                    began=began,
                    devices=devices,
                    leave=leave,
                )
            except UserError as error:
                refused = str(error)
        past = records.read(folder)
        result = recorded_result(past, run.config.train.steps)
        if result is None:
            # A run that diverges ends with a UserError too, but its records say so.
            if refused:
                raise UserError(f"the run '{run.name}': {refused}")
            return  # it was asked to leave
        result |= read(past) if not result["diverged"] else {}
        self._keep(run, folder, result)
        progress.finished(run.name, result, time.time() - began)

    def _keep(self, run: StudyRun, folder: epath.Path, result: dict[str, Any]) -> None:
        """Store a run's result and scores, and remove its checkpoints, which no result needs."""
        scores = folder / "heldout.npz"
        if scores.exists():
            write_atomic(self.scores_file(run.name), scores.read_bytes())
        with self._lock:
            self._stored[run.name] = {"settings": settings_of(run.config), "result": result}
            self.results[run.name] = result
            content = {
                "format": FORMAT,
                "identity": self._identity,
                "device": jax.devices()[0].device_kind,
                "command": self.command,
                "runs": self._stored,
            }
            write_atomic(self._file, json.dumps(sealed(content), indent=1))
        (folder / "checkpoints").rmtree(missing_ok=True)

    def _is_done(self, run: StudyRun) -> bool:
        """Return whether a run has its result. Raises: UserError where it has other settings."""
        if run.name not in self._stored:
            return False
        changed = changed_settings(self._stored[run.name]["settings"], settings_of(run.config))
        if changed:
            raise UserError(
                f"'{self._file}' holds the run '{run.name}' with other settings "
                f"({', '.join(changed)}); use another --workdir."
            )
        return True

    def _read_stored(self) -> dict[str, dict[str, Any]]:
        if not self._file.exists():
            return {}
        try:
            content = json.loads(self._file.read_text())
            if "seal" not in content or seal_is_broken(content):
                raise ValueError("it was changed after it was written")
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r} instead of {FORMAT}")
            identity, stored = content["identity"], dict(content["runs"])
            for entry in stored.values():
                dict(entry["settings"])
                dict(entry["result"]["metrics"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            advice = "remove it or use another --workdir"
            raise UserError(f"'{self._file}' cannot be read ({error!r}); {advice}.") from error
        if identity != self._identity:
            raise UserError(
                f"'{self._file}' holds runs on other text or with another tokenizer; use another "
                "--workdir."
            )
        return stored

    def _flops(self, run: StudyRun) -> float:
        """Return the FLOPs of a run's matrix products."""
        arch = architecture(run.config, self.vocab_size)
        flops_per_token = sizes.train_flops_per_token(arch, run.config.data.seq_len)
        return run_tokens(run.config) * flops_per_token


def device_lanes(config: configs.Config) -> list[list[jax.Device]]:
    """Return groups of this host's devices, one group for each run that trains at a time.

    Raises: UserError for several processes, and for a mesh that is larger than the host.
    """
    if jax.process_count() > 1:
        raise UserError("a study is one process; it takes no --processes.")
    mesh = dataclasses.asdict(config.mesh)
    # An axis of -1 takes what is left. A study leaves it one device, and the rest to other runs.
    size = 1
    for axis_size in mesh.values():
        size *= max(1, axis_size)
    devices = jax.local_devices()
    if size > len(devices):
        raise UserError(
            f"config.mesh asks for {size} devices for each run; this host has {len(devices)}."
        )
    groups = []
    for start in range(0, len(devices) - size + 1, size):
        groups.append(devices[start : start + size])
    return groups


def recorded_result(past: records.Records, steps: int) -> dict[str, Any] | None:
    """Return the result that a run's records hold; None before its end.

    Args:
      steps: of the whole run.
    """
    result: dict[str, Any] = {"diverged": "", "metrics": {}, "seconds": 0.0}
    # "stopped" is recorded where training gives up, not after a signal.
    if stopped := records.events(past, "stopped"):
        return result | {"diverged": stopped[-1]["reason"]}
    if not any(event["step"] == steps for event in records.events(past, "finish")):
        return None
    for record in past.kept:
        if record["step"] == steps and "event" not in record:
            result["metrics"] |= {name: value for name, value in record.items() if "/" in name}
    seconds = records.along(past, np.array([steps]), "seconds")
    if seconds is not None:
        result["seconds"] = float(seconds[0])
    return result


def settings_of(config: configs.Config) -> dict[str, Any]:
    """Return the values of a run's config that decide its result, by dotted name."""
    settings = {}
    values = flatten(configs.to_dict(config))
    for name, value in values.items():
        if affects_of(name) not in ("bookkeeping", "compile"):
            settings[name] = value
    # As results.json will hold it: with lists for tuples.
    return json.loads(json.dumps(settings))


def changed_settings(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the values of `settings_of` in which two runs differ."""
    names = earlier.keys() | now.keys()
    return sorted(name for name in names if earlier.get(name) != now.get(name))


def architecture(config: configs.Config, vocab_size: int) -> Architecture:
    """Return the architecture of a run, for counting: its sizes are those of the whole model."""
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    arch, _ = resolve(config.model, config.precision, mesh, vocab_size)
    return arch


def run_tokens(config: configs.Config) -> int:
    """Return the tokens that a run reads."""
    return config.train.steps * config.train.batch * config.data.seq_len


def _raise_first(futures: Sequence[Future]) -> None:
    """Raise the first error that a thread ended with."""
    for future in futures:
        if error := future.exception():
            raise error


class _StudyProgress:
    """Prints what a study costs before it starts, and a line after each run.

    Args:
      flops: {name: FLOPs} of the runs that are trained now.
      total: number of runs, those that are finished among them.
      lanes: runs that train at a time.
      terminal: where lines go, also while standard output is redirected.
    """

    def __init__(self, flops: Mapping[str, float], total: int, lanes: int, terminal: Any):
        self._flops = flops
        self._total = total
        self._lanes = lanes
        self._terminal = terminal
        self._began = time.monotonic()
        self._finished: list[str] = []
        self._lock = threading.Lock()

    def say(self, line: str) -> None:
        print(line, file=self._terminal, flush=True)

    def print_cost(self, tokens: int) -> None:
        work = f"{count(tokens)} tokens, {sum(self._flops.values()):.3g} FLOPs"
        done = self._total - len(self._flops)
        before = f" ({done} more are finished)" if done else ""
        side = f", {self._lanes} at a time" if self._lanes > 1 else ""
        self.say(f"training {len(self._flops)} runs{side}: {work}{before}")

    def finished(self, name: str, result: Mapping[str, Any], seconds: float) -> None:
        """Print a finished run's line: its number, its result, its time, and the time left."""
        with self._lock:
            self._finished.append(name)
            number = self._total - len(self._flops) + len(self._finished)
            left = self._seconds_left()
            outcome = f"diverged: {result['diverged']}" if result["diverged"] else ""
            bits = result["metrics"].get("eval/bits_per_byte")
            if bits is not None:
                outcome = f"{bits:.4f} bits per byte"
            self.say(
                f"run {number} of {self._total}: {name}: {outcome or 'trained'}, "
                f"{duration(seconds)}; {duration(left)} left"
            )

    def _seconds_left(self) -> float:
        """Return the seconds until all runs are finished, by the FLOPs a second so far."""
        done = sum(self._flops[name] for name in self._finished)
        left = sum(self._flops.values()) - done
        return left * (time.monotonic() - self._began) / done
