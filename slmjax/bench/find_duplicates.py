"""Near-duplicate search: how correct and how fast, next to datasketch, rensa and datatrove.

Libraries that are not installed are left out.

python -m slmjax.bench dedup --quality
python -m slmjax.bench dedup --documents=100000

Quality: real near-duplicates of $SLMJAX_SHARED/dedup, compared with the exact similarity of all
pairs.

Speed: documents are slices of 3,000 bytes of $SLMJAX_SHARED/pretrain (textbooks, books, docs) in
eight uncompressed .jsonl files. Half of them are unique. The others are in clusters, whose sizes
follow Zipf's law up to 1,000 and whose members have a Jaccard similarity of 0.5 to 1 to the first.
The time is from reading the files to the finished clusters. All libraries use the same word
5-grams, 14 bands of 8 hashes and --processes processes.

SLMJAX_SHARED is ../shared/data unless set.
"""

import argparse
import functools
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slmjax.bench import shell
from slmjax.bench.duplicate_scores import scores, similarities
from slmjax.bench.peers import minhash_libraries as dedup_peers
from slmjax.bench.planted_duplicates import write_planted, xz_records
from slmjax.curate.clusters import candidates, cluster, exact_similarity
from slmjax.curate.minhash import Scheme, optimal_bands, sketch
from slmjax.curate.near_duplicates import deduplicate
from slmjax.errors import UserError
from slmjax.text.hashing import mix
from slmjax.text.records import Source

LENGTH = 3000  # bytes of a document
SETS = ("docversions", "editions")  # of real near-duplicates
THRESHOLDS = (0.6, 0.7, 0.75, 0.8, 0.9)
FINEWEB_BANDS = (14, 8)  # (bands, hashes of a band); Penedo et al. 2024
HASHES = 112  # 14 x 8
REPEATED = 20_000  # with more documents the peers are too slow to run more than once

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench dedup`."""
    parser.add_argument(
        "--quality", action="store_true", help="measure precision and recall instead of speed"
    )
    parser.add_argument(
        "--documents", type=int, default=100_000, help="documents of the speed test"
    )
    parser.add_argument(
        "--length", type=int, default=LENGTH, help="bytes of a document; at least 300"
    )
    parser.add_argument(
        "--processes", type=int, default=2, help="processes that read and sketch the files"
    )
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of the speed test; the median counts"
    )
    parser.add_argument("--no-peers", action="store_true", help="measure slmjax alone")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return {"bench", "rows"}, with rows of quality or of speed.

    Quality: set, bands, threshold and who, and the columns of `duplicate_scores.scores`. There is
    also "curve", the rows of `curve`.

    Speed: who, documents, bytes, processes, documents_per_second (median), seconds, removed,
    peak_GiB of all processes together (an upper bound), and load (the machine's load average before
    the runs).

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


def quality(root: Path, arguments: argparse.Namespace) -> list[Row]:
    """Return rows for each set and threshold.

    Each is searched with FineWeb's bands and with those that are optimal for the threshold.
    """
    rows = []
    for name in SETS:
        file = root / "dedup" / f"{name}_docs.jsonl.xz"
        texts = [record["text"] for record in xz_records(file)]
        shingle_sets = [dedup_peers.word_shingles(text) for text in texts]
        exact = similarities(shingle_sets)
        for threshold in THRESHOLDS:
            # For some thresholds FineWeb's bands are optimal: the dict keeps them once.
            band_shapes = dict.fromkeys([FINEWEB_BANDS, optimal_bands(threshold, HASHES)])
            for bands, hashes in band_shapes:
                scheme = Scheme(bands=bands, rows=hashes)
                keepers = {"slmjax": ours(texts, scheme, threshold)}
                if not arguments.no_peers:
                    keepers |= dedup_peers.keepers(shingle_sets, scheme)
                case = {"set": name, "bands": f"{bands} x {hashes}", "threshold": threshold}
                for who, keeper in keepers.items():
                    rows.append({**case, "who": who, **scores(keeper, exact, threshold)})
    return rows


def curve(pairs: int = 2000) -> list[Row]:
    """Return how often two texts of a given similarity share a band, by formula and as measured.

    Args:
      pairs: made-up pairs of texts for each similarity.
    Returns: rows with the similarity, the share of pairs by the formula, the share that is measured
      and the standard deviation of the measured share.
    """
    random = np.random.default_rng(0)
    # Single words: the similarity of two texts then follows from the number of common words.
    scheme = Scheme(ngram=1)
    rows = []
    for common in range(50, 100, 5):
        texts = []
        for _ in range(pairs):
            # Two texts of 100 words, of which `common` are in both. Words hardly ever repeat.
            numbers = random.integers(0, 10**12, 200 - common)
            words = [f"w{number}" for number in numbers]
            texts.append(" ".join(words[:100]))
            texts.append(" ".join(words[100 - common :]))
        bands = sketch(texts, scheme).bands  # [2 * pairs, bands]
        # Texts 0 and 1 are a pair, 2 and 3 are the next, and so on.
        meet = (bands[::2] == bands[1::2]).any(1)  # [pairs]
        similarity = common / (200 - common)
        formula = float(scheme.candidate_probability(similarity))
        row = {
            "similarity": similarity,
            "formula": formula,
            "measured": float(meet.mean()),
            # The measured share is binomial.
            "deviation": (formula * (1 - formula) / pairs) ** 0.5,
        }
        rows.append(row)
    return rows


def ours(texts: Sequence[str], scheme: Scheme, threshold: float) -> np.ndarray:
    """Return, for each text, the number of the text that slmjax keeps in its place."""
    sketches = sketch(texts, scheme)
    # `deduplicate` takes hashes of the texts as keys. Here equal texts only need the same key.
    _, text_numbers = np.unique(texts, return_inverse=True)
    keys = mix(text_numbers.astype(np.uint64))
    pairs = candidates(sketches.bands, keys)
    similarity = exact_similarity(sketches.shingles, sketches.counts)
    return cluster(pairs, keys, similarity, threshold).keeper


def speed(root: Path, arguments: argparse.Namespace) -> list[Row]:
    """Return a row for slmjax and for each peer.

    Each run is a new process, which reads the files and starts its own worker processes.
    """
    processes = arguments.processes
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_planted(root, Path(folder) / "text", arguments.documents, arguments.length)
        # Other programs on the machine would falsify the figures: the load shows them.
        load = os.getloadavg()[0]
        searches = {"slmjax": functools.partial(_count_removed, files, processes, folder)}
        if not arguments.no_peers:
            searches |= dedup_peers.searches(files, Scheme(), processes, Path(folder))
        for who, search in searches.items():
            repeats = who == "slmjax" or arguments.documents <= REPEATED
            runs = _runs(search, processes, arguments.runs if repeats else 1)
            documents = arguments.documents
            if who == "datatrove":
                documents //= len(files)  # it searches one file only: all would take minutes
            seconds = statistics.median(run.seconds for run in runs)
            row = {
                "who": who,
                "documents": documents,
                "bytes": arguments.length,
                "processes": processes,
                "documents_per_second": documents / seconds,
                "seconds": seconds,
                "removed": int(statistics.median(run.removed for run in runs)),
                "peak_GiB": statistics.median(run.peak_gib for run in runs),
                "load": load,
            }
            rows.append(row)
            shell.print_row(row)
    return rows


class _Run(NamedTuple):
    """One run of a search."""

    seconds: float
    removed: int  # documents
    peak_gib: float  # of all processes together; an upper bound


def _runs(search: Callable[[], int], processes: int, count: int) -> list[_Run]:
    """Measure a search `count` times, each time in a process of its own."""
    runs = []
    for _ in range(count):
        # A new process: an old one would still have its memory and its imports.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            runs.append(pool.submit(_measured_run, search, processes).result())
    return runs


def _measured_run(search: Callable[[], int], processes: int) -> _Run:
    """Run a search, which returns how many documents it removes, and measure it.

    The peak memory is that of this process, and for each worker process that of the largest one.
    """
    started = time.perf_counter()
    removed = search()
    seconds = time.perf_counter() - started
    # Linux gives both in KiB.
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest_worker_peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak = own_peak + processes * largest_worker_peak
    return _Run(seconds, removed, peak / 2**20)


def _count_removed(files: Sequence[Path], processes: int, folder: str) -> int:
    """Return how many documents slmjax removes; the index is in `folder` meanwhile."""
    paths = tuple(str(file) for file in files)
    with tempfile.TemporaryDirectory(dir=folder) as index:
        source = Source("slices", paths)
        # With the defaults of Scheme, which the peers get too.
        _, clusters = deduplicate([source], Path(index), processes=processes)
        return len(clusters.removed)
