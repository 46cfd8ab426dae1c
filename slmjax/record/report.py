"""report.html: what a run was, what it learned and what it cost, on one self-contained page."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from slmjax.readable import count, duration, flatten, percent
from slmjax.record import figures, goodput, metrics, page
from slmjax.record.evaluation_names import TOTAL_BITS
from slmjax.record.report_facts import (
    config_section,
    data_section,
    environment_section,
    lineage_section,
)
from slmjax.record.report_figures import figure_legend, report_figures
from slmjax.record.report_history import (
    extension_sentence,
    history_section,
    moment,
    time_section,
)
from slmjax.record.report_preferences import preferences_section
from slmjax.record.report_results import answers_section, heldout_section, samples_section
from slmjax.text.files import write_atomic


def write_report(
    workdir: str | os.PathLike,
    *,
    title: str = "",
    defaults: Mapping | None = None,
    extra: Sequence[tuple[str, str]] = (),
) -> epath.Path:
    """Write `report.html` and `figures/*.svg` into a work directory, from its config and metrics.

    Sections whose facts the run did not record are left out, so that a report can be written at any
    moment and after any stage.

    Args:
      title: heading; by default the name of the work directory.
      defaults: the base config as a nested dict; fields that differ from it are marked.
      extra: more sections, as (heading, HTML), before the data section.
    Returns: the path of report.html.
    """
    folder = epath.Path(workdir)
    records = metrics.read(folder)
    config = _read_config(folder / "config.json")
    default_values = None
    if defaults is not None:
        default_values = flatten(defaults)
    drawn = report_figures(records)
    sections = [page.tiles(_headline(records)), *_result_sections(records, drawn)]
    for heading, inner in extra:
        sections.append(page.section(heading, inner))
    shares = page.figures(drawn.get("shares", ""))
    sections += [
        page.section("Data", *data_section(records), shares),
        page.section("History", *history_section(records)),
        page.section("Lineage", *lineage_section(records)),
        page.section("Config", *config_section(config, default_values)),
        page.section("Environment", *environment_section(records)),
    ]
    # Each figure also becomes a file of its own, for a paper or a talk.
    for name, svg in drawn.items():
        write_atomic(folder / "figures" / f"{name}.svg", figures.standalone(svg))
    report = folder / "report.html"
    html = page.page(title or folder.name, _lead(records, config), "".join(sections))
    write_atomic(report, html)
    return report


def _read_config(path: epath.Path) -> dict[str, Any]:
    """Return the config's fields by dotted names; {} where the file is missing or damaged."""
    try:
        return flatten(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _result_sections(records: metrics.Records, drawn: Mapping[str, str]) -> list[str]:
    """Return the sections between headline numbers and data: curves, scores, samples and time."""
    recorded_steps, _ = metrics.series(records, "train/loss")
    legend = figure_legend(drawn, len(recorded_steps))
    if legend:
        legend = page.note(legend)
    learning = page.figures(drawn.get("loss", ""), drawn.get("bits_per_byte", ""))
    optimisation = page.figures(drawn.get("learning_rate", ""), drawn.get("gradient_norm", ""))
    return [
        page.section("Learning", learning, legend),
        page.section("Held-out text", *heldout_section(records)),
        page.section("Answers", *answers_section(records)),
        page.section("Preferences", *preferences_section(records)),
        page.section("Samples", *samples_section(records)),
        page.section("Time", *time_section(records)),
        page.section("Optimisation", optimisation),
    ]


def _lead(records: metrics.Records, config: Mapping[str, Any]) -> str:
    """Return the line below the heading, as HTML: how far the run is, its seed, its last record."""
    steps = [record["step"] for record in records.kept if "event" not in record]
    total = config.get("train.steps")
    parts = []
    if steps:
        progress = f"Step {max(steps):,}"
        # config.json may be missing, or hold anything.
        if isinstance(total, int):
            progress += f" of {total:,}"
        parts.append(progress)
        parts.append("finished" if metrics.events(records, "finish") else "not finished")
    if "seed" in config:
        parts.append(f"seed {config['seed']}")
    if records.all and records.all[-1].get("time"):
        # The time of the last record, even if a later resume dropped it.
        parts.append(moment(records.all[-1]["time"]))
    for event in metrics.events(records, "extended"):
        parts.append(page.escape(extension_sentence(event)))
    return " · ".join(parts)


def _headline(records: metrics.Records) -> dict[str, str]:
    """Return the headline numbers that the run recorded, by their names."""
    # The page shows them in this order.
    tiles = {}
    size = metrics.last_event(records, "start").get("parameters", {}).get("total")
    if size:
        tiles["parameters"] = count(size)
    tokens = metrics.last_value(records, "train/tokens")
    if tokens is not None:
        tiles["training tokens"] = count(tokens)
    bits = metrics.last_value(records, TOTAL_BITS)
    if bits is not None:
        tiles["bits per byte, held-out"] = f"{bits:.3f}"
    summary = goodput.summarise(records)
    if summary:
        tiles["goodput"] = percent(summary["goodput"])
        tiles["wall time"] = duration(summary["wall"])
    promise = _minutes(records)
    if promise:
        tiles["time taken, promised"] = promise
    # The median, as steps that write a checkpoint or meet a slow disk are outliers.
    _, speeds = metrics.series(records, "perf/tokens_per_second")
    if len(speeds):
        tiles["tokens a second"] = count(_finite_median(speeds))
    # A run on a device whose peak is not known records no MFU.
    _, utilisation = metrics.series(records, "perf/mfu")
    if np.isfinite(utilisation).any():
        tiles["MFU"] = percent(_finite_median(utilisation))
    _, memory = metrics.series(records, "perf/peak_memory_bytes")
    if len(memory):
        tiles["peak memory"] = f"{memory.max() / 2**30:.2f} GiB"
    skipped = metrics.last_value(records, "train/skipped")
    if skipped is not None and skipped > 0:
        tiles["steps skipped"] = f"{skipped:,.0f}"
    return tiles


def _minutes(records: metrics.Records) -> str:
    """Return the time that a run took and the one that config.train.minutes promised, in words.

    "" for other runs, and for one that is not finished or was interrupted.
    """
    promise = metrics.last_event(records, "minutes")
    finish = metrics.last_event(records, "finish")
    if not promise or not finish or metrics.events(records, "resume"):
        return ""
    promised = promise["promised_seconds"]
    taken = promised + finish["time"] - promise["deadline"]
    return f"{duration(taken)}, {duration(promised)}"


def _finite_median(values: Float[np.ndarray, "points"]) -> float:
    """Return the median of the finite values, NaN without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan
