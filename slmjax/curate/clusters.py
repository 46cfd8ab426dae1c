"""Which documents are duplicates of which: candidate pairs, exact similarity, one kept document.

A document is removed only where a kept one before it is at least as similar as the threshold,
exactly. So chains and shared boilerplate merge nothing (bare connected components of candidate
pairs once left 2 of 859,092 documents of a source, marin#6854).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt32, UInt64

from slmjax.text.hash_mix import mix
from slmjax.text.hashing import compiled
from slmjax.text.units import cores

BLOCK = 1 << 24  # bucket entries sorted at once: 400 MB
THROUGH = 254  # in place of a band: found through a removed document
EXACT = 255  # in place of a band: the same text
PART = 1 << 14  # pairs that a thread compares at once
ROUNDS = 4  # of looking at further candidates


PairMembers = Int64[np.ndarray, " pairs"]
PairBands = UInt8[np.ndarray, " pairs"]
PairSimilarities = Float32[np.ndarray, " pairs"]
Keys = UInt64[np.ndarray, " documents"]  # 64-bit hashes of the texts: equal ones are the same text
Counts = Int64[np.ndarray, " documents"]  # of shingles
Shingles = UInt32[np.ndarray, " shingles"]  # of all documents end to end


class Pairs(NamedTuple):
    """Candidate pairs, low before high in the order of documents, sorted by (high, low)."""

    low: PairMembers
    high: PairMembers
    band: PairBands  # the first in which they met


class Clusters(NamedTuple):
    """For each document the one that is kept for it, and how the two met."""

    keeper: Int64[np.ndarray, " documents"]  # itself where it is kept
    similarity: Float32[np.ndarray, " documents"]
    band: UInt8[np.ndarray, " documents"]  # also THROUGH or EXACT

    @property
    def is_removed(self) -> Bool[np.ndarray, " documents"]:
        """Which documents are duplicates."""
        return self.keeper != np.arange(len(self.keeper))

    @property
    def removed(self) -> Int64[np.ndarray, " removed"]:
        """The numbers of the duplicates."""
        return np.flatnonzero(self.is_removed)


class Edges(NamedTuple):
    """Pairs with their exact similarity."""

    high: Int64[np.ndarray, " edges"]
    low: Int64[np.ndarray, " edges"]
    similarity: Float32[np.ndarray, " edges"]
    band: UInt8[np.ndarray, " edges"]


# (low, high, threshold) -> Jaccard similarity of those pairs.
Similarity = Callable[[PairMembers, PairMembers, float], PairSimilarities]


def candidates(bands: UInt64[np.ndarray, "documents bands"], keys: Keys) -> Pairs:
    """Return pairs of different texts that share a band hash.

    A bucket of m documents gives at most 2 (m - 1) pairs, so that a large one costs only its size:
    each member is paired with the first of its bucket, and with one before it that is drawn at
    random, another in every band. Together the bands connect a cluster in many ways, and a pair
    depends on nothing that comes after it.

    Args:
      bands: hashes, as `Sketches` has them; may be memory-mapped, a band is read at once.
      keys: 64-bit hashes of the texts; of equal texts only the first takes part.
    """
    first = _first_of_each(keys)
    size = len(keys)
    band_count = bands.shape[1]
    # A pair is one number, high x size + low, so that a sort brings equal pairs together.
    numbers = [np.zeros(0, np.int64)]
    met = [np.zeros(0, np.uint8)]
    for band in range(band_count):
        hashes = np.array(bands[:, band])[first]
        salted = mix(keys[first] + np.uint64(band))
        for part in range(_parts(hashes)):
            low, high = _bucket_pairs(hashes, salted, part)
            numbers.append(first[high] * size + first[low])
            met.append(np.full(len(low), band, np.uint8))
        is_last = band == band_count - 1
        if is_last or sum(map(len, numbers)) > BLOCK:
            # Equal pairs become one; np.unique gives the place of the first, of the lowest band.
            pairs, where = np.unique(np.concatenate(numbers), return_index=True)
            numbers = [pairs]
            met = [np.concatenate(met)[where]]
    if not size:
        return Pairs(numbers[0], numbers[0], met[0])
    high, low = np.divmod(numbers[0], size)
    return Pairs(low, high, met[0])


def bucket_pairs(
    documents: Int64[np.ndarray, " documents"], keys: Keys, band: int
) -> tuple[PairMembers, PairMembers]:
    """Return (low, high) of one bucket: the pairs that `candidates` finds for all at once.

    Args:
      documents: the members, sorted.
    """
    once = _first_of_each(keys)
    one_bucket = np.zeros(len(once), np.uint64)
    salted = mix(keys[once] + np.uint64(band))
    low, high = _bucket_pairs(one_bucket, salted, 0)
    return documents[once[low]], documents[once[high]]


def _first_of_each(keys: Keys) -> Int64[np.ndarray, " texts"]:
    """Return the first document of each text, ascending."""
    _, first = np.unique(keys, return_index=True)
    return np.sort(first)


def _parts(hashes: UInt64[np.ndarray, " texts"]) -> int:
    """Return in how many parts of at most about BLOCK hashes they are sorted."""
    return -(-len(hashes) // BLOCK)


def _bucket_pairs(
    hashes: UInt64[np.ndarray, " texts"], salted: UInt64[np.ndarray, " texts"], part: int
) -> tuple[PairMembers, PairMembers]:
    """Return the pairs of one band among the hashes of one part of their range.

    Args:
      salted: random numbers that decide who is drawn.
      part: which part; a bucket is whole within one.
    """
    parts = _parts(hashes)
    which = np.arange(len(hashes))
    if parts > 1:
        # By the remainder: equal hashes are in the same part.
        which = np.flatnonzero(hashes % np.uint64(parts) == part)
    # A stable sort: members of a bucket stay in the order of documents.
    order = np.argsort(hashes[which], kind="stable")
    which = which[order]
    values = hashes[which]
    # Most hashes are alone; they go before anything else is computed.
    is_same = values[1:] == values[:-1]
    in_bucket = np.append(is_same, False)
    in_bucket[1:] |= is_same
    values, which = values[in_bucket], which[in_bucket]
    if not len(which):
        return which, which
    begins = np.append(True, values[1:] != values[:-1])
    bucket = np.cumsum(begins) - 1
    first_of_bucket = np.flatnonzero(begins)
    # From here one value for each member that is not the first of its bucket.
    later = np.flatnonzero(~begins)
    first = first_of_bucket[bucket[later]]
    before = (later - first).astype(np.uint64)
    drawn = salted[which[later]] % before
    other = first + drawn.astype(np.int64)
    low = which[np.append(first, other)]
    high = which[np.append(later, later)]
    return low, high


def cluster(pairs: Pairs, keys: Keys, similarity: Similarity, threshold: float) -> Clusters:
    """Return the clusters of all documents, decided in their order.

    The first of equal documents is kept, and no decision changes when documents are added. A
    document goes to the most similar kept one among its verified candidates. At first that is the
    earliest candidate only; a document that is kept after that looks at its other candidates, then
    at the documents that are kept for candidates that are removed themselves. After ROUNDS it is
    kept.

    Args:
      pairs: `candidates` of all documents.
      similarity: gets pairs that are sorted by high; must be exact from the threshold on, else
        anything below it.
      threshold: of similarity, in (0, 1].
    """
    documents = np.arange(len(keys))
    decide = _compile(_greedy)
    keeper = documents
    through = np.zeros((2, 0), np.int64)  # (document, keeper of its candidate)
    edges = _no_edges()
    is_waiting = np.ones(len(pairs.low), bool)
    for number in range(ROUNDS):
        is_kept = keeper[pairs.high] == pairs.high
        now = is_waiting & is_kept
        if number == 0:
            # Only the earliest candidate of each document: most need no other.
            now[1:] &= pairs.high[1:] != pairs.high[:-1]
        is_waiting &= ~now
        asked = _asked_pairs(pairs, now, through)
        edges = _joined(edges, _verified(asked, similarity, threshold))
        # All documents are decided anew, with the edges of all rounds.
        start = documents.copy()
        keeper, best, through = decide(edges.high, edges.low, edges.similarity, start)
    is_removed = keeper != documents
    deciding = best[is_removed]
    value = np.ones(len(keys), np.float32)
    band = np.full(len(keys), EXACT, np.uint8)
    value[is_removed] = edges.similarity[deciding]
    band[is_removed] = edges.band[deciding]
    # Copies go where the first document of the same text goes.
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    text = first[which]
    return Clusters(keeper[text], value[text], band[text])


def _no_edges() -> Edges:
    documents = np.zeros(0, np.int64)
    similarity = np.zeros(0, np.float32)
    band = np.zeros(0, np.uint8)
    return Edges(documents, documents, similarity, band)


def _asked_pairs(
    pairs: Pairs, now: Bool[np.ndarray, " candidates"], through: Int64[np.ndarray, "2 found"]
) -> Pairs:
    """Return the candidates of a round and the pairs through removed documents, sorted."""
    other_high, other_low = np.unique(through, axis=1)
    other_band = np.full(len(other_low), THROUGH, np.uint8)
    low = np.append(pairs.low[now], other_low)
    high = np.append(pairs.high[now], other_high)
    band = np.append(pairs.band[now], other_band)
    order = np.lexsort((low, high))
    return Pairs(low[order], high[order], band[order])


def _verified(pairs: Pairs, similarity: Similarity, threshold: float) -> Edges:
    """Return the pairs that are at least as similar as the threshold."""
    exact = similarity(pairs.low, pairs.high, threshold)
    near = exact >= np.float32(threshold)
    edges = Edges(pairs.high, pairs.low, exact, pairs.band)
    return Edges(*(column[near] for column in edges))


def _joined(edges: Edges, others: Edges) -> Edges:
    """Return both, sorted by (high, low)."""
    columns = [np.append(mine, more) for mine, more in zip(edges, others)]
    joined = Edges(*columns)
    order = np.lexsort((joined.low, joined.high))
    return Edges(*(column[order] for column in joined))


@no_type_check  # numba compiles it as it is
def _greedy(high, low, exact, keeper):
    """Decide documents in their order, given edges that are sorted by (high, low).

    Returns:
      keeper: [documents] who is kept for each; the argument is changed, too.
      best: [documents] the edge that decided, or -1.
      through: [2, pairs] (document, keeper of a candidate), for each document that is kept because
        all of its candidates are removed.
    """
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
    """Return the function, compiled where numba is installed."""
    if not compiled():
        return function
    from slmjax.curate import minhash_kernels

    return minhash_kernels.compile(function)


def exact_similarity(shingles: Shingles, counts: Counts) -> Callable[..., PairSimilarities]:
    """Return the function (low, high, threshold=0.0) -> similarity that `cluster` asks for.

    Args:
      shingles, counts: as `Sketches` has them; may be memory-mapped.
    """
    starts = np.append(0, np.cumsum(counts))

    def similarity(low: np.ndarray, high: np.ndarray, threshold: float = 0.0) -> np.ndarray:
        return _jaccard(shingles, starts, low, high, threshold)

    return similarity


def _jaccard(
    shingles: Shingles,
    starts: Int64[np.ndarray, " bounds"],
    low: PairMembers,
    high: PairMembers,
    threshold: float,
) -> PairSimilarities:
    """Return the Jaccard similarity of pairs of documents, exact from the threshold on.

    The shingles of document d begin at starts[d].
    """
    result = np.empty(len(low), np.float32)
    if not compiled():
        for i, (one, other) in enumerate(zip(low, high)):
            a = np.unique(shingles[starts[one] : starts[one + 1]])
            b = np.unique(shingles[starts[other] : starts[other + 1]])
            common = len(np.intersect1d(a, b, assume_unique=True))
            result[i] = common / (len(a) + len(b) - common)
        return result
    from slmjax.curate import minhash_kernels

    # The kernel gives up a pair that cannot reach the threshold. A little lower, it gives up no
    # pair by rounding; it divides by it, so it must not be 0.
    lower = max(threshold - 1e-6, 1e-9)

    def compare(start: int) -> None:
        part = slice(start, start + PART)
        minhash_kernels.jaccard(shingles, starts, low[part], high[part], lower, result[part])

    with ThreadPoolExecutor(cores()) as pool:  # the kernel releases the interpreter's lock
        list(pool.map(compare, range(0, len(low), PART)))
    return result
