"""The figures of a run's report, from its records."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from slmjax.record import figures, metrics, shares
from slmjax.record.evaluation_names import bits_metric, evaluated_sources


class _Curve(NamedTuple):
    """A figure of one metric."""

    # Name of its file in figures/, without .svg.
    file: str
    metric: str
    title: str
    # Label of the vertical axis.
    unit: str


CURVES = (
    _Curve("loss", "train/loss", "Training loss", "nats per token"),
    _Curve("learning_rate", "train/learning_rate", "Learning rate", ""),
    _Curve("gradient_norm", "train/grad_norm", "Gradient norm, before clipping", ""),
)
# Files of figures whose metric has no noise to smooth away.
EXACT = ("learning_rate",)


class _ReportAxis:
    """The horizontal axis: training tokens, or steps where tokens were not recorded."""

    def __init__(self, records: metrics.Records):
        self._records = records
        self.name = "tokens"
        if metrics.last_value(records, "train/tokens") is None:
            self.name = "steps"

    def place(self, steps: Num[np.ndarray, "points"]) -> Num[np.ndarray, "points"]:
        """Return the places of steps on the axis."""
        if self.name == "steps":
            return steps
        return metrics.along(self._records, steps, "train/tokens")


def report_figures(records: metrics.Records) -> dict[str, str]:
    """Return the figures of the report as SVG, by file name."""
    axis = _ReportAxis(records)
    marks = []
    for event in metrics.events(records, "resume"):
        # A restart from step 0 replaces the whole line, so there is nothing to mark.
        if event["step"]:
            places = axis.place(np.array([event["step"]]))
            marks.append(float(places[0]))
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
    recorded_shares = metrics.last_event(records, "data").get("shares")
    if recorded_shares:
        steps = [record["step"] for record in records.kept]
        drawn["shares"] = shares.figure(recorded_shares, max(steps, default=0))
    return drawn


def figure_legend(drawn: Mapping[str, str], points: int) -> str:
    """Return sentences on how to read the loss curve; "" where it is not drawn.

    Args:
      drawn: SVGs by name, see `report_figures`.
      points: number of recorded losses.
    """
    if "loss" not in drawn:
        return ""
    sentences = []
    if points >= 100:  # of fewer, 2 % are a single point
        sentences.append("Pale: every recorded step; strong: moving average over 2 % of them.")
    if points >= 20:  # of fewer, the 5 % that may leave the frame are no point
        sentences.append("The first steps lie above the frame.")
    # Only the marks of restarts are dashed lines.
    if "stroke-dasharray" in "".join(drawn.values()):
        sentences.append("Dotted vertical lines: restarts.")
    return " ".join(sentences)


def _single_curve(
    records: metrics.Records, curve: _Curve, axis: _ReportAxis, marks: list[float]
) -> str:
    """Draw one metric; "" where it has no finite value."""
    steps, values = metrics.series(records, curve.metric)
    if not np.isfinite(values).any():
        return ""
    x = axis.place(steps)
    noisy = curve.file not in EXACT
    lines = [figures.Line(curve.metric, x, values)]
    if noisy:
        # The moving average, and the raw values faintly behind it.
        lines = [
            figures.Line(curve.metric, x, figures.smooth(values)),
            figures.Line(curve.metric, x, values, faint=True),
        ]
    return figures.curves(
        lines,
        title=curve.title,
        x=axis.name,
        y=curve.unit,
        marks=marks,
        legend=False,
        clip=noisy,
    )


def _bits_lines(records: metrics.Records, axis: _ReportAxis) -> list[figures.Line]:
    """Return lines of bits per byte: each source and the total, or the total of a single source."""
    sources = evaluated_sources(records, "bits_per_byte")
    dots = None
    if len(sources) < 2:
        # The total is the source's own line. It has dots for the few evaluations.
        sources, dots = [], True
    lines = []
    for color, source in enumerate([*sources, "total"]):
        steps, values = metrics.series(records, bits_metric(source))
        if len(steps):
            x = axis.place(steps)
            lines.append(figures.Line(source, x, values, color=color, dots=dots))
    return lines
