"""Looks for evaluation items in the corpus as it is, and measures the speed of the search."""

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
DOCUMENT = 3000  # characters that count as one document where speed is measured
SHOWN = 300  # characters of a passage in a line


class Scan(NamedTuple):
    """What a scan of the corpus gives."""

    domains: list[dict[str, Any]]  # a row for each domain, and one for all of them
    sets: list[dict[str, Any]]  # a row for each evaluation set: how many documents hold its items
    gsm8k: list[str]  # a line for each document flagged for GSM8K test, the surest first
    any_set: list[str]  # a line for each document flagged for any set, the surest first


def scan_corpus(
    gsm8k: EvalIndex,
    every: EvalIndex,
    grams: Matcher,
    root: Path,
    arguments: argparse.Namespace,
) -> Scan:
    """Search every domain for items of GSM8K test and of all sets.

    Args:
      gsm8k, every: the index of GSM8K test, and that of all sets.
      grams: the runs of 13 words of GSM8K test.
      root: the folder with pretrain/<domain>/.
    """
    indices = {"gsm8k": gsm8k, "every": every}
    flagged: dict[str, list[tuple[float, str]]] = {name: [] for name in indices}
    held: Counter[tuple[str, str]] = Counter()  # (set, domain) -> items found in its documents
    rows, total = [], Counter()
    for domain in DOMAINS:
        counts = Counter()
        documents = records_of(root / "pretrain" / domain)
        for record in itertools.islice(documents, arguments.documents or None):
            text = record.fields["text"]
            has_gram = len(grams.find(shingles(text))) > 0
            counts.update(documents=1, letters=len(text), grams=int(has_gram))
            for name, index in indices.items():
                started = time.process_time()
                hits = index.find_all(text, arguments.threshold)
                hits = sorted(hits, key=lambda hit: -hit.coverage)
                counts[f"{name} seconds"] += time.process_time() - started
                if hits:
                    counts[name] += 1
                    flagged[name].append((hits[0].coverage, _line(hits[0], record, text, domain)))
                if name == "every":
                    held.update((hit.set, domain) for hit in hits)
        rows.append(_domain_row(domain, counts))
        total += counts
    rows.append(_domain_row("all", total))
    return Scan(rows, _set_rows(every, held), _surest(flagged["gsm8k"]), _surest(flagged["every"]))


def records_of(path: Path) -> Iterator[Record]:
    """Yield the records of a file or folder; those that cannot be used are left out."""
    source = Source(path.stem, (str(path),))
    for file in list_files(source):
        for record in read_records(file, source):
            if isinstance(record, Record):
                yield record


def _domain_row(domain: str, counts: Mapping[str, float]) -> dict[str, Any]:
    documents = counts["letters"] / DOCUMENT
    return {
        "domain": domain,
        "documents": counts["documents"],
        "gsm8k": counts["gsm8k"],
        "gsm8k_%": 100 * counts["gsm8k"] / counts["documents"],
        "13-gram": counts["grams"],
        "any_set": counts["every"],
        "gsm8k_/s": documents / counts["gsm8k seconds"],
        "any_set_/s": documents / counts["every seconds"],
    }


def _set_rows(every: EvalIndex, held: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    rows = []
    for name, (undecided_lines, items) in every.undecided().items():
        row = {"set": name, "items": items, "undecided": len(undecided_lines)}
        for domain in DOMAINS:
            row[domain] = held[name, domain]
        rows.append(row)
    return rows


def _surest(lines: list[tuple[float, str]]) -> list[str]:
    return [line for _, line in sorted(lines, reverse=True)]


def _line(hit: Hit, record: Record, text: str, domain: str) -> str:
    passage = " ".join(text[hit.start : hit.end].split())
    place = f"{domain} {record.fields['id']}"
    return f"{hit.coverage:.2f} {hit.set} {hit.item} in {place}: {passage[:SHOWN]}"
