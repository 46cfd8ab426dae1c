"""The record of a run: metrics and events as JSON lines, mirrored to TensorBoard and W&B."""

import dataclasses
import os
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int, Num

from slmjax.errors import UserError
from slmjax.record.metric_files import LOCAL_FILE, SEGMENTS_FOLDER, LocalFile, Segments, read_texts
from slmjax.record.metric_lines import UNREADABLE, ReadLine, from_line, plain, to_line

# The first events of a session: of a new run "start", else "resume" and then "start".
SESSION_STARTS = ("start", "resume")


class MetricsWriter:
    """Appends metrics and events to the work directory, from one process.

    Every line is one JSON object with "step" (steps done so far), "time" (Unix seconds) and
    "crc32" of the other fields. A local directory gets `metrics.jsonl`, one write call a line,
    so that a kill tears at most the last line. gs:// cannot append: there the lines go to
    numbered segments `metrics/00000.jsonl`, and `flush` must be called with every checkpoint.
    `read` reads both. NaN and infinities are written as null, with their true value under
    "nonfinite", and `read` restores them.

    Args:
      workdir: the work directory, local or gs://; made where missing.
      tensorboard: also write scalars to `tensorboard/` (tensorboardX).
      wandb: W&B project, "" for none; a resumed run goes on in the same W&B run.
      config: the run's config as a nested dict, shown by W&B.
      resume_step: the step that the run goes on from, None for a new run. It is recorded as
        {"event": "resume", "step": s}, which makes readers drop what an earlier session wrote
        about later steps. A run that was killed before its first checkpoint resumes at 0.
      active: False on all processes but the first: then every method does nothing.
    Raises: UserError where the directory cannot be written, the disk is full, or `wandb` is set
      and not installed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        tensorboard: bool = False,
        wandb: str = "",
        config: Mapping | None = None,
        resume_step: int | None = None,
        active: bool = True,
    ):
        self._lines = self._board = self._wandb = None
        if not active:
            return
        folder = epath.Path(workdir)
        package = None
        if wandb:
            # Before anything is written: the package may be missing.
            package = import_wandb(wandb)
        try:
            self._lines = _open_lines(folder)
        except OSError as error:
            raise _unwritable(folder, error) from error
        if resume_step is not None:
            # First of all, so that readers drop what it makes invalid.
            self.event("resume", resume_step)
        if tensorboard:
            self._board = _open_tensorboard(folder, resume_step)
        if package:
            self._wandb = package.init(
                project=wandb,
                id=self._wandb_identity(folder),
                resume="allow",
                config=dict(config or {}),
            )
            # Without it W&B drops the steps that a resumed run does again.
            self._wandb.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of one step; values are numbers or arrays of one element."""
        if self._lines is None:
            return
        values = plain(metrics)
        self._put({"step": int(step), "time": _now(), **values})
        # TensorBoard and W&B draw numbers only.
        numbers = {}
        for name, value in values.items():
            if isinstance(value, int | float):
                numbers[name] = value
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, int(step))
        if self._wandb is not None:
            self._wandb.log({"step": int(step), **numbers})

    def event(self, name: str, step: int, **fields: Any) -> None:
        """Record that something happened at a step.

        Args:
          fields: nested dicts, lists, numbers and strings.
        """
        if self._lines is not None:
            self._put({"event": name, "step": int(step), "time": _now(), **plain(fields)})

    def flush(self) -> None:
        """Make everything written so far durable.

        It is called with each checkpoint, so that no checkpoint is ahead of its metrics.
        """
        if self._lines is not None:
            self._guard(self._lines.flush)
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flush and release the files; later calls do nothing."""
        if self._lines is not None:
            self._guard(self._lines.close)
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._lines = self._board = self._wandb = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, record: dict) -> None:
        self._guard(self._lines.put, to_line(record))

    def _guard(self, call, *args) -> None:
        """Call a method of the files; Raises: UserError for an error of the disk or the store."""
        try:
            call(*args)
        except OSError as error:
            raise _unwritable(self._lines.path, error) from error

    def _wandb_identity(self, folder: epath.Path) -> str:
        """Return the W&B id that the run has recorded, or record a new one."""
        # From all records: a run that goes on from step 0 is still the same run.
        identity = ""
        for record in read(folder).all:
            if record.get("event") == "wandb":
                identity = record["id"]
        if not identity:
            identity = uuid.uuid4().hex[:12]
            self.event("wandb", 0, id=identity)
        return identity


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of a work directory, in the order in which they were written."""

    # `all` without those that a later resume made invalid.
    kept: tuple[dict, ...]
    # Every record that can be read.
    all: tuple[dict, ...]
    # How many lines cannot be read.
    torn: int = 0


def read(workdir: str | os.PathLike) -> Records:
    """Read the metrics of a work directory, in the order in which they were written.

    {"event": "resume", "step": s} drops earlier records of steps beyond s from `kept`. A line that
    a kill cut off, that has changed since, or that no writer wrote, is counted and skipped.
    A directory without metrics gives empty records.
    """
    lines, torn = _read_lines(epath.Path(workdir))
    # A line without the checksum that it should have counts as changed.
    records = _without_lost_checksums(lines)
    torn += len(lines) - len(records)
    kept: list[dict] = []
    for record in records:
        if record.get("event") == "resume":
            # The session goes on from here, so what lies beyond is done again.
            resume_step = record["step"]
            kept = [earlier for earlier in kept if earlier.get("step", 0) <= resume_step]
        kept.append(record)
    return Records(kept=tuple(kept), all=tuple(records), torn=torn)


def series(
    records: Records, name: str
) -> tuple[Int[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """Return the steps and values of one metric, sorted by step.

    A step that was recorded twice has its last value.
    """
    points: dict[int, float] = {}
    for record in records.kept:
        # An event may have a field of the same name.
        if "event" not in record and record.get(name) is not None:
            points[record["step"]] = record[name]
    return _columns(points)


def events(records: Records, name: str) -> list[dict]:
    """Return the events of one name that no resume made invalid, oldest first."""
    return [record for record in records.kept if record.get("event") == name]


def last_event(records: Records, name: str) -> dict[str, Any]:
    """Return the newest event of one name that no resume made invalid; {} where there is none."""
    newest: dict[str, Any] = {}
    for record in records.kept:
        if record.get("event") == name:
            newest = record
    return newest


def last_value(records: Records, name: str) -> float | None:
    """Return the value of one metric at its highest step; None where it was not recorded."""
    _, values = series(records, name)
    return values[-1] if len(values) else None


def along(
    records: Records, steps: Num[np.ndarray, "points"], axis: str
) -> Float[np.ndarray, "points"] | None:
    """Return where `steps` lie on another axis.

    Args:
      axis: a cumulative metric such as "train/tokens" or "train/flops", or "seconds": the time
        of the sessions without the time between them and without steps that were done again.
    Returns: one value a step, interpolated between records; None where the run has no record of
      that axis.
    """
    if axis == "seconds":
        known_steps, values = _columns(_seconds(records))
    else:
        known_steps, values = series(records, axis)
        if len(known_steps) and known_steps[0] > 0:
            # A cumulative metric is 0 before the first step.
            known_steps = np.concatenate([[0], known_steps])
            values = np.concatenate([[0.0], values])
    if not len(known_steps):
        return None
    return np.interp(steps, known_steps, values).astype(np.float64)


def import_wandb(project: str) -> Any:
    """Return the package wandb. Raises: UserError where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"log.wandb names the project '{project}', but the package wandb is not installed: "
            "pip install wandb, or leave log.wandb empty."
        ) from error
    return wandb


def _open_lines(folder: epath.Path) -> LocalFile | Segments:
    folder.mkdir(parents=True, exist_ok=True)
    if _is_remote(folder):
        return Segments(folder / SEGMENTS_FOLDER)
    return LocalFile(folder / LOCAL_FILE)


def _open_tensorboard(folder: epath.Path, resume_step: int | None) -> Any:
    from tensorboardX import SummaryWriter

    logdir = os.fspath(folder / "tensorboard")
    if resume_step is None:
        return SummaryWriter(logdir=logdir)
    # TensorBoard drops what an earlier session wrote about later steps.
    return SummaryWriter(logdir=logdir, purge_step=resume_step + 1)


def _is_remote(folder: epath.Path) -> bool:
    return "://" in os.fspath(folder)


def _now() -> float:
    """Unix seconds, to the millisecond."""
    return round(time.time(), 3)


def _read_lines(folder: epath.Path) -> tuple[list[ReadLine], int]:
    """Return the readable lines of a work directory, and how many others there are."""
    lines, torn = [], 0
    for text in read_texts(folder):
        # Not splitlines: a text in a record may hold other line separators.
        for line in text.split("\n"):
            if not line.strip():
                continue
            try:
                lines.append(from_line(line))
            except UNREADABLE:
                torn += 1
    return lines, torn


def _without_lost_checksums(lines: list[ReadLine]) -> list[dict]:
    """Return the records without those that should have a checksum and have none.

    Earlier versions wrote no checksums. So a run may begin without, up to a start or resume of a
    version that writes them.
    """
    older = len(lines)  # how many lines an earlier version wrote
    for index, line in enumerate(lines):
        if line.has_checksum:
            begins_session = line.record.get("event") in SESSION_STARTS
            older = index if begins_session else 0
            break
    records = []
    for index, line in enumerate(lines):
        if line.has_checksum or index < older:
            records.append(line.record)
    return records


def _columns(
    points: dict[int, float],
) -> tuple[Int[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """Return steps in order, and the value at each."""
    steps = sorted(points)
    values = [points[step] for step in steps]
    return np.array(steps, np.int64), np.array(values, np.float64)


def _seconds(records: Records) -> dict[int, float]:
    """Return {step: seconds of training so far}, over the kept records.

    The time between one session's last record and the next session's first one does not count.
    """
    elapsed, previous_time = 0.0, None
    # At each step with metrics.
    seconds = {}
    for record in records.kept:
        now = record.get("time")
        if now is None:
            continue
        begins_session = record.get("event") in SESSION_STARTS
        if previous_time is not None and not begins_session:
            # A clock may be set back.
            elapsed += max(0.0, now - previous_time)
        previous_time = now
        if "event" not in record:
            seconds[record["step"]] = elapsed
    return seconds


def _unwritable(path: epath.Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(
        f"Cannot write to {os.fspath(path)}: {reason}. "
        "Choose a --workdir that is writable and has space left."
    )
