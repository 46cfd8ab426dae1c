"""The records of a run as they are read: metrics and events by step."""

import dataclasses
import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int, Num

from slmjax.record.metric_files import read_texts
from slmjax.record.metric_lines import UNREADABLE, ReadLine, from_line

# Events that begin a session: a new run's begins with "start", a later one with "resume" and then
# "start".
SESSION_STARTS = ("start", "resume")


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
    # A line without the checksum that it should have was changed: it counts as torn.
    records = _without_lost_checksums(lines)
    torn += len(lines) - len(records)
    kept: list[dict] = []
    for record in records:
        if record.get("event") == "resume":
            # The steps beyond this one are done again.
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

    Earlier versions wrote no checksums. So the lines of a run may have none, up to the start or
    resume of the first session whose version writes them.
    """
    # How many lines an earlier version wrote.
    old_lines = len(lines)
    for index, line in enumerate(lines):
        if line.has_checksum:
            begins_session = line.record.get("event") in SESSION_STARTS
            # In the middle of a session: the lines before it have lost theirs.
            old_lines = index if begins_session else 0
            break
    records = []
    for index, line in enumerate(lines):
        if line.has_checksum or index < old_lines:
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
    seconds = {}
    for record in records.kept:
        now = record.get("time")
        if now is None:
            continue
        begins_session = record.get("event") in SESSION_STARTS
        if previous_time is not None and not begins_session:
            # A clock may be set back: no time is taken away.
            elapsed += max(0.0, now - previous_time)
        previous_time = now
        if "event" not in record:
            seconds[record["step"]] = elapsed
    return seconds
