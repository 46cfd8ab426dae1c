"""How much of every evaluation set the text of a recipe or a run holds.

python -m slmjax.bench contamination --config=RUN/config.json --out=contamination.json

One row for each evaluation set of $SLMJAX_SHARED (../shared/data unless set): `undecided` items are
too short or too much like many others to be looked for; `copied` ones are in a training document
with half of their words or more, in order; `familiar` is the median share of an item's words that
are in runs of five words of the training text, and `familiar_90%` the share that one item in ten
exceeds. The file that --out names has these shares of every item, for accuracy by coverage
(`evals.training_coverage.by_coverage`).
"""

import argparse
from typing import Any

import numpy as np

from slmjax.bench.find_contamination import shared_data
from slmjax.evals.training_coverage import (
    SetCoverage,
    evaluation_sets,
    source_texts,
    training_coverage,
)
from slmjax.text.sources import parse_sources

SHOWN = 200  # most characters of a passage that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench contamination`."""
    parser.add_argument("--show", type=int, default=50, help="copies printed, the surest first")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Look for all evaluation sets in the files of config.data.sources.

    Returns: {"bench", "sets" (a row each), "items" ({set: each item's shares}), "messages"}.
    Raises: UserError where the sets or the sources cannot be read.
    """
    sources = parse_sources(arguments.config.data.sources)
    coverage = training_coverage(evaluation_sets(shared_data()), source_texts(sources))
    rows, items = [], {}
    for name, of in coverage.sets.items():
        rows.append(_row(name, of))
        items[name] = {
            "copied": of.copied.round(4).tolist(),
            "familiar": of.familiar.round(4).tolist(),
            "decided": of.decided.tolist(),
        }
    counts = ", ".join(f"{count:,} of {name}" for name, count in coverage.documents.items())
    faults = sum(coverage.faults.values())
    messages = [f"documents looked through: {counts}; {faults:,} unreadable records", ""]
    for copy in coverage.found[: arguments.show]:
        place = f"{copy.coverage:.2f} {copy.set} {copy.item} in {copy.source}"
        messages.append(f"{place}: {copy.passage[:SHOWN]}")
    return {"bench": "contamination", "sets": rows, "items": items, "messages": messages}


def _row(name: str, of: SetCoverage) -> dict[str, Any]:
    row = {"set": name, "items": len(of.decided), "undecided": int((~of.decided).sum())}
    row["copied"] = int((of.copied > 0).sum())
    decided = of.familiar[of.decided]
    if len(decided):
        row["familiar"] = float(np.median(decided))
        row["familiar_90%"] = float(np.quantile(decided, 0.9))
    return row | of.hits
