"""A comparison as tables, for the terminal and the page, and as one self-contained HTML page."""

import json
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from slmjax.errors import UserError
from slmjax.readable import count
from slmjax.record import figures, metrics, page
from slmjax.record.comparison import ComparedRun, Comparison, differences
from slmjax.record.paired import Difference, bits_per_byte
from slmjax.record.verdicts import coverage_sentence, method, verdicts, warning
from slmjax.text.files import write_atomic

# Most characters of a config field's value in a table; longer ones are cut.
LONGEST_VALUE = 60


class Table(NamedTuple):
    """A table of texts; without rows it is left out."""

    # Titles of the columns.
    head: list[str]
    rows: list[list[str]]


class _Curve(NamedTuple):
    """A metric that is drawn for every run."""

    metric: str
    # The beginning of the figure's title; "against tokens" follows.
    title: str
    unit: str


class _Axis(NamedTuple):
    """A horizontal axis."""

    # As `metrics.along` knows it.
    name: str
    label: str
    # What a figure's title calls it.
    title: str


CURVES = (
    _Curve("train/loss", "Training loss", "nats per token"),
    _Curve("eval/bits_per_byte", "Held-out text, all sources,", "bits per byte"),
)
AXES = (
    _Axis("train/tokens", "tokens", "tokens"),
    _Axis("train/flops", "FLOPs", "FLOPs"),
    _Axis("seconds", "seconds", "time"),
)


def write_page(comparison: Comparison, out: str) -> None:
    """Write the comparison as one self-contained HTML page.

    Raises: UserError where it cannot be written.
    """
    names = [run.name for run in comparison.runs]
    documents = f"{comparison.paired.documents:,}"
    lead = f"{len(names)} runs · {documents} held-out documents scored by all"
    title = " · ".join(names)
    html = page.page(title, lead, "".join(_sections(comparison)))
    place = epath.Path(out)
    # A bucket has no folders, so nothing can be missing there.
    if not place.parent.exists() and "://" not in out:
        raise UserError(f"Cannot write {out}: there is no folder '{place.parent}'.")
    try:
        write_atomic(place, html)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}.") from error


def score_table(comparison: Comparison) -> Table:
    """Return a row for each source and group, the total first.

    Groups are rows, so that the table has the same width for any number of them.
    """
    paired = comparison.paired
    rows = []
    by_source = comparison.group_differences
    # "total" first, since False sorts before True; the other sources keep their order.
    for source in sorted(by_source, key=lambda source: source != "total"):
        bits = bits_per_byte(paired, source)
        document_count = paired.documents
        if source != "total":
            document_count = len(paired.bytes[source])
        # Only the row of the first group names the source and the number of documents.
        title, documents = source, f"{document_count:,}"
        for index, members in enumerate(comparison.groups):
            name = comparison.runs[members[0]].name
            spread = _mean_and_spread(bits[members])
            cells = _difference_cells(by_source[source][index], is_first=index == 0)
            rows.append([title, name, documents, spread, *cells])
            title = documents = ""
    head = ["source", "run", "documents", "bits per byte", "difference", "95 % interval"]
    return Table(head, rows)


def config_table(comparison: Comparison) -> Table:
    """Return a row of config fields for each group; no rows where all configs are the same.

    The first row has all fields that differ between groups, the other rows only those that differ
    from the first group's.
    """
    head = ["runs", "config"]
    # Runs of one group have one config, up to the seed.
    configs = [comparison.runs[members[0]].config for members in comparison.groups]
    all_differences = differences(configs)
    if not all_differences:
        return Table(head, [])
    rows = []
    for index, members in enumerate(comparison.groups):
        config = configs[index]
        shown_fields = all_differences
        if index:
            shown_fields = differences([configs[0], config])
        fields = []
        for name in shown_fields:
            fields.append(f"{name} = {_shown_value(config.get(name))}")
        rows.append([comparison.names(members), "; ".join(fields)])
    return Table(head, rows)


def _sections(comparison: Comparison) -> list[str]:
    """Return the sections of the page, as HTML."""
    groups = comparison.groups
    sentences = [f"<p>{page.escape(sentence)}</p>" for sentence in verdicts(comparison)]
    caution = warning(comparison)
    if caution:
        sentences.append(f'<p class="warn">{page.escape(caution)}</p>')
    # The rows of "total" come first, one for each group, and stand out.
    scores = page.html_table(*score_table(comparison), text_columns=2, strong=range(len(groups)))
    note = page.note(f"{coverage_sentence(comparison)} {method(comparison)}")
    curves = page.figures(*_draw_curves(comparison))
    configs = page.html_table(*config_table(comparison), text_columns=2)
    return [
        page.section("Verdict", *sentences),
        page.section("Held-out bits per byte", scores, note),
        page.section("Curves", _color_key(comparison), curves),
        page.section("Config", configs or "<p>The configs are the same.</p>"),
        page.section("Runs", page.html_table(*_run_table(comparison))),
    ]


def _color_key(comparison: Comparison) -> str:
    """Return the legend of all figures as HTML: the colour of each group's runs."""
    chips = []
    for number, members in enumerate(comparison.groups):
        names = comparison.names(members)
        square = f'<i style="background:var(--c{number % figures.COLORS})"></i>'
        chips.append(f"<span>{square}{page.escape(names)}</span>")
    return f'<div class="chips">{"".join(chips)}</div>'


def _run_table(comparison: Comparison) -> Table:
    """Return a row for each run: how far it has come, and whether it is finished."""
    rows = []
    for run in comparison.runs:
        last_step = "-"
        steps, _ = metrics.series(run.records, "train/loss")
        if len(steps):
            last_step = f"{steps[-1]:,}"
        tokens = _reached(run, "train/tokens")
        flops = _reached(run, "train/flops")
        finished = metrics.events(run.records, "finish")
        state = "finished" if finished else "not finished"
        rows.append([run.name, last_step, tokens, flops, state])
    return Table(["run", "step", "tokens", "FLOPs", ""], rows)


def _reached(run: ComparedRun, metric: str) -> str:
    """Return the newest value of a metric that only grows, "-" where it was not recorded."""
    value = metrics.last_value(run.records, metric)
    return "-" if value is None else count(value)


def _draw_curves(comparison: Comparison) -> list[str]:
    """Draw every metric against every axis, the runs of one group in one colour."""
    # {index of a run: number of its group, which is its colour}
    colors = {}
    for number, members in enumerate(comparison.groups):
        colors.update(dict.fromkeys(members, number))
    drawn = []
    for axis in AXES:
        for curve in CURVES:
            lines = []
            for index, run in enumerate(comparison.runs):
                lines += _run_lines(run, curve.metric, axis.name, colors[index])
            # Runs that another library recorded may lack the metric or the axis.
            if lines:
                title = f"{curve.title} against {axis.title}"
                svg = figures.curves(lines, title=title, x=axis.label, y=curve.unit, legend=False)
                drawn.append(svg)
    return drawn


def _run_lines(run: ComparedRun, metric: str, axis: str, color: int) -> list[figures.Line]:
    """Return the line of one run; none where it has no such metric or axis."""
    steps, values = metrics.series(run.records, metric)
    x = metrics.along(run.records, steps, axis)
    if not len(steps) or x is None:
        return []
    if metric == "train/loss":
        # The loss of one batch is noisy; the held-out metrics are not.
        values = figures.smooth(values)
    return [figures.Line(run.name, x, values, color=color)]


def _mean_and_spread(bits: Float[np.ndarray, "_runs"]) -> str:
    """Return the mean of a group's runs, with their standard deviation where it has several."""
    if not np.isfinite(bits).all():
        return "not finite"
    text = f"{bits.mean():.4f}"
    if len(bits) > 1:
        # The deviation of single runs, not the standard error of their mean.
        text += f" ± {bits.std(ddof=1):.4f}"
    return text


def _difference_cells(difference: Difference, is_first: bool) -> list[str]:
    """Return two cells: a group's difference to the first group, and its interval."""
    if not np.isfinite(difference.value):
        return ["-", "-"]
    if is_first:
        return ["", ""]
    interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return [f"{difference.value:+.4f}", interval]


def _shown_value(value: Any) -> str:
    """Return a config field's value as JSON, cut where it is long."""
    if value is None:  # the run does not have the field
        return "-"
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= LONGEST_VALUE:
        return text
    return text[: LONGEST_VALUE - 1] + "…"
