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

    # The step that the session went on from.
    from_step: int
    # At its start and at each of its records: the step, and the session's seconds in steps so far.
    steps: list[int]
    kept: list[float]
    # Its newest record, as `Goodput.record` returns it.
    latest: dict[str, Any]
    # Whether the run was finished in this session.
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
                # The session starts here, with no seconds in steps.
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
    # Seconds by cause; `update` of a Counter adds.
    lost: collections.Counter[str] = collections.Counter()
    kept = wall = 0.0
    for index, session in enumerate(counted):
        later = counted[index + 1 :]
        # A session that was killed, and that a later one continues.
        was_killed = bool(later) and not session.finished
        begins, ends = _span(session, is_first=index == 0, was_killed=was_killed)
        wall += ends - begins
        lost.update(session.latest["seconds"])
        if index:
            # The first session's start is outside the wall time.
            lost.update(session.latest["before"])
        if was_killed:
            lost.update(session.latest["after"])
            # Clocks of two hosts may differ a little.
            down = max(0.0, later[0].latest["began"] - ends)
            lost["down"] += down
            wall += down
        kept_here, redone = _kept_and_redone(session, later)
        kept += kept_here
        lost.update(redone)
    lost["other"] = wall - kept - sum(lost.values())
    lost_by_cause = {}
    for cause in (*SPENT, *DERIVED):
        if lost[cause] > ROUNDING:
            lost_by_cause[cause] = lost[cause]
    return {
        "goodput": kept / wall if wall > 0 else math.nan,
        "kept": kept,
        "wall": wall,
        "lost": lost_by_cause,
        "before": dict(counted[0].latest["before"]),
        "sessions": len(sessions),
    }


def _from_first_to_last_step(sessions: list[Session]) -> list[Session]:
    """Return the sessions from the first one with a step to the last one with a step."""
    # Indices of the sessions with a step.
    stepped = []
    for index, session in enumerate(sessions):
        if session.latest["first"] is not None:
            stepped.append(index)
    if not stepped:
        return []
    return sessions[stepped[0] : stepped[-1] + 1]


def _span(session: Session, *, is_first: bool, was_killed: bool) -> tuple[float, float]:
    """Return the Unix times between which a session's wall time lies.

    The first session begins with its first step. A session that was not killed ends with its last
    step.
    """
    record = session.latest
    begins, ends = record["began"], record["now"]
    if is_first:
        begins = record["first"]
    if not was_killed and record["last"] is not None:
        ends = record["last"]
    return begins, ends


def _kept_and_redone(session: Session, later: list[Session]) -> tuple[float, dict[str, float]]:
    """Return the seconds in steps that stayed, and {cause: seconds in steps that did not stay}.

    A later session that goes on from an earlier step does the steps from there on again. Seconds
    at a step without a record are interpolated.
    """
    kept = session.latest["kept"]
    redone = collections.Counter()
    previous = session
    for follower in later:
        kept_until = float(np.interp(follower.from_step, session.steps, session.kept))
        if kept_until < kept:
            # A finished session was not killed: somebody made the run longer.
            cause = "extended" if previous.finished else "repeated"
            redone[cause] += kept - kept_until
            kept = kept_until
        previous = follower
    return kept, dict(redone)
