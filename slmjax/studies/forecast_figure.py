"""The picture of a forecast: rungs, line, curve with interval, target, and the measured loss."""

import itertools
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from slmjax.readable import count
from slmjax.record.figures import label_axes, themed_figure
from slmjax.studies.forecast_intervals import ForecastInterval, forecast_interval
from slmjax.studies.forecast_score import ForecastScore
from slmjax.studies.scaling_forecast import (
    JOINT,
    LINE,
    POWER,
    SAME,
    SAME_RATIO,
    Forecast,
    runs_of_curve,
)
from slmjax.studies.scaling_law import compute_factor

SIZE = (8.0, 4.5)  # inches: a slide's 16 to 9
POINTS = 25  # of a curve, and of the band
# The reduction of loss whose price is written into the figure.
REDUCTION = 0.01
# Least distance of two labels, as a share of the axes' height.
LABEL_GAP = 0.065
NOTE_WIDTH = 64  # columns of the text in the corner
# Sizes that are closer than this ratio share a tick.
TICK_RATIO = 1.3
# Color and name of each fit.
FITS = {
    LINE: ("c1", "straight line"),
    POWER: ("c0", "power law + constant"),
    JOINT: ("c2", "joint law"),
    SAME: ("muted", "as the largest rung"),
}


def forecast_figure(forecast: Forecast, score: ForecastScore | None = None) -> str:
    """Return an SVG of a forecast, with the measured loss once there is a score.

    It is for a page that defines the colours; `figures.standalone` makes it a file.
    """
    target = f"{count(forecast.parameters)} parameters, {count(forecast.tokens)} tokens"
    title = f"Forecast for {target}"

    def draw(figure: Any, axes: Any, colors: Mapping[str, str]) -> None:
        runs, _ = runs_of_curve(forecast.runs, forecast.parameters, forecast.tokens)
        rungs = [run.parameters for run in runs]
        sizes = np.geomspace(min(rungs), forecast.parameters, POINTS)
        axes.set_xscale("log")
        axes.set_yscale("log")
        _draw_intervals(axes, forecast, sizes, colors)
        _draw_laws(axes, forecast, sizes, colors)
        losses = [run.loss for run in runs]
        axes.plot(rungs, losses, ls="", marker="o", ms=5, color=colors["ink"], zorder=5)
        if score is not None:
            places = [forecast.parameters] * len(score.losses)
            style = {"ls": "", "marker": "D", "ms": 4.5, "color": colors["ink"], "zorder": 6}
            axes.plot(places, score.losses, **style)
        label_axes(axes, title, "parameters", f"{forecast.unit} of held-out text")
        _set_axes(axes, [*rungs, forecast.parameters])
        _draw_labels(axes, forecast, score, colors)
        paper = {"facecolor": colors["paper"], "edgecolor": "none", "pad": 2}
        corner = {"transform": axes.transAxes, "fontsize": 8.5, "linespacing": 1.5, "bbox": paper}
        axes.text(0.02, 0.03, _note(forecast), color=colors["muted"], **corner)

    return themed_figure(draw, title, SIZE)


def compute_rule(forecast: Forecast) -> str:
    """Return in a sentence how much more compute than the target's buys 1 % less loss."""
    factor = compute_factor(
        forecast.fits[POWER].law,
        forecast.parameters,
        forecast.tokens,
        REDUCTION,
        tokens_follow=forecast.common == SAME_RATIO,
    )
    start = f"From {count(forecast.parameters)} on, {REDUCTION:.0%} less loss"
    if math.isinf(factor):
        return f"{start} is out of reach: the rest of the loss is the law's constant."
    return f"{start} costs {factor:.1f} times the compute."


def _draw_intervals(
    axes: Any, forecast: Forecast, sizes: np.ndarray, colors: Mapping[str, str]
) -> None:
    """Draw the power law's interval of the mean as a band, and that of one run as a bar."""
    intervals = forecast.fits[POWER].intervals
    if intervals is None:
        return
    runs, _ = runs_of_curve(forecast.runs, forecast.parameters, forecast.tokens)
    lows, highs = [], []
    for size in sizes:
        # The number of tokens does not matter to a law of sizes alone.
        at_size = forecast_interval(
            runs, forecast.noise, round(size), forecast.tokens, joint=False, level=intervals.level
        )
        assert isinstance(at_size, ForecastInterval)
        lows.append(at_size.mean[0])
        highs.append(at_size.mean[1])
    color = colors[FITS[POWER][0]]
    axes.fill_between(sizes, lows, highs, color=color, alpha=0.18, lw=0, zorder=1)
    axes.plot([forecast.parameters] * 2, intervals.run, color=color, lw=1.2, zorder=3)
    places = [forecast.parameters] * 2
    axes.plot(places, intervals.run, ls="", marker="_", ms=9, color=color, zorder=3)


def _draw_laws(axes: Any, forecast: Forecast, sizes: np.ndarray, colors: Mapping[str, str]) -> None:
    tokens = np.full(len(sizes), float(forecast.tokens))
    if forecast.common == SAME_RATIO:
        tokens = sizes * (forecast.tokens / forecast.parameters)
    for name, fit in forecast.fits.items():
        color = colors[FITS[name][0]]
        losses = np.broadcast_to(fit.law.loss(sizes, tokens), sizes.shape)
        shown = np.full(len(sizes), True)
        style = {"lw": 1.6, "ls": "-"}
        if name == LINE:
            style = {"lw": 1.4, "ls": (0, (5, 2))}
        if name == SAME:
            runs, _ = runs_of_curve(forecast.runs, forecast.parameters, forecast.tokens)
            largest = max(run.parameters for run in runs)
            shown = sizes >= min(largest, sizes[-2])
            style = {"lw": 1.2, "ls": (0, (1, 2))}
        axes.plot(sizes[shown], losses[shown], color=color, zorder=2, **style)
        hollow = {"marker": "o", "ms": 8, "mec": color, "mew": 1.5, "mfc": colors["paper"]}
        axes.plot([forecast.parameters], [fit.prediction], ls="", zorder=4, **hollow)


def _set_axes(axes: Any, sizes: list[int]) -> None:
    """Put ticks at the rungs and the target, and plain numbers on the vertical axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    ticks: list[int] = []
    # From the target down, which always has its tick.
    for size in sorted(set(sizes), reverse=True):
        if not ticks or ticks[-1] / size >= TICK_RATIO:
            ticks.append(size)
    axes.xaxis.set_major_locator(FixedLocator(np.array(ticks, np.float64)))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.set_xlim(min(sizes) / 1.15, max(sizes) * 1.15)
    low, high = axes.get_ylim()
    # Room at the bottom for the text.
    axes.set_ylim(low * (low / high) ** 0.12, high)


def _draw_labels(
    axes: Any, forecast: Forecast, score: ForecastScore | None, colors: Mapping[str, str]
) -> None:
    """Write what each fit forecasts to the right of the axes, from low to high, not overlapping."""
    labels = []
    for name, fit in forecast.fits.items():
        color, words = FITS[name]
        labels.append((fit.prediction, f"{words} {fit.prediction:.3f}", colors[color]))
    if score is not None:
        labels.append((score.measured, f"measured {score.measured:.3f}", colors["ink"]))
    labels.sort()
    low, high = np.log(axes.get_ylim())
    heights = [(math.log(loss) - low) / (high - low) for loss, _, _ in labels]
    for (loss, text, color), height in zip(labels, spread_labels(heights)):
        axes.annotate(
            text,
            (forecast.parameters, loss),
            (1.03, height),
            textcoords="axes fraction",
            color=color,
            va="center",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.7, "shrinkA": 2, "shrinkB": 5},
            annotation_clip=False,
        )


def spread_labels(heights: list[float]) -> list[float]:
    """Return rising heights at least LABEL_GAP apart: neighbours that are closer move as a group,
    around their own mean."""
    groups = [[height] for height in heights]
    spread = [_around(group) for group in groups]
    while True:
        for i, (below, above) in enumerate(itertools.pairwise(spread)):
            if above[0] - below[-1] < LABEL_GAP * (1 - 1e-9):
                groups[i : i + 2] = [groups[i] + groups[i + 1]]
                spread[i : i + 2] = [_around(groups[i])]
                break
        else:
            return list(itertools.chain.from_iterable(spread))


def _around(group: list[float]) -> list[float]:
    """Return a place for each label of a group, LABEL_GAP apart around the group's mean."""
    middle = float(np.mean(group))
    first = middle - LABEL_GAP * (len(group) - 1) / 2
    return [first + LABEL_GAP * i for i in range(len(group))]


def _note(forecast: Forecast) -> str:
    """Return the text in the corner: what the intervals are, and what more compute buys."""
    power = forecast.fits[POWER]
    sentences = []
    if power.intervals is not None:
        level = f"{power.intervals.level:.0%}"
        low, high = power.intervals.run
        sentences.append(
            f"Band: {level} interval of the mean. Bar: of one run, {low:.3f} to {high:.3f}."
        )
    if power.note:
        sentences.append(power.note)
    sentences.append(compute_rule(forecast))
    lines = []
    for sentence in sentences:
        lines += textwrap.wrap(sentence, NOTE_WIDTH)
    return "\n".join(lines)
