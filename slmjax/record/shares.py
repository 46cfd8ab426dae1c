"""How much a run reads of each source: epochs and caps in a sentence, shares as a figure."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from slmjax.data.loader import BatchPlan, PhasedPlan
from slmjax.readable import count, percent
from slmjax.record.figures import Line, curves


def reading_sentences(plan: BatchPlan | PhasedPlan) -> dict[str, str]:
    """Return what the whole run reads: {source: "2.30 epochs of 11M tokens; cap 4"}."""
    sentences = {}
    for (name, epochs), rows in zip(plan.epochs().items(), plan.row_plans):
        sentences[name] = _reading_sentence(plan, name, epochs, rows.tokens)
    return sentences


def figure(shares: Mapping[str, Any], step: int | None = None) -> str:
    """Draw planned shares as lines, and the shares that each part of the run reads as dots.

    Args:
      shares: as `BatchPlan.shares` returns them.
      step: leave out the dots of parts that end later; None: draw all.
    Returns: an SVG, see `figures.curves`.
    """
    planned, realised = shares["planned"], shares["realised"]
    last_step = np.inf if step is None else step
    # [parts of the run]
    is_done = np.array(realised["steps"]) <= last_step
    planned_tokens = np.array(planned["tokens"])
    realised_tokens = np.array(realised["tokens"])[is_done]
    lines = []
    for color, name in enumerate(planned["shares"]):
        planned_shares = np.array(planned["shares"][name])
        lines.append(Line(name, planned_tokens, planned_shares, color=color, dots=False))
        realised_shares = np.array(realised["shares"][name])[is_done]
        # A faint line with dots is drawn as dots alone.
        lines.append(
            Line(
                name,
                realised_tokens,
                realised_shares,
                color=color,
                faint=True,
                dots=True,
            )
        )
    return curves(
        lines,
        title="Shares of the sources: planned (lines), as read (dots)",
        x="tokens",
        y="share of tokens",
        clip=False,
    )


def _reading_sentence(plan: BatchPlan | PhasedPlan, name: str, epochs: float, tokens: int) -> str:
    """Return how often a source is read, in which order, and where its cap ends it."""
    text = f"{epochs:.2f} epochs of {count(tokens)} tokens"
    score = plan.scores.get(name)
    if score:
        # A minus before the score's name reverses the order.
        direction = "high to low" if score.startswith("-") else "low to high"
        text += f" in the order of {score.removeprefix('-')}, {direction}"
    if name in plan.max_epochs:
        text += f"; cap {plan.max_epochs[name]:g}"
    spent = plan.spent()
    if name in spent:
        share = percent(spent[name] / plan.total_tokens)
        text += f", reached at {share} of the run, from where on the other sources take its share"
    return text
