"""The report of the stage `curate`: counts before and after, samples, and the duplicates."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from slmjax.curate.minhash import Scheme
from slmjax.readable import count, percent
from slmjax.record import figures, page
from slmjax.text.files import write_atomic

UNDECIDED = (
    "An undecided item is too short, or too much like many others of its set, to be told from "
    "common phrases: it was not looked for."
)
Counts = Mapping[str, Any]  # report.json, or the entry of one source in it
DUPLICATE, LEFT = "duplicate", "left"
BY_REASON = ("documents", "bytes", "faults")  # fields of an entry: {reason: number}


def empty_counts() -> dict[str, Any]:
    """Return a source's entry before anything is counted."""
    return {
        # By what became of them: "read", or a reason to drop them.
        "documents": {},
        "bytes": {},
        # Records that cannot be used by reason, and the first one of each.
        "faults": {},
        "examples": {},
        # Some of the dropped documents of each reason.
        "samples": {},
        # Filled once duplicates are known.
        DUPLICATE: {"documents": 0, "bytes": 0},
        LEFT: {"documents": 0, "bytes": 0},
    }


def add_file_counts(entry: dict[str, Any], file_counts: Counts, samples: int) -> None:
    """Add the counts of one file's first pass to its source's entry.

    Args:
      file_counts: see `DropCounts.report`.
      samples: how many are kept of each reason; those of the first files stay.
    """
    for field in BY_REASON:
        totals = entry[field]
        # Sorted, as the reasons of a file come in the order of its documents.
        for reason, number in sorted(file_counts[field].items()):
            totals[reason] = totals.get(reason, 0) + number
    for reason, example in file_counts["examples"].items():
        entry["examples"].setdefault(reason, example)
    for reason, shown in file_counts["samples"].items():
        before = entry["samples"].get(reason, [])
        entry["samples"][reason] = [*before, *shown][:samples]


def dropped_by_kind(entry: Counts) -> Counter:
    """Return how many documents of a source each kind of reason has dropped.

    The kind of a reason is the part before its colon, such as the name of a rule.
    """
    totals: Counter = Counter()
    for reason, number in entry["documents"].items():
        if reason != "read":
            totals[reason.partition(":")[0]] += number
    return totals


def _read(entry: Counts, unit: str = "documents") -> int:
    """Return how many documents, or bytes, of a source were read."""
    return entry[unit].get("read", 0)


def curation_summary(result: Counts) -> str:
    """Return a table for the terminal, with a line for each source.

    Its columns are documents read, dropped by each kind of reason, removed as duplicates and left.
    """
    sources = result["sources"]
    kinds_seen = set()
    for entry in sources.values():
        kinds_seen |= set(dropped_by_kind(entry))
    kinds = sorted(kinds_seen)
    lines = [["source", "read", "faults", *kinds, DUPLICATE, LEFT, "bytes left"]]
    for name, entry in sources.items():
        dropped = dropped_by_kind(entry)
        numbers = [_read(entry), sum(entry["faults"].values())]
        numbers += [dropped[kind] for kind in kinds]
        numbers.append(entry[DUPLICATE]["documents"])
        numbers.append(entry[LEFT]["documents"])
        share = entry[LEFT]["bytes"] / max(1, _read(entry, "bytes"))
        cells = [f"{number:,}" for number in numbers]
        lines.append([name, *cells, percent(share)])
    return "\n".join(_aligned(lines))


def _aligned(lines: list[list[str]]) -> list[str]:
    """Return lines of text whose cells stand in columns; the first column is flush left."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths)]
        cells[0] = line[0].ljust(widths[0])
        aligned.append("  ".join(cells))
    return aligned


def write_curation_report(folder: epath.Path, result: Counts, command: str) -> None:
    """Write report.html and its figure."""
    sources = result["sources"]
    svg = match_curve(result)
    figure_folder = folder / "figures"
    figure_folder.mkdir(exist_ok=True)
    write_atomic(figure_folder / "similarity.svg", figures.standalone(svg))
    read = sum(map(_read, sources.values()))
    bytes_note = page.note("Bytes are of the text, before and after normalising.")
    notes = map(page.note, result["notes"])
    undecided_note = page.note(UNDECIDED) if result["evals"] else ""
    explanation = page.note(_explanation(result))
    body = [
        page.tiles(_tiles(result, read)),
        page.section("Alarm", *map(page.note, result["alarms"])),
        page.section("Warning", *map(page.note, result["warnings"])),
        page.section("Before and after", _size_table(sources), bytes_note, *notes),
        page.section("Why documents were dropped", _reason_table(sources)),
        page.section("Duplicates", page.figures(svg), explanation),
        page.section("Evaluation sets", _evals_table(result["evals"]), undecided_note),
    ]
    for name, entry in sources.items():
        body.append(page.section(f"Dropped from {name}", _sample_table(entry)))
    command_text = f"<pre>{page.escape(command)}</pre>" if command else ""
    body.append(page.section("Command", command_text))
    title = f"{folder.name}: curation"
    html = page.page(title, f"{count(read)} documents read", "".join(body))
    write_atomic(folder / "report.html", html)


def _tiles(result: Counts, read: int) -> dict[str, str]:
    left, duplicates = 0, 0
    for entry in result["sources"].values():
        left += entry[LEFT]["documents"]
        duplicates += entry[DUPLICATE]["documents"]
    seen = result["seen_before"]
    return {
        "documents read": f"{read:,}",
        "left": f"{left:,}",
        "duplicates": f"{duplicates:,}",
        "seen before": f"{seen:,}" if seen else "",
    }


def match_curve(result: Counts) -> str:
    """Return an SVG of the probability that a pair is compared at all, over its similarity.

    Bars show the similarities at which documents were removed.
    """
    similarity = np.linspace(0, 1, 201)
    probability = Scheme(**result["scheme"]).candidate_probability(similarity)
    lines = [figures.Line("shares a band", similarity, probability)]
    # Bins of equal width over the similarities from 0 to 1.
    removed_pairs = np.array(result["similarity"], float)
    if removed_pairs.any():
        bins = np.arange(len(removed_pairs))
        middle = (bins + 0.5) / len(removed_pairs)
        share = removed_pairs / removed_pairs.max()
        lines.append(figures.Line("removed pairs", middle, share, color=1, bars=True))
    return figures.curves(
        lines,
        title="How likely a pair is compared; removed pairs, most = 1",
        x="Jaccard similarity",
        y="share",
        clip=False,
        marks=[result["threshold"]],
    )


def _size_table(sources: Counts) -> str:
    # The last column holds a bar, which needs no name.
    head = ["source", "documents read", "bytes", "documents left", "bytes", "of the bytes", ""]
    rows = []
    for name, entry in sources.items():
        left = entry[LEFT]
        read_bytes = _read(entry, "bytes")
        share = left["bytes"] / read_bytes if read_bytes else 0.0
        row = [name, f"{_read(entry):,}", count(read_bytes)]
        row += [f"{left['documents']:,}", count(left["bytes"])]
        row += [percent(share), page.bar(share)]
        rows.append(row)
    return page.html_table(head, rows)


def _reason_table(sources: Counts) -> str:
    rows = []
    for name, entry in sources.items():
        read = max(1, _read(entry))
        most_frequent_first = sorted(_losses_by_reason(entry), key=lambda row: -row[1])
        for reason, number, size in most_frequent_first:
            if not number:
                continue
            share = percent(number / read)
            rows.append([name, reason, f"{number:,}", share, count(size)])
    head = ["source", "reason", "documents", "of those read", "bytes"]
    return page.html_table(head, rows, text_columns=2)


def _losses_by_reason(entry: Counts) -> list[tuple[str, int, int]]:
    """Return (reason, documents, bytes) of dropped documents, faults and duplicates of a source."""
    rows = []
    for reason, number in entry["documents"].items():
        if reason != "read":
            rows.append((reason, number, entry["bytes"][reason]))
    for reason, number in entry["faults"].items():
        # The size of a record that cannot be read is not known.
        rows.append((f"unreadable: {reason}", number, 0))
    duplicate = entry[DUPLICATE]
    rows.append(("near or exact duplicate", duplicate["documents"], duplicate["bytes"]))
    return rows


def _sample_table(entry: Counts) -> str:
    rows = []
    for reason, samples in sorted(entry["samples"].items()):
        for sample in samples:
            place = f"{sample['file']} line {sample['line']}"
            # Of a contaminated document the item's passage says more than the first lines.
            shown = sample["detail"] or sample["text"]
            rows.append([reason, place, shown])
    return page.html_table(["reason", "where", "text"], rows, text_columns=3)


def _evals_table(sets: Mapping[str, Any]) -> str:
    rows = []
    for name, counts in sets.items():
        rows.append([name, f"{counts['items']:,}", f"{counts['undecided']:,}"])
    return page.html_table(["set", "items", "undecided"], rows)


def _explanation(result: Counts) -> str:
    """Return the sentences below the figure of duplicates."""
    scheme = result["scheme"]
    largest = ", ".join(map(str, result["largest_clusters"])) or "none"
    return (
        f"Shingles of {scheme['ngram']} words, {scheme['bands']} bands of {scheme['rows']} hashes; "
        "a pair that shares a band is compared exactly and counts from a similarity of "
        f"{result['threshold']:g} on (the upright line). duplicates.jsonl has every decision. "
        f"Documents removed for one kept document, largest first: {largest}."
    )
