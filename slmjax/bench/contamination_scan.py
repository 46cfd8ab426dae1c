"""Look for evaluation items in the corpus as it is, and measure the speed of the search."""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from slmjax.curate.decontaminate import EvalIndex, Hit
from slmjax.text.hashing import Matcher, shingles
from slmjax.text.readers import read_records
from slmjax.text.records import Record, Source
from slmjax.text.source_files import list_files

DOMAINS = ("books", "textbooks", "math", "docs", "code", "reference")
DOCUMENT = 3000  # characters that count as one document when speed is measured
SHOWN = 300  # most characters of a passage that are printed


class Scan(NamedTuple):
    """The result of `scan_corpus`. Lines are in the order of coverage, the largest first."""

    domains: list[dict[str, Any]]  # a row for each domain, and one for all of them
    sets: list[dict[str, Any]]  # a row for each evaluation set: its items found in each domain
    gsm8k: list[str]  # a line for each document flagged for GSM8K test
    any_set: list[str]  # a line for each document flagged for any set


def scan_corpus(
    gsm8k: EvalIndex,
    all_sets: EvalIndex,
    grams: Matcher,
    root: Path,
    arguments: argparse.Namespace,
) -> Scan:
    """Search every domain for items of GSM8K test and of all sets.

    Args:
      gsm8k, all_sets: the index of GSM8K test, and that of all evaluation sets.
      grams: all runs of 13 words of GSM8K test.
      root: the folder with pretrain/<domain>/.
      arguments: have `threshold` and `documents`, how many are read of each domain (0: all).
    """
    indices = {"gsm8k": gsm8k, "any_set": all_sets}
    # {index: [(coverage, line) of each flagged document]}
    flagged: dict[str, list[tuple[float, str]]] = {name: [] for name in indices}
    items_found: Counter[tuple[str, str]] = Counter()  # {(set, domain): hits in its documents}
    rows, total = [], Counter()
    for domain in DOMAINS:
        counts = Counter()
        documents = records_of(root / "pretrain" / domain)
        for record in itertools.islice(documents, arguments.documents or None):
            text = record.fields["text"]
            has_gram = len(grams.find(shingles(text))) > 0
            counts.update(documents=1, characters=len(text), grams=int(has_gram))
            for name, index in indices.items():
                started = time.process_time()
                hits = index.find_all(text, arguments.threshold)
                hits = sorted(hits, key=lambda hit: -hit.coverage)
                counts[f"{name} seconds"] += time.process_time() - started
                if hits:
                    best = hits[0]
                    counts[name] += 1
                    flagged[name].append((best.coverage, _line(best, record, text, domain)))
                if name == "any_set":
                    items_found.update((hit.set, domain) for hit in hits)
        rows.append(_domain_row(domain, counts))
        total += counts
    rows.append(_domain_row("all", total))
    return Scan(
        domains=rows,
        sets=_set_rows(all_sets, items_found),
        gsm8k=_lines_by_coverage(flagged["gsm8k"]),
        any_set=_lines_by_coverage(flagged["any_set"]),
    )


def records_of(path: Path) -> Iterator[Record]:
    """Yield the records of a file or folder; lines that are no valid record are skipped."""
    source = Source(path.stem, (str(path),))
    for file in list_files(source):
        for record in read_records(file, source):
            # Anything else is a Fault, which describes a line that is no JSON object.
            if isinstance(record, Record):
                yield record


def _domain_row(domain: str, counts: Mapping[str, float]) -> dict[str, Any]:
    equal_documents = counts["characters"] / DOCUMENT
    return {
        "domain": domain,
        "documents": counts["documents"],
        "gsm8k": counts["gsm8k"],
        "gsm8k_%": 100 * counts["gsm8k"] / counts["documents"],
        "13-gram": counts["grams"],
        "any_set": counts["any_set"],
        "gsm8k_/s": equal_documents / counts["gsm8k seconds"],
        "any_set_/s": equal_documents / counts["any_set seconds"],
    }


def _set_rows(all_sets: EvalIndex, items_found: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    rows = []
    for name, (undecided_lines, items) in all_sets.undecided().items():
        row = {"set": name, "items": items, "undecided": len(undecided_lines)}
        for domain in DOMAINS:
            row[domain] = items_found[name, domain]
        rows.append(row)
    return rows


def _lines_by_coverage(lines: list[tuple[float, str]]) -> list[str]:
    return [line for _, line in sorted(lines, reverse=True)]


def _line(hit: Hit, record: Record, text: str, domain: str) -> str:
    """Return the line to print for a hit: its coverage, item, document and passage."""
    passage = " ".join(text[hit.start : hit.end].split())
    place = f"{domain} {record.fields['id']}"
    return f"{hit.coverage:.2f} {hit.set} {hit.item} in {place}: {passage[:SHOWN]}"
