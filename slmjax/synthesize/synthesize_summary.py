"""The last lines of the stage synthesize: what it wrote, why it stopped, what to do next."""

from typing import Any

from etils import epath

from slmjax.config import SynthesizeConfig
from slmjax.readable import percent
from slmjax.synthesize.openai_teacher import NAMES
from slmjax.synthesize.produce import Tally


def summary_lines(
    folder: epath.Path, settings: SynthesizeConfig, tally: Tally, figures: dict[str, Any]
) -> list[str]:
    """Return the last lines of a run.

    Args:
      folder: the work directory.
      tally: counts of this start.
      figures: those of coverage.json, for all starts.
    """
    written = figures["documents"]
    rejected = sum(figures["rejected"].values())
    checked = figures["checked"]
    lines = [
        f"{written:,} documents in {folder / 'documents'}, {rejected:,} rejected (rejects.jsonl "
        "says why).",
        f"Answers compared with computed ones in {checked['answers']:,}, calculations done again "
        f"in {checked['equations']:,}; near-duplicates {percent(figures['near_duplicates'])}. "
        f"Coverage: {folder / 'coverage.md'}",
    ]
    if rejected > written > 0:
        lines.append(
            f"WARNING: most answers were rejected, most of them for this reason: {figures['why']}."
        )
    tokens, dollars = figures["spent"]["tokens"], figures["spent"]["dollars"]
    spent = f"{tokens:,} tokens and ${dollars:.2f}"
    if dollars and not tally.spent:
        lines.append(f"Spent, with what is reserved for unanswered requests: {spent}.")
    if tally.spent:
        lines.append(
            f"The budget is spent ({spent}): {written + rejected:,} of {settings.documents:,} "
            "documents were asked for. The same command with more config.synthesize.tokens or "
            "cost goes on."
        )
    elif tally.signal:
        lines.append("Stopped. The same command goes on and asks for nothing twice.")
    return lines


def why_nothing_written(
    folder: epath.Path, settings: SynthesizeConfig, figures: dict[str, Any]
) -> str:
    """Return an error message with the reason why a run has no document."""
    rejected = sum(figures["rejected"].values())
    if not rejected:
        return (
            "config.synthesize: no document was written; the budget "
            f"(tokens={settings.tokens}, cost={settings.cost:g}) allows no request."
        )
    return (
        f"config.synthesize: no document was written; {rejected:,} answers were rejected or never "
        f"came, most of them for this reason: {figures['why']}. "
        f"{_advice(figures['why'], settings)}{folder / 'rejects.jsonl'} has them all."
    )


def _advice(reason: str, settings: SynthesizeConfig) -> str:
    """Return a clause that says which setting helps against a reason of rejects, or ""."""
    # A provider that rejects a parameter quotes its name.
    for name in NAMES:
        if any(quote + name + quote in reason for quote in "'\"`"):
            return (
                "config.synthesize.names says what the endpoint calls a parameter, or that it has "
                "none; "
            )
    if "max_tokens" in reason and ("cut at" in reason or "used up" in reason):
        return f"Raise config.synthesize.max_tokens, {settings.max_tokens}; "
    return ""
