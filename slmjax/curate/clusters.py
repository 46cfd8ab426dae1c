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

BLOCK = 1 << 24  # hashes or pairs that are sorted at once: 400 MB
THROUGH = 254  # in place of a band: found through a removed document
EXACT = 255  # in place of a band: the same text
PART = 1 << 14  # pairs that a thread compares at once
ROUNDS = 4  # in which a document looks for one to go to, see `cluster`

# Documents are given by their numbers: their places in the order of all documents.
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
    band: UInt8[np.ndarray, " documents"]  # the first that both share, or THROUGH or EXACT

    @property
    def is_removed(self) -> Bool[np.ndarray, " documents"]:
        """Which documents are duplicates."""
        return self.keeper != np.arange(len(self.keeper))

    @property
    def removed(self) -> Int64[np.ndarray, " removed"]:
        """The numbers of the duplicates."""
        return np.flatnonzero(self.is_removed)


class Edges(NamedTuple):
    """Pairs that are similar enough, with their exact similarity; bands as in Clusters."""

    high: Int64[np.ndarray, " edges"]
    low: Int64[np.ndarray, " edges"]
    similarity: Float32[np.ndarray, " edges"]
    band: UInt8[np.ndarray, " edges"]


# (low, high, threshold) -> Jaccard similarity of those pairs. It must be exact from the threshold
# on; a pair below the threshold may get any value below it.
Similarity = Callable[[PairMembers, PairMembers, float], PairSimilarities]


def candidates(bands: UInt64[np.ndarray, "documents bands"], keys: Keys) -> Pairs:
    """Return pairs of different texts that share a band hash.

    The documents with one hash in a band are a bucket. A bucket of m documents gives at most
    2 (m - 1) pairs, so that a large one costs only its size: each member is paired with the first
    member, and with one before it that is drawn at random. Every band draws anew. Together the
    bands connect a cluster in many ways, and a pair depends on nothing that comes after it.

    Args:
      bands: hashes, as `Sketches` has them; may be memory-mapped, as one band is read at a time.
      keys: 64-bit hashes of the texts; of equal texts only the first takes part.
    """
    texts = _first_of_each(keys)  # documents; from here on a text is given by its index in them
    size = len(keys)
    band_count = bands.shape[1]
    # A pair is one number, high * size + low, so that a sort brings equal pairs together.
    pair_numbers = [np.zeros(0, np.int64)]
    pair_bands = [np.zeros(0, np.uint8)]
    for band in range(band_count):
        hashes = np.array(bands[:, band])[texts]
        random = _random_numbers(keys[texts], band)
        for part in range(_part_count(hashes)):
            low, high = _bucket_pairs(hashes, random, part)
            pair_numbers.append(texts[high] * size + texts[low])
            pair_bands.append(np.full(len(low), band, np.uint8))
        is_last = band == band_count - 1
        if is_last or sum(map(len, pair_numbers)) > BLOCK:
            # Equal pairs become one. np.unique gives the place of the first, whose band is lowest.
            different, where = np.unique(np.concatenate(pair_numbers), return_index=True)
            pair_numbers = [different]
            pair_bands = [np.concatenate(pair_bands)[where]]
    (numbers,), (first_bands,) = pair_numbers, pair_bands
    if not size:
        return Pairs(numbers, numbers, first_bands)
    high, low = np.divmod(numbers, size)
    return Pairs(low, high, first_bands)


def bucket_pairs(
    documents: Int64[np.ndarray, " documents"], keys: Keys, band: int
) -> tuple[PairMembers, PairMembers]:
    """Return (low, high) of the pairs that `candidates` makes of one bucket of a band.

    Args:
      documents: the members of the bucket, sorted.
      keys: of the members.
    """
    texts = _first_of_each(keys)
    equal_hashes = np.zeros(len(texts), np.uint64)
    random = _random_numbers(keys[texts], band)
    low, high = _bucket_pairs(equal_hashes, random, 0)
    return documents[texts[low]], documents[texts[high]]


def _first_of_each(keys: Keys) -> Int64[np.ndarray, " texts"]:
    """Return the first document of each text, ascending."""
    _, first = np.unique(keys, return_index=True)
    return np.sort(first)


def _random_numbers(keys: UInt64[np.ndarray, " texts"], band: int) -> UInt64[np.ndarray, " texts"]:
    """Return a pseudo-random number for each text, which its key and the band decide."""
    return mix(keys + np.uint64(band))


def _part_count(hashes: UInt64[np.ndarray, " texts"]) -> int:
    """Return the number of parts, of about BLOCK hashes at most, in which hashes are sorted."""
    return -(-len(hashes) // BLOCK)


def _bucket_pairs(
    hashes: UInt64[np.ndarray, " texts"], random: UInt64[np.ndarray, " texts"], part: int
) -> tuple[PairMembers, PairMembers]:
    """Return (low, high) of the pairs of one band and one part of its hashes, as indices of texts.

    Args:
      hashes: of all texts in the band.
      random: for each text the number that decides which member before it is drawn.
      part: number of the part, below `_part_count`; a bucket lies in one part.
    """
    part_count = _part_count(hashes)
    members = np.arange(len(hashes))
    if part_count > 1:
        # By the remainder: equal hashes are in the same part.
        members = np.flatnonzero(hashes % np.uint64(part_count) == part)
    # Sorted by hash, buckets lie end to end. The sort is stable: members stay in their order.
    order = np.argsort(hashes[members], kind="stable")
    members = members[order]
    values = hashes[members]
    # Most texts are alone with their hash; they go before anything else is computed.
    is_same = values[1:] == values[:-1]
    is_shared = np.append(is_same, False)
    is_shared[1:] |= is_same
    values, members = values[is_shared], members[is_shared]
    if not len(members):
        return members, members
    begins_bucket = np.append(True, values[1:] != values[:-1])
    bucket = np.cumsum(begins_bucket) - 1
    first_of_bucket = np.flatnonzero(begins_bucket)
    # From here one value for each member that is not the first of its bucket: its place, that of
    # the first, and that of the one drawn from those before it.
    later = np.flatnonzero(~begins_bucket)
    first = first_of_bucket[bucket[later]]
    members_before = (later - first).astype(np.uint64)
    steps = random[members[later]] % members_before
    drawn = first + steps.astype(np.int64)
    low = members[np.append(first, drawn)]
    high = members[np.append(later, later)]
    return low, high


def cluster(pairs: Pairs, keys: Keys, similarity: Similarity, threshold: float) -> Clusters:
    """Return the clusters of all documents, decided in their order.

    A document is removed for the most similar kept document before it that it was compared with,
    if their similarity reaches the threshold. Exact comparisons are slow, so the first round
    compares each document with its earliest candidate only. Each later round, of ROUNDS in all,
    compares the documents that are still kept with their other candidates, and with the keepers of
    candidates that are removed themselves.

    The first of equal documents is kept, and no decision changes when documents are added.

    Args:
      pairs: `candidates` of all documents.
      similarity: gets pairs that are sorted by high.
      threshold: least similarity of a duplicate, in (0, 1].
    """
    documents = np.arange(len(keys))
    decide = _compile(_greedy)
    keeper = documents
    through = np.zeros((2, 0), np.int64)  # (document, keeper of its removed candidate)
    edges = _no_edges()
    is_waiting = np.ones(len(pairs.low), bool)
    for number in range(ROUNDS):
        is_kept = keeper[pairs.high] == pairs.high
        is_due = is_waiting & is_kept
        if number == 0:
            # Only the earliest candidate of each document: most need no other.
            is_due[1:] &= pairs.high[1:] != pairs.high[:-1]
        is_waiting &= ~is_due
        due_pairs = _due_pairs(pairs, is_due, through)
        edges = _joined(edges, _verified(due_pairs, similarity, threshold))
        # All documents are decided anew, with the edges of all rounds.
        keeper, best, through = decide(edges.high, edges.low, edges.similarity, documents.copy())
    is_removed = keeper != documents
    deciding = best[is_removed]
    keeper_similarity = np.ones(len(keys), np.float32)
    keeper_band = np.full(len(keys), EXACT, np.uint8)
    keeper_similarity[is_removed] = edges.similarity[deciding]
    keeper_band[is_removed] = edges.band[deciding]
    # Copies go where the first document of the same text goes.
    _, first, text = np.unique(keys, return_index=True, return_inverse=True)
    first_copy = first[text]
    return Clusters(keeper[first_copy], keeper_similarity[first_copy], keeper_band[first_copy])


def _no_edges() -> Edges:
    documents = np.zeros(0, np.int64)
    similarity = np.zeros(0, np.float32)
    band = np.zeros(0, np.uint8)
    return Edges(documents, documents, similarity, band)


def _due_pairs(
    pairs: Pairs, is_due: Bool[np.ndarray, " candidates"], through: Int64[np.ndarray, "2 found"]
) -> Pairs:
    """Return the pairs that a round compares: candidates, and `through`; sorted by (high, low)."""
    through_high, through_low = np.unique(through, axis=1)
    through_band = np.full(len(through_low), THROUGH, np.uint8)
    low = np.append(pairs.low[is_due], through_low)
    high = np.append(pairs.high[is_due], through_high)
    band = np.append(pairs.band[is_due], through_band)
    order = np.lexsort((low, high))
    return Pairs(low[order], high[order], band[order])


def _verified(pairs: Pairs, similarity: Similarity, threshold: float) -> Edges:
    """Return the pairs that are at least as similar as the threshold."""
    exact = similarity(pairs.low, pairs.high, threshold)
    is_similar = exact >= np.float32(threshold)
    edges = Edges(pairs.high, pairs.low, exact, pairs.band)
    return Edges(*(column[is_similar] for column in edges))


def _joined(edges: Edges, others: Edges) -> Edges:
    """Return all edges of both, sorted by (high, low)."""
    columns = [np.append(own, more) for own, more in zip(edges, others)]
    joined = Edges(*columns)
    order = np.lexsort((joined.low, joined.high))
    return Edges(*(column[order] for column in joined))


@no_type_check  # numba compiles it as it is
def _greedy(high, low, exact, keeper):
    """Decide documents in their order, given edges that are sorted by (high, low).

    Args:
      exact: [edges] similarities.
      keeper: [documents] each its own; it is overwritten.
    Returns:
      keeper: [documents] the document that is kept for each.
      best: [documents] the edge that decided, or -1.
      through: [2, pairs] (document, keeper of a candidate), for each document that is kept because
        all of its candidates are removed.
    """
    best = np.full(len(keeper), -1)
    through = np.empty((2, len(high)), np.int64)
    through_count, begin = 0, 0
    while begin < len(high):
        # The edges of one document are begin to end.
        document, end = high[begin], begin
        while end < len(high) and high[end] == document:
            other = low[end]
            is_better = best[document] < 0 or exact[end] > exact[best[document]]
            if keeper[other] == other and is_better:
                best[document] = end
            end += 1
        if best[document] >= 0:
            keeper[document] = low[best[document]]
        else:
            for edge in range(begin, end):
                through[0, through_count] = document
                through[1, through_count] = keeper[low[edge]]
                through_count += 1
        begin = end
    return keeper, best, through[:, :through_count]


def _compile(function: Callable) -> Callable:
    """Return the function, compiled where numba is installed."""
    if not compiled():
        return function
    from slmjax.curate import minhash_kernels

    return minhash_kernels.compile(function)


def exact_similarity(shingles: Shingles, counts: Counts) -> Callable[..., PairSimilarities]:
    """Return the function (low, high, threshold=0.0) -> similarity that `cluster` takes.

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

    Args:
      starts: the shingles of document d are shingles[starts[d] : starts[d + 1]].
    """
    result = np.empty(len(low), np.float32)
    if not compiled():
        for i, (a, b) in enumerate(zip(low, high)):
            shingles_a = np.unique(shingles[starts[a] : starts[a + 1]])
            shingles_b = np.unique(shingles[starts[b] : starts[b + 1]])
            common = len(np.intersect1d(shingles_a, shingles_b, assume_unique=True))
            result[i] = common / (len(shingles_a) + len(shingles_b) - common)
        return result
    from slmjax.curate import minhash_kernels

    # The kernel gives up on pairs that cannot reach its threshold. Ours is lowered a little, so
    # that rounding drops no pair, and stays above 0, as the kernel divides by it.
    safe_threshold = max(threshold - 1e-6, 1e-9)

    def compare(start: int) -> None:
        part = slice(start, start + PART)
        minhash_kernels.jaccard(
            shingles, starts, low[part], high[part], safe_threshold, result[part]
        )

    with ThreadPoolExecutor(cores()) as pool:  # the kernel releases the interpreter's lock
        list(pool.map(compare, range(0, len(low), PART)))
    return result
