"""The record of a run: metrics and events as JSON lines in the work directory, mirrored to TensorBoard and W&B."""

import concurrent.futures
import dataclasses
import json
import math
import os
import time
import uuid
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int, Num

from slmjax.errors import UserError


class MetricsWriter:
    """Appends metrics and events to the work directory, from one process.

    Every line is one JSON object with "step" (steps done so far), "time" (Unix seconds) and "crc32" of the others. A local directory gets
    `metrics.jsonl`, one write call a line, so that a kill tears at most the last line. gs:// cannot append: there the lines go to
    numbered segments `metrics/00000.jsonl` (see `_Segments`), and `flush` must be called with every checkpoint. `read` reads both.
    NaN and infinities are written as null, with their true value under "nonfinite", and come back from `read` as they were.

    Args:
      workdir: the work directory, local or gs://; made where missing.
      tensorboard: also write scalars to `tensorboard/` (tensorboardX).
      wandb: W&B project, "" for none; a resumed run goes on in the same W&B run.
      config: the run's config as a nested dict, shown by W&B.
      resume_step: the step that the run goes on from, None for a new run. It is recorded as {"event": "resume", "step": s}, which
        makes readers drop what an earlier session wrote about later steps. A run that was killed before its first checkpoint resumes at 0.
      active: False on all processes but the first: then every method does nothing.
    Raises: UserError where the directory cannot be written, the disk is full, or `wandb` is set and not installed.
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
        package = import_wandb(wandb) if wandb else None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = (
                _Segments(folder / "metrics")
                if _is_remote(folder)
                else _Lines(folder / "metrics.jsonl")
            )
        except OSError as error:
            raise _unwritable(folder, error) from error
        if resume_step is not None:
            self.event("resume", resume_step)
        if tensorboard:
            from tensorboardX import SummaryWriter

            purge = {} if resume_step is None else {"purge_step": resume_step + 1}
            self._board = SummaryWriter(logdir=os.fspath(folder / "tensorboard"), **purge)
        if package:
            self._wandb = package.init(
                project=wandb, id=self._wandb_id(folder), resume="allow", config=dict(config or {})
            )
            self._wandb.define_metric(
                "*", step_metric="step"
            )  # else W&B drops the steps that a resumed run does again

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of one step; values are numbers or arrays of one element."""
        if self._lines is None:
            return
        values = {name: _plain(value) for name, value in metrics.items()}
        self._put({"step": int(step), "time": round(time.time(), 3), **values})
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, int(step))
        if self._wandb is not None:
            self._wandb.log({"step": int(step), **numbers})

    def event(self, name: str, step: int, **fields: Any) -> None:
        """Record something that happened at a step: `fields` may be nested dicts, lists, numbers and strings."""
        if self._lines is not None:
            self._put(
                {"event": name, "step": int(step), "time": round(time.time(), 3), **_plain(fields)}
            )

    def flush(self) -> None:
        """Make everything written so far durable. Called with each checkpoint, so that no checkpoint is ahead of its metrics."""
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
        finite, nonfinite = _split_nonfinite(record)
        if nonfinite:
            finite["nonfinite"] = nonfinite
        finite["crc32"] = _checksum(finite)
        self._guard(self._lines.put, json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n")

    def _guard(self, call, *args) -> None:
        try:
            call(*args)
        except OSError as error:
            raise _unwritable(self._lines.path, error) from error

    def _wandb_id(self, folder: epath.Path) -> str:
        known = [record["id"] for record in read(folder).all if record.get("event") == "wandb"]
        if not known:
            known = [uuid.uuid4().hex[:12]]
            self.event("wandb", 0, id=known[0])
        return known[-1]


@dataclasses.dataclass(frozen=True)
class Records:
    """What `read` found: `all` lines in file order, `kept` without those that a later resume made invalid, and how many are `torn`."""

    kept: tuple[dict, ...]
    all: tuple[dict, ...]
    torn: int = 0


def read(workdir: str | os.PathLike) -> Records:
    """Read the metrics of a work directory, in the order in which they were written.

    {"event": "resume", "step": s} drops earlier records of steps beyond s from `kept`. A line that
    a kill cut off, that has changed since, or that no writer wrote, is counted and skipped.
    A directory without metrics gives empty records.
    """
    found, sealed, torn = [], [], 0
    for text in _texts(epath.Path(workdir)):
        for line in text.split("\n"):
            if line.strip():
                try:
                    record = json.loads(line)
                    has_checksum = "crc32" in record
                    found.append(_checked(_restore_nonfinite(_unchanged(record))))
                    sealed.append(has_checksum)
                except (
                    ValueError,
                    TypeError,
                    AttributeError,
                    LookupError,
                    RecursionError,
                    OverflowError,
                ):
                    torn += 1
    records = _by_one_version(found, sealed)
    torn += len(found) - len(records)
    kept: list[dict] = []
    for record in records:
        if record.get("event") == "resume":
            kept = [earlier for earlier in kept if earlier.get("step", 0) <= record["step"]]
        kept.append(record)
    return Records(kept=tuple(kept), all=tuple(records), torn=torn)


def series(
    records: Records, name: str
) -> tuple[Int[np.ndarray, "points"], Float[np.ndarray, "points"]]:
    """The steps and values of one metric, sorted by step; a step that was recorded twice has its last value."""
    points = {
        record["step"]: record[name]
        for record in records.kept
        if "event" not in record and record.get(name) is not None
    }
    steps = sorted(points)
    return np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64)


def events(records: Records, name: str) -> list[dict]:
    """The events of one name that no resume made invalid, oldest first."""
    return [record for record in records.kept if record.get("event") == name]


def along(
    records: Records, steps: Num[np.ndarray, "points"], axis: str
) -> Float[np.ndarray, "points"] | None:
    """Where `steps` lie on another axis: a cumulative metric such as "train/tokens" or "train/flops", or "seconds".

    Seconds are those of the sessions without the time between them and without steps that were done again.
    Returns: one value a step, interpolated between records; None where the run has no record of that axis.
    """
    if axis == "seconds":
        known = _seconds(records)
        at, values = (
            np.array(sorted(known), np.float64),
            np.array([known[step] for step in sorted(known)]),
        )
    else:
        at, values = series(records, axis)
        if len(at) and at[0] > 0:
            at, values = np.concatenate([[0], at]), np.concatenate([[0.0], values])
    return np.interp(steps, at, values).astype(np.float64) if len(at) else None


def _seconds(records: Records) -> dict[int, float]:
    """Step -> seconds so far, over the kept records; a session's first record stands still against the one before it."""
    elapsed, before, known = 0.0, None, {}
    for record in records.kept:
        now = record.get("time")
        if now is None:
            continue
        if before is not None and record.get("event") not in ("start", "resume"):
            elapsed += max(0.0, now - before)
        before = now
        if "event" not in record:
            known[record["step"]] = elapsed
    return known


class _Lines:
    """A local file, opened to append and not buffered: one line is one write call."""

    def __init__(self, path: epath.Path):
        self.path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (open for the life of the writer)
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if (
                self._file.read(1) != b"\n"
            ):  # a kill tore the last line: end it, or it would swallow the next one
                self._file.write(b"\n")

    def put(self, line: str) -> None:
        self._file.write(line.encode())

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _Segments:
    """A folder of an object store, where an object can be replaced but not appended to.

    The newest segment is rewritten whole in a thread, at most every ten seconds (a store takes about one write a second of the same
    object) and at `flush`; from 256 KiB on the next number begins. A restart begins a new segment too, so nothing is read back.
    """

    LIMIT = 256 * 1024
    PAUSE = 10.0

    def __init__(self, path: epath.Path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._number = 1 + max((int(found.stem) for found in path.glob("*.jsonl")), default=-1)
        self._segment: list[str] = []
        self._size = 0
        self._written, self._last = True, time.monotonic()
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending: concurrent.futures.Future | None = None

    def put(self, line: str) -> None:
        self._segment.append(line)
        self._size += len(line)
        self._written = False
        if self._size >= self.LIMIT:
            self.flush()
            self._segment, self._size, self._number = [], 0, self._number + 1
        elif time.monotonic() - self._last > self.PAUSE and (
            self._pending is None or self._pending.done()
        ):
            self._upload()

    def flush(self) -> None:
        if not self._written:
            self._upload()
        self._settle()

    def close(self) -> None:
        self.flush()
        self._thread.shutdown()

    def _upload(self) -> None:
        self._settle()
        target = self.path / f"{self._number:05d}.jsonl"
        self._pending = self._thread.submit(target.write_text, "".join(self._segment))
        self._written, self._last = True, time.monotonic()

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _texts(folder: epath.Path) -> list[str]:
    whole, segments = folder / "metrics.jsonl", folder / "metrics"
    found = [whole] if whole.exists() else []
    if segments.is_dir():
        found += sorted(segments.glob("*.jsonl"), key=lambda path: int(path.stem))
    return [path.read_bytes().decode("utf-8", "replace") for path in found]


def _is_remote(folder: epath.Path) -> bool:
    return "://" in os.fspath(folder)


def _plain(value: Any) -> Any:
    """A value as JSON knows it: arrays and numpy scalars become numbers and lists, other objects their text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return _plain(array.reshape(-1).tolist()[0] if array.size == 1 else array.tolist())
    return str(value)


def _split_nonfinite(value: Any) -> tuple[Any, dict[str, str]]:
    """The value with null in place of NaN and infinities, and {path: "nan" | "inf" | "-inf"}; a path joins keys by " > "."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, {"": str(value)}
    if not isinstance(value, dict | list):
        return value, {}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    split = [(key, *_split_nonfinite(item)) for key, item in pairs]
    paths = {
        f"{key} > {path}" if path else str(key): text
        for key, _, inner in split
        for path, text in inner.items()
    }
    finite = (
        {key: item for key, item, _ in split}
        if isinstance(value, dict)
        else [item for _, item, _ in split]
    )
    return finite, paths


def _checksum(record: dict) -> int:
    """Of a record without its checksum, in whatever order and layout its fields are."""
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _unchanged(record: dict) -> dict:
    """The record without its checksum; earlier versions wrote none. Raises: ValueError where the two do not agree."""
    checksum = record.pop("crc32", None)
    if checksum is not None and checksum != _checksum(record):
        raise ValueError("it is not what was written")
    return record


def _by_one_version(records: list[dict], sealed: list[bool]) -> list[dict]:
    """The records without those that should have a checksum and have none.

    Earlier versions wrote none. So a run may begin without, up to a start that writes them.
    """
    if True not in sealed:
        return records
    first = sealed.index(True)
    older = first if records[first].get("event") in ("start", "resume") else 0
    return [record for i, record in enumerate(records) if sealed[i] or i < older]


def _checked(record: dict) -> dict:
    """The record. Raises: TypeError where it is not one that a writer wrote."""
    numbers = [record["step"], record.get("time", 0.0)]
    if "event" not in record:
        numbers += [value for value in record.values() if value is not None]
    if any(not isinstance(value, int | float) for value in numbers):
        raise TypeError("a step, a time or a metric that is no number")
    if record["step"] != int(record["step"]) or not 0 <= record["step"] < 2**63:
        raise ValueError("a step that is no count")
    return record


def _restore_nonfinite(record: dict) -> dict:
    for path, text in record.pop("nonfinite", {}).items():
        *parents, last = path.split(" > ")
        place: Any = record
        for key in parents:
            place = place[int(key) if isinstance(place, list) else key]
        place[int(last) if isinstance(place, list) else last] = float(text)
    return record


def import_wandb(project: str) -> Any:
    """The package wandb. Raises: UserError where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"log.wandb names the project '{project}', but the package wandb is not installed: pip install wandb, or leave log.wandb empty."
        ) from error
    return wandb


def _unwritable(path: epath.Path, error: OSError) -> UserError:
    reason = error.strerror or error
    return UserError(
        f"Cannot write to {os.fspath(path)}: {reason}. Choose a --workdir that is writable and has space left."
    )
