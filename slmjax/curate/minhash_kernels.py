"""Compiled kernels of deduplication (numba, the extra `curate`): text to shingles and band hashes, exact Jaccard of pairs, clusters."""

import functools
from typing import (
    no_type_check,
)  # numba compiles the source as it stands: nothing may be wrapped around it

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
def word_hashes(data, start, stop, table, base, out):
    """Hashes of the words of UTF-8 text data[start:stop] into `out`, which has a place more; returns how many there are.

    Where words end is hard to foresee for a processor: what stands in `out` is written at every character, and counted where one ended.
    """
    count, hashed, before = 0, np.uint64(0), 0
    at = start
    while at < stop:
        point = np.uint32(data[at])
        at += 1
        if point >= 0x80:
            point, at = _point(data, at, point)
        entry = table[point]
        inside = np.int64(entry >> np.uint32(30)) & 1
        out[count] = hashed
        count += before & (inside ^ 1)
        hashed = hashed * base + np.uint64(entry & CODE) if inside else np.uint64(0)
        before = inside
        if entry >> np.uint32(31):  # a word by itself
            out[count] = np.uint64(entry & CODE)
            count += 1
    out[count] = hashed
    count += before
    for i in range(count):
        out[i] = mix(out[i])
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
        n = word_hashes(data, start, ends[i], table, base, scratch)
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
