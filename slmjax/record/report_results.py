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
    rows, bold_rows = [], []
    for source in [*sources, "total"]:
        if source == "total" and len(sources) == 1:
            # The total of one source is that source.
            continue
        rivals = [baseline[order].get(source) for order in orders]
        row = _heldout_row(records, source, rivals)
        if row is None:
            continue
        if source == "total":
            bold_rows.append(len(rows))
        rows.append(row)
    if not rows:
        return []
    # The first heading names the table; its column holds the sources. The fixed columns always
    # stay, the other columns only where some source has a value.
    fixed = ["bits per byte", "final", "best", "at step"]
    head = [*fixed, "before", "exact answers"]
    for order in orders:
        head.append(f"{order}-gram")
    head.append("to best")
    head, rows = page.without_empty_columns(head, rows, always=len(fixed))
    note = HELDOUT_NOTE
    if orders:
        note += NGRAM_NOTE
    return [page.html_table(head, rows, strong=bold_rows), page.note(note)]


def answers_section(records: metrics.Records) -> list[str]:
    """Return the table of exact answers by kind of question, next to chance and an n-gram model."""
    rivals = metrics.last_event(records, "baseline").get("answers", {})
    rows = []
    for kind, result in _answered_kinds(records).items():
        rival = rivals.get(kind)
        if isinstance(rival, Mapping):
            # Some records hold a dict of the share and other facts instead of the share.
            rival = rival.get("accuracy")
        accuracy = result.get("accuracy")
        shares = (accuracy, result.get("chance"), rival)
        cells = map(_known_percent, shares)
        rows.append([kind, page.bar(accuracy or 0.0), *cells, result.get("count")])
    if not rows:
        return []
    head = ["kind", "", "exact answers", "chance", "n-gram model", "questions"]
    head, rows = page.without_empty_columns(head, rows)
    return [page.html_table(head, rows, text_columns=2)]


def samples_section(records: metrics.Records) -> list[str]:
    """Return the newest completions with their prompts, and a note on them."""
    event = metrics.last_event(records, "samples")
    boxes = []
    for sample in event.get("samples", []):
        prompt = page.escape(sample.get("prompt", ""))
        text = page.escape(sample.get("text", ""))
        # A chat is a question and an answer, each with its speaker.
        if sample.get("is_chat"):
            prompt, text = f"{prompt}\n", f"assistant: {text}"
        boxes.append(f"<pre><b>{prompt}</b><span>{text}</span></pre>")
    if not boxes:
        return []
    note = f"Step {event.get('step', 0):,}. Bold: the prompt; the rest is the model's."
    note += _answer_lengths(records)
    return [f'<div class="samples">{"".join(boxes)}</div>', page.note(note)]


def _answer_lengths(records: metrics.Records) -> str:
    """Return sentences on how answers to held-out questions end; "" where none were asked."""
    answers = metrics.last_event(records, "answer_lengths").get("answers", {})
    sentences = ""
    for name, how in (("drawn", "Drawn at temperature 1"), ("greedy", "Greedy")):
        scores = answers.get(name)
        if scores:
            sentences += (
                f" {how}, {percent(scores['ended'])} of the answers to held-out questions end, "
                f"{percent(scores['empty'])} are empty, and their median length is "
                f"{scores['length']:.2f} of that of the references."
            )
    return sentences


def _heldout_row(
    records: metrics.Records, source: str, rivals: list[float | None]
) -> list[str | None] | None:
    """Return the cells of one source, None where it was not evaluated.

    Args:
      rivals: bits per byte of each n-gram model, by rising n; None for a model without a value.
    """
    steps, values = metrics.series(records, bits_metric(source))
    if not len(values):
        return None
    final = values[-1]
    best = 0
    # nanargmin fails where all values are NaN; then the first value is shown.
    if np.isfinite(values).any():
        best = int(np.nanargmin(values))
    cells = [source, f"{final:.3f}", f"{values[best]:.3f}", f"{steps[best]:,}"]
    # Only a run that goes on from another one is scored before its first step.
    before = None
    if steps[0] == 0 and len(steps) > 1:
        before = f"{values[0]:.3f}"
    cells.append(before)
    accuracy = metrics.last_value(records, f"eval/{source}/accuracy")
    cells.append(_known_percent(accuracy))
    for rival in rivals:
        cells.append(None if rival is None else f"{rival:.3f}")
    # Without the models that have no value, and without 0, which cannot be divided by.
    scored_rivals = list(filter(None, rivals))
    to_best = None
    if scored_rivals:
        to_best = f"{final / min(scored_rivals):.2f}×"
    return [*cells, to_best]


def _answered_kinds(records: metrics.Records) -> dict[str, Mapping[str, Any]]:
    """Return the newest answers by kind of question."""
    # Some records hold the kinds under "kinds", others as fields of the event itself.
    event = metrics.last_event(records, "answers")
    fields = {**event, **event.get("kinds", {})}
    kinds = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and name != "kinds":
            kinds[name] = value
    return kinds


def _known_percent(share: float | None) -> str | None:
    return None if share is None else percent(share)
