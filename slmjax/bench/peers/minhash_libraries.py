"""Other libraries' near-duplicate search on the same files, with the same shingles and bands; left out where not installed."""

import functools
import importlib.util
import json
import multiprocessing
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
LIBRARIES = ("rensa", "datasketch")


def word_shingles(text: str) -> set[str]:
    """Word 5-grams by their definition; all words where there are fewer."""
    words = WORDS.findall(text.lower())
    return {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def keepers(sets: Sequence[set[str]], scheme: Scheme) -> dict[str, Int64[np.ndarray, " documents"]]:
    """{library: of every document the one that is kept for it}: the first kept one before it that its index names, and no check."""
    return {
        name: _greedy(_candidates(name, _sketch(name, sets, scheme), scheme))
        for name in LIBRARIES
        if importlib.util.find_spec(name)
    }


def makers(
    files: Sequence[Path], scheme: Scheme, processes: int, folder: Path
) -> dict[str, Callable[[], int]]:
    """{library: function that reads the files, clusters them, and returns how many documents it would remove}."""
    found = {
        name: functools.partial(_files, name, files, scheme, processes)
        for name in LIBRARIES
        if importlib.util.find_spec(name)
    }
    if importlib.util.find_spec("datatrove"):
        found["datatrove"] = functools.partial(
            _datatrove, files[0], scheme, processes, folder / "datatrove"
        )
    return found


def _greedy(candidates: Iterator[list[int]]) -> np.ndarray:
    keeper: list[int] = []
    for doc, before in enumerate(candidates):
        kept = [other for other in before if keeper[other] == other]
        keeper.append(min(kept) if kept else doc)
    return np.array(keeper, np.int64)


def _sketch(name: str, sets: Sequence[set[str]], scheme: Scheme) -> list[Any]:
    if name == "rensa":
        import rensa

        return rensa.RMinHash.from_token_sets(list(sets), scheme.hashes, scheme.seed)
    import datasketch

    tokens = [[shingle.encode() for shingle in of] for of in sets]
    return datasketch.MinHash.bulk(
        tokens, num_perm=scheme.hashes, seed=scheme.seed, hashfunc=zlib.crc32
    )


def _candidates(name: str, sketches: Sequence[Any], scheme: Scheme) -> Iterator[list[int]]:
    """Of every document those before it that share a band with it."""
    if name == "rensa":
        import rensa

        index = rensa.RMinHashLSH(
            0.5, scheme.hashes, scheme.bands
        )  # the threshold serves its method is_similar only
    else:
        import datasketch

        index = datasketch.MinHashLSH(num_perm=scheme.hashes, params=(scheme.bands, scheme.rows))
    for doc, of in enumerate(sketches):
        yield index.query(of)
        index.insert(doc, of)


def _files(name: str, files: Sequence[Path], scheme: Scheme, processes: int) -> int:
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        sketches = [
            of for part in pool.map(functools.partial(_file, name, scheme), files) for of in part
        ]
    keeper = _greedy(_candidates(name, sketches, scheme))
    return int((keeper != np.arange(len(keeper))).sum())


def _file(name: str, scheme: Scheme, file: Path) -> list[Any]:
    with open(file, encoding="utf8") as lines:
        return _sketch(name, [word_shingles(json.loads(line)["text"]) for line in lines], scheme)


def _datatrove(file: Path, scheme: Scheme, processes: int, folder: Path) -> int:
    """Its blocks with its local executor, over one of the files in as many parts as there are processes."""
    import os

    os.environ["DATATROVE_COLORIZE_LOGS"] = "0"
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

    logger.remove()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "text").mkdir(parents=True)
    lines = file.read_text(encoding="utf8").splitlines(keepends=True)
    for number in range(processes):
        (folder / "text" / f"{number}.jsonl").write_text(
            "".join(lines[number::processes]), encoding="utf8"
        )
    config = MinhashConfig(
        n_grams=scheme.ngram,
        num_buckets=scheme.bands,
        hashes_per_bucket=scheme.rows,
        hash_config=HashConfig(precision=64),
    )
    places = [str(folder / name) for name in ("signatures", "buckets", "removed", "logs")]
    blocks = [
        ([JsonlReader(str(folder / "text")), MinhashDedupSignature(places[0], config)], processes),
        ([MinhashDedupBuckets(places[0], places[1], config=config)], scheme.bands),
        ([MinhashDedupCluster(places[1], places[2], config=config)], 1),
    ]
    for number, (pipeline, tasks) in enumerate(blocks):
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=processes, logging_dir=f"{places[3]}/{number}"
        ).run()
    return sum(file.stat().st_size // 4 for file in Path(places[2]).glob("*.remove"))
