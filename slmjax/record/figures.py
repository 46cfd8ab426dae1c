"""Line figures as small SVGs; their colours are CSS variables, to follow a page's scheme."""

import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from slmjax.readable import count, duration

LIGHT = {
    "ink": "#1b1f24",
    "muted": "#5b6570",
    "grid": "#dfe3e8",
    "paper": "#ffffff",
    "c0": "#1a66b3",
    "c1": "#c4501b",
    "c2": "#22805a",
    "c3": "#8450b8",
    "c4": "#a87700",
    "c5": "#bf3a86",
    "c6": "#3f7686",
    "c7": "#7d6650",
}
DARK = {
    "ink": "#e8eaed",
    "muted": "#9aa4af",
    "grid": "#31373e",
    "paper": "#14171a",
    "c0": "#6ab0f3",
    "c1": "#f2915f",
    "c2": "#5cc596",
    "c3": "#bb98ea",
    "c4": "#e0b648",
    "c5": "#f08ac1",
    "c6": "#86bccb",
    "c7": "#c2ae98",
}

# Number of colours for lines: c0 to c7.
COLORS = 8
# A line of at most this many points gets dots, which show where something was measured.
FEW = 12
# Most characters of a name in a legend; longer ones are cut.
LONGEST_NAME = 22
# Share of the horizontal axis, from its start, in which lines may leave the frame at the top.
EARLY = 0.05
# Quantile of a faint line's values that the frame still holds.
RAW_HELD = 0.995
# Space above and below the lines, as a share of their height.
MARGIN = 0.06

_NAMES = list(LIGHT)
# Matplotlib knows no CSS variables. It draws in these colours, which nothing else uses, and
# `_themed` replaces them.
_STAND_IN = {name: f"#0a0b{index:02x}" for index, name in enumerate(_NAMES)}
_SETTINGS = {
    "font.size": 9.5,
    # Text stays text instead of paths, so that it takes the page's font.
    "svg.fonttype": "none",
    # The same figure has the same identifiers whenever it is drawn.
    "svg.hashsalt": "slmjax",
    "axes.unicode_minus": False,
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a figure."""

    name: str
    x: Num[np.ndarray, "points"]
    y: Num[np.ndarray, "points"]
    # Counts from 0 and wraps after COLORS.
    color: int = 0
    # Thin and pale, without a name in the legend: for raw values behind a smoothed line.
    faint: bool = False
    # Whether to mark the points; None: at most FEW points of a line that is not faint. A faint line
    # with dots is drawn as dots alone.
    dots: bool | None = None
    # Draws a bar at each point instead: a histogram, whose x are the middles of its bins.
    bars: bool = False


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    x: str,
    y: str,
    legend: bool = True,
    clip: bool = True,
    marks: Sequence[float] = (),
) -> str:
    """Draw lines into an SVG to be put into a page that defines the colours (`page.page` does).

    Args:
      x: the name of the horizontal axis; "seconds" is labelled in minutes and hours, others with
        k, M, B.
      y: the label of the vertical axis.
      clip: lines may leave the frame at the top in the first 5 % of the horizontal axis, where
        losses lie far above the rest.
      marks: places on the horizontal axis that get a thin upright line (restarts).
    """

    def draw(figure: Any, axes: Any, colors: Mapping[str, str]) -> None:
        for line in lines:
            _draw_line(axes, line, legend)
        for mark in marks:
            axes.axvline(mark, color=colors["muted"], lw=0.8, ls=(0, (2, 3)), zorder=1)
        if clip:
            _set_vertical_limits(axes, lines)
        label_axes(axes, title, x, y)
        if legend:
            _draw_legend(figure, axes, lines, clip)

    return themed_figure(draw, title)


def themed_figure(
    draw: Callable[[Any, Any, Mapping[str, str]], None],
    title: str,
    size: tuple[float, float] = (5.4, 3.3),
) -> str:
    """Return a drawing of one's own as an SVG like that of `curves`.

    Args:
      draw: draws on (figure, axes, colors), with colors by their names in LIGHT.
      title: what the figure is called where it cannot be seen.
      size: inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(figure, axes, _STAND_IN)
        # Transparent, so that the page's own background shows.
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        buffer = io.StringIO()
        # Without a date, so that the same figure is the same file.
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue(), title)


def standalone(svg: str, *, dark: bool = False) -> str:
    """Return the same SVG as a file of its own, in the light or dark colours on their paper."""
    colors = DARK if dark else LIGHT
    svg = re.sub(r"var\(--(\w+)\)", lambda match: colors[match[1]], svg)
    paper = colors["paper"]
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'style="background:{paper}" font-family="Helvetica, Arial, sans-serif" '
    )
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.replace("<svg ", opening, 1)


def smooth(values: Num[np.ndarray, "points"], share: float = 0.02) -> Num[np.ndarray, "points"]:
    """Return the moving average over `share` of the points; NaNs are passed over.

    The window is centred, so that the average does not lag where the loss falls fast. Near the
    start it is narrower on both sides, and at the end it stops at the last point.
    """
    values = np.asarray(values, np.float64)
    finite = np.isfinite(values)
    # Sums and counts of all points before each one: those of a window are a difference of two.
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    # Points on each side of the middle one.
    half = np.minimum(index, int(share * len(values) / 2))
    # Each window is [low, high).
    low = index - half
    high = np.minimum(index + half + 1, len(values))
    number = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.maximum(number, 1)
    return np.where(number > 0, means, np.nan)


def _draw_line(axes: Any, line: Line, legend: bool) -> None:
    color = _STAND_IN[f"c{line.color % COLORS}"]
    label = None
    if legend and not line.faint:
        label = _short(line.name)
    if line.bars:
        width = 1.0
        if len(line.x) > 1:
            width = np.diff(line.x).min()
        axes.bar(line.x, line.y, width, color=color, alpha=0.5, zorder=2, label=label)
        return
    dots = line.dots
    if dots is None:
        dots = len(line.x) <= FEW and not line.faint
    if line.faint:
        style = {"lw": 0.8, "alpha": 0.3, "zorder": 2}
    else:
        style = {"lw": 1.7, "alpha": 1, "zorder": 3}
    # Dots of a faint line stand alone.
    if not (line.faint and dots):
        axes.plot(line.x, line.y, color=color, label=label, **style)
    if dots:
        axes.plot(line.x, line.y, ls="", marker="o", ms=3, color=color, zorder=4)


def _set_vertical_limits(axes: Any, lines: Sequence[Line]) -> None:
    """Frame the values after the first EARLY of the horizontal axis.

    The highest half percent of a faint line's values may leave the frame too.
    """
    ends = [np.max(line.x) for line in lines if len(line.x)]
    lows, highs = [], []
    for line in lines:
        is_late = line.x >= EARLY * max(ends)
        late = line.y[np.isfinite(line.y) & is_late]
        if not len(late):
            continue
        lows.append(late.min())
        if line.faint:
            highs.append(np.quantile(late, RAW_HELD))
        else:
            highs.append(late.max())
    if not highs:
        return
    low, high = min(lows), max(highs)
    # A flat line has no height: take its distance from 0 instead, and 1 for a line at 0.
    margin = MARGIN * (high - low) or MARGIN * abs(high) or 1.0
    axes.set_ylim(low - margin, high + margin)


def label_axes(axes: Any, title: str, x: str, y: str) -> None:
    """Write title, labels and ticks onto matplotlib's axes, in the colours of the house."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ink, muted = _STAND_IN["ink"], _STAND_IN["muted"]
    axes.set_title(title, loc="left", color=ink, fontsize=10.5)
    axes.set_xlabel("time" if x == "seconds" else x, color=muted)
    axes.set_ylabel(y, color=muted)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, x)))
    axes.tick_params(colors=muted, length=0)
    axes.grid(color=_STAND_IN["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _draw_legend(figure: Any, axes: Any, lines: Sequence[Line], clip: bool) -> None:
    """Add a legend, unless a single line would be in it."""
    named = len([line for line in lines if not line.faint])
    if named < 2:
        return
    style = {
        "frameon": False,
        "labelcolor": _STAND_IN["ink"],
        "fontsize": 8.5,
        "handlelength": 1.2,
    }
    if clip:
        # A clipped curve falls from the left, so the corner on the right is free.
        columns = 2 if named > 4 else 1
        axes.legend(loc="upper right", ncols=columns, **style)
    else:
        figure.legend(loc="outside lower center", ncols=3, **style)


def _tick(value: float, axis: str) -> str:
    if value == 0:
        return "0"
    if axis != "seconds":
        return count(value)
    # Most ticks are whole minutes or hours: leave out the zeros.
    return duration(value).replace(" min 00 s", " min").replace(" h 00 min", " h")


def _short(name: str) -> str:
    if len(name) <= LONGEST_NAME:
        return name
    return name[: LONGEST_NAME - 1] + "…"


def _themed(svg: str, title: str) -> str:
    """Return matplotlib's SVG with CSS variables as colours and the page's font."""
    # Without the XML declaration, since the SVG is put into HTML.
    svg = svg[svg.index("<svg") :]
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    # Without width and height, so that the page decides on its size.
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    svg = re.sub(r"<svg[^>]*>", f'<svg {box} role="img" aria-label="{label}">', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Only the size of matplotlib's font stays; the page names the family.
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"#0a0b([0-9a-f]{2})", _variable, svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _variable(match: re.Match) -> str:
    """Return the CSS variable of a stand-in colour."""
    name = _NAMES[int(match[1], 16)]
    return f"var(--{name})"
