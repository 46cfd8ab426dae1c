"""How well evaluation items hidden in training text are found, and what is flagged that should not be.

python -m slmjax.bench decontaminate

First table: GSM8K test items in training documents of every domain, hidden in each of the ways of slmjax/bench/planted.py. Second:
the corpus as it is, where GSM8K test is not supposed to be; documents that are flagged are printed. Third: how many items of every
evaluation set the corpus holds, and how many are too short to be decided. Last: problems of GSM8K train that hold one of GSM8K test.
Reads pretrain/<domain>/*.jsonl.xz, gsm8k/, aqua/, svamp/ and evals/ in $SLMJAX_SHARED (../shared/data unless set).
"""

import argparse
import collections
import dataclasses
import itertools
import os
import random
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.bench import planted
from slmjax.curate.decontaminate import THRESHOLD, EvalIndex, Hit, build_index
from slmjax.errors import UserError
from slmjax.text.hashing import Matcher, shingles
from slmjax.text.readers import read_records
from slmjax.text.records import Record, Source
from slmjax.text.source_files import list_files

CHOICES = ("query", "choices")
CONTINUED = ("context", "continuation")
SETS = {
    "gsm8k": ("gsm8k/test", ("question", "answer")),
    "svamp": ("svamp/svamp", ("Body", "Question")),
    **{
        f"aqua_{part}": (f"aqua/{part}", ("question", "options", "rationale"))
        for part in ("dev", "test")
    },
    "math": ("evals/math", ("context", "chain_of_thought")),
    "human_eval": ("evals/human_eval", ("prompt", "canonical_solution")),
    **{
        name: (f"evals/{name}", CHOICES)
        for name in ("arc_easy", "arc_challenge", "piqa", "copa", "openbook_qa")
    },
    "boolq": ("evals/boolq", ("query",)),
    "winogrande": ("evals/winogrande", ("context_options", "continuation")),
    "lambada_openai": ("evals/lambada_openai", CONTINUED),
    "triviaqa_sm_sub": ("evals/triviaqa_sm_sub", ("context", "answer")),
    **{
        f"bigbench_{name}": (f"evals/bigbench_{name}", CONTINUED)
        for name in ("operators", "repeat_copy_logic", "cs_algorithms")
    },
    "bigbench_qa_wikidata": ("evals/bigbench_qa_wikidata", CONTINUED),
    "bigbench_dyck_languages": ("evals/bigbench_dyck_languages", CONTINUED),
    "bigbench_strategy_qa": ("evals/bigbench_strategy_qa", ("query",)),
    "blimp": ("evals/blimp", ("sentence_good",)),
}
DOMAINS = ("books", "textbooks", "math", "docs", "code", "reference")
ENDING = ".jsonl.xz"
HOSTS = 900  # documents of each domain, from its beginning, in which items are hidden


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m slmjax.bench decontaminate`."""
    parser.add_argument("--planted", type=int, default=200, help="hidden items of each kind")
    parser.add_argument(
        "--documents", type=int, default=0, help="documents read of each domain; 0: all"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help="share of an item's words that flags a document",
    )
    parser.add_argument(
        "--show", type=int, default=50, help="flagged documents printed, of each list"
    )
    parser.add_argument("--seed", type=int, default=0, help="of items, documents and places")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure; returns {"bench", "rows" (kinds), "clean" (domains), "sets", "train" (hits), "messages"}.

    A hidden item is found when it, not another, covers at least the threshold; `least` is the smallest coverage of those found. Beside it
    is what the common rule would flag, that one run of 13 words of any item is in the document.
    Speed is that of `find_all` alone, in processor time, with documents counted as 3,000 characters each.
    Raises: UserError where the data is missing or numbers are out of range.
    """
    if (
        min(arguments.planted, arguments.show) < 1
        or arguments.documents < 0
        or not 0 < arguments.threshold <= 1
    ):
        raise UserError(
            "--planted and --show are 1 or more, --documents 0 or more, and --threshold above 0, at most 1."
        )
    root = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser()
    if not (root / "gsm8k").is_dir():
        raise UserError(f"{root} holds no gsm8k/; SLMJAX_SHARED names the folder that holds it.")
    settings = {
        name: {"path": str(root / f"{path}{ENDING}"), "fields": list(fields)}
        for name, (path, fields) in SETS.items()
    }
    own, started = build_index({"gsm8k": settings["gsm8k"]}), time.perf_counter()
    every, built = build_index(settings), time.perf_counter() - started
    messages = [f"index of {len(settings)} sets: built in {built:.1f} s, " + _sizes(every)]
    items = [record.fields for record in _records(root / "gsm8k" / f"test{ENDING}")]
    grams = Matcher(
        np.unique(
            np.concatenate([shingles(f"{item['question']}\n{item['answer']}") for item in items])
        )
    )
    rows = _hidden(own, grams, items, root, arguments)
    clean, sets, flagged = _scan(own, every, grams, root, arguments)
    messages += [
        f"\n{len(flagged['own'])} documents of the corpus flagged for GSM8K test:",
        *flagged["own"][: arguments.show],
    ]
    messages += [
        f"\n{len(flagged['every'])} for any set, the surest first:",
        *flagged["every"][: arguments.show],
    ]
    train = _train(own, items, root, arguments)
    messages += [f"\n{len(train)} problems of GSM8K train cover one of GSM8K test:"]
    messages += [
        f"{t['coverage']:.2f} train {t['line']}: {t['train']}\n     test {t['item']}: {t['test']}"
        for t in train[: arguments.show]
    ]
    return {
        "bench": "decontaminate",
        "rows": rows,
        "clean": clean,
        "sets": sets,
        "train": train,
        "messages": messages,
    }


def _records(path: Path) -> Iterator[Record]:
    source = Source(path.stem, (str(path),))
    return (
        record
        for file in list_files(source)
        for record in read_records(file, source)
        if isinstance(record, Record)
    )


def _sizes(index: EvalIndex) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.npz"
        index.save(path)
        tracemalloc.start()
        index = EvalIndex.load(path)
        memory = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return (
            f"{path.stat().st_size / 1e6:.0f} MB as a file, {memory / 1e6:.0f} MB in each process"
        )


def _hidden(
    index: EvalIndex, grams: Matcher, items: list[dict], root: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    hosts = [
        [
            record.fields["text"]
            for record in itertools.islice(_records(root / "pretrain" / domain), HOSTS)
        ]
        for domain in DOMAINS
    ]
    rows = []
    for kind, meaning in planted.KINDS.items():
        draw = random.Random(arguments.seed)
        able = [
            i
            for i, item in enumerate(items)
            if not kind.startswith("names") or planted.names_in(item)
        ]
        found, by_gram = [], 0
        for i, chosen in enumerate(draw.choices(able, k=arguments.planted)):
            text = planted.variant(items[chosen], kind, draw)
            document, place = planted.plant(text, draw.choice(hosts[i % len(hosts)]), kind, draw)
            hits = [
                hit
                for hit in index.find_all(document, arguments.threshold)
                if hit.item == chosen + 1
            ]
            found += [
                hit.coverage for hit in hits if hit.start < place + len(text) and place < hit.end
            ]
            by_gram += bool(len(grams.find(shingles(document))))
        row = {
            "hidden": kind,
            "items": arguments.planted,
            "found": len(found),
            "share": len(found) / arguments.planted,
        }
        row |= {"median": float(np.median(found or 0)), "least": min(found, default=0.0)}
        rows.append(row | {"13-gram": by_gram / arguments.planted, "how": meaning})
    return rows


def _scan(
    own: EvalIndex, every: EvalIndex, grams: Matcher, root: Path, arguments: argparse.Namespace
) -> tuple[list[dict], list[dict], dict[str, list[str]]]:
    """Rows of domains, rows of sets and a line for each flagged document."""
    clean, held, flagged, total = (
        [],
        collections.Counter(),
        {"own": [], "every": []},
        collections.Counter(),
    )
    for domain in DOMAINS:
        count = collections.Counter()
        for record in itertools.islice(
            _records(root / "pretrain" / domain), arguments.documents or None
        ):
            text = record.fields["text"]
            count.update(
                documents=1, letters=len(text), grams=int(len(grams.find(shingles(text))) > 0)
            )
            for name, index in (("own", own), ("every", every)):
                started = time.process_time()
                found = sorted(
                    index.find_all(text, arguments.threshold), key=lambda hit: -hit.coverage
                )
                count[f"{name} seconds"] += time.process_time() - started
                if found:
                    count[name] += 1
                    flagged[name].append((found[0].coverage, _line(found[0], record, text, domain)))
                held.update((hit.set, domain) for hit in found if name == "every")
        clean.append(_speeds(domain, count))
        total += count
    clean.append(_speeds("all", total))
    sets = [
        {"set": name, "items": items, "undecided": len(lines)}
        | {domain: held[name, domain] for domain in DOMAINS}
        for name, (lines, items) in every.undecided().items()
    ]
    return (
        clean,
        sets,
        {
            name: [line for _, line in sorted(lines, reverse=True)]
            for name, lines in flagged.items()
        },
    )


def _speeds(domain: str, count: Mapping[str, float]) -> dict[str, Any]:
    row = {
        "domain": domain,
        "documents": count["documents"],
        "gsm8k": count["own"],
        "gsm8k_%": 100 * count["own"] / count["documents"],
    }
    speeds = {name: count["letters"] / 3000 / count[f"{name} seconds"] for name in ("own", "every")}
    row |= {"13-gram": count["grams"]}
    return row | {
        "any_set": count["every"],
        "gsm8k_/s": speeds["own"],
        "any_set_/s": speeds["every"],
    }


def _line(hit: Hit, record: Record, text: str, domain: str) -> str:
    passage = " ".join(text[hit.start : hit.end].split())
    return f"{hit.coverage:.2f} {hit.set} {hit.item} in {domain} {record.fields['id']}: {passage[:300]}"


def _train(
    index: EvalIndex, items: list[dict[str, str]], root: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    out = []
    for record in _records(root / "gsm8k" / f"train{ENDING}"):
        hit = index.find(
            f"{record.fields['question']}\n{record.fields['answer']}", arguments.threshold
        )
        if hit:
            texts = {"train": record.fields["question"], "test": items[hit.item - 1]["question"]}
            out.append({"line": record.line, **dataclasses.asdict(hit), **texts})
    return sorted(out, key=lambda row: -row["coverage"])
