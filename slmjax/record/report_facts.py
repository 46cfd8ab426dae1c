"""The sections of a run's report on what went in: data, lineage, config and environment."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from slmjax.readable import percent
from slmjax.record import metrics, page

# Fields of an event "data" that are no rows of the table of other facts.
NO_FACTS = ("event", "step", "time", "sources", "told", "shares")


def data_section(records: metrics.Records) -> list[str]:
    """Return the table of sources, notes on caps and orders, and a table of the other facts."""
    event = metrics.last_event(records, "data")
    sources = event.get("sources", {})
    keys = _keys(sources.values())
    rows = []
    for name, facts in sources.items():
        row = [name]
        for key in keys:
            row.append(_cell(key, facts.get(key)))
        rows.append(row)
    head = ["source", *map(_column_title, keys)]
    notes = []
    # "told" holds the sentences of `shares.reading_sentences`.
    for name, sentence in event.get("told", {}).items():
        # Without a cap or an order it ends with the tokens, which the table shows too.
        if not sentence.endswith(" tokens"):
            notes.append(page.note(f"{name}: {sentence}."))
    other_facts = dict(event)
    for key in NO_FACTS:
        other_facts.pop(key, None)
    return [page.html_table(head, rows), *notes, _facts_table(other_facts)]


def lineage_section(records: metrics.Records) -> list[str]:
    """Return the table of the work directories that the run started from."""
    parents = metrics.last_event(records, "lineage").get("parents", [])
    keys = _keys(parents)
    rows = []
    for parent in parents:
        values = map(parent.get, keys)
        rows.append([_cell("", value) for value in values])
    head = map(_spaced, keys)
    return [page.html_table(list(head), rows, text_columns=len(keys))]


def config_section(config: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> list[str]:
    """Return the table of changed fields, and all fields folded away.

    Args:
      config, defaults: values by dotted names; without defaults no field counts as changed.
    """
    if not config:
        return []
    rows, changed_rows = [], []
    # Indices of the changed fields in `rows`.
    changed_indices = []
    for name, value in sorted(config.items()):
        text = json.dumps(value, ensure_ascii=False)
        # As JSON, since a default may be a tuple and the saved value a list.
        if defaults is not None and json.dumps(defaults.get(name)) != json.dumps(value):
            default = "(new)"
            if name in defaults:
                default = json.dumps(defaults[name])
            changed_rows.append([name, text, default])
            changed_indices.append(len(rows))
        rows.append([name, text])
    table = page.html_table(["field", "value"], rows, text_columns=2, strong=changed_indices)
    folded = f"<details><summary>All {len(rows)} fields</summary>{table}</details>"
    head = ["changed field", "value", "default"]
    return [page.html_table(head, changed_rows, text_columns=3), folded]


def environment_section(records: metrics.Records) -> list[str]:
    """Return the machine, the size of the model and the command of the newest start."""
    start = metrics.last_event(records, "start")
    facts = dict(start.get("environment", {}))
    for kind, number in start.get("parameters", {}).items():
        # A row such as "non-embedding parameters".
        facts[f"{kind.replace('_', '-')} parameters"] = number
    facts["choices"] = start.get("choices")
    command = start.get("command", "")
    if not isinstance(command, str):
        # Some runs recorded the command as a list of its words.
        command = " ".join(command)
    if not command:
        return [_facts_table(facts)]
    made_by = f"<h3>The command that made it</h3><pre>{page.escape(command)}</pre>"
    return [_facts_table(facts), made_by]


def _keys(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys of several mappings, each once, in the order in which they come."""
    # A dict, as it keeps the order.
    keys: dict[str, None] = {}
    for table in tables:
        keys.update(dict.fromkeys(table))
    return list(keys)


def _column_title(key: str) -> str:
    title = _spaced(key.removesuffix("_share"))
    return title.replace("heldout", "held-out")


def _spaced(key: str) -> str:
    return key.replace("_", " ")


def _facts_table(facts: Mapping[str, Any]) -> str:
    """Return a table of names and values; empty values are left out."""
    rows = []
    for key, value in facts.items():
        if value not in (None, "", [], {}):
            rows.append([_spaced(key), _cell(key, value)])
    return page.html_table([], rows, text_columns=2)


def _cell(key: str, value: Any) -> str:
    """Return a recorded value as the text of a cell; `key` decides on percent and digits."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _mapping_cell(key, value)
    if isinstance(value, list | tuple):
        return ", ".join(_cell(key, item) for item in value)
    if key == "epochs":
        return f"{value:.2f}"
    if isinstance(value, float):
        is_share = key.endswith("share") or key in ("weight", "removed")
        if is_share:
            return percent(value, 2)
        return f"{value:,.4g}"
    # In Python, True is an int too.
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _mapping_cell(key: str, values: Mapping[str, Any]) -> str:
    """Return "3 (empty 1, short 2)" where all values are counts, else "a 0.1, b 0.2"."""
    parts = []
    are_counts = bool(values)
    for name, item in values.items():
        parts.append(f"{name} {_cell(key, item)}")
        are_counts = are_counts and isinstance(item, int)
    listed = ", ".join(parts)
    if not are_counts:
        return listed
    total = sum(values.values())
    if total == 0:
        return "0"
    return f"{total:,} ({listed})"
