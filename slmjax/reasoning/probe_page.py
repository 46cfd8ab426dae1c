"""The report of a reasoning probe."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from slmjax.readable import percent
from slmjax.reasoning.arms import ARMS
from slmjax.reasoning.probe_statistics import LEAST_ACCURACY, MATCHED
from slmjax.record import page
from slmjax.text.files import write_atomic

Row = Mapping[str, Any]


def write_probe_report(folder: epath.Path, results: Mapping[str, Any]) -> epath.Path:
    """Write report.html next to results.json, and return its path.

    Args:
      results: the content of results.json.
    """
    run, columns = results["run"], results["columns"]
    first, second = columns
    name = epath.Path(run["workdir"]).name
    parts = [
        page.tiles(
            {
                "run": name,
                "step": f"{run['step']:,}",
                f"solved, {first}": percent(columns[first]["p0"]),
                f"solved, {second}": percent(columns[second]["p0"]),
            }
        ),
        page.section("Does it reason?", _paragraphs(results["sentences"][-1:])),
        page.section("What was found", _paragraphs(results["sentences"][:-1])),
    ]
    for column, facts in columns.items():
        parts.append(page.section(f"Arms: {column}", _arms(facts), *_asked_note(facts)))
    parts += [
        page.section("Items", _items(columns), page.note(_P0)),
        page.section("Right solutions", _nats(columns), page.note(_NATS)),
        page.section("Seen in training", _novelty(columns), page.note(_NOVELTY)),
        page.section("Power, stated before", _power(results["power"]), page.note(_POWER)),
        page.section("Problems", *_problems(results["problems"])),
        page.section("Lineage", _lineage(run["lineage"])),
        page.section("Settings", _settings(results)),
    ]
    lead = f"{page.escape(results['date'])} · {page.escape(results['device'])}"
    path = folder / "report.html"
    write_atomic(path, page.page(f"Reasoning of {name}", lead, "\n".join(parts)))
    return path


_P0 = "P0 is each template with other numbers of the same magnitude; every arm changes one thing."
_NATS = (
    "Nats a token of the right solution after the question: less is better. The difference is that "
    "to the arm's baseline, over templates, where both have the same solutions. It says something "
    f"also where fewer than {LEAST_ACCURACY:.0%} are solved."
)
_NOVELTY = (
    "Whether the problems that may be trained on have one with the same operators in the same "
    "order (skeleton), and with the same way of results from step to step (flow)."
)
_POWER = (
    "How often a drop of so many points would be found, simulated before anything was asked; with "
    "Holm's correction among all arms."
)


def _paragraphs(sentences: Sequence[str]) -> str:
    return "".join(f"<p>{page.escape(sentence)}</p>" for sentence in sentences)


def _arms(facts: Row) -> str:
    rows = []
    for arm in facts["arms"]:
        points = f"{100 * arm['difference']:+.1f}"
        interval = f"{100 * arm['low']:+.1f} to {100 * arm['high']:+.1f}"
        adjusted = None if arm["adjusted"] is None else f"{arm['adjusted']:.2g}"
        accuracy = percent(arm["accuracy"])
        templates = str(arm["templates"])
        expected = None if arm["expected"] is None else percent(arm["expected"])
        meaning = ARMS[arm["arm"]].meaning
        cells = [arm["arm"], meaning, arm["baseline"], arm["verdict"]]
        rows.append([*cells, accuracy, points, interval, adjusted, expected, templates])
    head = ["arm", "change", "against", "verdict", "solved", "points", "95 % interval"]
    head += ["adjusted p", "if steps slip", "templates"]
    return page.html_table(*page.without_empty_columns(head, rows, always=4), text_columns=4)


def _asked_note(facts: Row) -> list[str]:
    if len(facts["asked"]) > 2:
        return []
    least = f"{LEAST_ACCURACY:.0%}"
    return [page.note(f"Fewer than {least} of P0 are solved, so the other arms were not asked.")]


def _items(columns: Mapping[str, Row]) -> str:
    rows = []
    for column, facts in columns.items():
        for arm in facts["asked"]:
            file = f"items/{column.replace(' ', '-')}-{arm}.html"
            link = page.Markup(f'<a href="{page.escape(file)}">{page.escape(arm)}</a>')
            rows.append([link, column, ARMS[arm].meaning])
    return page.html_table(["arm", "column", "change"], rows, text_columns=3)


def _nats(columns: Mapping[str, Row]) -> str:
    """Return a row for each arm, with both columns next to each other."""
    head, rows = ["arm", "change"], {}
    for column, facts in columns.items():
        head += [f"{column}, nats", "difference", "95 % interval"]
        for row in facts["nats"]:
            arm = row["arm"]
            cells = rows.setdefault(arm, [arm, ARMS[arm].meaning])
            cells.append(f"{row['nats']:.2f}")
            if "difference" in row:
                cells.append(f"{row['difference']:+.2f}")
                cells.append(f"{row['low']:+.2f} to {row['high']:+.2f}")
            else:
                cells += [None, None]
    return page.html_table(head, rows.values(), text_columns=2)


def _novelty(columns: Mapping[str, Row]) -> str:
    rows = []
    for column, facts in columns.items():
        for row in facts["novelty"]:
            rows.append([row["kind"], column, str(row["templates"]), percent(row["p0"])])
    return page.html_table(["kind", "column", "templates", "P0 solved"], rows, text_columns=2)


def _power(rows: Sequence[Row]) -> str:
    head = list(rows[0])
    cells = []
    for row in rows:
        cells.append([percent(v) if isinstance(v, float) else v for v in row.values()])
    return page.html_table(head, cells)


def _problems(problems: Row) -> list[str]:
    file = problems["file"] or "the package's own"
    rows = [
        ["problems", f"{problems['problems']:,}"],
        ["templates", f"{problems['templates']:,}"],
        *[[f"left out: {reason}", f"{n:,}"] for reason, n in problems["left_out"].items()],
    ]
    worst = min(problems["magnitudes"].values())
    matched = "are" if worst > MATCHED else "are NOT"
    note = (
        f"{file}, SHA-256 of the texts {problems['sha256']}. The magnitudes of new numbers "
        f"{matched} distributed as those of the originals (Kolmogorov-Smirnov, p = {worst:.2f})."
    )
    return [page.html_table([], rows), page.note(note)]


def _lineage(lineage: Sequence[Row]) -> str:
    rows = [[entry["workdir"], f"{entry['step']:,}", entry["hash"]] for entry in lineage]
    return page.html_table(["run", "step", "checkpoint"], rows)


def _settings(results: Row) -> str:
    rows = [[name, str(value)] for name, value in results["settings"].items()]
    command = f"<pre>{page.escape(results['command'])}</pre>"
    return page.html_table([], rows, text_columns=2) + command
