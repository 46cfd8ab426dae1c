"""How well evaluation items hidden in training text are found, and what is flagged wrongly.

python -m slmjax.bench decontaminate

First table: GSM8K test items in training documents of every domain, hidden in each of the ways of
slmjax/bench/planted.py. Second: the corpus as it is, where GSM8K test is not supposed to be;
documents that are flagged are printed. Third: how many items of every evaluation set the corpus
holds, and how many are too short to be decided. Last: problems of GSM8K train that hold one of
GSM8K test.
Reads pretrain/<domain>/*.jsonl.xz, gsm8k/, aqua/, svamp/ and evals/ in $SLMJAX_SHARED
(../shared/data unless set).
"""

import argparse
import dataclasses
import itertools
import os
import random
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.bench import planted
from slmjax.bench.contamination_scan import DOMAINS, records_of, scan_corpus
from slmjax.curate.decontaminate import THRESHOLD, EvalIndex, build_index
from slmjax.errors import UserError
from slmjax.evals.training_coverage import ENDING, EVALUATION_SETS
from slmjax.text.hashing import Matcher, shingles

# Evaluation sets, and three that are training data here: (file in the data folder, without ENDING;
# fields whose text makes an item).
SETS = {
    **EVALUATION_SETS,
    "svamp": ("svamp/svamp", ("Body", "Question")),
    "aqua_dev": ("aqua/dev", ("question", "options", "rationale")),
    "aqua_test": ("aqua/test", ("question", "options", "rationale")),
}
HOSTS = 900  # documents of each domain, from its beginning, in which items are hidden


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench decontaminate`."""
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
    """Hide items and look for them, scan the corpus, and compare GSM8K train with GSM8K test.

    A hidden item is found if the hit is this item, not another one, and covers at least the
    threshold; `least` is the smallest coverage of the items that are found. The column 13-gram is
    the share, or in the corpus the number, of documents that the common rule would flag: any run of
    13 words of any item is in the document. Speed is that of `find_all` alone, in documents per
    second of processor time, with 3,000 characters counted as one document.

    Returns: {"bench", "rows" (one for each way of hiding), "clean" (one for each domain), "sets",
      "train" (hits), "messages"}.
    Raises: UserError where the data is missing or numbers are out of range.
    """
    _check_arguments(arguments)
    root = shared_data()
    settings = {}
    for name, (path, fields) in SETS.items():
        settings[name] = {"path": str(root / f"{path}{ENDING}"), "fields": list(fields)}
    gsm8k = build_index({"gsm8k": settings["gsm8k"]})
    started = time.perf_counter()
    all_sets = build_index(settings)
    seconds = time.perf_counter() - started

    items, item_grams = [], []
    for record in records_of(root / "gsm8k" / f"test{ENDING}"):
        items.append(record.fields)
        item_grams.append(shingles(planted.item_text(record.fields)))
    grams = Matcher(np.unique(np.concatenate(item_grams)))
    rows = _hide_and_find(gsm8k, grams, items, root, arguments)
    scan = scan_corpus(gsm8k, all_sets, grams, root, arguments)
    train = _train_problems(gsm8k, items, root, arguments.threshold)

    show = arguments.show
    messages = [
        f"index of {len(settings)} sets: built in {seconds:.1f} s, " + _size_of(all_sets),
        f"\n{len(scan.gsm8k)} documents of the corpus flagged for GSM8K test:",
        *scan.gsm8k[:show],
        f"\n{len(scan.any_set)} for any set, the surest first:",
        *scan.any_set[:show],
        f"\n{len(train)} problems of GSM8K train cover one of GSM8K test:",
    ]
    for row in train[:show]:
        messages.append(
            f"{row['coverage']:.2f} train {row['line']}: {row['train']}\n"
            f"     test {row['item']}: {row['test']}"
        )
    return {
        "bench": "decontaminate",
        "rows": rows,
        "clean": scan.domains,
        "sets": scan.sets,
        "train": train,
        "messages": messages,
    }


def _check_arguments(arguments: argparse.Namespace) -> None:
    too_few = min(arguments.planted, arguments.show) < 1 or arguments.documents < 0
    if too_few or not 0 < arguments.threshold <= 1:
        raise UserError(
            "--planted and --show are 1 or more, --documents 0 or more, and --threshold above 0, "
            "at most 1."
        )


def shared_data() -> Path:
    """Return $SLMJAX_SHARED. Raises: UserError where it holds no GSM8K."""
    root = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser()
    if not (root / "gsm8k").is_dir():
        raise UserError(f"{root} holds no gsm8k/; SLMJAX_SHARED names the folder that holds it.")
    return root


def _size_of(index: EvalIndex) -> str:
    """Return a text that says how large an index is on disk and in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.npz"
        index.save(path)
        size = path.stat().st_size
        # Loaded again, as each process of the curation loads it.
        tracemalloc.start()
        loaded = EvalIndex.load(path)
        memory = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del loaded
    return f"{size / 1e6:.0f} MB as a file, {memory / 1e6:.0f} MB in each process"


def _hide_and_find(
    index: EvalIndex,
    grams: Matcher,
    items: list[dict[str, Any]],
    root: Path,
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Hide items in documents of every domain and look for them.

    Args:
      index: of the items.
      grams: all runs of 13 words of the items.
    Returns: a row for each of planted.KINDS.
    """
    hosts = []  # for each domain, the texts of the documents in which items are hidden
    for domain in DOMAINS:
        documents = itertools.islice(records_of(root / "pretrain" / domain), HOSTS)
        hosts.append([record.fields["text"] for record in documents])
    rows = []
    for kind, meaning in planted.KINDS.items():
        # The same seed for each kind, so that kinds differ only by what they do to the items.
        draw = random.Random(arguments.seed)
        item_numbers = range(len(items))
        if kind.startswith("names"):
            # An item without a name would stay as it is.
            item_numbers = [number for number in item_numbers if planted.names_in(items[number])]
        coverages, documents_with_gram = [], 0
        for turn, number in enumerate(draw.choices(item_numbers, k=arguments.planted)):
            text = planted.variant(items[number], kind, draw)
            # Domains take turns, so that each gets the same number of items.
            host = draw.choice(hosts[turn % len(hosts)])
            document, place = planted.plant(text, host, kind, draw)
            for hit in index.find_all(document, arguments.threshold):
                overlaps = hit.start < place + len(text) and place < hit.end
                # An index counts items from 1.
                if hit.item == number + 1 and overlaps:
                    coverages.append(hit.coverage)
            if len(grams.find(shingles(document))):
                documents_with_gram += 1
        rows.append(
            {
                "hidden": kind,
                "items": arguments.planted,
                "found": len(coverages),
                "share": len(coverages) / arguments.planted,
                "median": float(np.median(coverages or 0)),  # 0 if nothing is found
                "least": min(coverages, default=0.0),
                "13-gram": documents_with_gram / arguments.planted,
                "how": meaning,
            }
        )
    return rows


def _train_problems(
    index: EvalIndex, items: list[dict[str, Any]], root: Path, threshold: float
) -> list[dict[str, Any]]:
    """Return a row for each problem of GSM8K train that covers one of GSM8K test.

    Rows are in the order of their coverage, the largest first.
    """
    rows = []
    for record in records_of(root / "gsm8k" / f"train{ENDING}"):
        problem = record.fields
        hit = index.find(planted.item_text(problem), threshold)
        if hit:
            test_question = items[hit.item - 1]["question"]
            texts = {"train": problem["question"], "test": test_question}
            rows.append({"line": record.line, **dataclasses.asdict(hit), **texts})
    return sorted(rows, key=lambda row: -row["coverage"])
