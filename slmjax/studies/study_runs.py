"""Train the runs of a study, and keep their results in one small file.

A study trains many models. Each is an ordinary run in a folder of its own below `runs/`. What a run
has found goes into `results.json`, and its scores of held-out documents into `scores/`. A study
that was stopped, or whose runs were deleted, goes on from these files alone.
"""

import contextlib
import dataclasses
import io
import queue
import sys
import time
from collections.abc import Callable, Sequence
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
from slmjax.readable import said_if_long
from slmjax.record import metrics as records
from slmjax.studies.study_progress import StudyProgress
from slmjax.studies.study_results import StudyResults
from slmjax.text.claims import claimed
from slmjax.text.files import write_atomic
from slmjax.train import run as training
from slmjax.train.leave import Leave


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
      config: of the study. It is written to config.json when runs are trained.
      identity: what decides results besides the configs, such as the fingerprint of the text.
      vocab_size: tokens of the runs' vocabulary, for their cost.
      command: the launcher's command, for the records.
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
        self.config = config
        self.vocab_size = vocab_size
        self.command = command
        self._results = StudyResults(folder, identity, command)

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """{name: result} of the runs that have one.

        A result has "diverged" (why training gave up, or ""), "metrics" (the values after the last
        step), "seconds" of training, and what `train` was told to read.
        """
        return self._results.all()

    def scores_file(self, name: str) -> epath.Path:
        """Return the file of a run's scores of held-out documents; only runs on text have one."""
        return self._results.scores_file(name)

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
        devices a run takes, 1 where it does not say. A finished run whose scores are lost is
        trained again.

        Args:
          read: returns what a result has besides its metrics, from the records of a finished run.
        Raises: StudyStopped where a signal asked to stop; UserError where a run cannot be trained
          or another process trains it, and where the folder has a run of this name with other
          settings.
        """
        waiting = []
        for run in runs:
            scores = self.run_folder(run.name) / "heldout.npz"
            if not self._results.has(run.name, run.config, scores):
                waiting.append(run)
        write_atomic(self.folder / "config.json", configs.to_json(self.config))
        if waiting:
            self._train_waiting(waiting, len(runs), read)
        results = self.results
        return {run.name: results[run.name] for run in runs}

    def _train_waiting(
        self, waiting: Sequence[StudyRun], total: int, read: Callable[[records.Records], dict]
    ) -> None:
        lanes = device_lanes(waiting[0].config)
        progress = StudyProgress(
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
            except BaseException as error:
                # The others save and leave, instead of going on for hours.
                leave.asked = True
                error.add_note(f"in the run '{run.name}' of the study '{self.folder}'")
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
        progress: StudyProgress,
    ) -> None:
        folder = self.run_folder(run.name)
        began = time.time()
        refused = ""
        with said_if_long(f"training {run.name}", say=progress.say):
            try:
                # A study in a bucket is not claimed as a whole.
                with claimed(str(folder)) as claim:
                    training.run_train(
                        run.config,
                        str(folder),
                        command=self.command,
                        began=began,
                        claim=claim,
                        devices=devices,
                        leave=leave,
                    )
            except UserError as error:
                refused = str(error)
        past = records.read(folder)
        # A run that diverges ends with a UserError too, but this session's records say so. Those of
        # an earlier session may be of other settings.
        if refused and not any(e["time"] >= began for e in records.events(past, "stopped")):
            raise UserError(f"the run '{run.name}': {refused}")
        result = recorded_result(past, run.config.train.steps)
        if result is None:
            return  # it was asked to leave
        result |= read(past) if not result["diverged"] else {}
        self._results.keep(run.name, run.config, result, folder / "heldout.npz")
        # No result needs them.
        (folder / "checkpoints").rmtree(missing_ok=True)
        progress.finished(run.name, result, time.time() - began)

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
