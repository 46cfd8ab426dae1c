"""The sections of a run's report on time: where the seconds went, and what happened when."""

import datetime
from collections.abc import Mapping
from typing import Any

from slmjax.readable import duration, percent
from slmjax.record import goodput, metrics, page

# The causes of record/sessions.py, as the report names them.
CAUSES = {
    "start": "start of later sessions",
    "compile": "compiling",
    "restore": "restoring a checkpoint",
    "data_wait": "waiting for data",
    "checkpoint": "writing checkpoints",
    "evaluation": "evaluation and samples",
    "repeated": "steps done again after a restart",
    "extended": "steps that a longer schedule replaced",
    "down": "between a stop and the next start",
    "other": "everything else in the loop",
}
# Seconds; less would print as "0.0 s".
LEAST_SHOWN = 0.05


def time_section(records: metrics.Records) -> list[str]:
    """Return the table of kept and lost seconds by cause, and a note on the first start."""
    summary = goodput.summarise(records)
    if summary is None:
        return []
    wall, kept_share = summary["wall"], summary["goodput"]
    kept_cells = [page.bar(kept_share, color=2), duration(summary["kept"]), percent(kept_share)]
    rows = [["training steps that were kept", *kept_cells]]
    # The largest loss first.
    for cause, seconds in sorted(summary["lost"].items(), key=lambda item: -item[1]):
        share = seconds / wall
        bar = page.bar(share, color=1)
        rows.append([CAUSES[cause], bar, duration(seconds), percent(share, 2)])
    rows.append(["wall time, first to last step", "", duration(wall), "100 %"])
    # What came before the first step is outside the wall time, so it has no share.
    note = "Goodput is the share of the first row."
    before = []
    for cause, seconds in summary["before"].items():
        if seconds >= LEAST_SHOWN:
            before.append(f"{cause.replace('_', ' ')} {duration(seconds)}")
    if before:
        note += f" Before the first step, and not in the wall time: {', '.join(before)}."
    head = ["", "", "time", "share"]
    table = page.html_table(head, rows, text_columns=2, strong=[0, len(rows) - 1])
    return [table, page.note(note)]


def history_section(records: metrics.Records) -> list[str]:
    """Return the table of what happened to the run, and how many lines of metrics are damaged.

    A run that was only started and finished has no table.
    """
    rows = []
    # The highest step that the session has recorded so far.
    reached = 0
    # Whether anything happened between start and finish.
    eventful = False
    for record in records.all:
        name, step = record.get("event"), record.get("step", 0)
        sentence = _event_sentence(record, reached)
        if name == "resume":
            reached = step
        elif name is None or name == "goodput":
            reached = max(reached, step)
        # A later session has a row "went on from step ..." already, so its "started" is no news.
        later_start = name == "start" and rows
        if sentence and not later_start:
            when = ""
            if record.get("time"):
                when = moment(record["time"])
            rows.append([when, sentence, f"{step:,}"])
            eventful = eventful or sentence not in ("started", "finished")
    sections = []
    if eventful:
        sections.append(page.html_table(["when", "what", "step"], rows, text_columns=2))
    if records.torn:
        count = f"{records.torn:,}"
        note = f"Lines of metrics.jsonl that cannot be read, and are left out: {count}."
        sections.append(page.note(note))
    return sections


def extension_sentence(event: Mapping[str, Any]) -> str:
    """Return an event "extended" as a sentence: from which step the run went on, and how far."""
    first_step = event.get("from_step", event.get("step"))
    text = f"went back to step {first_step:,}, before the decay"
    if event.get("steps"):
        text += f", and on from there on a schedule of {event['steps']:,} steps"
        if event.get("before"):
            text += f" instead of {event['before']:,}"
    return text


def moment(seconds: float) -> str:
    """Return Unix seconds as local date and time, to the minute."""
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _event_sentence(record: Mapping[str, Any], reached: int) -> str:
    """Return an event as a sentence of the run's history; "" for what is no news.

    Args:
      reached: the highest step that the session before had recorded.
    """
    match record.get("event"):
        case "start":
            return "started"
        case "resume":
            step = record.get("step", 0)
            text = f"went on from step {step:,}"
            if reached > step:
                text += f" (had reached {reached:,})"
            return text
        case "extended":
            return extension_sentence(record)
        case "preempted":
            return "asked to stop: saved and left"
        case "stopped":
            return f"stopped: {record.get('reason', '')}"
        case "damaged":
            return f"damaged checkpoint passed over: {record.get('message', '')}"
        case "skipped":
            return f"step skipped: {record.get('reason', '')}"
        case "finish":
            return "finished"
    # Metrics, and events that other sections show.
    return ""
