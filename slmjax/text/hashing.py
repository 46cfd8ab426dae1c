"""Words and runs of words as 64-bit hashes: one way to cut and hash text for near-duplicates, decontamination and coverage."""

import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int64, UInt32, UInt64

from slmjax.text.hash_mix import LETTER, WORD, mix

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


# The one letter whose lower case is two characters: it would move all that follows it.
DOTTED_I = ("\u0130", "I")


LAST_CAPITAL = 0x1FFFF  # no code point behind it has a lower case


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
    """Return the hashes of a text's words, and where each begins and ends in it.

    Words are runs of letters and digits in lower case; in scripts without spaces each character is
    one. A word of more than PIECE characters may be cut.
    """
    text = text.replace(*DOTTED_I)
    hashes, starts, ends = (
        [np.zeros(0, np.uint64)],
        [np.zeros(0, np.int64)],
        [np.zeros(0, np.int64)],
    )
    cut = _words_with_kernels if _kernels is not None else _words
    for start, end in _pieces(text):
        piece_hashes, piece_starts, piece_ends = cut(text[start:end])
        hashes.append(piece_hashes)
        starts.append(piece_starts + start)
        ends.append(piece_ends + start)
    return np.concatenate(hashes), np.concatenate(starts), np.concatenate(ends)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of pieces of about PIECE characters that do not cut a word of that size."""
    start = 0
    while start < len(text):
        end = start + PIECE
        while end < min(len(text), start + 2 * PIECE) and text[end].isalnum():
            end += 1
        yield start, end
        start = end


def hash_runs(words: UInt64[np.ndarray, " words"], width: int) -> UInt64[np.ndarray, " runs"]:
    """A hash of each run of `width` words; there are words - width + 1, or none."""
    out = np.full(max(0, len(words) - width + 1), width, np.uint64)
    for k in range(width):
        out = out * WORD + words[k : k + len(out)]
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
        for base in (LETTER, pow(LETTER, -1, 1 << 64))
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


def hash_shingles(
    texts: Sequence[str], width: int
) -> tuple[UInt32[np.ndarray, " shingles"], Int64[np.ndarray, " texts"]]:
    """Return the shingles of each text, end to end, and how many each has.

    A shingle is the upper half of the hash of a run of `width` words. A text of fewer words has one
    run of all of them. A text without words has one hash of all its characters in lower case.
    """
    by_path = _shingles_with_kernels if compiled() else _shingles_with_numpy
    shingles, counts = by_path(texts, width)
    wordless = np.flatnonzero(counts == 0)
    counts[wordless] = 1
    places = np.cumsum(counts)[wordless] - 1
    for text, place in zip(wordless, places):
        characters = texts[text].lower().encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(characters, digest_size=4).digest()
        shingles[place] = int.from_bytes(digest, "little")
    return shingles, counts


def _shingles_with_numpy(
    texts: Sequence[str], width: int
) -> tuple[UInt32[np.ndarray, " shingles"], Int64[np.ndarray, " texts"]]:
    """Return the shingles of `hash_shingles`; a text without words has a place, counted as 0."""
    shingles, counts = [np.zeros(0, np.uint32)], []
    for text in texts:
        words = hash_words(text)[0]
        if not len(words):
            shingles.append(np.zeros(1, np.uint32))
            counts.append(0)
            continue
        runs = hash_runs(words, min(width, len(words)))
        shingles.append((runs >> np.uint64(32)).astype(np.uint32))
        counts.append(len(runs))
    return np.concatenate(shingles), np.array(counts, np.int64)


def _shingles_with_kernels(
    texts: Sequence[str], width: int
) -> tuple[UInt32[np.ndarray, " shingles"], Int64[np.ndarray, " texts"]]:
    """Return what `_shingles_with_numpy` returns."""
    pieces, piece_counts = [], np.empty(len(texts), np.int64)
    for number, text in enumerate(texts):
        text = text.replace(*DOTTED_I)
        own = [_encoded(text[start:end]) for start, end in _pieces(text)]
        pieces += own
        piece_counts[number] = len(own)
    data = np.frombuffer(b"".join(pieces), np.uint8)
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    shingles = np.empty(len(data) + len(texts), np.uint32)  # untouched memory costs nothing
    counts = np.empty(len(texts), np.int64)
    total = kernels().shingle_hashes(
        data, ends, piece_counts, point_entries(), _tables()[0], width, shingles, counts
    )
    return shingles[:total].copy(), counts


def _words_with_kernels(
    text: str,
) -> tuple[UInt64[np.ndarray, " words"], Int64[np.ndarray, " words"], Int64[np.ndarray, " words"]]:
    """Return what `_words` returns."""
    data = np.frombuffer(_encoded(text), np.uint8)
    hashes = np.empty(len(data) + 1, np.uint64)
    starts = np.empty(len(data) + 1, np.int64)
    ends = np.empty(len(data) + 1, np.int64)
    points = point_entries()
    count = _kernels.word_hashes(data, 0, len(data), points, _tables()[0], hashes)
    _kernels.word_bounds(data, points, starts, ends)
    return hashes[:count].copy(), starts[:count].copy(), ends[:count].copy()


def _encoded(text: str) -> bytes:
    """Return a text in UTF-8 whose characters can be lowered one by one, by a table."""
    if "\u03a3" in text:  # sigma: the only letter whose lower case depends on its neighbours
        text = text.lower()
    return text.encode("utf-8", "surrogatepass")


@functools.cache
def point_entries() -> UInt32[np.ndarray, " points"]:
    """Return for each code point what the kernels must know of it.

    The lowest 16 bits are its lower case, folded as in `_words`; the highest two bits are 1 if it
    is in words and 2 if it is a word alone.
    """
    lower = np.arange(0x110000, dtype=np.uint32)
    for code in range(LAST_CAPITAL + 1):
        small = chr(code).lower()
        if len(small) == 1:
            lower[code] = ord(small)
    folded = lower & np.uint32(0xFFFF)
    _, inside, alone = _tables()
    kinds = inside[folded].astype(np.uint32) + alone[folded]
    return kinds << np.uint32(30) | folded


@functools.cache
def compiled() -> bool:
    """Whether the compiled kernels can be used: numba is installed."""
    return importlib.util.find_spec("numba") is not None


_kernels: Any = None


def kernels() -> Any:
    """Load and return the compiled kernels, `hashing_kernels`; needs numba and a second of time.

    From then on `hash_words` uses them, too. It does not load them: for a short text that costs
    more than it saves.
    """
    global _kernels
    if _kernels is None:
        from slmjax.text import hashing_kernels

        _kernels = hashing_kernels
    return _kernels
