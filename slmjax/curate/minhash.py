"""MinHash sketches of texts: word shingles, permutations, band hashes, and how likely a pair of some similarity meets in a band.

Two paths give the same numbers: a compiled kernel (numba, the extra `curate`), and numpy, some thirty times slower.
Source: Broder 1997 (resemblance); bands as in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3.
"""

import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

from slmjax.text.hashing import ALONE, mix

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that positions stay apart modulo 2^64
LAST = 0x32400  # code points behind it are in no word


@dataclass(frozen=True)
class Scheme:
    """What decides a sketch; sketches of different schemes cannot be compared.

    Attributes: ngram, words of a shingle; bands of `rows` hashes each (14 x 8 are FineWeb's, Penedo et al. 2024); seed of the permutations.
    """

    ngram: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 1

    @property
    def hashes(self) -> int:
        return self.bands * self.rows

    def candidate_probability(self, similarity: Any) -> Any:
        """How likely a pair of this Jaccard similarity shares a band: 1 - (1 - s^rows)^bands."""
        return 1 - (1 - np.asarray(similarity, float) ** self.rows) ** self.bands

    def permutations(self) -> tuple[UInt32[np.ndarray, " hashes"], UInt32[np.ndarray, " hashes"]]:
        """(a, b) of a x h + b modulo 2^32, a odd: those of datasketch's scheme affine32 with the same seed."""
        random = np.random.RandomState(self.seed)
        a = random.randint(0, 1 << 31, self.hashes, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        return a, random.randint(0, 1 << 32, self.hashes, dtype=np.uint32)


class Sketches(NamedTuple):
    """Of some texts: their shingles end to end, how many each has, and hashes of bands; signatures only where asked for."""

    shingles: UInt32[np.ndarray, " shingles"]
    counts: Int64[np.ndarray, " texts"]
    bands: UInt64[np.ndarray, "texts bands"]
    signatures: UInt32[np.ndarray, "texts hashes"] | None = None


def optimal_bands(
    threshold: float, hashes: int, *, missed: float = 0.5, mistaken: float = 0.5
) -> tuple[int, int]:
    """(bands, rows) within so many hashes for which the areas of missed pairs above and mistaken pairs below the threshold weigh least.

    Source: Zhu et al. 2016 (LSH Ensemble), section 4; datasketch's default.
    """
    similarity = (np.arange(2000) + 0.5) / 2000
    above = similarity >= threshold

    def cost(shape: tuple[int, int]) -> float:
        found = Scheme(bands=shape[0], rows=shape[1]).candidate_probability(similarity)
        return float((mistaken * found * ~above + missed * (1 - found) * above).mean())

    return min(
        ((bands, rows) for bands in range(1, hashes + 1) for rows in range(1, hashes // bands + 1)),
        key=cost,
    )


def enough_bands(similarity: float, probability: float, hashes: int = 250) -> tuple[int, int]:
    """(bands, rows) with as many rows as possible that find pairs of this similarity so often.

    Args:
      similarity: Jaccard similarity of the pairs, in (0, 1).
      probability: with which they share a band, in (0, 1).
      hashes: the most that all bands may have together.
    """
    for rows in range(hashes, 0, -1):
        shares_one = similarity**rows
        bands = math.log1p(-probability) / math.log1p(-shares_one) if shares_one else math.inf
        if bands <= hashes and math.ceil(bands) * rows <= hashes:
            return math.ceil(bands), rows
    return hashes, 1


def sketch(texts: Sequence[str], scheme: Scheme, *, signatures: bool = False) -> Sketches:
    """Sketches of texts. A shingle is the 32-bit hash of `ngram` words in a row, of all words where there are fewer.

    Words are runs of letters and digits in lower case; in scripts without spaces each character is one. A text without words is one
    shingle of all its characters.
    """
    encoded = [text.encode("utf-8", "replace") for text in texts]
    path = _compiled if compiled() else _numpy
    return path(encoded, scheme, signatures)


@functools.cache
def compiled() -> bool:
    """Whether the compiled kernels can be used: numba is installed."""
    return importlib.util.find_spec("numba") is not None


def as_datasketch(signature: UInt32[np.ndarray, " hashes"], scheme: Scheme) -> Any:
    """A text's signature as a datasketch.MinHash, for its LSH indexes (in memory, Redis, Cassandra)."""
    import datasketch

    return datasketch.MinHash(
        scheme.hashes, seed=scheme.seed, hashvalues=signature, scheme="affine32"
    )


@functools.cache
def permutation_points() -> UInt32[np.ndarray, " points"]:
    """Of each code point its lower case where that is one code point, and in the highest two bits 1 in words, 2 for a word alone."""
    kind, lower = np.zeros(0x110000, np.uint32), np.arange(0x110000, dtype=np.uint32)
    points = [
        chr(code) for code in range(LAST)
    ]  # no letter stands behind, and a start must not take a second
    kind[:LAST] = [point.isalnum() for point in points]
    for first, last in ALONE:
        kind[first : last + 1] *= 2
    lower[:LAST] = [
        ord(low if len(low) == 1 else point) for low, point in zip(map(str.lower, points), points)
    ]
    return kind << np.uint32(30) | lower


def _compiled(texts: Sequence[bytes], scheme: Scheme, signatures: bool) -> Sketches:
    from slmjax.curate import minhash_kernels as kernels

    data, ends = (
        np.frombuffer(b"".join(texts), np.uint8),
        np.cumsum([len(text) for text in texts], dtype=np.int64),
    )
    shingles = np.empty(len(data) + len(texts), np.uint32)  # untouched pages cost nothing
    counts, bands = np.empty(len(texts), np.int64), np.empty((len(texts), scheme.bands), np.uint64)
    own = np.empty((len(texts) if signatures else 0, scheme.hashes), np.uint32)
    total = kernels.sketch(
        data,
        ends,
        permutation_points(),
        BASE,
        scheme.ngram,
        *scheme.permutations(),
        scheme.bands,
        scheme.rows,
        shingles,
        counts,
        bands,
        own,
    )
    return Sketches(shingles[:total].copy(), counts, bands, own if signatures else None)


def _numpy(texts: Sequence[bytes], scheme: Scheme, signatures: bool) -> Sketches:
    found = [_shingles(text, scheme.ngram) for text in texts]
    a, b = scheme.permutations()
    own = np.array(
        [(a[:, None] * _fmix(of) + b[:, None]).min(1) for of in found], np.uint32
    ).reshape(len(texts), scheme.hashes)
    bands = np.repeat(np.arange(scheme.bands, dtype=np.uint64)[None], len(texts), 0)
    for k in range(scheme.rows):
        bands = mix(bands ^ own[:, k :: scheme.rows])
    counts = np.array([len(of) for of in found], np.int64)
    return Sketches(
        np.concatenate([np.zeros(0, np.uint32), *found]), counts, bands, own if signatures else None
    )


def _shingles(text: bytes, ngram: int) -> UInt32[np.ndarray, " shingles"]:
    entries = permutation_points()[np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)]
    what, codes = entries >> np.uint32(30), (entries & np.uint32((1 << 30) - 1)).astype(np.uint64)
    around = np.concatenate([[0], what, [0]])
    starts = np.flatnonzero((what == 2) | ((what == 1) & (around[:-2] != 1)))
    ends = np.flatnonzero((what == 2) | ((what == 1) & (around[2:] != 1))) + 1
    # The sum of code x BASE^(places to the end) over a word, as a difference of sums from the text's start on.
    ones = np.ones(len(codes) + 1, np.uint64)
    power, inverse = (
        np.cumprod(np.where(np.arange(len(ones)), of, ones))
        for of in (BASE, np.uint64(pow(int(BASE), -1, 1 << 64)))
    )
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * inverse[:-1])])
    words = mix((sums[ends] - sums[starts]) * power[ends - 1])
    width = min(ngram, len(words))
    x = np.full(len(words) - width + 1 if width else 1, width, np.uint64)
    for k in range(width):
        x = x * BASE + words[k : len(words) - width + 1 + k]
    if not width:
        x = sums[-1:] * power[max(0, len(codes) - 1)][None]
    return (mix(x) >> np.uint64(32)).astype(np.uint32)


def _fmix(h: UInt32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))
