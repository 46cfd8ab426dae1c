"""Near-duplicate search: how right and how fast, beside datasketch, rensa and datatrove where they are installed.

python -m slmjax.bench dedup --quality     # real near-duplicates of $SLMJAX_SHARED/dedup against exact similarity of all pairs
python -m slmjax.bench dedup --documents=100000

Speed: slices of 3,000 bytes of $SLMJAX_SHARED/pretrain (textbooks, books, docs; SLMJAX_SHARED is ../shared/data unless set) in eight
uncompressed .jsonl files, half of them unique, the others in clusters of Zipf size up to 1,000 whose members have a Jaccard similarity of
0.5 to 1 to the first. From reading the files to clusters; all use the same word 5-grams, 14 bands of 8 and --processes processes.
"""

import argparse
import functools
import json
import lzma
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.bench import shell
from slmjax.bench.peers import minhash_libraries as dedup_peers
from slmjax.curate.clusters import candidates, cluster, exact_similarity
from slmjax.curate.minhash import Scheme, optimal_bands, sketch
from slmjax.curate.near_duplicates import deduplicate
from slmjax.errors import UserError
from slmjax.text.hashing import mix
from slmjax.text.records import Source

SIZE = 3000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m slmjax.bench dedup`."""
    parser.add_argument(
        "--quality", action="store_true", help="precision and recall instead of speed"
    )
    parser.add_argument(
        "--documents", type=int, default=100_000, help="documents of the speed test"
    )
    parser.add_argument("--length", type=int, default=SIZE, help="their bytes; from 300 on")
    parser.add_argument("--processes", type=int, default=2, help="that read and sketch")
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows of quality, or of speed.

    Quality: set, bands, threshold, who; pairs, how many have this similarity or more; removed, and exact, how many the greedy rule over
    all pairs would remove; precision, the share of removed documents that are so similar to a kept one; recall, the share of what the exact
    rule removes that is removed; left, documents that are kept although so similar to a kept one before them.
    Speed: documents_per_second (median), seconds, removed, peak_GiB of all processes together, an upper bound.
    Raises: UserError without the shared text.
    """
    root = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser()
    if not root.is_dir():
        raise UserError(
            f"{root} is no folder; SLMJAX_SHARED names the folder that holds dedup/ and pretrain/."
        )
    if arguments.quality:
        return {"bench": "dedup", "rows": quality(root, arguments), "curve": curve()}
    return {"bench": "dedup", "rows": speed(root, arguments)}


def quality(root: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows over both sets, thresholds 0.6 to 0.9, with 14 x 8 and with the optimal bands of 112 hashes."""
    rows = []
    for name in ("docversions", "editions"):
        texts = [record["text"] for record in _records(root / "dedup" / f"{name}_docs.jsonl.xz")]
        sets = [dedup_peers.word_shingles(text) for text in texts]
        exact = similarities(sets)
        for threshold in (0.6, 0.7, 0.75, 0.8, 0.9):
            for bands, per_band in dict.fromkeys([(14, 8), optimal_bands(threshold, 112)]):
                scheme = Scheme(bands=bands, rows=per_band)
                found = {"slmjax": ours(texts, scheme, threshold)}
                if not arguments.no_peers:
                    found |= dedup_peers.keepers(sets, scheme)
                shape = {"set": name, "bands": f"{bands} x {per_band}", "threshold": threshold}
                rows += [
                    {**shape, "who": who, **scores(keeper, exact, threshold)}
                    for who, keeper in found.items()
                ]
    return rows


def curve(pairs: int = 2000) -> list[dict[str, Any]]:
    """Rows of similarity, the share of made-up pairs that are compared, by the formula and measured, and the standard deviation of that."""
    rng, scheme, rows = np.random.default_rng(0), Scheme(ngram=1), []
    for common in range(50, 100, 5):
        texts = []
        for _ in range(pairs):
            words = [f"w{n}" for n in rng.integers(0, 10**12, 200 - common)]
            texts += [" ".join(words[:100]), " ".join(words[100 - common :])]
        bands = sketch(texts, scheme).bands
        similarity = common / (200 - common)
        formula = float(scheme.candidate_probability(similarity))
        rows.append(
            {
                "similarity": similarity,
                "formula": formula,
                "measured": float((bands[::2] == bands[1::2]).any(1).mean()),
                "deviation": (formula * (1 - formula) / pairs) ** 0.5,
            }
        )
    return rows


def ours(texts: Sequence[str], scheme: Scheme, threshold: float) -> np.ndarray:
    """Of every text, the one that is kept for it."""
    found = sketch(texts, scheme)
    keys = mix(np.unique(texts, return_inverse=True)[1].astype(np.uint64))
    return cluster(
        candidates(found.bands, keys),
        keys,
        exact_similarity(found.shingles, found.counts),
        threshold,
    ).keeper


def similarities(sets: Sequence[set[str]]) -> np.ndarray:
    """Exact Jaccard similarity of all pairs, float32 [documents, documents]."""
    holders: dict[str, list[int]] = {}
    for doc, shingles in enumerate(sets):
        for shingle in shingles:
            holders.setdefault(shingle, []).append(doc)
    common = np.zeros((len(sets), len(sets)), np.int32)
    for docs in holders.values():
        common[np.ix_(docs, docs)] += 1
    sizes = np.array([len(of) for of in sets])
    return (common / (sizes[:, None] + sizes[None] - common)).astype(np.float32)


def scores(keeper: np.ndarray, exact: np.ndarray, threshold: float) -> dict[str, Any]:
    """Precision and recall of the removed documents against exact similarities, see `run`."""
    near = np.tril(exact >= threshold, -1)
    kept = keeper == np.arange(len(keeper))
    greedy = np.ones(len(keeper), bool)
    for doc in range(len(keeper)):
        greedy[doc] = not (near[doc] & greedy).any()
    removed = np.flatnonzero(~kept)
    right = (
        exact[removed][:, kept].max(1, initial=0) >= threshold if len(removed) else np.ones(0, bool)
    )
    twins = near & kept[:, None] & kept[None]
    return {
        "pairs": int(near.sum()),
        "removed": len(removed),
        "exact": int((~greedy).sum()),
        "precision": float(right.mean()),
        "recall": float((~kept & ~greedy).sum() / (~greedy).sum()),
        "left": int(twins.any(1).sum()),
    }


def speed(root: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for ours and each peer; every run reads the files anew in a process of its own, which starts the others that it needs."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_planted(root, Path(folder) / "text", arguments.documents, arguments.length)
        load = os.getloadavg()[0]
        makers = {"slmjax": functools.partial(_own, files, arguments.processes, folder)}
        if not arguments.no_peers:
            makers |= dedup_peers.makers(files, Scheme(), arguments.processes, Path(folder))
        rows = []
        for who, make in makers.items():
            found = []
            for _ in range(
                arguments.runs if who == "slmjax" or arguments.documents <= 20_000 else 1
            ):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    found.append(pool.submit(_measured, make, arguments.processes).result())
            seconds, removed, peak = (statistics.median(of) for of in zip(*found))
            documents = arguments.documents // (
                len(files) if who == "datatrove" else 1
            )  # it would take minutes for all of them
            shape = {
                "documents": documents,
                "bytes": arguments.length,
                "processes": arguments.processes,
            }
            rows.append(
                {
                    "who": who,
                    **shape,
                    "documents_per_second": documents / seconds,
                    "seconds": seconds,
                    "removed": int(removed),
                    "peak_GiB": peak,
                    "load": load,
                }
            )
            shell.tell(rows[-1])
        return rows


def _own(files: Sequence[Path], processes: int, folder: str) -> int:
    with tempfile.TemporaryDirectory(dir=folder) as index:
        source = Source("slices", tuple(map(str, files)))
        return len(deduplicate([source], Path(index), processes=processes)[1].removed)


def _measured(make: Callable[[], int], processes: int) -> tuple[float, int, float]:
    """(seconds, what `make` returns, GiB): this process at its most, and as often as there are processes the largest that it started."""
    import resource

    started = time.perf_counter()
    removed = make()
    seconds = time.perf_counter() - started
    own, largest = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return seconds, removed, (own + processes * largest) / 2**20


def write_planted(
    root: Path, folder: Path, documents: int, length: int, seed: int = 0
) -> list[Path]:
    """The files of the speed test. Raises: UserError where there is not enough text."""
    random, folder_files = (
        np.random.default_rng(seed),
        [folder / f"{number}.jsonl" for number in range(8)],
    )
    folder.mkdir(parents=True)
    slices = list(_slices(root, length, 2 * documents))
    if len(slices) < 0.6 * documents:
        raise UserError(
            f"--documents={documents}: {root} has {len(slices)} slices of {length} bytes; at least {0.6 * documents:.0f} are needed."
        )
    random.shuffle(slices)
    texts, spare, at = slices[: documents // 2], slices[documents // 2 :], 0
    while len(texts) < documents:
        first, at = spare[at % len(spare)], at + 1
        texts.append(first)
        for _ in range(min(1000, random.zipf(1.3)) - 1):
            texts.append(
                _changed(first, spare[random.integers(len(spare))], random.uniform(0.5, 1), random)
            )
    texts = [texts[i] for i in random.permutation(documents)]
    for number, file in enumerate(folder_files):
        part = texts[number::8]
        file.write_text(
            "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part),
            encoding="utf8",
        )
    return folder_files


def _slices(root: Path, length: int, most: int) -> Iterator[str]:
    found = 0
    for domain in ("textbooks", "books", "docs"):
        for file in sorted((root / "pretrain" / domain).glob("*.jsonl.xz")):
            for record in _records(file):
                text = record["text"].encode()
                for start in range(0, len(text) - length + 1, length):
                    yield text[start : start + length].decode(errors="ignore")
                    found += 1
                    if found == most:
                        return


def _changed(text: str, other: str, similarity: float, random: np.random.Generator) -> str:
    """`text` with a run of words of `other` in the place of its own, so that of its shingles this share is left in the union."""
    words, new = text.split(), other.split()
    shingles = max(1, len(words) - 4)
    changed = round(shingles * (1 - similarity) / (1 + similarity)) - 4
    if changed < 1:
        return text
    at = random.integers(max(1, len(words) - changed))
    return " ".join([*words[:at], *new[:changed], *words[at + changed :]])


def _records(file: Path) -> Iterator[dict]:
    with lzma.open(file, "rt", encoding="utf8", newline="\n") as lines:
        yield from map(json.loads, lines)
