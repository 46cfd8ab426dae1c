"""Lines at the terminal while a model trains: start lines, one live line, and plain lines."""

import collections
import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.text import Text

from slmjax.readable import count, duration, percent

# Seconds between two drawings of the live line: drawing costs about a millisecond, a step of a
# small model not much more.
REFRESH = 0.25
# Number of latest updates over which the pace is measured.
PACE = 200


class _Shown(NamedTuple):
    """A metric of the live line."""

    metric: str
    # Printed before the value; "" where the value's text says what it is.
    label: str
    # Returns the value as text.
    to_text: Callable[[float], str]


SHOWN = (
    _Shown("train/loss", "loss", lambda value: f"{value:.4f}"),
    _Shown("perf/tokens_per_second", "", lambda value: f"{count(value)} tokens/s"),
    _Shown("perf/mfu", "MFU", percent),
    _Shown("perf/goodput", "goodput", percent),
)


class Progress:
    """One line that follows the run: step, loss, tokens a second, MFU, goodput, time left.

    On a terminal it is drawn in place, at most four times a second. Elsewhere (a log file, a
    notebook) it is one plain line every `every` steps and at the end. With `active=False` (all
    processes but the first) nothing is ever printed.

    Args:
      total: steps of the whole run.
      start: steps done before this session.
      every: steps between two plain lines.
      clock: seconds of a monotonic clock.
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
        self._total = total
        self._every = max(1, every)
        self._active = active
        self._clock = clock
        self._console = console or _own_console()
        # The newest value of each metric.
        self._values: dict[str, float] = {}
        # (time, step) of the latest updates.
        self._history: collections.deque[tuple[float, int]] = collections.deque(maxlen=PACE)
        # When the live line was last drawn.
        self._drawn = -math.inf
        self._live = None
        if active and self._console.is_terminal:
            first = self._text(start)
            self._live = Live(first, console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Show that `step` steps are done.

        Args:
          metrics: by their names in metrics.jsonl; each stays until a new value comes.
        """
        if not self._active:
            return
        now = self._clock()
        self._values.update(metrics or {})
        self._history.append((now, step))
        at_end = step >= self._total
        if self._live is not None:
            # The last step is always drawn.
            if now - self._drawn >= REFRESH or at_end:
                self._drawn = now
                self._live.update(self._text(step), refresh=True)
        elif step % self._every == 0 or at_end:
            self._console.print(self._text(step))

    def note(self, text: str) -> None:
        """Print a line that stays, above the live one: an evaluation, a checkpoint, a skip."""
        if self._active:
            self._console.print(Text(text))

    def close(self) -> None:
        """Remove the live line; lines that were printed stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text(self, step: int) -> Text:
        # A plain line may go to a log file, so it has no styles.
        step_style = label_style = ""
        if self._live:
            step_style, label_style = "bold", "dim"
        width = len(str(self._total))
        text = Text(f"step {step:>{width}}/{self._total}", style=step_style)
        for metric, label, to_text in SHOWN:
            value = self._values.get(metric)
            if value is None:
                continue
            # A loss that is NaN is news; a speed that is not known yet is not.
            if math.isnan(value) and metric != "train/loss":
                continue
            text.append("  ")
            if label:
                text.append(f"{label} ", style=label_style)
            text.append(to_text(float(value)))
        seconds_left = self._seconds_left(step)
        if seconds_left is not None:
            text.append(f"  {duration(seconds_left)} left")
        return text

    def _seconds_left(self, step: int) -> float | None:
        """Return the seconds to the end at the pace of the latest updates, evaluations included.

        None before a pace is known, and at the end.
        """
        if len(self._history) < 2 or step >= self._total:
            return None
        first_time, first_step = self._history[0]
        last_time, last_step = self._history[-1]
        if last_step <= first_step:
            # The run went back to an earlier checkpoint.
            return None
        remaining = self._total - last_step
        return remaining * (last_time - first_time) / (last_step - first_step)


def _own_console() -> Console:
    # Without force_jupyter, rich prints past standard output in a notebook, which a study redirects
    # while its runs train.
    return Console(highlight=False, soft_wrap=True, force_jupyter=False)


def banner(
    title: str, rows: Mapping[str, object], *, active: bool = True, console: Console | None = None
) -> None:
    """Print the lines of a run's start: a title, and one aligned "name  value" line for each row.

    Rows whose value is None or "" are left out. With `active=False` nothing is printed.
    """
    if not active:
        return
    console = console or _own_console()
    shown = {}
    for name, value in rows.items():
        # 0 and False are values.
        if value is not None and value != "":
            shown[name] = str(value)
    width = max(map(len, shown), default=0)
    console.print(Text(title, style="bold"))
    for name, value in shown.items():
        line = Text(f"  {name:<{width}}  ", style="dim")
        console.print(line.append(Text(value, style="not dim")))


def answer_table(answers: Mapping[str, Mapping[str, float]], rivals: Mapping[str, float]) -> str:
    """Return a table as text: the model's share of exact answers to each kind of question.

    Next to it are the shares of chance and, where it was asked, of an n-gram model.

    Args:
      answers: {kind: {"accuracy", "chance" and "count"}}, as `evals.answers.exact_answers` returns
        them.
      rivals: {kind: the n-gram model's share}; empty where no such model was asked.
    """
    # Width of the first column, the names of kinds.
    width = max(map(len, answers), default=0)
    lines = ["exact answers to held-out questions:"]
    for kind, result in answers.items():
        share, chance = percent(result["accuracy"], 0), percent(result["chance"], 0)
        name = kind.replace("_", " ")
        line = f"  {name:<{width}}  {share:>5} of {result['count']:,}; by chance {chance}"
        if kind in rivals:
            line += f", n-gram model {percent(rivals[kind], 0)}"
        lines.append(line)
    return "\n".join(lines)
