"""Search near-duplicates with other libraries: same files, same shingles, same bands.

Libraries that are not installed are left out.
"""

import functools
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from slmjax.curate.minhash import Scheme

WORDS = re.compile(r"[^\W_]+")
SHINGLE_WORDS = 5  # as in FineWeb (Penedo et al. 2024)
LIBRARIES = ("rensa", "datasketch")

Keeper = Int64[np.ndarray, " documents"]  # for each document, the number of the one that is kept


def word_shingles(text: str) -> set[str]:
    """Return the word 5-grams of a text; all of its words together where there are fewer."""
    words = WORDS.findall(text.lower())
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return {" ".join(words[start : start + SHINGLE_WORDS]) for start in starts}


def keepers(sets: Sequence[set[str]], scheme: Scheme) -> dict[str, Keeper]:
    """Return what each library keeps.

    For a document that is the first kept one before it which the library's index names. Whether
    they are similar is not checked.
    """
    keeper_of = {}
    for name in _installed():
        sketches = _sketch(name, sets, scheme)
        keeper_of[name] = _greedy(_candidates(name, sketches, scheme))
    return keeper_of


def makers(
    files: Sequence[Path], scheme: Scheme, processes: int, folder: Path
) -> dict[str, Callable[[], int]]:
    """Return {library: function that reads and clusters the files}.

    A function returns how many documents it would remove. It can be pickled.
    """
    functions = {}
    for name in _installed():
        functions[name] = functools.partial(_removed_in_files, name, files, scheme, processes)
    if importlib.util.find_spec("datatrove"):
        # One file only: it would take minutes for all of them.
        functions["datatrove"] = functools.partial(
            _datatrove, files[0], scheme, processes, folder / "datatrove"
        )
    return functions


def _installed() -> list[str]:
    return [name for name in LIBRARIES if importlib.util.find_spec(name)]


def _greedy(candidates: Iterator[list[int]]) -> Keeper:
    """Return, for each document, the first kept one among its candidates, or else itself."""
    keeper: list[int] = []
    for document, before in enumerate(candidates):
        kept = [other for other in before if keeper[other] == other]
        keeper.append(min(kept) if kept else document)
    return np.array(keeper, np.int64)


def _sketch(name: str, sets: Sequence[set[str]], scheme: Scheme) -> list[Any]:
    """Return the library's MinHash of each set of shingles."""
    if name == "rensa":
        import rensa

        return rensa.RMinHash.from_token_sets(list(sets), scheme.hashes, scheme.seed)
    import datasketch

    tokens = []
    for shingles in sets:
        tokens.append([shingle.encode() for shingle in shingles])
    # crc32 is much faster than datasketch's default, sha1.
    return datasketch.MinHash.bulk(
        tokens, num_perm=scheme.hashes, seed=scheme.seed, hashfunc=zlib.crc32
    )


def _candidates(name: str, sketches: Sequence[Any], scheme: Scheme) -> Iterator[list[int]]:
    """Yield, for each document, those before it that share a band with it."""
    if name == "rensa":
        import rensa

        # Its first argument, the threshold, serves only its method is_similar.
        index = rensa.RMinHashLSH(0.5, scheme.hashes, scheme.bands)
    else:
        import datasketch

        shape = (scheme.bands, scheme.rows)
        index = datasketch.MinHashLSH(num_perm=scheme.hashes, params=shape)
    # A document is asked about before it is inserted, so that it does not find itself.
    for document, document_sketch in enumerate(sketches):
        yield index.query(document_sketch)
        index.insert(document, document_sketch)


def _removed_in_files(name: str, files: Sequence[Path], scheme: Scheme, processes: int) -> int:
    sketch_file = functools.partial(_sketch_file, name, scheme)
    sketches = []
    # Forked processes could inherit a lock that a thread of this one holds.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(sketch_file, files):
            sketches += part
    keeper = _greedy(_candidates(name, sketches, scheme))
    removed = keeper != np.arange(len(keeper))
    return int(removed.sum())


def _sketch_file(name: str, scheme: Scheme, file: Path) -> list[Any]:
    sets = []
    with open(file, encoding="utf8") as lines:
        for line in lines:
            record = json.loads(line)
            sets.append(word_shingles(record["text"]))
    return _sketch(name, sets, scheme)


def _datatrove(file: Path, scheme: Scheme, processes: int, folder: Path) -> int:
    """Run datatrove's blocks on one of the files, cut into one part for each process."""
    os.environ["DATATROVE_COLORIZE_LOGS"] = "0"  # read when datatrove is imported
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.remove()  # fewer lines on stderr, where the bench prints its rows
    # In the folder of an earlier run datatrove would skip the tasks that are done.
    shutil.rmtree(folder, ignore_errors=True)
    _split_lines(file, processes, folder / "text")
    config = MinhashConfig(
        n_grams=scheme.ngram,
        num_buckets=scheme.bands,
        hashes_per_bucket=scheme.rows,
        hash_config=HashConfig(precision=64),
    )
    signatures = str(folder / "signatures")
    buckets = str(folder / "buckets")
    removed = folder / "removed"
    reader = JsonlReader(str(folder / "text"))
    sketching = [reader, MinhashDedupSignature(signatures, config)]
    bucketing = [MinhashDedupBuckets(signatures, buckets, config=config)]
    clustering = [MinhashDedupCluster(buckets, str(removed), config=config)]
    # (pipeline, tasks): one task for each part, one for each band, and one that clusters all.
    blocks = [
        (sketching, processes),
        (bucketing, scheme.bands),
        (clustering, 1),
    ]
    for number, (pipeline, tasks) in enumerate(blocks):
        logs = str(folder / "logs" / str(number))
        executor = LocalPipelineExecutor(pipeline, tasks=tasks, workers=processes, logging_dir=logs)
        executor.run()
    # A removed document is one uint32 in one of these files.
    removed_bytes = sum(path.stat().st_size for path in removed.glob("*.remove"))
    return removed_bytes // 4


def _split_lines(file: Path, parts: int, folder: Path) -> None:
    """Deal the lines of a file out to 0.jsonl, 1.jsonl, ... in a new folder."""
    folder.mkdir(parents=True)
    lines = file.read_text(encoding="utf8").splitlines(keepends=True)
    for number in range(parts):
        part = "".join(lines[number::parts])
        (folder / f"{number}.jsonl").write_text(part, encoding="utf8")
