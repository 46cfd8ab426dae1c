"""report.html: what a run was, what it learned and what it cost, on one self-contained page read from its work directory."""

import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from slmjax.readable import count, duration, flatten, percent
from slmjax.record import figures, goodput, metrics, page, shares
from slmjax.text.files import write_atomic

TOTAL = "eval/bits_per_byte"


def write_report(
    workdir: str | os.PathLike,
    *,
    title: str = "",
    defaults: Mapping | None = None,
    extra: Sequence[tuple[str, str]] = (),
) -> epath.Path:
    """Write `report.html` and `figures/*.svg` into a work directory, from its config.json and metrics alone.

    A part that the run did not record leaves its section out, so that a report can be written at any moment and after any stage.

    Args:
      title: heading; by default the name of the work directory.
      defaults: the base config as a nested dict; fields that differ from it are marked.
      extra: more sections, as (heading, HTML), before the data section.
    Returns: the path of report.html.
    """
    folder = epath.Path(workdir)
    records = metrics.read(folder)
    config = _read_config(folder / "config.json")
    drawn = _curves(records)
    points = len(metrics.series(records, "train/loss")[0])
    body = [
        page.tiles(_headline(records)),
        page.section(
            "Learning",
            page.figures(drawn.get("loss", ""), drawn.get("bits_per_byte", "")),
            _smoothing(drawn, points),
        ),
        page.section("Held-out text", *_domains(records)),
        page.section("Answers", *_answers(records)),
        page.section("Samples", *_samples(records)),
        page.section("Time", *_time(records)),
        page.section(
            "Optimisation",
            page.figures(drawn.get("learning_rate", ""), drawn.get("gradient_norm", "")),
        ),
        *(page.section(heading, inner) for heading, inner in extra),
        page.section("Data", *_data(records), page.figures(drawn.get("shares", ""))),
        page.section("History", *_history(records)),
        page.section("Lineage", *_lineage(records)),
        page.section(
            "Config", *_config(config, flatten(defaults) if defaults is not None else None)
        ),
        page.section("Environment", *_environment(records)),
    ]
    for name, svg in drawn.items():
        write_atomic(folder / "figures" / f"{name}.svg", figures.standalone(svg))
    report = folder / "report.html"
    write_atomic(report, page.page(title or folder.name, _lead(records, config), "".join(body)))
    return report


def _read_config(path: epath.Path) -> dict[str, Any]:
    """Its fields by dotted names; {} where it is missing or damaged."""
    try:
        return flatten(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _lead(records: metrics.Records, config: Mapping[str, Any]) -> str:
    steps = [record["step"] for record in records.kept if "event" not in record]
    total = config.get("train.steps")
    parts = []
    if steps:
        parts.append(f"Step {max(steps):,}" + (f" of {total:,}" if isinstance(total, int) else ""))
        parts.append("finished" if metrics.events(records, "finish") else "not finished")
    if "seed" in config:
        parts.append(f"seed {config['seed']}")
    if records.all and records.all[-1].get("time"):
        parts.append(_moment(records.all[-1]["time"]))
    parts += [
        page.escape(text)
        for text in (_extension(event) for event in metrics.events(records, "extended"))
    ]
    return " · ".join(parts)


def _headline(records: metrics.Records) -> dict[str, str]:
    spent = goodput.summarise(records)
    size = _last(records, "start").get("parameters", {}).get("total")
    names = (
        "train/tokens",
        "train/skipped",
        "perf/tokens_per_second",
        "perf/mfu",
        "perf/peak_memory_bytes",
        TOTAL,
    )
    tokens, skipped, speed, mfu, memory, bits = (metrics.series(records, name)[1] for name in names)
    return {
        "parameters": count(size) if size else "",
        "training tokens": count(tokens[-1]) if len(tokens) else "",
        "bits per byte, held-out": f"{bits[-1]:.3f}" if len(bits) else "",
        "goodput": percent(spent["goodput"]) if spent else "",
        "wall time": duration(spent["wall"]) if spent else "",
        "tokens a second": count(_median(speed)) if len(speed) else "",
        "MFU": percent(_median(mfu)) if np.isfinite(mfu).any() else "",
        "peak memory": f"{memory.max() / 2**30:.2f} GiB" if len(memory) else "",
        "steps skipped": f"{skipped[-1]:,.0f}" if len(skipped) and skipped[-1] > 0 else "",
    }


def _curves(records: metrics.Records) -> dict[str, str]:
    """The figures of the report, by file name, against training tokens (or steps where tokens were not recorded)."""
    axis = "tokens" if len(metrics.series(records, "train/tokens")[0]) else "steps"

    def place(steps):
        return metrics.along(records, steps, "train/tokens") if axis == "tokens" else steps

    marks = [
        float(place(np.array([event["step"]]))[0])
        for event in metrics.events(records, "resume")
        if event["step"]
    ]
    drawn = {}
    single = [
        ("loss", "train/loss", "Training loss", "nats per token"),
        ("learning_rate", "train/learning_rate", "Learning rate", ""),
        ("gradient_norm", "train/grad_norm", "Gradient norm, before clipping", ""),
    ]
    for file, name, title, unit in single:
        steps, values = metrics.series(records, name)
        if np.isfinite(values).any():
            noisy = file != "learning_rate"
            lines = [figures.Line(name, place(steps), figures.smooth(values) if noisy else values)]
            if noisy:
                lines.append(figures.Line(name, place(steps), values, faint=True))
            drawn[file] = figures.curves(
                lines, title=title, x=axis, y=unit, marks=marks, legend=False, clip=noisy
            )
    sources = _sources(records, "bits_per_byte")
    names = (
        [TOTAL]
        if len(sources) < 2
        else [*(f"eval/{source}/bits_per_byte" for source in sources), TOTAL]
    )
    lines = []
    for color, name in enumerate(names):
        steps, values = metrics.series(records, name)
        if len(steps):
            label = "total" if name == TOTAL else name.split("/", 1)[1].rsplit("/", 1)[0]
            lines.append(
                figures.Line(
                    label, place(steps), values, color=color, dots=True if len(names) == 1 else None
                )
            )
    if lines:
        drawn["bits_per_byte"] = figures.curves(
            lines, title="Held-out text", x=axis, y="bits per byte", marks=marks
        )
    planned = _last(records, "data").get("shares")
    if planned:
        drawn["shares"] = shares.figure(
            planned, max((record["step"] for record in records.kept), default=0)
        )
    return drawn


def _smoothing(drawn: Mapping[str, str], points: int) -> str:
    sentences = []
    if points >= 100:  # of fewer, 2 % are one point
        sentences.append("Pale: every recorded step; strong: moving average over 2 % of them.")
    if points >= 20:
        sentences.append("The first steps lie above the frame.")
    if any("stroke-dasharray" in svg for svg in drawn.values()):
        sentences.append("Dotted vertical lines: restarts.")
    return page.note(" ".join(sentences)) if "loss" in drawn and sentences else ""


def _domains(records: metrics.Records) -> list[str]:
    baseline = _last(records, "baseline").get("kneser_ney", {})
    orders = sorted(baseline, key=str)
    names = _sources(records, "bits_per_byte")
    rows, strong = [], []
    for source in [*names, "total"]:
        metric = TOTAL if source == "total" else f"eval/{source}/bits_per_byte"
        steps, values = metrics.series(records, metric)
        if not len(values) or (source == "total" and len(names) == 1):
            continue
        if source == "total":
            strong.append(len(rows))
        best = int(np.nanargmin(values)) if np.isfinite(values).any() else 0
        rivals = [baseline[order].get(source) for order in orders]
        known = [rival for rival in rivals if rival]
        share = f"{values[-1] / min(known):.2f}×" if known else None
        accuracy = metrics.series(records, f"eval/{source}/accuracy")[1]
        rows.append(
            [source, f"{values[-1]:.3f}", f"{values[best]:.3f}", f"{steps[best]:,}"]
            + [percent(accuracy[-1]) if len(accuracy) else None]
            + [f"{rival:.3f}" if rival is not None else None for rival in rivals]
            + [share]
        )
    head = [
        "bits per byte",
        "final",
        "best",
        "at step",
        "exact answers",
        *(f"{order}-gram" for order in orders),
        "to best",
    ]
    kept = [
        column
        for column in range(len(head))
        if column < 4 or any(row[column] is not None for row in rows)
    ]
    text = "Text that training never saw: cross-entropy of its tokens in bits, divided by its bytes. Lower is better."
    if orders:
        text += (
            " An n-gram model predicts each token from the n - 1 before it, by counting in the same training text "
            "(interpolated Kneser-Ney). Last column: the final value divided by the best n-gram model's."
        )
    return (
        [
            page.html_table(
                [head[c] for c in kept], [[row[c] for c in kept] for row in rows], strong=strong
            ),
            page.note(text),
        ]
        if rows
        else []
    )


def _answers(records: metrics.Records) -> list[str]:
    event = _last(records, "answers")
    kinds = {
        name: value
        for name, value in {**event, **event.get("kinds", {})}.items()
        if isinstance(value, Mapping) and name != "kinds"
    }
    rivals = _last(records, "baseline").get("answers", {})
    rows = []
    for kind, found in kinds.items():
        rival = rivals.get(kind)
        rival = rival.get("accuracy") if isinstance(rival, Mapping) else rival
        cells = [found.get("accuracy"), found.get("chance"), rival]
        shown = [percent(cell) if cell is not None else None for cell in cells]
        rows.append([kind, page.bar(found.get("accuracy") or 0.0), *shown, found.get("count")])
    head = ["kind", "", "exact answers", "chance", "n-gram model", "questions"]
    kept = [column for column in range(len(head)) if any(row[column] is not None for row in rows)]
    return (
        [page.html_table([head[c] for c in kept], [[row[c] for c in kept] for row in rows], left=2)]
        if rows
        else []
    )


def _samples(records: metrics.Records) -> list[str]:
    event = _last(records, "samples")
    boxes = [
        f"<pre><b>{page.escape(sample.get('prompt', ''))}</b><span>{page.escape(sample.get('text', ''))}</span></pre>"
        for sample in event.get("samples", [])
    ]
    text = f"Step {event.get('step', 0):,}. Strong: the prompt; the rest is the model's."
    return [f'<div class="samples">{"".join(boxes)}</div>', page.note(text)] if boxes else []


def _time(records: metrics.Records) -> list[str]:
    spent = goodput.summarise(records)
    if spent is None:
        return []
    names = {
        "kept": "training steps that were kept",
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
    wall = spent["wall"]
    rows = [
        [
            names["kept"],
            page.bar(spent["goodput"], 2),
            duration(spent["kept"]),
            percent(spent["goodput"]),
        ]
    ]
    lost = sorted(spent["lost"].items(), key=lambda item: -item[1])
    rows += [
        [names[cause], page.bar(seconds / wall, 1), duration(seconds), percent(seconds / wall, 2)]
        for cause, seconds in lost
    ]
    rows += [["wall time, first to last step", "", duration(wall), "100 %"]]
    before = {cause: seconds for cause, seconds in spent["before"].items() if seconds >= 0.05}
    text = "Goodput is the share of the first row."
    if before:
        causes = ", ".join(
            f"{cause.replace('_', ' ')} {duration(seconds)}" for cause, seconds in before.items()
        )
        text += f" Before the first step, and not in the wall time: {causes}."
    table = page.html_table(["", "", "time", "share"], rows, left=2, strong=[0, len(rows) - 1])
    return [table, page.note(text)]


def _data(records: metrics.Records) -> list[str]:
    event = _last(records, "data")
    sources = event.get("sources", {})
    columns = list(dict.fromkeys(key for found in sources.values() for key in found))
    rows = [
        [name, *(_cell(key, found.get(key)) for key in columns)] for name, found in sources.items()
    ]
    head = [
        "source",
        *(
            key.removesuffix("_share").replace("_", " ").replace("heldout", "held-out")
            for key in columns
        ),
    ]
    rest = {
        key: value
        for key, value in event.items()
        if key not in ("event", "step", "time", "sources", "told", "shares")
    }
    told = event.get("told", {})
    more = {
        name: sentence for name, sentence in told.items() if not sentence.endswith(" tokens")
    }  # than the table
    notes = [page.note(f"{name}: {sentence}.") for name, sentence in more.items()]
    return [page.html_table(head, rows), *notes, _pairs(rest)]


def _history(records: metrics.Records) -> list[str]:
    rows, reached = [], 0
    for record in records.all:
        name, step = record.get("event"), record.get("step", 0)
        text = _told(record, reached)
        if name == "resume":
            reached = step
        elif name is None or name == "goodput":
            reached = max(reached, step)
        if text and not (name == "start" and rows):  # later sessions say where they went on
            rows.append([_moment(record["time"]) if record.get("time") else "", text, f"{step:,}"])
    eventful = any(text not in ("started", "finished") for _, text, _ in rows)
    lost = (
        f"Lines of metrics.jsonl that cannot be read, and are left out: {records.torn:,}."
        if records.torn
        else ""
    )
    return [
        page.html_table(["when", "what", "step"], rows, left=2) if eventful else "",
        page.note(lost) if lost else "",
    ]


def _told(record: Mapping[str, Any], reached: int) -> str:
    """An event as a sentence of the run's history; "" for what is no news."""
    step = record.get("step", 0)
    match record.get("event"):
        case "start":
            return "started"
        case "resume":
            return f"went on from step {step:,}" + (
                f" (had reached {reached:,})" if reached > step else ""
            )
        case "extended":
            return _extension(record)
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
    return ""


def _lineage(records: metrics.Records) -> list[str]:
    parents = _last(records, "lineage").get("parents", [])
    columns = list(dict.fromkeys(key for parent in parents for key in parent))
    rows = [[_cell("", parent.get(key)) for key in columns] for parent in parents]
    return [page.html_table([key.replace("_", " ") for key in columns], rows, left=len(columns))]


def _config(config: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> list[str]:
    if not config:
        return []
    changed = {
        name
        for name in config
        if defaults is not None and json.dumps(defaults.get(name)) != json.dumps(config[name])
    }
    shown = {name: json.dumps(value, ensure_ascii=False) for name, value in sorted(config.items())}
    rows = list(shown.items())
    strong = [index for index, (name, _) in enumerate(rows) if name in changed]
    top = [
        [name, shown[name], json.dumps(defaults[name]) if name in defaults else "(new)"]
        for name in shown
        if name in changed
    ]
    whole = f"<details><summary>All {len(rows)} fields</summary>{page.html_table(['field', 'value'], rows, left=2, strong=strong)}</details>"
    return [page.html_table(["changed field", "value", "default"], top, left=3), whole]


def _environment(records: metrics.Records) -> list[str]:
    start = _last(records, "start")
    command = start.get("command", "")
    command = command if isinstance(command, str) else " ".join(command)
    made = f"<h3>The command that made it</h3><pre>{page.escape(command)}</pre>" if command else ""
    size = {
        f"{key.replace('_', '-')} parameters": value
        for key, value in start.get("parameters", {}).items()
    }
    return [_pairs({**start.get("environment", {}), **size, "choices": start.get("choices")}), made]


def _pairs(values: Mapping[str, Any]) -> str:
    rows = [
        [key.replace("_", " "), _cell(key, value)]
        for key, value in values.items()
        if value not in (None, "", [], {})
    ]
    return page.html_table([], rows, left=2)


def _cell(key: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        total = (
            sum(value.values())
            if value and all(isinstance(item, int) for item in value.values())
            else None
        )
        listed = ", ".join(f"{name} {_cell(key, item)}" for name, item in value.items())
        return listed if total is None else f"{total:,} ({listed})" if total else "0"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(key, item) for item in value)
    if key == "epochs":
        return f"{value:.2f}"
    if isinstance(value, float):
        return (
            percent(value, 2)
            if key.endswith("share") or key in ("weight", "removed")
            else f"{value:,.4g}"
        )
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _extension(event: Mapping[str, Any]) -> str:
    text = f"went back to step {event.get('from_step', event.get('step')):,}, before the decay"
    if event.get("steps"):
        text += f", and on from there on a schedule of {event['steps']:,} steps"
        text += f" instead of {event['before']:,}" if event.get("before") else ""
    return text


def _last(records: metrics.Records, name: str) -> dict[str, Any]:
    found = metrics.events(records, name)
    return found[-1] if found else {}


def _sources(records: metrics.Records, what: str) -> list[str]:
    names = dict.fromkeys(key for record in records.kept if "event" not in record for key in record)
    return [
        key[5 : -len(what) - 1]
        for key in names
        if key.startswith("eval/") and key.endswith(f"/{what}") and key != f"eval/{what}"
    ]


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
