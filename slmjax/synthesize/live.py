"""Shows progress while documents are made: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from slmjax.readable import count, duration, percent
from slmjax.synthesize.produce import Tally

DRAWN = 0.25  # seconds between two drawings of the live line
PRINTED = 30.0  # seconds between two plain lines


class StatusLine:
    """A line with documents, tokens a second, accepted share, cost, time left and failures.

    Call it with the tally after every answer or fault; it shows the line as often as a person can
    read. A context manager: on a terminal the live line is there while the block runs.

    Args:
      console: where the line is shown; None for the standard output.
      clock: seconds, on the clock of `Tally.hold`.
    """

    def __init__(
        self, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._clock = clock
        self._start = clock()
        self._last_shown = self._start
        self._shown_hold = self._start  # the latest `Tally.hold` that was shown
        self._live: Live | None = None
        if self._console.is_terminal:
            # transient: the line disappears at the end, before the summary.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __call__(self, tally: Tally) -> None:
        now = self._clock()
        interval = DRAWN if self._live else PRINTED
        # A long wait is shown at once, but only once: many requests report the same wait.
        long_wait = tally.hold - max(now, self._shown_hold) > PRINTED
        if now - self._last_shown < interval and not long_wait:
            return
        self._last_shown = now
        self._shown_hold = max(self._shown_hold, tally.hold)
        if self._live:
            self._live.update(Text(self.text(tally), style="bold"), refresh=True)
        else:
            self._console.print(self.text(tally))

    def text(self, tally: Tally) -> str:
        """Return the line.

        Such as "1,204/4,000 documents  3.1k tokens/s  97.2 % accepted  $0.42  5 min 10 s left".
        """
        seconds = max(self._clock() - self._start, 1e-9)
        parts = [
            f"{tally.settled:,}/{tally.total:,} documents",
            f"{count(tally.tokens / seconds)} tokens/s",
        ]
        judged = tally.accepted + tally.rejected
        if judged:
            parts.append(f"{percent(tally.accepted / judged)} accepted")
        if tally.cost:
            parts.append(f"${tally.cost:.2f}")
        # Requests that an earlier start answered took no time in this one.
        settled_now = tally.settled - tally.known
        remaining = tally.total - tally.settled
        if settled_now and remaining > 0:
            parts.append(f"{duration(remaining * seconds / settled_now)} left")
        failed = sum(tally.faults.values())
        if failed:
            parts.append(f"{failed:,} requests failed{self._last_failure(tally)}")
        return "  ".join(parts)

    def __enter__(self) -> "StatusLine":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def _last_failure(self, tally: Tally) -> str:
        """Return the reason of the last failure and how long the teacher asks to wait, or ""."""
        words = f" (the last: {tally.last_fault})" if tally.last_fault else ""
        wait = tally.hold - self._clock()
        if wait > 1:
            words += f", all wait {duration(wait)}"
        return words
