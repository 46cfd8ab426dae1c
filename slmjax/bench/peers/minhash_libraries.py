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

WORDS = re.compile(r"[^\W_]+")  # letters and digits
SHINGLE_WORDS = 5  # as in FineWeb (Penedo et al. 2024)
LIBRARIES = ("rensa", "datasketch")

# For each document, the number of the document that is kept in its place.
Keeper = Int64[np.ndarray, " documents"]


def word_shingles(text: str) -> set[str]:
    """Return the word 5-grams of a text; a text of fewer words is one shingle."""
    words = WORDS.findall(text.lower())
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return {" ".join(words[start : start + SHINGLE_WORDS]) for start in starts}


def keepers(sets: Sequence[set[str]], scheme: Scheme) -> dict[str, Keeper]:
    """Return, for each library, which document is kept in place of each document.

    It is the first of the earlier kept documents that the library's index returns, or else the
    document itself. Whether the two are similar is not checked.

    Args:
      sets: the shingles of each document.
    """
    keeper_by_library = {}
    for name in _installed():
        sketches = _sketch(name, sets, scheme)
        keeper_by_library[name] = _greedy(_candidates(name, sketches, scheme))
    return keeper_by_library


def searches(
    files: Sequence[Path], scheme: Scheme, processes: int, folder: Path
) -> dict[str, Callable[[], int]]:
    """Return {library: function that reads and clusters the files}.

    A function returns how many documents the library would remove. It can be pickled.

    Args:
      folder: datatrove writes its files in there.
    """
    functions = {}
    for name in _installed():
        functions[name] = functools.partial(_search_files, name, files, scheme, processes)
    if importlib.util.find_spec("datatrove"):
        # One file only: datatrove would take minutes for all of them.
        functions["datatrove"] = functools.partial(
            _search_with_datatrove, files[0], scheme, processes, folder / "datatrove"
        )
    return functions


def _installed() -> list[str]:
    return [name for name in LIBRARIES if importlib.util.find_spec(name)]


def _greedy(candidates: Iterator[list[int]]) -> Keeper:
    """Return, for each document, the first kept document among its candidates, or else itself."""
    keeper: list[int] = []
    for document, earlier in enumerate(candidates):
        kept = [other for other in earlier if keeper[other] == other]
        keeper.append(min(kept, default=document))
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
    """Yield, for each document, the earlier documents that share a band with it."""
    if name == "rensa":
        import rensa

        # The first argument, a threshold, is only read by the method is_similar.
        index = rensa.RMinHashLSH(0.5, scheme.hashes, scheme.bands)
    else:
        import datasketch

        shape = (scheme.bands, scheme.rows)
        index = datasketch.MinHashLSH(num_perm=scheme.hashes, params=shape)
    # The index is asked before the document is inserted, so that it does not return itself.
    for document, document_sketch in enumerate(sketches):
        yield index.query(document_sketch)
        index.insert(document, document_sketch)


def _search_files(name: str, files: Sequence[Path], scheme: Scheme, processes: int) -> int:
    """Search the documents of all files; return how many would be removed."""
    sketch_file = functools.partial(_sketch_file, name, scheme)
    sketches = []
    # Forked processes could inherit a lock that one of our threads holds; spawned ones do not.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for file_sketches in pool.map(sketch_file, files):
            sketches += file_sketches
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


def _search_with_datatrove(file: Path, scheme: Scheme, processes: int, folder: Path) -> int:
    """Run datatrove's blocks on a file, cut into one part for each process.

    Returns: how many documents they remove.
    """
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
    # In the folder of an earlier run datatrove would skip the tasks that were done there.
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
    # (pipeline, tasks): a task for each part of the file, one for each band, one that clusters all.
    blocks = [
        (sketching, processes),
        (bucketing, scheme.bands),
        (clustering, 1),
    ]
    for number, (pipeline, tasks) in enumerate(blocks):
        logs = str(folder / "logs" / str(number))
        executor = LocalPipelineExecutor(pipeline, tasks=tasks, workers=processes, logging_dir=logs)
        executor.run()
    # Each removed document is one uint32, 4 bytes, in one of these files.
    removed_bytes = sum(path.stat().st_size for path in removed.glob("*.remove"))
    return removed_bytes // 4


def _split_lines(file: Path, parts: int, folder: Path) -> None:
    """Deal the lines of a file out to 0.jsonl, 1.jsonl, ... in a new folder."""
    folder.mkdir(parents=True)
    lines = file.read_text(encoding="utf8").splitlines(keepends=True)
    for number in range(parts):
        part = "".join(lines[number::parts])
        (folder / f"{number}.jsonl").write_text(part, encoding="utf8")
