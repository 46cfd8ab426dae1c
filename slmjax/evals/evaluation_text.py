"""Figures of evaluations as text, for the terminal and for pages."""

from collections.abc import Mapping
from typing import Any

from slmjax.readable import percent

# Figures that are no shares, with their decimals.
_DECIMALS = {
    "bits_per_byte": 4,
    "nats": 3,
    "equation_nats": 3,
    "perplexity": 2,
    "brier": 3,
    "calibration_error": 3,
}


def figure_value(name: str, value: float) -> str:
    """Return a value of a figure of this name as text, in per cent where it is a share."""
    if name in _DECIMALS:
        return f"{value:.{_DECIMALS[name]}f}"
    return percent(value)


def figure_interval(name: str, figure: Mapping[str, Any]) -> str:
    """Return a figure's interval as text, such as "24.1 to 27.8"."""
    low, high = figure_value(name, figure["low"]), figure_value(name, figure["high"])
    return f"{low.removesuffix(' %')} to {high}"


def figures_line(figures: Mapping[str, Mapping[str, Any]], most: int = 4) -> str:
    """Return the first figures of a task, each with its interval, on one line."""
    parts = []
    for name, figure in list(figures.items())[:most]:
        value = figure_value(name, figure["value"])
        parts.append(f"{name} {value} ({figure_interval(name, figure)})")
    return ", ".join(parts)


def copies_in_brief(found: Mapping[str, Any]) -> str:
    """Return how many of a task's items are in the training text, in a few words."""
    if "sentence" in found:
        return "not checked"
    looked_for = found["items"] - found["undecided"]
    if not looked_for:
        return "cannot be told"
    brief = f"{found['copied']:,} of {looked_for:,}"
    return f"{brief}, partly checked" if found["unchecked"] else brief


def contamination_line(found: Mapping[str, Any]) -> str:
    """Return what is known of a task's items in the training text, as one line."""
    if "sentence" in found:
        return found["sentence"]
    looked_for = found["items"] - found["undecided"]
    hidden = "too short or too much like many others to be looked for in the training text"
    if looked_for:
        line = f"{found['copied']:,} of {looked_for:,} items are in the training text"
        if found["undecided"]:
            line += f"; {found['undecided']:,} more are {hidden}"
    else:
        line = f"all {found['items']:,} items are {hidden}"
    if "without" in found:
        figure = found["without"]
        share = f"{percent(figure['value'])} ({figure_interval('share', figure)})"
        line += f"; {share} of the {figure['count']:,} others are right"
    if found["unchecked"]:
        line += f"; not all of that text could be looked through: {' '.join(found['unchecked'])}"
    return line
