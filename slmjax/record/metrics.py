"""The record of a run: metrics and events as JSON lines, mirrored to TensorBoard and W&B.

Here they are written; metric_records.py reads them.
"""

import os
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from slmjax.errors import UserError
from slmjax.record.metric_files import LOCAL_FILE, SEGMENTS_FOLDER, LocalFile, Segments
from slmjax.record.metric_lines import plain, to_line
from slmjax.record.metric_records import (
    Records,
    along,
    events,
    last_event,
    last_value,
    read,
    series,
)

# Whoever writes or reads metrics needs this module only.
__all__ = [
    "MetricsWriter",
    "Records",
    "along",
    "events",
    "import_wandb",
    "last_event",
    "last_value",
    "read",
    "series",
]


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
        wandb_package = None
        if wandb:
            # Before anything is written: the package may be missing.
            wandb_package = import_wandb(wandb)
        self._board_folder = folder / "tensorboard"
        self._lines = _guarded(folder, _open_lines, folder)
        if resume_step is not None:
            # The session's first record, so that readers drop the records that it makes invalid.
            self.event("resume", resume_step)
        if tensorboard:
            board_folder = self._board_folder
            self._board = _guarded(board_folder, _open_tensorboard, board_folder, resume_step)
        if wandb_package:
            self._wandb = wandb_package.init(
                project=wandb,
                id=self._wandb_identity(folder),
                resume="allow",
                config=dict(config or {}),
            )
            # By W&B's own counter a resumed run would repeat steps, and W&B would drop them.
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
                _guarded(self._board_folder, self._board.add_scalar, name, value, int(step))
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
            _guarded(self._lines.path, self._lines.flush)
        if self._board is not None:
            _guarded(self._board_folder, self._board.flush)

    def close(self) -> None:
        """Flush and release the files; later calls do nothing."""
        if self._lines is not None:
            _guarded(self._lines.path, self._lines.close)
        if self._board is not None:
            _guarded(self._board_folder, self._board.close)
        if self._wandb is not None:
            self._wandb.finish()
        self._lines = self._board = self._wandb = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, record: dict) -> None:
        _guarded(self._lines.path, self._lines.put, to_line(record))

    def _wandb_identity(self, folder: epath.Path) -> str:
        """Return the W&B id that the run has recorded; record a new one where it has none."""
        identity = ""
        for record in read(folder).all:
            if record.get("event") == "wandb":
                identity = record["id"]
        if not identity:
            identity = uuid.uuid4().hex[:12]
            # At step 0, so that no resume drops it.
            self.event("wandb", 0, id=identity)
        return identity


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

    logdir = os.fspath(folder)
    if resume_step is None:
        return SummaryWriter(logdir=logdir)
    # TensorBoard drops what it has from the first step that is done again.
    return SummaryWriter(logdir=logdir, purge_step=resume_step + 1)


def _is_remote(folder: epath.Path) -> bool:
    return "://" in os.fspath(folder)


def _now() -> float:
    """Return the Unix time in seconds, to the millisecond."""
    return round(time.time(), 3)


def _guarded(path: epath.Path, call: Callable, *args: Any) -> Any:
    """Return call(*args), which writes to `path`.

    Raises: UserError for an error of the disk or the store.
    """
    try:
        return call(*args)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"Cannot write to {os.fspath(path)}: {reason}. "
            "Choose a --workdir that is writable and has space left."
        ) from error
