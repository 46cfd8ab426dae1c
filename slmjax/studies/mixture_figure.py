"""The pictures of a mixture study: mixtures by source, and what proxies predict of each other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from slmjax.record.figures import COLORS, label_axes, themed_figure
from slmjax.studies.mixture_choice import MixtureChoice
from slmjax.studies.mixture_comparison import MixtureComparison
from slmjax.studies.mixture_fit import rank_correlation

SIZE = (8.0, 4.5)  # inches: a slide's 16 to 9
# Share of a row's height over which the mixtures of a source are spread.
SPREAD = 0.6


def comparison_figure(comparison: MixtureComparison) -> str:
    """Return an SVG of each mixture's difference to the first one, by source, with 95 % intervals.

    It is for a page that defines the colours; `figures.standalone` makes it a file.
    """
    first, *others = comparison.mixtures
    rows = {"mean over sources": comparison.mean, **comparison.sources}
    title = f"Held-out bits per byte, compared with the mixture {first}"

    def draw(figure: Any, axes: Any, colors: Mapping[str, str]) -> None:
        # The mean is set apart from the sources.
        axes.axhspan(-0.5, 0.5, color=colors["grid"], alpha=0.5, lw=0, zorder=0)
        axes.axvline(0, color=colors["muted"], lw=1.2, zorder=1)
        for number, name in enumerate(others):
            offset = SPREAD * ((number + 0.5) / len(others) - 0.5)
            heights = np.arange(len(rows)) + offset
            differences = [of_source[number + 1] for of_source in rows.values()]
            color = colors[f"c{number % COLORS}"]
            lows = [difference.low for difference in differences]
            highs = [difference.high for difference in differences]
            axes.hlines(heights, lows, highs, color=color, lw=2, zorder=2)
            values = [difference.value for difference in differences]
            axes.plot(values, heights, ls="", marker="o", ms=5, color=color, label=name, zorder=3)
        label_axes(axes, title, f"difference to {first}: fewer bits are better", "")
        axes.set_yticks(range(len(rows)), list(rows), color=colors["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        style = {"frameon": False, "labelcolor": colors["ink"], "fontsize": 9}
        figure.legend(loc="outside lower center", ncols=4, **style)

    return themed_figure(draw, title, SIZE)


def search_figure(choice: MixtureChoice, measured: Float[np.ndarray, " proxies"]) -> str:
    """Return an SVG of the proxies' predicted and measured losses, with the choice marked.

    Args:
      measured: loss of the basket, of each proxy.
    """
    title = f"Predicted and measured loss of {len(measured)} mixtures"
    rank = rank_correlation(choice.left_out, measured)
    error = np.sqrt(np.mean((choice.left_out - measured) ** 2))
    note = f"Each point is predicted from the others: error {error:.4f}"
    if rank is not None:
        note += f", rank correlation {rank:.3f}"

    def draw(figure: Any, axes: Any, colors: Mapping[str, str]) -> None:
        marked = {"natural": ("c1", choice.predicted_natural), "chosen": ("c0", choice.predicted)}
        every = np.concatenate([choice.left_out, measured, [loss for _, loss in marked.values()]])
        low, high = every.min(), every.max()
        room = 0.08 * (high - low)
        ends = (low - room, high + room)
        axes.plot(ends, ends, color=colors["muted"], lw=1, ls=(0, (4, 3)), zorder=1)
        axes.plot(choice.left_out, measured, ls="", marker="o", ms=5, color=colors["ink"], zorder=3)
        for name, (color, loss) in marked.items():
            # Not measured yet: on the diagonal, where the prediction would be right.
            ring = {"marker": "o", "ms": 10, "mec": colors[color], "mew": 2, "mfc": "none"}
            label = f"{name} mixture, predicted {loss:.4f}"
            axes.plot([loss], [loss], ls="", zorder=4, label=label, **ring)
        label_axes(axes, title, "predicted bits per byte", "measured bits per byte")
        axes.set(xlim=ends, ylim=ends)
        axes.text(0.98, 0.03, note, transform=axes.transAxes, ha="right", color=colors["muted"])
        style = {"frameon": False, "labelcolor": colors["ink"], "fontsize": 9}
        axes.legend(loc="upper left", **style)

    return themed_figure(draw, title, SIZE)
