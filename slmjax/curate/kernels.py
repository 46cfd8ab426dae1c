"""Compiled kernels of deduplication (numba, the extra `curate`): text to shingles and band hashes, exact Jaccard of pairs, clusters."""

import functools
from typing import no_type_check  # numba compiles the source as it stands: nothing may be wrapped around it

import numpy as np
from numba import njit

compile = functools.cache(njit(cache=True, nogil=True))
CODE = np.uint32((1 << 30) - 1)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@no_type_check
@njit(cache=True, inline="always")
def mix(x):
    """The finalizer of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * MIX_1
    x = (x ^ (x >> np.uint64(27))) * MIX_2
    return x ^ (x >> np.uint64(31))


@no_type_check
@njit(cache=True, inline="always")
def fmix(h):
    """The finalizer of 32-bit MurmurHash3, by which datasketch's affine32 mixes what it is given."""
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@no_type_check
@njit(cache=True, nogil=True)
def words(data, start, stop, table, base, out):
    """Hashes of the words of UTF-8 text data[start:stop] into `out`; returns how many there are."""
    count, hashed, inside = 0, np.uint64(0), False
    at = start
    while at < stop:
        point = np.uint32(data[at])
        at += 1
        if point >= 0x80:
            point, at = _point(data, at, point)
        entry = table[point]
        if entry >> np.uint32(30) == 1:
            hashed = hashed * base + np.uint64(entry & CODE)
            inside = True
            continue
        if inside:
            out[count] = mix(hashed)
            count += 1
            hashed, inside = np.uint64(0), False
        if entry >> np.uint32(30) == 2:  # a word by itself
            out[count] = mix(np.uint64(entry & CODE))
            count += 1
    if inside:
        out[count] = mix(hashed)
        count += 1
    return count


@no_type_check
@njit(cache=True, nogil=True)
def characters(data, start, stop, table, base):
    """The sum over all characters of a text, as words are summed: what stands for a text without any."""
    whole, at = np.uint64(0), start
    while at < stop:
        point = np.uint32(data[at])
        at += 1
        if point >= 0x80:
            point, at = _point(data, at, point)
        whole = whole * base + np.uint64(table[point] & CODE)
    return whole


@no_type_check
@njit(cache=True, inline="always")
def _point(data, at, lead):
    """(code point, where the next begins) of a character of several bytes, the first of which is `lead`."""
    more = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
    point = np.uint32(lead & np.uint32(0x3F >> more))
    for _ in range(more):
        point = np.uint32((point << np.uint32(6)) | np.uint32(data[at] & 0x3F))
        at += 1
    return point, at


@no_type_check
@njit(cache=True, nogil=True)
def sketch(data, ends, table, base, ngram, a, b, bands, rows, shingles, counts, hashes, signatures):
    """For each text data[ends[i-1]:ends[i]] its shingles (end to end in `shingles`, counts[i] of them) and its band hashes.

    Signatures [texts, bands x rows] are written where the array has rows. Returns how many shingles there are in all.
    """
    longest, start = 0, 0
    for end in ends:
        longest = max(longest, end - start)
        start = end
    scratch = np.empty(longest + 1, np.uint64)
    least = np.empty(len(a), np.uint32)
    total, start = 0, 0
    for i in range(len(ends)):
        n = words(data, start, ends[i], table, base, scratch)
        least[:] = np.uint32(0xFFFFFFFF)
        width = min(ngram, n)
        count = max(1, n - ngram + 1)
        counts[i] = count
        for j in range(count):
            x = np.uint64(width)
            for k in range(width):
                x = x * base + scratch[j + k]
            if n == 0:
                x = characters(data, start, ends[i], table, base)
            shingle = np.uint32(mix(x) >> np.uint64(32))
            shingles[total + j] = shingle
            h = fmix(shingle)
            for k in range(len(a)):
                value = np.uint32(a[k] * h + b[k])
                least[k] = min(value, least[k])
        total += count
        start = ends[i]
        if len(signatures):
            signatures[i] = least
        for band in range(bands):
            x = np.uint64(band)
            for k in range(rows):
                x = mix(x ^ np.uint64(least[band * rows + k]))
            hashes[i, band] = x
    return total


@no_type_check
@njit(cache=True, inline="always")
def _insert(table, mask, value):
    """Put a shingle into an open-addressed table (0 is an empty place, so 0 stands as 1); returns whether it is new."""
    value = max(value, np.uint32(1))
    at = (value * np.uint32(0x9E3779B1)) >> np.uint32(7)
    while True:
        at &= mask
        if table[at] == value:
            return False
        if table[at] == 0:
            table[at] = value
            return True
        at += np.uint32(1)


@no_type_check
@njit(cache=True, inline="always")
def _holds(table, mask, value):
    value = max(value, np.uint32(1))
    at = (value * np.uint32(0x9E3779B1)) >> np.uint32(7)
    while True:
        at &= mask
        if table[at] == value:
            return True
        if table[at] == 0:
            return False
        at += np.uint32(1)


@no_type_check
@njit(cache=True, nogil=True)
def jaccard(shingles, starts, low, high, out):
    """Exact Jaccard similarity of the shingle sets of documents low[i] and high[i]; sorted by `high`, a set is laid out once."""
    size = 0
    for of in (low, high):
        for doc in of:
            size = max(size, starts[doc + 1] - starts[doc])
    places = np.uint32(1)
    while places < 2 * size:
        places *= np.uint32(2)
    first, second = np.zeros(places, np.uint32), np.zeros(places, np.uint32)
    held, mine, mask = -1, 0, np.uint32(1)
    for i in range(len(low)):
        count = max(starts[high[i] + 1] - starts[high[i]], starts[low[i] + 1] - starts[low[i]])
        if high[i] != held or 2 * count > mask + 1:
            mask = np.uint32(1)
            while mask < 2 * count:
                mask *= np.uint32(2)
            mask -= np.uint32(1)
            first[: mask + 1] = 0
            mine = 0
            for j in range(starts[high[i]], starts[high[i] + 1]):
                mine += _insert(first, mask, shingles[j])
            held = high[i]
        second[: mask + 1] = 0
        theirs, common = 0, 0
        for j in range(starts[low[i]], starts[low[i] + 1]):
            if _insert(second, mask, shingles[j]):
                theirs += 1
                common += _holds(first, mask, shingles[j])
        out[i] = common / (mine + theirs - common)
