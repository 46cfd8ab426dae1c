"""MinHash sketches of texts: signatures, band hashes, and how likely a pair shares a band.

A signature holds the least value of each of many hash functions over the shingles of a text. It is
cut into bands of a few rows, and each band is hashed: similar texts share a band hash. Words and
shingles are those of `text.hashing`. Signatures are equal to datasketch's: a compiled kernel
(numba, the extra `curate`) computes them; without numba datasketch does, some ten times slower.
Source: Broder 1997 (resemblance); for bands Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, chapter 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

from slmjax.text.hash_mix import mix
from slmjax.text.hashing import compiled, hash_shingles

# datasketch's name for our permutations. Its other schemes have other permutations (legacy) or
# 64-bit hashes (affine64).
AFFINE32 = "affine32"
AT_ONCE = 1 << 14  # shingles given to datasketch at once: it makes a table [shingles, hashes]


Shingles = UInt32[np.ndarray, " shingles"]  # of all texts end to end
Counts = Int64[np.ndarray, " texts"]  # of shingles
Bands = UInt64[np.ndarray, "texts bands"]
Signatures = UInt32[np.ndarray, "texts hashes"]
Signature = UInt32[np.ndarray, " hashes"]
Coefficients = UInt32[np.ndarray, " hashes"]


@dataclass(frozen=True)
class Scheme:
    """The settings of a sketch; sketches of different schemes cannot be compared."""

    ngram: int = 5  # words of a shingle
    # 14 bands of 8 rows are FineWeb's (Penedo et al. 2024).
    bands: int = 14
    rows: int = 8  # hashes of a band
    seed: int = 1  # of the permutations

    @property
    def hashes(self) -> int:
        """How many hashes a signature has."""
        return self.bands * self.rows

    def candidate_probability(self, similarity: Any) -> Any:
        """Return the probability that a pair shares a band: 1 - (1 - s^rows)^bands.

        Args:
          similarity: Jaccard similarity s of the pair, a number or an array.
        """
        share_one_band = np.asarray(similarity, float) ** self.rows
        return 1 - (1 - share_one_band) ** self.bands

    def permutations(self) -> tuple[Coefficients, Coefficients]:
        """Return (a, b) of the permutations a x h + b modulo 2^32; every a is odd.

        They are those of datasketch's scheme affine32 with the same seed. Importing datasketch for
        them would cost every process half a second.
        """
        random = np.random.RandomState(self.seed)
        half = random.randint(0, 1 << 31, self.hashes, dtype=np.uint32)
        a = half * np.uint32(2) + np.uint32(1)
        b = random.randint(0, 1 << 32, self.hashes, dtype=np.uint32)
        return a, b


class Sketches(NamedTuple):
    """Sketches of some texts."""

    shingles: Shingles
    counts: Counts
    bands: Bands  # a hash of each band
    signatures: Signatures | None = None  # only where they were asked for


def sketch(texts: Sequence[str], scheme: Scheme, *, signatures: bool = False) -> Sketches:
    """Return the sketches of texts; `hash_shingles` says what a shingle is."""
    shingles, counts = hash_shingles(texts, scheme.ngram)
    return sketch_shingles(shingles, counts, scheme, signatures=signatures)


def sketch_shingles(
    shingles: Shingles, counts: Counts, scheme: Scheme, *, signatures: bool = False
) -> Sketches:
    """Return the sketches of texts whose shingles lie end to end: first counts[0] of text 0, ..."""
    if compiled():
        return _with_kernel(shingles, counts, scheme, signatures)
    return _with_datasketch(shingles, counts, scheme, signatures)


def _with_kernel(shingles: Shingles, counts: Counts, scheme: Scheme, signatures: bool) -> Sketches:
    from slmjax.curate import minhash_kernels

    bands = np.empty((len(counts), scheme.bands), np.uint64)
    # Without rows the kernel keeps no signatures.
    signature_rows = len(counts) if signatures else 0
    signature_table = np.empty((signature_rows, scheme.hashes), np.uint32)
    a, b = scheme.permutations()
    minhash_kernels.sketch(shingles, counts, a, b, bands, signature_table)
    return Sketches(shingles, counts, bands, signature_table if signatures else None)


def _with_datasketch(
    shingles: Shingles, counts: Counts, scheme: Scheme, signatures: bool
) -> Sketches:
    from datasketch import MinHash

    empty = MinHash(scheme.hashes, seed=scheme.seed, hashfunc=int, scheme=AFFINE32)
    signature_table = np.empty((len(counts), scheme.hashes), np.uint32)
    ends = np.cumsum(counts)
    for text, (count, end) in enumerate(zip(counts, ends)):
        minhash = empty.copy()  # a new one would draw its permutations again
        own_shingles = shingles[end - count : end]
        for start in range(0, count, AT_ONCE):
            part = own_shingles[start : start + AT_ONCE]
            minhash.update_batch(part.tolist())
        signature_table[text] = minhash.hashvalues
    bands = band_hashes(signature_table, scheme)
    return Sketches(shingles, counts, bands, signature_table if signatures else None)


def datasketch_minhash(signature: Signature, scheme: Scheme) -> Any:
    """Return a text's signature as a datasketch.MinHash, which its indices take."""
    from datasketch import MinHash

    return MinHash(scheme.hashes, seed=scheme.seed, hashvalues=signature, scheme=AFFINE32)


def band_hashes(signatures: Signatures, scheme: Scheme) -> Bands:
    """Return a hash of each band of each signature."""
    # hashes [texts, bands] begin with the numbers of the bands, so that bands of equal values at
    # different places differ.
    numbers = np.arange(scheme.bands, dtype=np.uint64)
    hashes = np.tile(numbers, (len(signatures), 1))
    for row in range(scheme.rows):
        # Band b has the values b * rows to (b + 1) * rows of a signature.
        hashes = mix(hashes ^ signatures[:, row :: scheme.rows])
    return hashes


def optimal_bands(
    threshold: float, hashes: int, *, missed: float = 0.5, mistaken: float = 0.5
) -> tuple[int, int]:
    """Return the (bands, rows) that err least at a threshold, with at most `hashes` hashes.

    The error is a mean over similarities from 0 to 1: of the probability of missing a pair above
    the threshold, times `missed`, or of proposing a pair below it, times `mistaken`.

    Source: Zhu et al. 2016 (LSH Ensemble), section 4; datasketch's default.
    """
    similarity = (np.arange(2000) + 0.5) / 2000  # the middles of 2,000 steps
    above = similarity >= threshold

    def cost(shape: tuple[int, int]) -> float:
        bands, rows = shape
        scheme = Scheme(bands=bands, rows=rows)
        probability = scheme.candidate_probability(similarity)
        mistaken_pairs = mistaken * probability * ~above
        missed_pairs = missed * (1 - probability) * above
        errors = mistaken_pairs + missed_pairs
        return float(errors.mean())

    shapes = []
    for bands in range(1, hashes + 1):
        shapes += [(bands, rows) for rows in range(1, hashes // bands + 1)]
    return min(shapes, key=cost)


def enough_bands(similarity: float, probability: float, hashes: int = 250) -> tuple[int, int]:
    """Return the (bands, rows) with the most rows that find pairs with this probability.

    More rows in a band propose fewer pairs of lower similarity. If no choice within `hashes` is
    enough, (hashes, 1) is returned.

    Args:
      similarity: Jaccard similarity of the pairs, in (0, 1).
      probability: least probability that such a pair shares a band, in (0, 1).
      hashes: the most that all bands may have together.
    """
    for rows in range(hashes, 0, -1):
        share_one_band = similarity**rows
        if not share_one_band:  # too small for a float
            continue
        # From 1 - (1 - share_one_band)^bands = probability; log1p keeps small shares exact.
        bands = math.log1p(-probability) / math.log1p(-share_one_band)
        if bands > hashes:  # too many to be rounded up
            continue
        whole_bands = math.ceil(bands)
        if whole_bands * rows <= hashes:
            return whole_bands, rows
    return hashes, 1
