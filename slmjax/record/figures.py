"""Line figures as small SVGs whose colours are CSS variables, so that one drawing follows a page's light and dark scheme."""

import dataclasses
import io
import re
from collections.abc import Sequence

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

FEW = 12  # points of a line that are marked, so that it shows where something was measured
_NAMES = list(LIGHT)
_STAND_IN = {
    name: f"#0a0b{index:02x}" for index, name in enumerate(_NAMES)
}  # colours that nothing else uses, replaced after drawing


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a figure. `color` counts from 0 and wraps after 8; `faint` is for raw values behind a smoothed line.

    `dots` marks the points too, by default where there are few; those of a faint line stand alone, without the line.
    `bars` draws a bar at each point instead: a histogram, whose x are the middles of its bins.
    """

    name: str
    x: Num[np.ndarray, "points"]
    y: Num[np.ndarray, "points"]
    color: int = 0
    faint: bool = False
    dots: bool | None = None
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
    """Draw lines into an SVG to be put into a page that defines the colours (`page.html` does).

    Args:
      clip: the first steps of training lie far above the rest, so the first 5 % of the horizontal axis may leave the frame at the top.
      x: the name of the horizontal axis; "seconds" is labelled in minutes and hours, others with k, M, B.
      marks: places on the horizontal axis that get a thin upright line (restarts).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    font = {
        "font.size": 9.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "slmjax",
        "axes.unicode_minus": False,
    }
    ink, muted, grid = (_STAND_IN[name] for name in ("ink", "muted", "grid"))
    with rc_context(font):
        figure = Figure(figsize=(5.4, 3.3), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            color = _STAND_IN[f"c{line.color % 8}"]
            width, depth = (0.8, 2) if line.faint else (1.7, 3)
            label = None if line.faint or not legend else _short(line.name)
            if line.bars:
                width = np.diff(line.x).min() if len(line.x) > 1 else 1.0
                axes.bar(line.x, line.y, width, color=color, alpha=0.5, zorder=2, label=label)
                continue
            dots = line.dots if line.dots is not None else len(line.x) <= FEW and not line.faint
            if not (line.faint and dots):
                axes.plot(
                    line.x,
                    line.y,
                    color=color,
                    lw=width,
                    alpha=0.3 if line.faint else 1,
                    zorder=depth,
                    label=label,
                )
            if dots:
                axes.plot(line.x, line.y, ls="", marker="o", ms=3, color=color, zorder=4)
        for mark in marks:
            axes.axvline(mark, color=muted, lw=0.8, ls=(0, (2, 3)), zorder=1)
        if clip:
            _limit(axes, lines)
        axes.set_title(title, loc="left", color=ink, fontsize=10.5)
        axes.set_xlabel("time" if x == "seconds" else x, color=muted)
        axes.set_ylabel(y, color=muted)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: _tick(at, x)))
        axes.tick_params(colors=muted, length=0)
        axes.grid(color=grid, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        if legend and sum(not line.faint for line in lines) > 1:
            form = {"frameon": False, "labelcolor": ink, "fontsize": 8.5, "handlelength": 1.2}
            columns = 2 if sum(not line.faint for line in lines) > 4 else 1
            if clip:  # what is clipped falls from the left
                axes.legend(loc="upper right", ncols=columns, **form)
            else:
                figure.legend(loc="outside lower center", ncols=3, **form)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue(), title)


def standalone(svg: str) -> str:
    """The same SVG as a file of its own, in the light colours on white."""
    svg = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], svg)
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.replace(
        "<svg ", head + 'style="background:#fff" font-family="Helvetica, Arial, sans-serif" ', 1
    )


def smooth(values: Num[np.ndarray, "points"], share: float = 0.02) -> Num[np.ndarray, "points"]:
    """Moving average over `share` of the points, centred, so that it does not lag where the loss falls fast; narrower at the start.

    NaNs are passed over.
    """
    values = np.asarray(values, np.float64)
    good = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(good, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    at = np.arange(len(values))
    half = np.minimum(at, int(share * len(values) / 2))
    low, high = at - half, np.minimum(at + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _limit(axes, lines: Sequence[Line]) -> None:
    """Frame what comes after the first 5 % of the horizontal axis; of raw values all but the highest half percent."""
    ends = [np.max(line.x) for line in lines if len(line.x)]
    lows, highs = [], []
    for line in lines:
        late = line.y[np.isfinite(line.y) & (line.x >= 0.05 * max(ends))]
        if len(late):
            lows.append(late.min())
            highs.append(np.quantile(late, 0.995) if line.faint else late.max())
    if highs:
        room = 0.06 * (max(highs) - min(lows)) or 0.06 * abs(max(highs)) or 1.0
        axes.set_ylim(min(lows) - room, max(highs) + room)


def _tick(at: float, axis: str) -> str:
    if at == 0:
        return "0"
    if axis != "seconds":
        return count(at)
    return duration(at).replace(" min 00 s", " min").replace(" h 00 min", " h")


def _short(name: str) -> str:
    return name if len(name) <= 22 else name[:21] + "…"


def _themed(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    svg = re.sub(r"<svg[^>]*>", f'<svg {box} role="img" aria-label="{label}">', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"#0a0b([0-9a-f]{2})", lambda found: f"var(--{_NAMES[int(found[1], 16)]})", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()
