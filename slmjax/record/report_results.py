"""The sections of a run's report on what the model learned: held-out text, answers, samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from slmjax.readable import percent
from slmjax.record import metrics, page
from slmjax.record.evaluation_names import bits_metric, evaluated_sources

HELDOUT_NOTE = (
    "Text that training never saw: cross-entropy of its tokens in bits, divided by its bytes. "
    "Lower is better."
)
NGRAM_NOTE = (
    " An n-gram model predicts each token from the n - 1 before it, by counting in the same "
    "training text (interpolated Kneser-Ney). Last column: the final value divided by the best "
    "n-gram model's."
)


def heldout_section(records: metrics.Records) -> list[str]:
    """Return the table of bits per byte by source, next to n-gram models, and a note on it."""
    baseline = metrics.last_event(records, "baseline").get("kneser_ney", {})
    orders = sorted(baseline, key=str)
    sources = evaluated_sources(records, "bits_per_byte")
    rows, strong = [], []
    for source in [*sources, "total"]:
        only_source = source == "total" and len(sources) == 1
        rivals = [baseline[order].get(source) for order in orders]
        row = _heldout_row(records, source, rivals)
        if row is None or only_source:
            continue
        if source == "total":
            strong.append(len(rows))
        rows.append(row)
    if not rows:
        return []
    fixed = ["bits per byte", "final", "best", "at step"]
    rival_names = [f"{order}-gram" for order in orders]
    head = [*fixed, "exact answers", *rival_names, "to best"]
    head, rows = page.without_empty_columns(head, rows, always=len(fixed))
    note = HELDOUT_NOTE + NGRAM_NOTE if orders else HELDOUT_NOTE
    return [page.html_table(head, rows, strong=strong), page.note(note)]


def _heldout_row(
    records: metrics.Records, source: str, rivals: list[float | None]
) -> list[str | None] | None:
    """Return the cells of one source, None where it was not evaluated.

    Args:
      rivals: bits per byte of n-gram models, by their order.
    """
    steps, values = metrics.series(records, bits_metric(source))
    if not len(values):
        return None
    best = int(np.nanargmin(values)) if np.isfinite(values).any() else 0
    _, accuracies = metrics.series(records, f"eval/{source}/accuracy")
    accuracy = percent(accuracies[-1]) if len(accuracies) else None
    known_rivals = [rival for rival in rivals if rival]
    to_best = f"{values[-1] / min(known_rivals):.2f}×" if known_rivals else None
    own_cells = [source, f"{values[-1]:.3f}", f"{values[best]:.3f}", f"{steps[best]:,}"]
    rival_cells = [f"{rival:.3f}" if rival is not None else None for rival in rivals]
    return [*own_cells, accuracy, *rival_cells, to_best]


def answers_section(records: metrics.Records) -> list[str]:
    """Return the table of exact answers by kind of question, next to chance and an n-gram model."""
    rivals = metrics.last_event(records, "baseline").get("answers", {})
    rows = []
    for kind, result in _answered_kinds(records).items():
        rival = rivals.get(kind)
        if isinstance(rival, Mapping):
            rival = rival.get("accuracy")
        accuracy = result.get("accuracy")
        values = [accuracy, result.get("chance"), rival]
        cells = [percent(value) if value is not None else None for value in values]
        rows.append([kind, page.bar(accuracy or 0.0), *cells, result.get("count")])
    if not rows:
        return []
    head = ["kind", "", "exact answers", "chance", "n-gram model", "questions"]
    head, rows = page.without_empty_columns(head, rows)
    return [page.html_table(head, rows, left=2)]


def _answered_kinds(records: metrics.Records) -> dict[str, Mapping[str, Any]]:
    """Return the newest answers by kind; old runs kept the kinds next to the event's own fields."""
    event = metrics.last_event(records, "answers")
    fields = {**event, **event.get("kinds", {})}
    kinds = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and name != "kinds":
            kinds[name] = value
    return kinds


def samples_section(records: metrics.Records) -> list[str]:
    """Return the newest completions with their prompts, and a note on them."""
    event = metrics.last_event(records, "samples")
    boxes = []
    for sample in event.get("samples", []):
        prompt = page.escape(sample.get("prompt", ""))
        text = page.escape(sample.get("text", ""))
        boxes.append(f"<pre><b>{prompt}</b><span>{text}</span></pre>")
    if not boxes:
        return []
    note = f"Step {event.get('step', 0):,}. Strong: the prompt; the rest is the model's."
    return [f'<div class="samples">{"".join(boxes)}</div>', page.note(note)]
