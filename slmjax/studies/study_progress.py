"""The lines that a study prints: what it costs, and each run with the time that is left."""

import threading
import time
from collections.abc import Mapping
from typing import Any

from slmjax.readable import count, duration


class StudyProgress:
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
