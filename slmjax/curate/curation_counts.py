"""What a curation counts: documents by what became of them, and alarms where too many went."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from slmjax.curate import curation_report
from slmjax.curate.clean import CurationUnit, reports_of
from slmjax.curate.clusters import Clusters
from slmjax.curate.curate_settings import Settings, conversation_notes, warnings
from slmjax.curate.decontaminate import EvalIndex
from slmjax.curate.sketch_files import COLUMNS, read_column
from slmjax.errors import UserError
from slmjax.text.walk import SKETCHES

Entry = Mapping[str, Any]  # counts of a source, see `curation_report.empty_counts`
Units = Sequence[CurationUnit]
# For each unit which of its documents are duplicates ("_": units differ in their documents).
RemovedOfUnits = Sequence[Bool[np.ndarray, " _"]]
SIMILARITIES = 50  # bars in the histogram of the similarities of removed documents
LARGEST = 10  # largest clusters that the report lists


def count_first_pass(settings: Settings, units: Units) -> dict[str, dict[str, Any]]:
    """Return the counts of the first pass for each source.

    All documents that the pass has kept count as left, until duplicates are known.

    Raises: UserError for damaged counts.
    """
    sources: dict[str, dict] = {}
    for unit in units:
        entry = sources.setdefault(unit.source.name, curation_report.empty_counts())
        try:
            for file_counts in reports_of(unit):
                curation_report.add_file_counts(entry, file_counts, settings["samples"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            file = unit.path(".json")
            raise UserError(f"{file} is damaged; delete {file.parent} and start again.") from error
        # Bytes of each kept document; those in the unit's counts are of the text as it was read.
        column = unit.path(SKETCHES) / "bytes"
        sizes = np.frombuffer(column.read_bytes(), COLUMNS["bytes"])
        entry["left"]["documents"] += len(sizes)
        entry["left"]["bytes"] += int(sizes.sum())
    return sources


def loss_alarms(settings: Settings, sources: Mapping[str, Entry]) -> list[str]:
    """Return alarms about sources that lose too much in the first pass."""
    alarms = []
    for name, entry in sources.items():
        alarms += _source_alarms(settings, name, entry)
    return alarms


def _source_alarms(settings: Settings, name: str, entry: Entry) -> list[str]:
    """Return the alarms about what one source loses in the first pass."""
    limit = settings["max_dropped"]
    limit_text = f"config.curate.max_dropped, {limit:.0%}"
    read = entry["documents"].get("read", 0)
    records = read + sum(entry["faults"].values())
    if not read:
        # One alarm is enough: the first fault says why.
        reason = next(iter(entry["examples"].values()), "its files hold no record")
        return [f"none of the {records:,} records of source '{name}' can be used ({reason})"]
    alarms = []
    for reason, count in entry["faults"].items():
        if count > limit * records:
            alarms.append(
                f"{count / records:.1%} of the records of source '{name}' cannot be used "
                f"({entry['examples'][reason]}), more than {limit_text}"
            )
    # By kind: the reasons of one rule count together, or each might stay below the limit.
    for kind, count in curation_report.dropped_by_kind(entry).items():
        if count > limit * read:
            alarms.append(
                f"source '{name}' loses {count / read:.1%} of its documents to {kind}, more than "
                f"{limit_text} (raise it, or take out what drops them)"
            )
    if not alarms and not entry["left"]["documents"]:
        alarms.append(f"source '{name}' loses all of its documents for one reason or another")
    return alarms


def count_duplicates(
    units: Units,
    removed_of_units: RemovedOfUnits,
    sources: Mapping[str, dict],
) -> None:
    """Count the duplicates as such, and no longer as left, in the counts of their sources."""
    for unit, removed in zip(units, removed_of_units):
        entry = sources[unit.source.name]
        column = unit.path(SKETCHES) / "bytes"
        sizes = read_column(column, COLUMNS["bytes"], 0, len(removed))
        documents = int(removed.sum())
        size = int(sizes[removed].sum())
        entry["duplicate"]["documents"] += documents
        entry["duplicate"]["bytes"] += size
        entry["left"]["documents"] -= documents
        entry["left"]["bytes"] -= size


def duplicate_alarms(settings: Settings, sources: Mapping[str, Entry]) -> list[str]:
    """Return alarms about sources that lose too many documents as duplicates.

    There is also one if no source has a document left.
    """
    limit = settings["max_removed"]
    alarms = []
    for name, entry in sources.items():
        duplicates = entry["duplicate"]["documents"]
        share = duplicates / max(1, duplicates + entry["left"]["documents"])
        if share > limit:
            alarms.append(
                f"source '{name}' loses {share:.1%} of its documents as duplicates, more than "
                f"config.curate.max_removed, {limit:.0%} (duplicates.jsonl has every pair; raise "
                "it if that is right)"
            )
    left = sum(entry["left"]["documents"] for entry in sources.values())
    if not alarms and not left:
        alarms = ["every document is a duplicate of one that was seen before"]
    return alarms


def report_counts(
    settings: Settings,
    units: Units,
    sources: Mapping[str, Any],
    alarms: Sequence[str],
) -> dict[str, Any]:
    """Return the content of report.json, with `cluster_counts` as if there were no duplicates."""
    evals = {}
    if units[0].evals_file:
        index = EvalIndex.load(units[0].evals_file)
        for name, (undecided, items) in index.undecided().items():
            evals[name] = {"items": items, "undecided": len(undecided)}
    # Each source once, though it may have several units.
    by_name = {unit.source.name: unit.source for unit in units}
    return {
        "sources": sources,
        "alarms": list(alarms),
        "warnings": warnings(settings),
        "notes": conversation_notes(settings, list(by_name.values())),
        "threshold": settings["threshold"],
        "scheme": dataclasses.asdict(units[0].scheme),
        "similarity": [0] * SIMILARITIES,
        "seen_before": 0,
        "largest_clusters": [],
        "evals": evals,
    }


def cluster_counts(
    clusters: Clusters, removed_of_units: RemovedOfUnits, first: int
) -> dict[str, Any]:
    """Return what report.json says of duplicates: similarities and sizes of clusters.

    Args:
      clusters: of all documents in the index, those of earlier batches, too.
      removed_of_units: of the documents of this batch.
      first: number of the batch's first document in the index.
    """
    removed = first + np.flatnonzero(np.concatenate(removed_of_units))
    similarity = clusters.similarity[removed]
    bars, _ = np.histogram(similarity, SIMILARITIES, (0, 1))
    # How many documents are removed for each kept one.
    _, sizes = np.unique(clusters.keeper[removed], return_counts=True)
    largest_first = np.sort(sizes)[::-1]
    return {
        "similarity": bars.tolist(),
        "seen_before": first,
        "largest_clusters": largest_first[:LARGEST].tolist(),
    }
