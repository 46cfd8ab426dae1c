"""How the sessions of a run add up: kept and lost seconds across restarts and extensions."""

import collections
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

# Causes that a running session sees itself; `evaluation` includes samples.
SPENT = ("start", "compile", "restore", "data_wait", "checkpoint", "evaluation")

# Causes seen only afterwards: steps that a restart did again; steps that a longer schedule
# replaced, from the start of the decay on; the time from a session's last record to the next
# session; and time that no cause was given.
DERIVED = ("repeated", "extended", "down", "other")

# Seconds; less than this is what floating point leaves of zero.
ROUNDING = 1e-6


@dataclasses.dataclass
class Session:
    """One session of a run: from one start of the process to its end."""

    # The step that it went on from.
    from_step: int
    # For each of its records, the step and the seconds in steps so far.
    steps: list[int]
    kept: list[float]
    # Its newest record, as `Goodput.record` returns it.
    latest: dict[str, Any]
    # Whether the run was finished in it.
    finished: bool = False


def read_sessions(records: Iterable[dict]) -> list[Session]:
    """Return the sessions of a run's records, oldest first."""
    sessions: dict[str, Session] = {}
    current = None
    for record in records:
        event = record.get("event")
        if event == "goodput":
            name = record["session"]
            if name not in sessions:
                # Before its first step it has kept nothing.
                first_step = record["from_step"]
                sessions[name] = Session(first_step, [first_step], [0.0], record)
            current = sessions[name]
            current.steps.append(record["step"])
            current.kept.append(record["kept"])
            current.latest = record
        elif event == "finish" and current is not None:
            current.finished = True
    return list(sessions.values())


def combine_sessions(sessions: list[Session]) -> dict[str, Any]:
    """Lay the sessions end to end, from the first one with a step to the last one with a step.

    Returns: see `goodput.summarise`; goodput is NaN where no session has a step.
    """
    counted = _from_first_to_last_step(sessions)
    if not counted:
        return {
            "goodput": math.nan,
            "kept": 0.0,
            "wall": 0.0,
            "lost": {},
            "before": {},
            "sessions": len(sessions),
        }
    lost: collections.Counter[str] = collections.Counter()
    kept = wall = 0.0
    for index, session in enumerate(counted):
        later = counted[index + 1 :]
        # Time after the last step counts only where a killed session goes on in a later one.
        closed = not later or session.finished
        begins, ends = _span(session, is_first=index == 0, closed=closed)
        wall += ends - begins
        lost.update(session.latest["seconds"])
        if index:
            # The first session's start is outside the wall time.
            lost.update(session.latest["before"])
        if not closed:
            lost.update(session.latest["after"])
            # Clocks of two hosts may differ a little.
            down = max(0.0, later[0].latest["began"] - ends)
            lost["down"] += down
            wall += down
        kept_here, redone = _kept_and_redone(session, later)
        kept += kept_here
        lost.update(redone)
    lost["other"] = wall - kept - sum(lost.values())
    shown = {}
    for cause in (*SPENT, *DERIVED):
        if lost[cause] > ROUNDING:
            shown[cause] = lost[cause]
    return {
        "goodput": kept / wall if wall > 0 else math.nan,
        "kept": kept,
        "wall": wall,
        "lost": shown,
        "before": dict(counted[0].latest["before"]),
        "sessions": len(sessions),
    }


def _from_first_to_last_step(sessions: list[Session]) -> list[Session]:
    """Return the sessions without those before the first step and after the last one."""
    stepped = []
    for index, session in enumerate(sessions):
        if session.latest["first"] is not None:
            stepped.append(index)
    if not stepped:
        return []
    return sessions[stepped[0] : stepped[-1] + 1]


def _span(session: Session, *, is_first: bool, closed: bool) -> tuple[float, float]:
    """Return the Unix times between which a session's wall time lies."""
    record = session.latest
    begins, ends = record["began"], record["now"]
    if is_first:
        begins = record["first"]
    if closed and record["last"] is not None:
        ends = record["last"]
    return begins, ends


def _kept_and_redone(session: Session, later: list[Session]) -> tuple[float, dict[str, float]]:
    """Return the seconds of the session's steps that stayed, and of those that did not, by cause.

    A later session that goes on from an earlier step does the steps from there on again. Seconds
    at a step without a record are interpolated.
    """
    kept = session.latest["kept"]
    redone = collections.Counter()
    previous = session
    for follower in later:
        kept_until = float(np.interp(follower.from_step, session.steps, session.kept))
        if kept_until < kept:
            # A finished run is not killed, so somebody made it longer.
            cause = "extended" if previous.finished else "repeated"
            redone[cause] += kept - kept_until
            kept = kept_until
        previous = follower
    return kept, dict(redone)
