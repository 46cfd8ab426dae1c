"""What a person sees while documents are made: one live line on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from slmjax.readable import count, duration, percent
from slmjax.synthesize.produce import Tally

DRAWN, PRINTED = 0.25, 30.0
"""Seconds between two drawings of the live line, and between two plain lines where there is no terminal."""


class StatusLine:
    """Documents, tokens a second, accepted share, cost and time left; call it with the tally after every answer."""

    def __init__(
        self, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._console, self._clock = console or Console(highlight=False, soft_wrap=True), clock
        self._start = self._told = self._hold = clock()
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True)
            if self._console.is_terminal
            else None
        )

    def __call__(self, tally: Tally) -> None:
        now = self._clock()
        long_wait = tally.hold - max(now, self._hold) > PRINTED
        if now - self._told < (DRAWN if self._live else PRINTED) and not long_wait:
            return
        self._told, self._hold = now, max(self._hold, tally.hold)
        if self._live:
            self._live.update(Text(self.text(tally), style="bold"), refresh=True)
        else:
            self._console.print(self.text(tally))

    def text(self, tally: Tally) -> str:
        """The line, for instance "1,204/4,000 documents  3.1k tokens/s  97.2 % accepted  $0.42  5 min 10 s left"."""
        seconds, judged = max(self._clock() - self._start, 1e-9), tally.accepted + tally.rejected
        parts = [
            f"{tally.settled:,}/{tally.total:,} documents",
            f"{count(tally.tokens / seconds)} tokens/s",
        ]
        parts += [f"{percent(tally.accepted / judged)} accepted"] if judged else []
        parts += [f"${tally.cost:.2f}"] if tally.cost else []
        if (done := tally.settled - tally.known) and tally.settled < tally.total:
            parts.append(f"{duration((tally.total - tally.settled) * seconds / done)} left")
        waiting = sum(tally.faults.values())
        last = f" (the last: {tally.last})" if tally.last else ""
        if (pause := tally.hold - self._clock()) > 1:
            last += f", all wait {duration(pause)}"
        return "  ".join([*parts, f"{waiting:,} requests failed{last}"] if waiting else parts)

    def __enter__(self) -> "Line":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
