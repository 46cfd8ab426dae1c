"""Compiled word and shingle hashes (numba, the extra `curate`): the same numbers as `hashing`."""

from typing import (
    no_type_check,
)  # numba compiles these functions as they are: nothing may wrap them

import numpy as np
from numba import njit

from slmjax.text import hash_mix

LETTER = np.uint64(hash_mix.LETTER_BASE)
WORD = hash_mix.WORD_BASE
INSIDE = np.uint32(30)  # bit of a point's entry: it is in words, next to others
ALONE = np.uint32(31)  # bit of a point's entry: it is a word alone
CODE = np.uint32(0xFFFF)  # bits of a point's entry: which random number it has

mix = njit(cache=True, inline="always")(hash_mix.mix)


@no_type_check
@njit(cache=True, inline="always")
def _character(data, at):
    """Return (code point, where the next begins) of the UTF-8 character that begins at `at`."""
    point = np.uint32(data[at])
    at += 1
    if point >= 0x80:
        following = 1 if point < 0xE0 else 2 if point < 0xF0 else 3
        point = np.uint32(point & np.uint32(0x3F >> following))
        for _ in range(following):
            point = np.uint32((point << np.uint32(6)) | np.uint32(data[at] & 0x3F))
            at += 1
    return point, at


@no_type_check
@njit(cache=True, nogil=True)
def word_hashes(data, start, stop, points, codes, hashes):
    """Write the hashes of the words of UTF-8 text data[start:stop]; return how many there are.

    Args:
      data: uint8 [bytes].
      points: uint32 [code points], see `hashing.point_entries`.
      codes: uint64 [65536], the random number of each folded code point.
      hashes: uint64, with one place more than there may be words.
    """
    # Branch-free, as a processor cannot foresee where words end: every character writes
    # hashes[count], and `count` advances at a word's end.
    count, inside_before = 0, 0
    total, power = np.uint64(0), np.uint64(1)
    at = start
    while at < stop:
        point, at = _character(data, at)
        entry = points[point]
        inside = np.int64(entry >> INSIDE) & 1
        code = codes[entry & CODE]
        hashes[count] = total
        count += inside_before & (inside ^ 1)
        with_code, next_power = total + code * power, power * LETTER
        total = with_code if inside else np.uint64(0)
        power = next_power if inside else np.uint64(1)
        inside_before = inside
        if entry >> ALONE:
            hashes[count] = code
            count += 1
    hashes[count] = total
    count += inside_before
    for i in range(count):
        hashes[i] = mix(hashes[i])
    return count


@no_type_check
@njit(cache=True, nogil=True)
def word_bounds(data, points, starts, ends):
    """Write where the words of UTF-8 text begin and end, in characters; see `word_hashes`."""
    count, inside_before, begin = 0, 0, 0
    at, number = 0, 0
    while at < len(data):
        point, at = _character(data, at)
        entry = points[point]
        inside = np.int64(entry >> INSIDE) & 1
        starts[count] = begin
        ends[count] = number
        count += inside_before & (inside ^ 1)
        begin = begin if inside else number + 1
        inside_before = inside
        if entry >> ALONE:
            starts[count] = number
            ends[count] = number + 1
            count += 1
        number += 1
    starts[count] = begin
    ends[count] = number
    return count + inside_before


@no_type_check
@njit(cache=True, nogil=True)
def shingle_hashes(data, ends, pieces, points, codes, width, shingles, counts):
    """Write the shingles of texts end to end, and how many each has; return how many there are.

    A text without words leaves a place empty.

    Args:
      data: uint8, pieces of texts end to end; piece i ends at ends[i].
      pieces: int64 [texts], how many pieces each text has.
      points, codes: see `word_hashes`.
      width: words of a run.
      shingles: uint32, with one place more for each text than there may be words.
      counts: int64 [texts], becomes the number of each text's shingles; 0 where it has no words.
    """
    total, start, piece = 0, 0, 0
    longest = 0
    for i in range(len(pieces)):
        if pieces[i]:
            piece += pieces[i]
            longest = max(longest, ends[piece - 1] - start)
            start = ends[piece - 1]
    words = np.empty(longest + 1, np.uint64)
    start, piece = 0, 0
    for i in range(len(pieces)):
        count = 0
        for _ in range(pieces[i]):
            count += word_hashes(data, start, ends[piece], points, codes, words[count:])
            start = ends[piece]
            piece += 1
        length = min(width, count)
        runs = max(1, count - width + 1)
        for first in range(runs):
            run = np.uint64(length)
            for k in range(length):
                run = run * WORD + words[first + k]
            shingles[total + first] = np.uint32(mix(run) >> np.uint64(32))
        counts[i] = runs if count else 0
        total += runs
    return total
