"""Words and runs of words as 64-bit hashes: one way to cut and hash text for near-duplicates, decontamination and coverage."""

import functools
import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt64

SHINGLE = 13  # words; the length that GPT-3 (Brown et al. 2020, appendix C) used to find test text in training text


PART = 1 << 20  # characters whose shingles are made at once


PIECE = (
    1 << 16
)  # characters hashed at once: the tables of powers then stay in the processor's cache


ALONE = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
)  # scripts without spaces


def shingles(text: str) -> UInt64[np.ndarray, " n"]:
    """64-bit hashes of every run of 13 words (lower case, letters and digits only); of a shorter text one hash of all its words."""
    return np.concatenate(list(shingle_parts(text)))


def shingle_parts(text: str) -> Iterator[UInt64[np.ndarray, " n"]]:
    """`shingles` in parts, so that a long text needs little memory."""
    carried, counted, start = np.zeros(0, np.uint64), 0, 0
    while start < len(text):
        end = start + PART
        while end < min(len(text), start + 2 * PART) and text[end].isalnum():
            end += 1
        words = np.concatenate([carried, hash_words(text[start:end])[0]])
        if len(words) >= SHINGLE:
            counted += 1
            yield hash_runs(words, SHINGLE)
        carried, start = words[-(SHINGLE - 1) :], end
    if not counted and len(carried):
        yield hash_runs(carried, len(carried))
    elif not counted:
        digest = hashlib.blake2b(
            text.strip().encode("utf-8", "surrogatepass"), digest_size=8
        ).digest()
        yield np.frombuffer(digest, np.uint64)


def hash_words(
    text: str,
) -> tuple[UInt64[np.ndarray, " words"], Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """Hashes of the words (lower case, letters and digits only), and where in `text.lower()` each begins and ends."""
    pieces, start = [(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))], 0
    while start < len(text):
        end = start + PIECE
        while (
            end < min(len(text), start + 2 * PIECE) and text[end].isalnum()
        ):  # a longer word is cut
            end += 1
        words, starts, ends = _words(text[start:end])
        pieces.append((words, starts + start, ends + start))
        start = end
    words, starts, ends = map(np.concatenate, zip(*pieces))
    return words, starts, ends


def hash_runs(words: UInt64[np.ndarray, " words"], width: int) -> UInt64[np.ndarray, " runs"]:
    """A hash of each run of `width` words; there are words - width + 1, or none."""
    out = np.full(max(0, len(words) - width + 1), width, np.uint64)
    for k in range(width):
        out = out * _Q + words[k : k + len(out)]
    return mix(out)


class Matcher:
    """Finds which of many hashes belong to a fixed set: a byte table rejects nearly all, a binary search decides the rest."""

    def __init__(self, hashes: UInt64[np.ndarray, " m"]):
        """`hashes` are sorted and unique."""
        self._hashes = hashes
        bits = min(27, max(10, int(16 * len(hashes)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[(hashes >> self._shift).astype(np.int64)] = True

    def find(self, hashes: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " hits"]:
        """Positions in the set of those that are in it."""
        return self.locate(hashes)[1]

    def locate(
        self, hashes: UInt64[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " hits"], Int[np.ndarray, " hits"]]:
        """Which of `hashes` are in the set (their positions, ascending), and the position in the set of each."""
        likely = np.flatnonzero(self._table[(hashes >> self._shift).astype(np.int64)])
        if not len(likely):
            return likely, likely
        place = np.minimum(np.searchsorted(self._hashes, hashes[likely]), len(self._hashes) - 1)
        found = self._hashes[place] == hashes[likely]
        return likely[found], place[found]


_P, _Q = 0x9E3779B97F4A7C15, np.uint64(0xD1B54A32D192ED03)  # odd, so they have inverses modulo 2^64


@functools.cache
def _tables() -> tuple[np.ndarray, ...]:
    """Of each 16-bit code point: a random number, whether it is in words, whether it is a word alone (scripts without spaces)."""
    code = np.random.PCG64(13).random_raw(1 << 16)
    inside = np.array([chr(c).isalnum() for c in range(1 << 16)])
    alone = np.zeros(1 << 16, bool)
    for first, last in ALONE:
        alone[first : last + 1] = inside[first : last + 1]
    return code, inside, alone


@functools.cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """P^i and P^-i modulo 2^64 for i < 2^bits."""
    one = np.ones(1, np.uint64)
    return tuple(
        np.cumprod(np.concatenate([one, np.full((1 << bits) - 1, base, np.uint64)]))
        for base in (_P, pow(_P, -1, 1 << 64))
    )


def _words(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each word a hash (sum of code times P^position over its letters, a difference of prefix sums divided by P^start) and bounds."""
    points = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), np.uint32) & 0xFFFF
    code, inside, alone = _tables()
    word = np.concatenate([[False], inside[points], [False]])
    cut = np.concatenate([[False], alone[points], [False]])
    border = ~word[:-1] | ~word[1:] | cut[:-1] | cut[1:]
    starts = np.flatnonzero(word[1:-1] & border[:-1])
    ends = np.flatnonzero(word[1:-1] & border[1:]) + 1
    power, inverse = _powers(max(10, len(points).bit_length()))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(code[points] * power[: len(points)])])
    return mix((sums[ends] - sums[starts]) * inverse[starts]), starts, ends


def mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Spread the low bits' structure over all bits (the finalizer of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
