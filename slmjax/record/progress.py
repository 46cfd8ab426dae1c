"""What a person at the terminal sees while a model trains: start lines, one live line, and plain lines where there is no terminal."""

import collections
import math
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.live import Live
from rich.text import Text

from slmjax.readable import count, duration, percent

REFRESH = 0.25
"""Seconds between two drawings of the live line: drawing costs about a millisecond, a step of a small model not much more."""


class Progress:
    """One line that follows the run: step, loss, tokens a second, MFU, goodput, time left.

    On a terminal it is drawn in place, at most four times a second. Elsewhere (a log file, a notebook) it is one plain line every `every`
    steps and at the end. With `active=False` (all processes but the first) nothing is ever printed.

    Args:
      total: steps of the whole run.
      start: steps done before this session.
      every: steps between two plain lines.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        every: int = 10,
        active: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._every, self._active, self._clock = total, max(1, every), active, clock
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._values: dict[str, float] = {}
        self._history: collections.deque[tuple[float, int]] = collections.deque(maxlen=200)
        self._drawn = -math.inf
        self._live = None
        if active and self._console.is_terminal:
            self._live = Live(
                self._text(start), console=self._console, auto_refresh=False, transient=True
            )
            self._live.start()

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Tell that `step` steps are done; `metrics` (by their names in metrics.jsonl) stay until they are told anew."""
        if not self._active:
            return
        now = self._clock()
        self._values.update(metrics or {})
        self._history.append((now, step))
        if self._live is not None:
            if now - self._drawn >= REFRESH or step >= self._total:
                self._drawn = now
                self._live.update(self._text(step), refresh=True)
        elif step % self._every == 0 or step >= self._total:
            self._console.print(self._text(step))

    def note(self, text: str) -> None:
        """Print a line that stays, above the live one: an evaluation, a checkpoint, a skipped step."""
        if self._active:
            self._console.print(Text(text))

    def close(self) -> None:
        """Take the live line away; the terminal is as before."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text(self, step: int) -> Text:
        text = Text(
            f"step {step:>{len(str(self._total))}}/{self._total}",
            style="bold" if self._live else "",
        )
        parts = [
            ("train/loss", "loss", lambda value: f"{value:.4f}"),
            ("perf/tokens_per_second", "", lambda value: f"{count(value)} tokens/s"),
            ("perf/mfu", "MFU", percent),
            ("perf/goodput", "goodput", percent),
        ]
        for name, label, form in parts:
            value = self._values.get(name)
            if value is not None and not (name != "train/loss" and math.isnan(value)):
                text.append("  ").append(
                    f"{label} " if label else "", style="dim" if self._live else ""
                ).append(form(float(value)))
        left = self._left(step)
        if left is not None:
            text.append(f"  {duration(left)} left")
        return text

    def _left(self, step: int) -> float | None:
        """Seconds to the end at the pace of the last 200 updates, everything included; None before a pace is known."""
        if len(self._history) < 2 or step >= self._total:
            return None
        (then, first), (now, last) = self._history[0], self._history[-1]
        return (self._total - last) * (now - then) / (last - first) if last > first else None


def answer_table(answers: Mapping[str, Mapping[str, float]], rivals: Mapping[str, float]) -> str:
    """A table: the share of exact answers to held-out questions of each kind, next to chance and an n-gram model.

    Args:
      answers: kind -> "accuracy", "chance" and "count", as `evaluation.textbook_answers` returns them.
      rivals: kind -> the n-gram model's share; empty where none was asked.
    """
    width = max(map(len, answers), default=0)
    lines = ["exact answers to held-out questions:"]
    for kind, found in answers.items():
        line = f"  {kind.replace('_', ' '):<{width}}  {percent(found['accuracy'], 0):>5} of {found['count']:,}"
        line += f"; by chance {percent(found['chance'], 0)}"
        lines.append(
            line + (f", n-gram model {percent(rivals[kind], 0)}" if kind in rivals else "")
        )
    return "\n".join(lines)


def banner(
    title: str, rows: Mapping[str, object], *, active: bool = True, console: Console | None = None
) -> None:
    """Print the start lines: a title and one aligned "name  value" line for each row; rows that are None or "" are left out."""
    if not active:
        return
    console = console or Console(highlight=False, soft_wrap=True)
    shown = {name: str(value) for name, value in rows.items() if value is not None and value != ""}
    width = max(map(len, shown), default=0)
    console.print(Text(title, style="bold"))
    for name, value in shown.items():
        console.print(
            Text(f"  {name:<{width}}  ", style="dim").append(Text(value, style="not dim"))
        )
