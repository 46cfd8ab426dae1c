"""Goodput: the share of a run's wall time in steps that were kept, and lost seconds by cause."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from slmjax.record.metrics import Records
from slmjax.record.sessions import SPENT, Session, combine_sessions, read_sessions


class Goodput:
    """A stopwatch by cause for one session of a run.

    `with goodput.spent("checkpoint"): ...` gives time to a cause (an inner cause takes its time
    away from the outer one) and `goodput.step()` ends a training step. Before the first step,
    time outside any cause is `start`.

    `record()` is what goes into metrics.jsonl, as
    `writer.event("goodput", step, **goodput.record())`, at each log and, above all, right after
    each checkpoint was requested: then the steps that a later restart repeats are known exactly.
    Otherwise they are interpolated.

    Args:
      past: records of the run's earlier sessions (`metrics.read`), so that `share` covers the
        whole run.
      from_step: the step that this session goes on from. It is an attribute too, to be set anew
        where an older checkpoint is restored.
      began: Unix time at which the process started, where the caller knows it better than "now";
        the time since counts as `start`.
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
        self.from_step = from_step
        self._past: list[Session] = []
        if past:
            self._past = read_sessions(past.all)
        self._clock = clock
        # All time up to here, on the clock, has been assigned.
        self._assigned_until = clock()
        now = time.time()
        # Unix time minus the clock's time.
        self._unix_offset = now - self._assigned_until
        self._began = now
        if began is not None:
            # A clock that was set back must not give negative seconds.
            self._began = min(began, now)
        # Causes whose `with` block is running, the innermost last.
        self._open_causes: list[str] = []
        # Seconds of each cause.
        self._totals = dict.fromkeys(SPENT, 0.0)
        self._totals["start"] = now - self._began
        # Seconds outside any cause since the last step.
        self._outside_causes = 0.0
        # Totals at the start of the first step, and at the end of the last one.
        self._totals_at_first_start = self._totals_at_last_end = dict(self._totals)
        # The clock's time at those two moments; None before the first step has ended.
        self._first_start = self._last_end = None
        # Seconds in steps, and their number.
        self._kept = 0.0
        self._steps = 0

    @contextlib.contextmanager
    def spent(self, cause: str) -> Iterator[None]:
        """Count the time inside the `with` block as `cause`.

        Raises: ValueError for a cause that is not in `SPENT`.
        """
        if cause not in SPENT:
            raise ValueError(f"goodput knows no cause '{cause}'; the causes are {', '.join(SPENT)}")
        self._assign_time()
        self._open_causes.append(cause)
        try:
            yield
        finally:
            self._assign_time()
            self._open_causes.pop()

    def step(self, seconds: float | None = None) -> None:
        """End one training step.

        Args:
          seconds: length of the step; by default the time outside any cause since the last step.
        """
        self._assign_time()
        if seconds is None:
            seconds = self._outside_causes
        self._outside_causes = 0.0
        if self._first_start is None:
            self._first_start = self._assigned_until - seconds
            self._totals_at_first_start = dict(self._totals)
        self._last_end = self._assigned_until
        self._kept += seconds
        self._steps += 1
        self._totals_at_last_end = dict(self._totals)

    def record(self) -> dict[str, Any]:
        """Return this session so far, for the event "goodput".

        Returns: session (its name); began, first, last, now (Unix seconds: of the process, of the
          first step's start, of the last step's end, of this record; first and last are None
          before the first step); from_step; steps; kept (seconds in steps); and seconds by cause
          in three parts: `before` the first step, `seconds` from the first step's start to the
          last step's end, `after` it.
        """
        self._assign_time()
        first = last = None
        # Without a step, everything so far is before the first one.
        before = within = dict(self._totals)
        if self._first_start is not None:
            first = self._first_start + self._unix_offset
            last = self._last_end + self._unix_offset
            before, within = self._totals_at_first_start, self._totals_at_last_end
        return {
            "session": f"{self._began:.3f}",
            "began": self._began,
            "first": first,
            "last": last,
            "now": self._assigned_until + self._unix_offset,
            "from_step": self.from_step,
            "steps": self._steps,
            "kept": self._kept,
            "before": _positive(before),
            "seconds": _positive(_difference(within, before)),
            "after": _positive(_difference(self._totals, within)),
        }

    def share(self) -> float:
        """Return goodput of the run so far, earlier sessions included; NaN before a first step."""
        # Two points are enough: no later session has gone on from a step between them.
        steps = [self.from_step, self.from_step + self._steps]
        session = Session(self.from_step, steps, [0.0, self._kept], self.record())
        return combine_sessions([*self._past, session])["goodput"]

    def _assign_time(self) -> None:
        """Assign the time since the last call to the innermost open cause.

        Without an open cause it belongs to the step, or to `start` before the first step.
        """
        now = self._clock()
        passed = now - self._assigned_until
        self._assigned_until = now
        if not self._open_causes:
            self._outside_causes += passed
            return
        self._totals[self._open_causes[-1]] += passed
        if self._first_start is None:
            # A cause has begun before any step ended, so the time outside causes was no step.
            self._totals["start"] += self._outside_causes
            self._outside_causes = 0.0


def summarise(records: Records) -> dict[str, Any] | None:
    """Return the goodput of a whole run: seconds in kept training steps over wall time.

    Wall time goes from the first step's start to the last step's end. What came before the first
    step is reported as `before` in the first session and is outside the wall time; in later
    sessions it is inside. After a killed session the wall clock runs on ("down" until the next
    session begins; steps after its last record count there too, as nobody recorded them). After a
    finished session it stops until somebody extends the run; steps that the extension replaced are
    "extended".

    Returns: goodput (share), kept and wall (seconds), lost {cause: seconds}, before
      {cause: seconds}, sessions (their number); None where no session has recorded a step.
    """
    result = combine_sessions(read_sessions(records.all))
    return result if result["wall"] > 0 else None


def _difference(later: dict[str, float], earlier: dict[str, float]) -> dict[str, float]:
    return {cause: later[cause] - earlier[cause] for cause in SPENT}


def _positive(seconds: dict[str, float]) -> dict[str, float]:
    return {cause: value for cause, value in seconds.items() if value > 0}
