"""Compiled kernels of deduplication (numba, the extra `curate`): signatures and exact Jaccard."""

import functools
from typing import no_type_check

import numpy as np
from numba import njit

from slmjax.text.hashing_kernels import mix

# Compiles a function, once. All functions here are marked `no_type_check`, since nothing may wrap
# what numba compiles.
compile = functools.cache(njit(cache=True, nogil=True))


@no_type_check
@njit(cache=True, inline="always")
def fmix(h):
    """The finalizer of 32-bit MurmurHash3, which datasketch's affine32 applies to its input."""
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
        stop = start + counts[text]
        for i in range(start, stop):
            h = fmix(shingles[i])
            # The compiler makes vector instructions of this loop, as it has no branch.
            for k in range(len(a)):
                value = np.uint32(a[k] * h + b[k])
                least[k] = min(value, least[k])
        start = stop
        if len(signatures):
            signatures[text] = least
        for band in range(bands.shape[1]):
            x = np.uint64(band)
            for k in range(rows):
                x = mix(x ^ np.uint64(least[band * rows + k]))
            bands[text, band] = x


@no_type_check
@njit(cache=True, nogil=True)
def jaccard(shingles, starts, low, high, threshold, out):
    """Write the Jaccard similarity of documents low[i] and high[i], exact from the threshold on.

    Below the threshold it may write 0. Pairs should be sorted by `high`: the shingles of high[i]
    are laid out once for all of its pairs, in an open-addressed hash table. Shingles that only
    low[i] has are guests: they are put into the same table and taken out again.

    Args:
      shingles: uint32, of all documents end to end; document d begins at starts[d].
      low, high: int64 [pairs].
      threshold: above 0.
      out: float32 [pairs], written.
    """
    longest = _longest(starts, low, high)
    # A power of two, and enough for the largest table below.
    places = 4
    while places < 6 * longest:
        places *= 2
    # A place holds a shingle or 0.
    table = np.zeros(places, np.uint32)
    # The pair that last met each place, so that a shingle counts once.
    met = np.empty(places, np.int64)
    guests = np.empty(longest, np.int64)  # the places of guests
    # The document in the table, how many different shingles it has, and the size of the part of
    # `table` in use, a power of two, less one: & mask keeps a number inside.
    laid_out, own, mask = -1, 0, 3
    for i in range(len(low)):
        low_begin, low_end = starts[low[i]], starts[low[i] + 1]
        high_begin, high_end = starts[high[i]], starts[high[i] + 1]
        count = high_end - high_begin + low_end - low_begin
        # high[i] is laid out once for all of its pairs, and again if the shingles of both could
        # fill more than half of the table.
        if high[i] != laid_out or 2 * count > mask + 1:
            size = 4
            while size < 3 * count:  # room for other documents of about the length of low[i]
                size *= 2
            mask = size - 1
            table[:size] = 0
            own = _lay_out(shingles[high_begin:high_end], table, met, mask)
            laid_out = high[i]
        # With more guests than this the union is too large: own / (own + guests) < threshold.
        most_guests = own * (1 - threshold) / threshold
        guest_count, common = 0, 0
        for j in range(low_begin, low_end):
            value = max(shingles[j], np.uint32(1))  # 0 marks an empty place
            at = _place(table, mask, value)
            if table[at] == 0:
                table[at], met[at] = value, i
                guests[guest_count] = at
                guest_count += 1
                if guest_count > most_guests:
                    break
            elif met[at] != i:
                met[at] = i
                common += 1
        out[i] = 0.0
        if guest_count <= most_guests:
            out[i] = common / (own + guest_count)
        for k in range(guest_count):
            table[guests[k]] = 0


@no_type_check
@njit(cache=True, nogil=True)
def _longest(starts, low, high):
    """Return the most shingles that one of the documents has."""
    longest = 0
    for documents in (low, high):
        for document in documents:
            longest = max(longest, starts[document + 1] - starts[document])
    return longest


@no_type_check
@njit(cache=True, nogil=True)
def _lay_out(shingles, table, met, mask):
    """Put shingles into the empty table; return how many different ones there are."""
    different = 0
    for shingle in shingles:
        value = max(shingle, np.uint32(1))  # 0 marks an empty place
        at = _place(table, mask, value)
        different += table[at] == 0
        table[at], met[at] = value, -1
    return different


@no_type_check
@njit(cache=True, inline="always")
def _place(table, mask, value):
    """Return where a shingle is in the table, or the empty place where it belongs."""
    # Multiplied by an odd constant: otherwise close values would crowd into neighbouring places.
    mixed = value * np.uint32(0x9E3779B1)
    at = np.int64(mixed >> np.uint32(7)) & mask
    while table[at] != value and table[at] != 0:
        at = (at + 1) & mask
    return at
