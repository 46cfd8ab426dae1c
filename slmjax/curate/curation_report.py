"""What the stage `curate` tells: counts before and after by source and reason, samples of what was dropped, and the duplicates."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from slmjax.curate.minhash import Scheme
from slmjax.readable import count, percent
from slmjax.record import figures, page
from slmjax.text.files import write_atomic

UNDECIDED = "An undecided item is too short, or too much like many others of its set, to be told from common phrases: it was not looked for."


def empty_counts() -> dict[str, Any]:
    """A source's entry before anything is counted."""
    return {
        "documents": {},
        "bytes": {},
        "faults": {},
        "examples": {},
        "samples": {},
        **{name: {"documents": 0, "bytes": 0} for name in ("duplicate", "left")},
    }


def add(entry: dict[str, Any], found: Mapping[str, Any], samples: int) -> None:
    """Add what one file's pass reports; of the samples of a reason the first few files' are kept."""
    for what in ("documents", "bytes", "faults"):
        for reason, number in sorted(found[what].items()):
            entry[what][reason] = entry[what].get(reason, 0) + number
    for reason, example in found["examples"].items():
        entry["examples"].setdefault(reason, example)
    for reason, shown in found["samples"].items():
        entry["samples"][reason] = [*entry["samples"].get(reason, []), *shown][:samples]


def kinds(entry: Mapping[str, Any]) -> Counter:
    """Documents of a source that were dropped, by kind of reason: the rule, or what was found."""
    out: Counter = Counter()
    for reason, number in entry["documents"].items():
        if reason != "read":
            out[_kind(reason)] += number
    return out


def curation_summary(found: Mapping[str, Any]) -> str:
    """A table for the terminal: of each source what was read, dropped by each kind of reason, removed as duplicates, and left."""
    every = sorted({kind for entry in found["sources"].values() for kind in kinds(entry)})
    head = ["source", "read", "faults", *every, "duplicate", "left", "bytes left"]
    lines = [head]
    for name, entry in found["sources"].items():
        dropped = [kinds(entry)[kind] for kind in every]
        read = max(1, entry["bytes"].get("read", 0))
        lines.append(
            [
                name,
                *(
                    f"{n:,}"
                    for n in (
                        entry["documents"].get("read", 0),
                        sum(entry["faults"].values()),
                        *dropped,
                        entry["duplicate"]["documents"],
                        entry["left"]["documents"],
                    )
                ),
                percent(entry["left"]["bytes"] / read),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))
        )
        for line in lines
    )


def write_curation_report(folder: epath.Path, found: Mapping[str, Any], command: str) -> None:
    """Write report.html and its figure."""
    sources = found["sources"]
    read, left = (
        sum(
            entry[part]["documents"] if part == "left" else entry["documents"].get(part, 0)
            for entry in sources.values()
        )
        for part in ("read", "left")
    )
    duplicates = sum(entry["duplicate"]["documents"] for entry in sources.values())
    svg = match_curve(found)
    (folder / "figures").mkdir(exist_ok=True)
    write_atomic(folder / "figures" / "similarity.svg", figures.standalone(svg))
    body = [
        page.tiles(
            {
                "documents read": f"{read:,}",
                "left": f"{left:,}",
                "duplicates": f"{duplicates:,}",
                "seen before": f"{found['seen_before']:,}" if found["seen_before"] else "",
            }
        ),
        page.section("Alarm", *(page.note(alarm) for alarm in found["alarms"])),
        page.section("Warning", *(page.note(warning) for warning in found["warnings"])),
        page.section(
            "Before and after",
            _counts(sources),
            page.note("Bytes are of the text, before and after normalising."),
        ),
        page.section("Why documents were dropped", _reasons(sources)),
        page.section("Duplicates", page.figures(svg), page.note(_explained(found))),
        page.section(
            "Evaluation sets",
            _evals(found["evals"]),
            page.note(UNDECIDED) if found["evals"] else "",
        ),
        *(page.section(f"Dropped from {name}", _samples(entry)) for name, entry in sources.items()),
        page.section("Command", f"<pre>{page.escape(command)}</pre>" if command else ""),
    ]
    write_atomic(
        folder / "report.html",
        page.page(f"{folder.name}: curation", f"{count(read)} documents read", "".join(body)),
    )


def match_curve(found: Mapping[str, Any]) -> str:
    """SVG: how likely a pair of a similarity is compared at all, and how similar the pairs were that were removed."""
    at = np.linspace(0, 1, 201)
    height = np.array(found["similarity"], float)
    middle = (np.arange(len(height)) + 0.5) / len(height)
    lines = [figures.Line("shares a band", at, Scheme(**found["scheme"]).candidate_probability(at))]
    if height.any():
        lines.append(
            figures.Line("removed pairs", middle, height / height.max(), color=1, bars=True)
        )
    title = "How likely a pair is compared; removed pairs, most = 1"
    return figures.curves(
        lines,
        title=title,
        x="Jaccard similarity",
        y="share",
        clip=False,
        marks=[found["threshold"]],
    )


def _counts(sources: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in sources.items():
        before, after = (
            (entry["documents"].get("read", 0), entry["bytes"].get("read", 0)),
            (entry["left"]["documents"], entry["left"]["bytes"]),
        )
        share = after[1] / before[1] if before[1] else 0.0
        rows.append(
            [
                name,
                f"{before[0]:,}",
                count(before[1]),
                f"{after[0]:,}",
                count(after[1]),
                percent(share),
                page.bar(share),
            ]
        )
    return page.html_table(
        ["source", "documents read", "bytes", "documents left", "bytes", "of the bytes", ""], rows
    )


def _reasons(sources: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in sources.items():
        read = max(1, entry["documents"].get("read", 0))
        found = {
            reason: (n, entry["bytes"][reason])
            for reason, n in entry["documents"].items()
            if reason != "read"
        }
        found |= {f"unreadable: {reason}": (n, 0) for reason, n in entry["faults"].items()}
        found["near or exact duplicate"] = (
            entry["duplicate"]["documents"],
            entry["duplicate"]["bytes"],
        )
        rows += [
            [name, reason, f"{n:,}", percent(n / read), count(size)]
            for reason, (n, size) in sorted(found.items(), key=lambda of: -of[1][0])
            if n
        ]
    return page.html_table(
        ["source", "reason", "documents", "of those read", "bytes"], rows, left=2
    )


def _samples(entry: Mapping[str, Any]) -> str:
    shown = [(reason, one) for reason, found in sorted(entry["samples"].items()) for one in found]
    rows = [
        [reason, f"{one['file']} line {one['line']}", one["detail"] or one["text"]]
        for reason, one in shown
    ]
    return page.html_table(["reason", "where", "text"], rows, left=3)


def _evals(sets: Mapping[str, Any]) -> str:
    rows = [[name, f"{of['items']:,}", f"{of['undecided']:,}"] for name, of in sets.items()]
    return page.html_table(["set", "items", "undecided"], rows)


def _explained(found: Mapping[str, Any]) -> str:
    scheme = found["scheme"]
    largest = ", ".join(map(str, found["largest_clusters"])) or "none"
    return (
        f"Shingles of {scheme['ngram']} words, {scheme['bands']} bands of {scheme['rows']} hashes; a pair that shares a band is compared "
        f"exactly and counts from a similarity of {found['threshold']:g} on (the upright line). duplicates.jsonl has every decision. "
        f"Documents removed for one kept document, largest first: {largest}."
    )


def _kind(reason: str) -> str:
    return reason.partition(":")[0]
