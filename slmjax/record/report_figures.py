"""The figures of a run's report, from its records."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from slmjax.record import figures, metrics, shares
from slmjax.record.evaluation_names import bits_metric, evaluated_sources


class _Curve(NamedTuple):
    """A figure of one metric: the name of its file, the metric, title and unit."""

    file: str
    metric: str
    title: str
    unit: str


CURVES = (
    _Curve("loss", "train/loss", "Training loss", "nats per token"),
    _Curve("learning_rate", "train/learning_rate", "Learning rate", ""),
    _Curve("gradient_norm", "train/grad_norm", "Gradient norm, before clipping", ""),
)
EXACT = ("learning_rate",)
"""Files of figures whose metric has no noise to smooth away."""


class _Axis:
    """The horizontal axis: training tokens, or steps where tokens were not recorded."""

    def __init__(self, records: metrics.Records):
        self._records = records
        token_steps, _ = metrics.series(records, "train/tokens")
        self.name = "tokens" if len(token_steps) else "steps"

    def place(self, steps: Num[np.ndarray, "points"]) -> Num[np.ndarray, "points"]:
        """Return where steps lie on the axis."""
        if self.name == "steps":
            return steps
        return metrics.along(self._records, steps, "train/tokens")


def report_figures(records: metrics.Records) -> dict[str, str]:
    """Return the figures of the report as SVG, by file name."""
    axis = _Axis(records)
    restarts = [event["step"] for event in metrics.events(records, "resume") if event["step"]]
    marks = [float(axis.place(np.array([step]))[0]) for step in restarts]
    drawn = {}
    for curve in CURVES:
        svg = _single_curve(records, curve, axis, marks)
        if svg:
            drawn[curve.file] = svg
    lines = _bits_lines(records, axis)
    if lines:
        drawn["bits_per_byte"] = figures.curves(
            lines, title="Held-out text", x=axis.name, y="bits per byte", marks=marks
        )
    planned = metrics.last_event(records, "data").get("shares")
    if planned:
        newest_step = max((record["step"] for record in records.kept), default=0)
        drawn["shares"] = shares.figure(planned, newest_step)
    return drawn


def figure_legend(drawn: Mapping[str, str], points: int) -> str:
    """Return a sentence or more on how to read the loss curve.

    Args:
      points: number of recorded losses.
    """
    if "loss" not in drawn:
        return ""
    sentences = []
    if points >= 100:  # of fewer, 2 % are one point
        sentences.append("Pale: every recorded step; strong: moving average over 2 % of them.")
    if points >= 20:
        sentences.append("The first steps lie above the frame.")
    if any("stroke-dasharray" in svg for svg in drawn.values()):
        sentences.append("Dotted vertical lines: restarts.")
    return " ".join(sentences)


def _single_curve(records: metrics.Records, curve: _Curve, axis: _Axis, marks: list[float]) -> str:
    """Draw one metric; "" where it has no finite value."""
    steps, values = metrics.series(records, curve.metric)
    if not np.isfinite(values).any():
        return ""
    x = axis.place(steps)
    noisy = curve.file not in EXACT
    if noisy:
        lines = [
            figures.Line(curve.metric, x, figures.smooth(values)),
            figures.Line(curve.metric, x, values, faint=True),
        ]
    else:
        lines = [figures.Line(curve.metric, x, values)]
    return figures.curves(
        lines,
        title=curve.title,
        x=axis.name,
        y=curve.unit,
        marks=marks,
        legend=False,
        clip=noisy,
    )


def _bits_lines(records: metrics.Records, axis: _Axis) -> list[figures.Line]:
    """Return a line of bits per byte for each source and the total; of one source, the total."""
    sources = evaluated_sources(records, "bits_per_byte")
    if len(sources) < 2:
        sources = []
    lines = []
    for color, source in enumerate([*sources, "total"]):
        steps, values = metrics.series(records, bits_metric(source))
        if len(steps):
            dots = None if sources else True
            x = axis.place(steps)
            lines.append(figures.Line(source, x, values, color=color, dots=dots))
    return lines
