"""What a run reads of each source, told before it starts: epochs and caps in a sentence, and shares over the run as a figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from slmjax.data.loader import BatchPlan
from slmjax.readable import count, percent
from slmjax.record.figures import Line, curves


def reading_sentences(plan: BatchPlan) -> dict[str, str]:
    """{source: "2.30 epochs of 11M tokens; cap 4"}, of the whole run."""
    return {
        name: _told(plan, name, epochs, rows.tokens)
        for (name, epochs), rows in zip(plan.epochs().items(), plan.row_plans)
    }


def figure(shares: Mapping[str, Any], step: int | None = None) -> str:
    """`BatchPlan.shares` as an SVG: planned shares as lines, and as dots the shares of the rows in each part of the run.

    Args:
      step: leave out dots of parts that end later; None: draw all.
    """
    planned, realised = shares["planned"], shares["realised"]
    done = np.array(realised["steps"]) <= (np.inf if step is None else step)
    lines = []
    for color, name in enumerate(planned["shares"]):
        lines.append(
            Line(
                name,
                np.array(planned["tokens"]),
                np.array(planned["shares"][name]),
                color=color,
                dots=False,
            )
        )
        at, share = np.array(realised["tokens"])[done], np.array(realised["shares"][name])[done]
        lines.append(Line(name, at, share, color=color, faint=True, dots=True))
    return curves(
        lines,
        title="Shares of the sources: planned (lines), as read (dots)",
        x="tokens",
        y="share of tokens",
        clip=False,
    )


def _told(plan: BatchPlan, name: str, epochs: float, tokens: int) -> str:
    text, score = f"{epochs:.2f} epochs of {count(tokens)} tokens", plan.scores.get(name)
    if score:
        text += f" in the order of {score.removeprefix('-')}, {'high to low' if score.startswith('-') else 'low to high'}"
    if name in plan.max_epochs:
        text += f"; cap {plan.max_epochs[name]:g}"
    if name in plan.mixture.spent:
        share = percent(plan.mixture.spent[name] / plan.total_rows)
        text += f", reached at {share} of the run, from where on the other sources take its share"
    return text
