"""Compiled kernels of deduplication (numba, the extra `curate`): signatures and exact Jaccard."""

import functools
from typing import (
    no_type_check,
)  # numba compiles these functions as they are: nothing may wrap them

import numpy as np
from numba import njit

from slmjax.text.hashing_kernels import mix

compile = functools.cache(njit(cache=True, nogil=True))


@no_type_check
@njit(cache=True, inline="always")
def fmix(h):
    """The finalizer of 32-bit MurmurHash3, by which datasketch's affine32 mixes what it is given."""
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@no_type_check
@njit(cache=True, nogil=True)
def sketch(shingles, counts, a, b, bands, signatures):
    """Write the band hashes of each text, and its signature where the array has rows.

    Args:
      shingles: uint32 [shingles], of all texts end to end; counts: int64 [texts].
      a, b: uint32 [hashes], see `Scheme.permutations`.
      bands: uint64 [texts, bands]; signatures: uint32 [texts, hashes] or [0, hashes].
    """
    least = np.empty(len(a), np.uint32)
    rows = len(a) // bands.shape[1]
    start = 0
    for text in range(len(counts)):
        least[:] = np.uint32(0xFFFFFFFF)
        for i in range(start, start + counts[text]):
            h = fmix(shingles[i])
            for k in range(len(a)):
                value = np.uint32(a[k] * h + b[k])
                least[k] = min(value, least[k])
        start += counts[text]
        if len(signatures):
            signatures[text] = least
        for band in range(bands.shape[1]):
            x = np.uint64(band)
            for k in range(rows):
                x = mix(x ^ np.uint64(least[band * rows + k]))
            bands[text, band] = x


@no_type_check
@njit(cache=True, inline="always")
def _place(table, mask, value):
    """Where a shingle stands in an open-addressed table, or the empty place (0) where it belongs; 0 itself stands as 1."""
    at = np.int64((value * np.uint32(0x9E3779B1)) >> np.uint32(7)) & mask
    while table[at] != value and table[at] != 0:
        at = (at + 1) & mask
    return at


@no_type_check
@njit(cache=True, nogil=True)
def jaccard(shingles, starts, low, high, threshold, out):
    """Jaccard similarity of the shingle sets of documents low[i] and high[i], exact from `threshold` on; below, 0 may stand for it.

    Sorted by `high`, a set is laid out once. What only low[i] has is put beside it and taken away again; `met` says of each place which
    pair was there last, so that a shingle counts once.
    """
    size = 0
    for of in (low, high):
        for doc in of:
            size = max(size, starts[doc + 1] - starts[doc])
    places = 4
    while places < 6 * size:
        places *= 2
    table, met, guests = (
        np.zeros(places, np.uint32),
        np.empty(places, np.int64),
        np.empty(size, np.int64),
    )
    held, mine, mask = -1, 0, 3
    for i in range(len(low)):
        count = (starts[high[i] + 1] - starts[high[i]]) + (starts[low[i] + 1] - starts[low[i]])
        if high[i] != held or 2 * count > mask + 1:
            mask = 4
            while mask < 3 * count:  # room for other documents of about this length
                mask *= 2
            mask -= 1
            table[: mask + 1] = 0
            mine = 0
            for j in range(starts[high[i]], starts[high[i] + 1]):
                value = max(shingles[j], np.uint32(1))
                at = _place(table, mask, value)
                mine += table[at] == 0
                table[at], met[at] = value, -1
            held = high[i]
        most = mine * (1 - threshold) / threshold  # shingles that the other may have beside mine
        other, common = 0, 0
        for j in range(starts[low[i]], starts[low[i] + 1]):
            value = max(shingles[j], np.uint32(1))
            at = _place(table, mask, value)
            if table[at] == 0:
                table[at], met[at] = value, i
                guests[other] = at
                other += 1
                if other > most:
                    break
            elif met[at] != i:
                met[at] = i
                common += 1
        out[i] = common / (mine + other) if other <= most else 0.0
        for k in range(other):
            table[guests[k]] = 0
