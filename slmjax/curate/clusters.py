"""Which documents are duplicates of which: candidate pairs from bands, exact similarity of each, and one kept document for every cluster.

A document is removed only where a kept one before it is at least as similar as the threshold, exactly: what chains or shared boilerplate
connect is not merged by that (bare connected components of candidate pairs once left 2 of 859,092 documents of a source, marin#6854).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt32, UInt64

from slmjax.text.files import cores
from slmjax.text.hash_mix import mix
from slmjax.text.hashing import compiled

BLOCK = 1 << 24  # bucket entries sorted at once: 400 MB
THROUGH = 254  # in place of a band: found through a removed document
PART = 1 << 14  # pairs that a thread compares at once
EXACT = 255  # the same text
ROUNDS = 4  # of looking further


class Pairs(NamedTuple):
    """Candidate pairs, low before high in the order of documents, sorted by (high, low); the first band in which they met."""

    low: Int64[np.ndarray, " pairs"]
    high: Int64[np.ndarray, " pairs"]
    band: UInt8[np.ndarray, " pairs"]


class Clusters(NamedTuple):
    """Of every document: the one that is kept for it (itself: kept), how similar they are, and the band (or THROUGH, EXACT)."""

    keeper: Int64[np.ndarray, " documents"]
    similarity: Float32[np.ndarray, " documents"]
    band: UInt8[np.ndarray, " documents"]

    @property
    def removed(self) -> Int64[np.ndarray, " removed"]:
        return np.flatnonzero(self.keeper != np.arange(len(self.keeper)))


def candidates(
    bands: UInt64[np.ndarray, "documents bands"], keys: UInt64[np.ndarray, " documents"]
) -> Pairs:
    """Pairs of different texts that share a band hash: at most 2 (m - 1) for a bucket of m, so that a large one costs only its size.

    Each member is paired with the first of its bucket and with one before it that is drawn at random, another in every band: together the
    bands connect a cluster in many ways, and a pair depends on nothing that comes after it.

    Args:
      bands: hashes, as `Sketches` has them; may be memory-mapped, a band is read at once.
      keys: 64-bit hashes of the texts; of equal texts only the first takes part.
    """
    first = np.sort(np.unique(keys, return_index=True)[1])
    size, found, met = len(keys), [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
    for band in range(bands.shape[1]):
        column, salted = np.array(bands[:, band])[first], mix(keys[first] + np.uint64(band))
        for part in range(-(-len(column) // BLOCK)):
            low, high = _bucket_pairs(column, salted, part)
            found.append(first[high] * size + first[low])
            met.append(np.full(len(low), band, np.uint8))
        if sum(map(len, found)) > BLOCK or band == bands.shape[1] - 1:
            pairs, where = np.unique(np.concatenate(found), return_index=True)
            found, met = [pairs], [np.concatenate(met)[where]]
    return Pairs(found[0] % size, found[0] // size, met[0])


def bucket_pairs(
    documents: Int64[np.ndarray, " members"], keys: UInt64[np.ndarray, " members"], band: int
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """(low, high) of one bucket, whose members are sorted: what `candidates` finds for all buckets at once."""
    once = np.sort(np.unique(keys, return_index=True)[1])
    low, high = _bucket_pairs(np.zeros(len(once), np.uint64), mix(keys[once] + np.uint64(band)), 0)
    return documents[once[low]], documents[once[high]]


def _bucket_pairs(
    column: np.ndarray, salted: np.ndarray, part: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of one band among the hashes of one part of their range; `salted` decides who is drawn."""
    parts = -(-len(column) // BLOCK)
    which = (
        np.arange(len(column)) if parts == 1 else np.flatnonzero(column % np.uint64(parts) == part)
    )
    values = column[which]
    order = np.argsort(values, kind="stable")  # members of a bucket stay in the order of documents
    values, which = values[order], which[order]
    same = values[1:] == values[:-1]
    inside = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    values, which = values[inside], which[inside]
    if not len(which):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    begins = np.concatenate([[True], values[1:] != values[:-1]])
    first = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    later = np.flatnonzero(~begins)
    drawn = salted[which[later]] % (later - first[later]).astype(np.uint64)
    low = np.concatenate([which[first[later]], which[first[later] + drawn.astype(np.int64)]])
    high = np.concatenate([which[later], which[later]])
    return low, high


def cluster(
    pairs: Pairs,
    keys: UInt64[np.ndarray, " documents"],
    similarity: Callable[
        [Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"], float],
        Float32[np.ndarray, " pairs"],
    ],
    threshold: float,
) -> Clusters:
    """Clusters of all documents, decided in their order: what comes first is kept, and no decision changes when documents are added.

    A document goes to the most similar kept one among its verified candidates. At first that is the earliest one only; who is kept after
    that looks at the others, then at those that are kept for candidates that are removed themselves. After ROUNDS it is kept.

    Args:
      pairs: `candidates` of all documents.
      keys: 64-bit hashes of the texts: equal ones are the same text.
      similarity: (low, high, threshold) -> Jaccard similarity of those pairs of documents, which come sorted by high; exact from the
        threshold on, else anything below it.
      threshold: of similarity, in (0, 1].
    """
    none, keeper, through = np.zeros(0, np.int64), np.arange(len(keys)), np.zeros((2, 0), np.int64)
    edges = (
        none,
        none,
        np.zeros(0, np.float32),
        np.zeros(0, np.uint8),
    )  # high, low, similarity, band
    waiting = np.ones(len(pairs.low), bool)
    for number in range(ROUNDS):
        now = waiting & (keeper[pairs.high] == pairs.high)
        if number == 0:
            now[1:] &= pairs.high[1:] != pairs.high[:-1]
        waiting &= ~now
        found = (pairs.high[now], pairs.low[now], pairs.band[now])
        asked = np.unique(through, axis=1)
        high, low, band = (
            np.concatenate(both)
            for both in zip(found, (*asked, np.full(asked.shape[1], THROUGH, np.uint8)))
        )
        order = np.lexsort((low, high))
        high, low, band = high[order], low[order], band[order]
        exact = similarity(low, high, threshold)
        near = exact >= np.float32(threshold)
        edges = tuple(
            np.concatenate(both)
            for both in zip(edges, (high[near], low[near], exact[near], band[near]))
        )
        order = np.lexsort(edges[1::-1])
        edges = tuple(of[order] for of in edges)
        keeper, best, through = _compile(_greedy)(*edges[:3], np.arange(len(keys)))
    removed = keeper != np.arange(len(keys))
    value, band = np.ones(len(keys), np.float32), np.full(len(keys), EXACT, np.uint8)
    value[removed], band[removed] = edges[2][best[removed]], edges[3][best[removed]]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    text = first[which]  # the first document of the same text: its copies go where it goes
    return Clusters(keeper[text], value[text], band[text])


@no_type_check  # numba compiles it as it stands
def _greedy(high, low, exact, keeper):
    """(keeper, edge that decided [documents], pairs (document, keeper of a candidate) of those kept whose candidates are all removed)."""
    best = np.full(len(keeper), -1)
    through = np.empty((2, len(high)), np.int64)
    count, begin = 0, 0
    while begin < len(high):
        doc, end = high[begin], begin
        while end < len(high) and high[end] == doc:
            other = low[end]
            if keeper[other] == other and (best[doc] < 0 or exact[end] > exact[best[doc]]):
                best[doc] = end
            end += 1
        if best[doc] >= 0:
            keeper[doc] = low[best[doc]]
        else:
            for edge in range(begin, end):
                through[0, count], through[1, count] = doc, keeper[low[edge]]
                count += 1
        begin = end
    return keeper, best, through[:, :count]


def _compile(function: Callable) -> Callable:
    if not compiled():
        return function
    from slmjax.curate import minhash_kernels as kernels

    return kernels.compile(function)


def exact_similarity(
    shingles: UInt32[np.ndarray, " shingles"], counts: Int64[np.ndarray, " documents"]
) -> Callable[..., Any]:
    """The function (low, high, threshold) -> similarity that `cluster` asks for; shingles, as `Sketches` has them, may be memory-mapped."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    return lambda low, high, threshold=0.0: _jaccard(shingles, starts, low, high, threshold)


def _jaccard(
    shingles: np.ndarray, starts: np.ndarray, low: np.ndarray, high: np.ndarray, threshold: float
) -> Float32[np.ndarray, " pairs"]:
    """Jaccard similarity of the shingle sets of pairs of documents, exact from the threshold on."""
    out = np.empty(len(low), np.float32)
    if compiled():
        from slmjax.curate import minhash_kernels as kernels

        def part(of: slice) -> None:
            kernels.jaccard(
                shingles, starts, low[of], high[of], max(threshold - 1e-6, 1e-9), out[of]
            )

        with ThreadPoolExecutor(cores()) as pool:  # the kernel lets go of the interpreter's lock
            list(pool.map(part, [slice(start, start + PART) for start in range(0, len(low), PART)]))
        return out
    for i, (one, other) in enumerate(zip(low, high)):
        a, b = (np.unique(shingles[starts[doc] : starts[doc + 1]]) for doc in (one, other))
        common = len(np.intersect1d(a, b, assume_unique=True))
        out[i] = common / (len(a) + len(b) - common)
    return out
