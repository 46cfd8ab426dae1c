"""Cut text into words and hash words and runs of words to 64 bits: the one place that does so."""

import functools
import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, UInt32, UInt64

# Words in a run; GPT-3 (Brown et al. 2020, appendix C) searched training text for runs of 13.
SHINGLE = 13
# Characters whose shingles are made at once.
PART = 1 << 20
# Characters hashed at once: the tables of powers then stay in the processor's cache.
PIECE = 1 << 16
# Scripts without spaces, as first and last code point: each of their characters is a word.
ALONE = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x9FFF),  # Chinese characters
)
# Odd, so that both have an inverse modulo 2^64.
_LETTER_BASE = 0x9E3779B97F4A7C15
_WORD_BASE = np.uint64(0xD1B54A32D192ED03)


def shingles(text: str) -> UInt64[np.ndarray, " n"]:
    """Return 64-bit hashes of every run of 13 words; of a shorter text one hash of all its words.

    Words are lower case, letters and digits only.
    """
    return np.concatenate(list(shingle_parts(text)))


def shingle_parts(text: str) -> Iterator[UInt64[np.ndarray, " n"]]:
    """Yield `shingles` in parts, so that a long text needs little memory."""
    # The last 12 words of a part begin the runs that reach into the next one.
    carried = np.zeros(0, np.uint64)
    is_short = True
    start = 0
    while start < len(text):
        end = _end_of_piece(text, start, PART)
        words = np.concatenate([carried, hash_words(text[start:end])[0]])
        if len(words) >= SHINGLE:
            is_short = False
            yield hash_runs(words, SHINGLE)
        carried, start = words[-(SHINGLE - 1) :], end
    if is_short and len(carried):
        yield hash_runs(carried, len(carried))
    elif is_short:
        # A text without words, such as a row of signs, is hashed as it is.
        data = text.strip().encode("utf-8", "surrogatepass")
        yield np.frombuffer(hashlib.blake2b(data, digest_size=8).digest(), np.uint64)


def hash_words(
    text: str,
) -> tuple[UInt64[np.ndarray, " words"], Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """Return hashes of the words, and where in `text.lower()` each begins and ends.

    Words are lower case, letters and digits only.
    """
    # The empty arrays give a text without words its types.
    hashes = [np.zeros(0, np.uint64)]
    starts = [np.zeros(0, np.int64)]
    ends = [np.zeros(0, np.int64)]
    start = 0
    while start < len(text):
        end = _end_of_piece(text, start, PIECE)
        piece_hashes, piece_starts, piece_ends = _hash_piece(text[start:end])
        hashes.append(piece_hashes)
        starts.append(piece_starts + start)
        ends.append(piece_ends + start)
        start = end
    return np.concatenate(hashes), np.concatenate(starts), np.concatenate(ends)


def hash_runs(words: UInt64[np.ndarray, " words"], width: int) -> UInt64[np.ndarray, " runs"]:
    """Return a hash of each run of `width` words; there are words - width + 1, or none."""
    count = max(0, len(words) - width + 1)
    # A polynomial in _WORD_BASE, by Horner's rule, for all runs at once.
    hashes = np.full(count, width, np.uint64)
    for offset in range(width):
        hashes = hashes * _WORD_BASE + words[offset : offset + count]
    return mix(hashes)


def mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Spread the low bits' structure over all bits.

    Source: the finalizer of splitmix64 (Steele, Lea and Flood 2014).
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Matcher:
    """Finds which of many hashes belong to a fixed set.

    A table of their first bits rejects nearly all, and a binary search decides the rest.
    """

    def __init__(self, hashes: UInt64[np.ndarray, " m"]):
        """`hashes` are sorted and unique."""
        self._hashes = hashes
        # 16 slots or more a hash let at most one in 16 pass by chance; 2^27 slots are 128 MiB.
        bits = min(27, max(10, int(16 * len(hashes)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._slots(hashes)] = True

    def find(self, hashes: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " hits"]:
        """Return the positions in the set of those that are in it."""
        return self.locate(hashes)[1]

    def locate(
        self, hashes: UInt64[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " hits"], Int[np.ndarray, " hits"]]:
        """Return which of `hashes` are in the set, and where in the set each is.

        Both are positions; those in `hashes` are ascending.
        """
        likely = np.flatnonzero(self._table[self._slots(hashes)])
        if not len(likely):
            return likely, likely
        # searchsorted gives len(set) for a hash that is larger than all.
        place = np.searchsorted(self._hashes, hashes[likely])
        place = np.minimum(place, len(self._hashes) - 1)
        is_member = self._hashes[place] == hashes[likely]
        return likely[is_member], place[is_member]

    def _slots(self, hashes: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return (hashes >> self._shift).astype(np.int64)


def _end_of_piece(text: str, start: int, size: int) -> int:
    """Return the end of a piece of about `size` characters that cuts no word.

    A word that is longer than a piece is cut.
    """
    end = start + size
    last = min(len(text), start + 2 * size)
    while end < last and text[end].isalnum():
        end += 1
    return end


def _hash_piece(
    text: str,
) -> tuple[UInt64[np.ndarray, " words"], Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """Return the hash of each word of a short text, its start and its end.

    A word's hash is the sum of code times base^position over its letters. It is a difference of
    prefix sums, divided by base^start so that it does not depend on the place.
    """
    # Characters beyond the first 65,536 share the tables' rows with others.
    data = text.lower().encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(data, np.uint32) & 0xFFFF
    starts, ends = _word_bounds(points)
    codes = _character_tables()[0]
    powers, inverse_powers = _powers(max(10, len(points).bit_length()))
    letters = codes[points] * powers[: len(points)]
    # [characters + 1], all arithmetic modulo 2^64
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(letters)])
    hashes = mix((sums[ends] - sums[starts]) * inverse_powers[starts])
    return hashes, starts, ends


def _word_bounds(
    points: UInt32[np.ndarray, " characters"],
) -> tuple[Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """Return where each word starts and ends, among 16-bit code points."""
    _, in_word, alone = _character_tables()
    # [characters + 2], with a place that is no letter at either end
    is_letter = np.concatenate([[False], in_word[points], [False]])
    is_alone = np.concatenate([[False], alone[points], [False]])
    # [characters + 1]: whether no word reaches across the border before a character
    is_border = ~is_letter[:-1] | ~is_letter[1:] | is_alone[:-1] | is_alone[1:]
    starts = np.flatnonzero(is_letter[1:-1] & is_border[:-1])
    ends = np.flatnonzero(is_letter[1:-1] & is_border[1:]) + 1
    return starts, ends


@functools.cache
def _character_tables() -> tuple[
    UInt64[np.ndarray, "65536"], Bool[np.ndarray, "65536"], Bool[np.ndarray, "65536"]
]:
    """Return for each 16-bit code point a random number, and whether it is in words.

    The third table says whether it is a word by itself.
    """
    codes = np.random.PCG64(13).random_raw(1 << 16)
    in_word = np.fromiter(map(str.isalnum, map(chr, range(1 << 16))), bool)
    alone = np.zeros(1 << 16, bool)
    for first, last in ALONE:
        alone[first : last + 1] = in_word[first : last + 1]
    return codes, in_word, alone


@functools.cache
def _powers(bits: int) -> tuple[UInt64[np.ndarray, " n"], UInt64[np.ndarray, " n"]]:
    """Return base^i and base^-i modulo 2^64 for i < 2^bits."""
    inverse = pow(_LETTER_BASE, -1, 1 << 64)
    return _powers_of(_LETTER_BASE, 1 << bits), _powers_of(inverse, 1 << bits)


def _powers_of(base: int, count: int) -> UInt64[np.ndarray, " count"]:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
