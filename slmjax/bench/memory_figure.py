"""The picture of the memory bench: training memory as bars, the state of decoding as lines."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from slmjax.models import sizes
from slmjax.models.architecture import Architecture
from slmjax.readable import count
from slmjax.record.figures import LIGHT

LONGEST = 1 << 16  # tokens of the context at which lines end
POINTS = 33  # of a line
TICKS = (64, 256, 1024, 4096, 16_384, 65_536)  # tokens
COLORS = ("c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "ink")  # of the report's light theme
SAME_PLACE = 0.15  # lines share a label if the logarithms (base e) of their ends differ by less


def draw(rows: list[dict[str, Any]], variants: dict[str, Architecture]) -> str:
    """Return an SVG of the bench's rows.

    Left: the training memory of each variant, at the longest context where all variants fit.
    Right: the state that decoding keeps of one row, by context. Lines are the closed form
    (sizes.cache_bytes), dots are measured.
    """
    # Imported here: the bench needs matplotlib only if a figure is asked for.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colors = {}
    for name, color in zip(variants, itertools.cycle(COLORS)):
        colors[name] = LIGHT[color]
    # With a fixed salt and without metadata, equal figures are equal files.
    style = {"font.size": 9.5, "svg.hashsalt": "slmjax"}
    metadata = {"Date": None, "Creator": None}
    with rc_context(style):
        figure = Figure(figsize=(9.6, 3.8), layout="constrained")  # inches
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
        _draw_training(left, rows, colors)
        _draw_states(right, rows, variants, colors)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(colors=LIGHT["muted"], length=0)
        right.grid(color=LIGHT["grid"], lw=0.8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=metadata)
    return buffer.getvalue()


def _draw_training(axes: Any, rows: list[dict[str, Any]], colors: dict[str, str]) -> None:
    """Draw a bar for each variant at one context."""
    from matplotlib.ticker import NullLocator

    title = "Training memory, GiB"
    context = _longest_that_fits(rows)
    if context:
        title += f", rows of {count(context)}"
        # barh draws upwards: reversed, the first variant is on top.
        shown = [row for row in rows if row["context"] == context][::-1]
        names, values, labels = [], [], []
        for row in shown:
            names.append(row["variant"])
            values.append(row["train GiB"])
            labels.append(_bar_label(row))
        bars = axes.barh(names, values, color=[colors[name] for name in names])
        axes.bar_label(bars, labels, padding=3)
        axes.margins(x=0.18)  # room for the labels
    axes.set_title(title, loc="left")
    # The labels give the numbers; an axis would repeat them.
    axes.xaxis.set_major_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)


def _longest_that_fits(rows: list[dict[str, Any]]) -> int:
    """Return the longest context at which every variant was trained; 0 where there is none."""
    fits = {}
    for row in rows:
        context = row["context"]
        # A variant that did not fit has an empty cell. To leave its bar out would mislead.
        fits[context] = fits.get(context, True) and bool(row.get("train GiB"))
    return max((context for context in fits if fits[context]), default=0)


def _bar_label(row: dict[str, Any]) -> str:
    """Return the memory in GiB, and the remat if activations were rematerialised."""
    label = f"{row['train GiB']:.3g}"
    if row["remat"] != "none":
        label += f" ({row['remat']})"
    return label


def _draw_states(
    axes: Any,
    rows: list[dict[str, Any]],
    variants: dict[str, Architecture],
    colors: dict[str, str],
) -> None:
    """Draw a line for each variant, and a dot for each measured state."""
    shortest = min(1024, *(row["context"] for row in rows))
    # In equal steps on the logarithmic axis.
    contexts = np.geomspace(shortest, LONGEST, POINTS).round()
    ends = {}  # MB of each line at its right end
    for name, arch in variants.items():
        state_bytes = [sizes.cache_bytes(arch, int(tokens)) for tokens in contexts]
        states = np.array(state_bytes) / 1e6
        color = colors[name]
        axes.plot(contexts, states, color=color, lw=1.7, label=name)
        ends[name] = states[-1]
        dots = _measured_states(rows, name)
        if dots:
            x, y = zip(*dots)
            axes.plot(x, y, color=color, ls="", marker="o", ms=4)
    for height, text in _line_labels(ends):
        axes.annotate(
            text,
            (LONGEST, height),
            (4, 0),  # points to the right of the line's end
            textcoords="offset points",
            color=colors.get(text, LIGHT["ink"]),  # shared labels are in ink
            va="center",
            fontsize=8.5,
        )
    axes.set_title("Decode state of one row, MB, by context", loc="left")
    _scale(axes, shortest)


def _measured_states(rows: list[dict[str, Any]], variant: str) -> list[tuple[int, float]]:
    """Return (context, MB) of each row of a variant whose state was measured."""
    points = []
    for row in rows:
        if row["variant"] == variant and row.get("state MB"):
            points.append((row["context"], row["state MB"]))
    return points


def _line_labels(ends: dict[str, float]) -> Sequence[tuple[float, str]]:
    """Return (height in MB, text) of each label; lines with nearly the same end share a label."""
    labels: list[tuple[float, str]] = []
    for name, end in ends.items():
        for i, (height, text) in enumerate(labels):
            # The axis is logarithmic: equal distances on it are equal ratios.
            if abs(np.log(height / end)) < SAME_PLACE:
                labels[i] = (height, f"{text}, {name}")
                break
        else:
            labels.append((end, name))
    return labels


def _scale(axes: Any, shortest: int) -> None:
    """Make both axes logarithmic and name their ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [tick for tick in TICKS if tick >= shortest]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())

    # Any: matplotlib's ticks are Python or numpy numbers.
    def tick_label(tokens: Any, _: Any) -> str:
        if tokens >= 1024:
            return f"{tokens / 1024:.0f}k"
        return f"{tokens:.0f}"

    axes.xaxis.set_major_formatter(FuncFormatter(tick_label))
    # Plain numbers instead of matplotlib's powers of ten.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
