"""Pages of an evaluation: its report, and every item of a task with answer and verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from slmjax.evals.evaluation_text import (
    contamination_line,
    copies_in_brief,
    figure_interval,
    figure_value,
)
from slmjax.readable import count, duration, percent
from slmjax.record import page
from slmjax.text.files import write_atomic

# Choosing one of the three hides the other items, without a script.
FILTER = """<style>
.item { border-left: 4px solid var(--c2); padding: 0 0 0 0.9rem; margin: 1.4rem 0;
  content-visibility: auto; contain-intrinsic-size: auto 9rem; }
.item.wrong { border-color: var(--c1); }
.item pre { border: 0; padding: 0; margin: 0.3rem 0; }
.item ul { list-style: none; padding: 0; margin: 0.3rem 0; }
#only-right:checked ~ .items .wrong, #only-wrong:checked ~ .items .right { display: none; }
input[name=shown] + label { margin-right: 1.2rem; }
</style>"""


def write_evaluation_report(folder: epath.Path, results: Mapping[str, Any]) -> epath.Path:
    """Write report.html next to results.json, and return its path.

    Args:
      results: the content of results.json.
    """
    run, tasks = results["run"], results["tasks"]
    seconds = sum(task["seconds"] for task in tasks.values())
    parts = [
        page.tiles(
            {
                "run": epath.Path(run["workdir"]).name,
                "step": f"{run['step']:,}",
                "tasks": str(len(tasks)),
                "items": count(sum(task["items"] for task in tasks.values())),
                "measured in": duration(seconds),
            }
        ),
        page.section("Headlines", _headlines(tasks), page.note(_INTERVALS)),
        page.section("All figures", *_all_figures(tasks)),
        page.section("Items in the training text", *_contamination(results)),
        page.section("Looks", *_looks(results["looks"])),
        page.section("Lineage", _lineage(run["lineage"])),
        page.section("Data", _data(tasks)),
        page.section("Settings", _settings(results)),
    ]
    lead = f"{page.escape(results['date'])} · {page.escape(results['device'])}"
    path = folder / "report.html"
    title = f"Evaluation of {epath.Path(run['workdir']).name}"
    write_atomic(path, page.page(title, lead, "\n".join(parts)))
    return path


def write_items(path: epath.Path, title: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a page with every item; those with a verdict can be filtered by it.

    Args:
      records: prompt, and of each kind of items more: options with gold and chosen (choices), gold
        and log_p (continuations), gold, answer, verdicts and sampled (questions), bits_per_byte
        (texts). right is the verdict.
    """
    items = [_item(number, record) for number, record in enumerate(records, 1)]
    body = f'{FILTER}\n{_filter(records)}\n<div class="items">{"".join(items)}</div>'
    lead = '<a href="../report.html">report</a>'
    write_atomic(path, page.page(title, lead, body))


_INTERVALS = (
    "Intervals are 95 %: Wilson's for shares, bootstraps over items for the rest. Chance is what "
    "guessing among the choices gives."
)


def _filter(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the three buttons; nothing for items without verdicts."""
    if "right" not in records[0]:
        return ""
    right = sum(record["right"] for record in records)
    labels = {
        "all": f"all {len(records):,}",
        "only-right": f"right {right:,}",
        "only-wrong": f"wrong {len(records) - right:,}",
    }
    parts = []
    for name, label in labels.items():
        checked = " checked" if name == "all" else ""
        parts.append(f'<input type="radio" name="shown" id="{name}"{checked}>')
        parts.append(f'<label for="{name}">{label}</label>')
    # Siblings of the items, which the rules of FILTER ask for.
    return "\n".join(parts)


def _item(number: int, record: Mapping[str, Any]) -> str:
    """Return the HTML of one item."""
    verdict = ""
    if "right" in record:
        verdict = "right" if record["right"] else "wrong"
    group = f" · {page.escape(record['group'])}" if record.get("group") else ""
    parts = [f"<b>{number}</b> {verdict}{group}"]
    # Pairs of sentences have no prompt.
    if record["prompt"]:
        parts.append(_block(record["prompt"]))
    if "options" in record:
        parts.append(_options(record))
    if "answer" in record:
        parts += [_named("answer", record["answer"]), _verdicts(record["verdicts"])]
        parts += [_named("expected", record["gold"]), _sampled(record["sampled"])]
    elif "log_p" in record:
        likelihood = f"{record['log_p']:.2f} nats"
        parts += [_named(f"expected ({likelihood})", record["gold"])]
    if "bits_per_byte" in record:
        parts.append(f"<p>{record['bits_per_byte']:.4f} bits per byte</p>")
    return f'<div class="item {verdict}">{"".join(parts)}</div>\n'


def _options(record: Mapping[str, Any]) -> str:
    lines = []
    for place, option in enumerate(record["options"]):
        marks = []
        if place == record["gold"]:
            marks.append("expected")
        if place == record["chosen"]:
            marks.append("chosen")
        text = page.escape(option["text"])
        if marks:
            text = f"<b>{text}</b>"
        details = ", ".join([f"{option['log_p']:.2f} nats", *marks])
        lines.append(f'<li>{text} <span class="note">{details}</span></li>')
    return f"<ul>{''.join(lines)}</ul>"


def _verdicts(verdicts: Mapping[str, Sequence[Any]]) -> str:
    parts = []
    for rule, (extracted, right) in verdicts.items():
        found = page.escape(extracted) or "no answer"
        parts.append(f"{page.escape(rule)}: {found} ({'right' if right else 'wrong'})")
    return f'<p class="note">{" · ".join(parts)}</p>'


def _sampled(sampled: Sequence[Mapping[str, Any]]) -> str:
    if not sampled:
        return ""
    right = sum(answer["right"] for answer in sampled)
    texts = []
    for answer in sampled:
        verdict = "right" if answer["right"] else "wrong"
        texts.append(_named(f"{verdict}, {answer['extracted'] or 'no answer'}", answer["text"]))
    summary = f"<summary>{right} of {len(sampled)} samples are right</summary>"
    return f"<details>{summary}{''.join(texts)}</details>"


def _named(name: str, text: str) -> str:
    return f'<p class="note">{page.escape(name)}</p>{_block(text)}'


def _block(text: str) -> str:
    return f"<pre>{page.escape(text.strip())}</pre>"


def _headlines(tasks: Mapping[str, Any]) -> str:
    """Return a table with the first figure of each task and a link to its items."""
    rows = []
    for label, task in tasks.items():
        name, figure = next(iter(task["figures"].items()))
        link = page.Markup(f'<a href="items/{page.escape(label)}.html">{page.escape(label)}</a>')
        copies = copies_in_brief(task["contamination"])
        rows.append([link, name, *_cells_of(name, figure), copies])
    headings = ["task", "figure", *_COLUMNS, "in the training text"]
    return page.html_table(headings, rows, text_columns=2)


_COLUMNS = ("value", "interval", "chance", "items")


def _cells_of(name: str, figure: Mapping[str, Any]) -> list[Any]:
    chance = figure["chance"]
    if chance is not None:
        chance = percent(chance)
    value = figure_value(name, figure["value"])
    return [value, figure_interval(name, figure), chance, f"{figure['count']:,}"]


def _all_figures(tasks: Mapping[str, Any]) -> list[str]:
    parts = []
    for label, task in tasks.items():
        rows = [[name, *_cells_of(name, figure)] for name, figure in task["figures"].items()]
        parts.append(f"<h3>{page.escape(label)}</h3>")
        parts.append(page.html_table(["figure", *_COLUMNS], rows))
        parts += [page.note(f"{note}.") for note in task["notes"]]
        line = contamination_line(task["contamination"]).rstrip(".")
        parts.append(page.note(f"{line[:1].upper()}{line[1:]}."))
        if task["items"] < task["total"]:
            parts.append(page.note(f"{task['items']:,} of {task['total']:,} items, drawn by seed."))
    return parts


def _contamination(results: Mapping[str, Any]) -> list[str]:
    """Return a row for each set whose items were looked for, and what was looked through."""
    found = results["contamination"]
    rows = []
    for name, of in found["sets"].items():
        rows.append([name, f"{of['items']:,}", f"{len(of['copied']):,}", f"{of['undecided']:,}"])
    parts = []
    if rows:
        headings = ["set", "items", "in the training text", "cannot be told"]
        parts.append(page.html_table(headings, rows))
        documents = ", ".join(f"{name} {n:,}" for name, n in found["documents"].items())
        faults = sum(found["faults"].values())
        parts.append(page.note(_SEARCH))
        parts.append(page.note(f"Documents looked through: {documents}; {faults:,} unreadable."))
    for name, reason in found["not_looked_for"].items():
        parts.append(page.note(f"{name}: {reason}."))
    for reason in found["unchecked"]:
        parts.append(page.note(f"Training text that could not be looked through: {reason}"))
    return parts


_SEARCH = (
    "An item counts as in the training text where one document of the run's or an ancestor's "
    "sources holds half of its words, or of its question's, in order and in one place. What cannot "
    "be told is too short or too much like many others."
)


def _looks(looks: Mapping[str, int]) -> list[str]:
    rows = [[name, str(number)] for name, number in looks.items()]
    if not rows:
        return []
    reason = (
        "How many figures of each test set were seen, of all runs with the same oldest ancestor, "
        "as looks.jsonl next to the run has them. The best of n looks is partly luck: choose "
        "between runs on training problems or held-out text, and look once."
    )
    return [page.html_table(["test set", "looks"], rows), page.note(reason)]


def _lineage(lineage: Sequence[Mapping[str, Any]]) -> str:
    rows = [[entry["workdir"], f"{entry['step']:,}", entry["hash"]] for entry in lineage]
    return page.html_table(["run", "step", "checkpoint"], rows)


def _data(tasks: Mapping[str, Any]) -> str:
    rows = {task["set"]: [task["set"], task["path"], task["sha256"]] for task in tasks.values()}
    return page.html_table(["set", "file", "SHA-256"], rows.values(), text_columns=3)


def _settings(results: Mapping[str, Any]) -> str:
    rows = [[name, str(value)] for name, value in results["settings"].items()]
    command = f"<pre>{page.escape(results['command'])}</pre>"
    return page.html_table([], rows, text_columns=2) + command
