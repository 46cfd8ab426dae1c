"""MinHash sketches of texts: signatures, band hashes, and how likely a pair meets in a band.

Words and shingles are those of `text.hashing`. Signatures are datasketch's: a compiled kernel
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

# datasketch's other schemes have other permutations (legacy) or 64-bit hashes (affine64).
AFFINE32 = "affine32"
AT_ONCE = 1 << 14  # shingles given to datasketch at once: it makes a table [shingles, hashes]


@dataclass(frozen=True)
class Scheme:
    """The settings of a sketch; sketches of different schemes cannot be compared.

    Attributes:
      ngram: words of a shingle.
      bands, rows: bands of `rows` hashes each; 14 x 8 are FineWeb's (Penedo et al. 2024).
      seed: of the permutations.
    """

    ngram: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 1

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

    def permutations(self) -> tuple[UInt32[np.ndarray, " hashes"], UInt32[np.ndarray, " hashes"]]:
        """Return (a, b) of the permutations a x h + b modulo 2^32; every a is odd.

        They are those of datasketch's scheme affine32 with the same seed. Importing datasketch for
        them would cost every process half a second.
        """
        random = np.random.RandomState(self.seed)
        a = random.randint(0, 1 << 31, self.hashes, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        b = random.randint(0, 1 << 32, self.hashes, dtype=np.uint32)
        return a, b


class Sketches(NamedTuple):
    """Sketches of some texts: their shingles end to end, how many each has, and band hashes.

    Signatures are there only where they were asked for.
    """

    shingles: UInt32[np.ndarray, " shingles"]
    counts: Int64[np.ndarray, " texts"]
    bands: UInt64[np.ndarray, "texts bands"]
    signatures: UInt32[np.ndarray, "texts hashes"] | None = None


def sketch(texts: Sequence[str], scheme: Scheme, *, signatures: bool = False) -> Sketches:
    """Return the sketches of texts; `hash_shingles` says what a shingle is."""
    shingles, counts = hash_shingles(texts, scheme.ngram)
    return sketch_shingles(shingles, counts, scheme, signatures=signatures)


def sketch_shingles(
    shingles: UInt32[np.ndarray, " shingles"],
    counts: Int64[np.ndarray, " texts"],
    scheme: Scheme,
    *,
    signatures: bool = False,
) -> Sketches:
    """Return the sketches of texts whose shingles lie end to end, counts[i] of text i."""
    if compiled():
        return _with_kernel(shingles, counts, scheme, signatures)
    return _with_datasketch(shingles, counts, scheme, signatures)


def _with_kernel(
    shingles: UInt32[np.ndarray, " shingles"],
    counts: Int64[np.ndarray, " texts"],
    scheme: Scheme,
    signatures: bool,
) -> Sketches:
    from slmjax.curate import minhash_kernels

    bands = np.empty((len(counts), scheme.bands), np.uint64)
    kept = np.empty((len(counts) if signatures else 0, scheme.hashes), np.uint32)
    a, b = scheme.permutations()
    minhash_kernels.sketch(shingles, counts, a, b, bands, kept)
    return Sketches(shingles, counts, bands, kept if signatures else None)


def _with_datasketch(
    shingles: UInt32[np.ndarray, " shingles"],
    counts: Int64[np.ndarray, " texts"],
    scheme: Scheme,
    signatures: bool,
) -> Sketches:
    from datasketch import MinHash

    empty = MinHash(scheme.hashes, seed=scheme.seed, hashfunc=int, scheme=AFFINE32)
    kept = np.empty((len(counts), scheme.hashes), np.uint32)
    ends = np.cumsum(counts)
    for text, (count, end) in enumerate(zip(counts, ends)):
        minhash = empty.copy()  # a new one would draw its permutations again
        for start in range(end - count, end, AT_ONCE):
            minhash.update_batch(shingles[start : min(end, start + AT_ONCE)].tolist())
        kept[text] = minhash.hashvalues
    bands = band_hashes(kept, scheme)
    return Sketches(shingles, counts, bands, kept if signatures else None)


def datasketch_minhash(signature: UInt32[np.ndarray, " hashes"], scheme: Scheme) -> Any:
    """Return a text's signature as a datasketch.MinHash, which its indices take."""
    from datasketch import MinHash

    return MinHash(scheme.hashes, seed=scheme.seed, hashvalues=signature, scheme=AFFINE32)


def band_hashes(
    signatures: UInt32[np.ndarray, "texts hashes"], scheme: Scheme
) -> UInt64[np.ndarray, "texts bands"]:
    """Return a hash of each band of each signature."""
    hashes = np.repeat(np.arange(scheme.bands, dtype=np.uint64)[None], len(signatures), 0)
    for row in range(scheme.rows):
        hashes = mix(hashes ^ signatures[:, row :: scheme.rows])
    return hashes


def optimal_bands(
    threshold: float, hashes: int, *, missed: float = 0.5, mistaken: float = 0.5
) -> tuple[int, int]:
    """Return the (bands, rows) that err least at a threshold, within so many hashes.

    The error is the area of missed pairs above the threshold and of mistaken pairs below it, by the
    weights `missed` and `mistaken`.

    Source: Zhu et al. 2016 (LSH Ensemble), section 4; datasketch's default.
    """
    similarity = (np.arange(2000) + 0.5) / 2000
    above = similarity >= threshold

    def cost(shape: tuple[int, int]) -> float:
        bands, rows = shape
        probability = Scheme(bands=bands, rows=rows).candidate_probability(similarity)
        errors = mistaken * probability * ~above + missed * (1 - probability) * above
        return float(errors.mean())

    shapes = []
    for bands in range(1, hashes + 1):
        shapes += [(bands, rows) for rows in range(1, hashes // bands + 1)]
    return min(shapes, key=cost)


def enough_bands(similarity: float, probability: float, hashes: int = 250) -> tuple[int, int]:
    """Return the (bands, rows) with the most rows that find pairs of this similarity so often.

    Args:
      similarity: Jaccard similarity of the pairs, in (0, 1).
      probability: with which they share a band, in (0, 1).
      hashes: the most that all bands may have together.
    """
    for rows in range(hashes, 0, -1):
        share_one_band = similarity**rows
        if not share_one_band:
            continue
        bands = math.log1p(-probability) / math.log1p(-share_one_band)
        if bands <= hashes and math.ceil(bands) * rows <= hashes:
            return math.ceil(bands), rows
    return hashes, 1
