"""The report's section on preferences: how often the chosen answer of a pair is preferred."""

from slmjax.readable import percent
from slmjax.record import metrics, page

NOTE = (
    "Held-out pairs of a chosen and a rejected answer: the share in which the model gives the "
    "tokens of the chosen one more probability, on average. Intervals (95 %) are over prompts. "
    "Margin: mean difference of the answers' log-odds. A model beats a rule only where its share "
    "is above that of the rule."
)
HEAD = [
    "source",
    "preferred",
    "95 % interval",
    "before",
    "margin",
    "longer wins",
    "shorter wins",
    "tokens, chosen",
    "rejected",
    "pairs",
    "prompts",
]


def preferences_section(records: metrics.Records) -> list[str]:
    """Return the table of preference accuracy by source, next to rules of length, and a note."""
    events = metrics.events(records, "preferences")
    if not events:
        return []
    first, last = events[0], events[-1]
    # A run that goes on from another one is scored before its first step.
    before = {}
    if first.get("step") == 0:
        before = first.get("sources", {})
    rows, bold_rows = [], []
    sources = last.get("sources", {})
    for name, score in sources.items():
        is_total = name == "preferences"
        # One source and the total, which is the same: left out.
        if is_total and len(sources) == 2:
            continue
        label = name
        if is_total:
            label = "all"
            bold_rows.append(len(rows))
        earlier = None
        if "accuracy" in before.get(name, {}):
            earlier = percent(before[name]["accuracy"])
        rows.append(
            [
                label,
                percent(score["accuracy"]),
                f"{percent(score['low'])} to {percent(score['high'])}",
                earlier,
                f"{score['margin']:.3f}",
                percent(score["longer"]),
                percent(1 - score["longer"]),
                f"{score['chosen_tokens']:.0f}",
                f"{score['rejected_tokens']:.0f}",
                f"{score['pairs']:,}",
                f"{score['prompts']:,}",
            ]
        )
    head, rows = page.without_empty_columns(HEAD, rows)
    note = f"Step {last.get('step', 0):,}. {NOTE}"
    return [page.html_table(head, rows, strong=bold_rows), page.note(note)]
