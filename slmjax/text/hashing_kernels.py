"""Compiled word and shingle hashes (numba, the extra `curate`): the same numbers as `hashing`.

The functions are marked no_type_check because numba compiles them as they are: nothing may be
wrapped around them. Code points, their entries and their codes are those of `hashing`.
"""

from typing import no_type_check

import numpy as np
from numba import njit

from slmjax.text import hash_mix

LETTER = np.uint64(hash_mix.LETTER_BASE)
WORD = hash_mix.WORD_BASE
# The parts of a code point's entry, see `hashing.point_entries`.
INSIDE = np.uint32(30)  # number of the bit: it is in words, next to others
ALONE = np.uint32(31)  # number of the bit: it is a word alone
CODE = np.uint32(0xFFFF)  # mask of the bits: which code it has

mix = njit(cache=True, inline="always")(hash_mix.mix)


@no_type_check
@njit(cache=True, inline="always")
def _character(data, at):
    """Return the code point of the UTF-8 character at byte `at`, and where the next begins."""
    point = np.uint32(data[at])
    at += 1
    if point >= 0x80:
        # The first byte says how many bytes follow. Each of these holds 6 bits.
        following = 1 if point < 0xE0 else 2 if point < 0xF0 else 3
        point = np.uint32(point & np.uint32(0x3F >> following))
        for _ in range(following):
            point = np.uint32((point << np.uint32(6)) | np.uint32(data[at] & 0x3F))
            at += 1
    return point, at


@no_type_check
@njit(cache=True, nogil=True)
def word_hashes(data, start, stop, entries, codes, hashes):
    """Write the hashes of the words of UTF-8 text data[start:stop]; return how many there are.

    Args:
      data: uint8 [bytes].
      entries: uint32 [code points], see `hashing.point_entries`.
      codes: uint64 [65536], the random number of each character.
      hashes: uint64, is written; has one place more than there may be words.
    """
    # Without branches at words' ends, which a processor cannot foresee: every character writes the
    # hash of the word before it to hashes[count], and only a word's end makes `count` larger.
    count, inside_before = 0, 0
    # The hash of the word so far, and the weight of its next letter.
    total, power = np.uint64(0), np.uint64(1)
    at = start
    while at < stop:
        point, at = _character(data, at)
        entry = entries[point]
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
def word_bounds(data, entries, starts, ends):
    """Write where the words of UTF-8 text begin and end, in characters; return how many there are.

    The words are those of `word_hashes`. It is written in the same way.
    """
    count, inside_before = 0, 0
    at, number = 0, 0  # byte and character
    word_start = 0
    while at < len(data):
        point, at = _character(data, at)
        entry = entries[point]
        inside = np.int64(entry >> INSIDE) & 1
        starts[count] = word_start
        ends[count] = number
        count += inside_before & (inside ^ 1)
        word_start = word_start if inside else number + 1
        inside_before = inside
        if entry >> ALONE:
            starts[count] = number
            ends[count] = number + 1
            count += 1
        number += 1
    starts[count] = word_start
    ends[count] = number
    return count + inside_before


@no_type_check
@njit(cache=True, nogil=True)
def shingle_hashes(data, ends, piece_counts, entries, codes, width, shingles, counts):
    """Write the shingles of texts end to end, and how many each has; return the places they take.

    A text without words takes one place, whose shingle means nothing.

    Args:
      data: uint8, pieces of texts end to end; piece i ends at ends[i].
      piece_counts: int64 [texts], how many pieces each text has.
      entries, codes: see `word_hashes`.
      width: words of a run.
      shingles: uint32, is written; has one place more for each text than there may be words.
      counts: int64 [texts], is written: the number of each text's shingles; 0 if it has no words.
    """
    # Room for the words of the longest text: no more than it has bytes.
    start, piece = 0, 0
    longest = 0
    for i in range(len(piece_counts)):
        if piece_counts[i]:
            piece += piece_counts[i]
            longest = max(longest, ends[piece - 1] - start)
            start = ends[piece - 1]
    words = np.empty(longest + 1, np.uint64)
    total, start, piece = 0, 0, 0
    for i in range(len(piece_counts)):
        word_count = 0
        for _ in range(piece_counts[i]):
            free = words[word_count:]
            word_count += word_hashes(data, start, ends[piece], entries, codes, free)
            start = ends[piece]
            piece += 1
        # The same numbers as `hashing.hash_runs`, their upper halves.
        length = min(width, word_count)
        runs = max(1, word_count - width + 1)
        for first in range(runs):
            run_hash = np.uint64(length)
            for k in range(length):
                run_hash = run_hash * WORD + words[first + k]
            shingles[total + first] = np.uint32(mix(run_hash) >> np.uint64(32))
        counts[i] = runs if word_count else 0
        total += runs
    return total
