"""Goodput: the share of a run's wall time that went into steps that were kept, with lost seconds by cause, across restarts."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from slmjax.record.metrics import Records

SPENT = ("start", "compile", "restore", "data_wait", "checkpoint", "evaluation")
"""Causes that a running session sees itself; `evaluation` includes samples."""

DERIVED = ("repeated", "extended", "down", "other")
"""Causes seen only afterwards: steps that a restart did again; steps that a longer schedule replaced, from the trunk on; the time from a
session's last record to the next session; and what no cause was told."""


class Goodput:
    """A stopwatch by cause for one session of a run.

    `with goodput.spent("checkpoint"): ...` gives time to a cause (an inner cause takes its time away from the outer one) and
    `goodput.step()` ends a training step. Before the first step, time outside any cause is `start`. `record()` is what goes
    into metrics.jsonl, as `writer.event("goodput", step, **goodput.record())`, at each log and, above all, right after each checkpoint was
    requested: then the steps that a later restart repeats are known exactly, and are interpolated otherwise.

    Args:
      past: records of the run's earlier sessions (`metrics.read`), so that `share` covers the whole run.
      from_step: the step that this session goes on from; an attribute too, to be set anew where an older checkpoint is restored.
      began: Unix time at which the process started, where the caller knows it better than "now"; the time since counts as `start`.
      clock: seconds of a monotonic clock.
    """

    def __init__(
        self,
        past: Records | None = None,
        *,
        from_step: int = 0,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock = clock
        self._mark = clock()
        now = time.time()
        self._began = now if began is None else min(began, now)
        self._offset = now - self._mark
        self.from_step = from_step
        self._past = _sessions(past.all) if past else []
        self._stack: list[str] = []
        self._totals = dict.fromkeys(SPENT, 0.0)
        self._totals["start"] = now - self._began
        self._free = 0.0
        self._before = self._within = dict(self._totals)
        self._first = self._last = None
        self._kept, self._steps = 0.0, 0

    @contextlib.contextmanager
    def spent(self, cause: str) -> Iterator[None]:
        """Count the time inside the `with` block as `cause`. Raises: ValueError for a cause that is not in `SPENT`."""
        if cause not in SPENT:
            raise ValueError(f"goodput knows no cause '{cause}'; the causes are {', '.join(SPENT)}")
        self._turn()
        self._stack.append(cause)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def step(self, seconds: float | None = None) -> None:
        """End one training step: `seconds` of it, or by default what no cause took since the step before ended."""
        self._turn()
        seconds = self._free if seconds is None else seconds
        self._free = 0.0
        if self._first is None:
            self._first = self._mark - seconds
            self._before = dict(self._totals)
        self._last = self._mark
        self._kept += seconds
        self._steps += 1
        self._within = dict(self._totals)

    def record(self) -> dict[str, Any]:
        """This session so far, for the event "goodput".

        Returns: session (its name), began, first, last, now (Unix seconds: of the process, of the first step's start, of the last step's
        end, of this record; first and last are None before the first step), from_step, steps, kept (seconds in steps), and seconds by
        cause in three parts: `before` the first step, `seconds` from the first step's start to the last step's end, `after` it.
        """
        self._turn()
        stepped = self._first is not None
        before = self._before if stepped else dict(self._totals)
        within = self._within if stepped else before
        return {
            "session": f"{self._began:.3f}",
            "began": self._began,
            "first": self._first + self._offset if stepped else None,
            "last": self._last + self._offset if stepped else None,
            "now": self._mark + self._offset,
            "from_step": self.from_step,
            "steps": self._steps,
            "kept": self._kept,
            "before": _known(before),
            "seconds": _known({cause: within[cause] - before[cause] for cause in SPENT}),
            "after": _known({cause: self._totals[cause] - within[cause] for cause in SPENT}),
        }

    def share(self) -> float:
        """Goodput of the run so far, earlier sessions included; NaN before the first step."""
        session = _Session(
            self.from_step,
            [self.from_step, self.from_step + self._steps],
            [0.0, self._kept],
            self.record(),
        )
        return _combine([*self._past, session])["goodput"]

    def _turn(self) -> None:
        """Give the time since the last turn to whom it belongs: the innermost cause, `start` before the first step, or the step."""
        now = self._clock()
        passed, self._mark = now - self._mark, now
        if self._stack:
            self._totals[self._stack[-1]] += passed
            if self._first is None:
                self._totals["start"] += self._free
                self._free = 0.0
        else:
            self._free += passed


def summarise(records: Records) -> dict[str, Any] | None:
    """Goodput of a whole run: time in kept training steps over wall time from the first step's start to the last step's end.

    Of the first session, what came before its first step is reported as `before` and is outside the wall time; of later sessions
    it is inside. After a killed session the wall clock runs on ("down" until the next session begins; steps after its last record
    count there too, as nobody saw them). After a finished one it stands still until somebody extends the run; steps that the
    extension replaced are "extended".

    Returns: goodput (share), kept and wall (seconds), lost {cause: seconds}, before {cause: seconds}, sessions; None without records.
    """
    sessions = _sessions(records.all)
    result = _combine(sessions)
    return result if result["wall"] > 0 else None


@dataclasses.dataclass
class _Session:
    from_step: int
    steps: list[int]
    kept: list[float]
    latest: dict[str, Any]
    finished: bool = False


def _sessions(records: Iterable[dict]) -> list[_Session]:
    sessions: dict[str, _Session] = {}
    current = None
    for record in records:
        if record.get("event") == "goodput":
            name = record["session"]
            if name not in sessions:
                sessions[name] = _Session(record["from_step"], [record["from_step"]], [0.0], record)
            current = sessions[name]
            current.steps.append(record["step"])
            current.kept.append(record["kept"])
            current.latest = record
        elif record.get("event") == "finish" and current is not None:
            current.finished = True
    return list(sessions.values())


def _combine(sessions: list[_Session]) -> dict[str, Any]:
    """Lay the sessions end to end; those before the first step of all and after the last one do not count."""
    stepped = [
        index for index, session in enumerate(sessions) if session.latest["first"] is not None
    ]
    if not stepped:
        return {
            "goodput": float("nan"),
            "kept": 0.0,
            "wall": 0.0,
            "lost": {},
            "before": {},
            "sessions": len(sessions),
        }
    counted = sessions[stepped[0] : stepped[-1] + 1]
    lost: collections.Counter[str] = collections.Counter()
    kept = wall = 0.0
    for index, session in enumerate(counted):
        record, later = session.latest, counted[index + 1 :]
        closed = not later or session.finished
        begins = record["began"] if index else record["first"]
        ends = record["last"] if closed and record["last"] is not None else record["now"]
        wall += ends - begins
        parts = (
            [record["seconds"]]
            + ([record["before"]] if index else [])
            + ([] if closed else [record["after"]])
        )
        for part in parts:
            lost.update(part)
        if not closed:
            down = max(0.0, later[0].latest["began"] - ends)
            lost["down"] += down
            wall += down
        mine, redone = _kept(session, later)
        kept += mine
        lost.update(redone)
    lost["other"] = wall - kept - sum(lost.values())
    return {
        "goodput": kept / wall if wall > 0 else float("nan"),
        "kept": kept,
        "wall": wall,
        "lost": {cause: lost[cause] for cause in (*SPENT, *DERIVED) if lost[cause] > 1e-6},
        "before": dict(counted[0].latest["before"]),
        "sessions": len(sessions),
    }


def _kept(session: _Session, later: list[_Session]) -> tuple[float, dict[str, float]]:
    """The seconds of the session's steps that stayed, and those that later sessions did again or replaced."""
    limit, redone = session.latest["kept"], collections.Counter()
    earlier = session
    for follower in later:
        upto = float(np.interp(follower.from_step, session.steps, session.kept))
        if upto < limit:
            redone["extended" if earlier.finished else "repeated"] += limit - upto
            limit = upto
        earlier = follower
    return limit, dict(redone)


def _known(seconds: dict[str, float]) -> dict[str, float]:
    return {cause: value for cause, value in seconds.items() if value > 0}
