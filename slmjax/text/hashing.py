"""Hash the words of texts, and runs of words (shingles), to 64 bits: the one place that does so."""

import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt32, UInt64

from slmjax.text.hash_mix import LETTER_BASE, WORD_BASE, mix

# Words in a run; GPT-3 (Brown et al. 2020, appendix C) searched training text for runs of 13.
SHINGLE = 13
# Characters of a part of a text, whose shingles are made at once.
PART = 1 << 20
# Characters of a piece of a part, whose words are hashed at once: tables of powers of this size
# stay in the processor's cache.
PIECE = 1 << 16
# Scripts without spaces, as first and last code point: each of their characters is a word.
ALONE = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x9FFF),  # Chinese characters
)
# (letter, replacement): the one letter whose lower case is two characters, which would move the
# places of all characters after it.
DOTTED_I = ("\u0130", "I")
LAST_CAPITAL = 0x1FFFF  # no larger code point has a lower case
ALL_POINTS = 0x110000  # number of Unicode's code points


def shingles(text: str) -> UInt64[np.ndarray, " n"]:
    """Return the 64-bit hash of every run of 13 words; of a shorter text one hash of all its words.

    Words are letters and digits, in lower case. A text without words has one hash of its bytes.
    """
    return np.concatenate(list(shingle_parts(text)))


def shingle_parts(text: str) -> Iterator[UInt64[np.ndarray, " n"]]:
    """Yield `shingles` in parts, so that a long text needs little memory."""
    # The last 12 words of a part begin the runs that reach into the next part.
    carried = np.zeros(0, np.uint64)
    is_short = True
    start = 0
    while start < len(text):
        end = _end_of_piece(text, start, PART)
        part_words, _, _ = hash_words(text[start:end])
        words = np.concatenate([carried, part_words])
        if len(words) >= SHINGLE:
            is_short = False
            yield hash_runs(words, SHINGLE)
        carried = words[-(SHINGLE - 1) :]
        start = end
    # A text of fewer than 13 words has carried all of them.
    if is_short and len(carried):
        yield hash_runs(carried, len(carried))
    elif is_short:
        # A text without words, such as a row of signs, is hashed as it is.
        data = text.strip().encode("utf-8", "surrogatepass")
        yield np.frombuffer(hashlib.blake2b(data, digest_size=8).digest(), np.uint64)


def hash_words(
    text: str,
) -> tuple[UInt64[np.ndarray, " words"], Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """Return the hash of each word, and at which characters of the text each begins and ends.

    Words are letters and digits, in lower case. The compiled kernels do the work once
    `compiled_kernels` has loaded them.
    """
    text = text.replace(*DOTTED_I)
    hash_piece = _hash_piece if _kernels is None else _hash_piece_compiled
    # The empty arrays give the results their types where the text is empty.
    hashes = [np.zeros(0, np.uint64)]
    starts = [np.zeros(0, np.int64)]
    ends = [np.zeros(0, np.int64)]
    start = 0
    while start < len(text):
        end = _end_of_piece(text, start, PIECE)
        piece_hashes, piece_starts, piece_ends = hash_piece(text[start:end])
        hashes.append(piece_hashes)
        starts.append(piece_starts + start)
        ends.append(piece_ends + start)
        start = end
    return np.concatenate(hashes), np.concatenate(starts), np.concatenate(ends)


def hash_runs(words: UInt64[np.ndarray, " words"], width: int) -> UInt64[np.ndarray, " runs"]:
    """Return a hash of each run of `width` words: n words have n - width + 1 runs, or none."""
    count = max(0, len(words) - width + 1)
    # A polynomial in WORD_BASE, by Horner's rule, for all runs at once.
    hashes = np.full(count, width, np.uint64)
    for offset in range(width):
        hashes = hashes * WORD_BASE + words[offset : offset + count]
    return mix(hashes)


class Matcher:
    """Finds which of many hashes belong to a fixed set.

    A table of the first bits of the set's hashes rejects nearly all others, and a binary search
    decides about those that pass.
    """

    def __init__(self, hashes: UInt64[np.ndarray, " m"]):
        """Make the set from its hashes, which are sorted and unique."""
        self._hashes = hashes
        # With 16 slots or more for each hash of the set, at most one of 16 others passes by chance.
        # 2^27 slots, the most, are 128 MiB.
        bits = min(27, max(10, int(16 * len(hashes)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self._slots(hashes)] = True

    def find(self, hashes: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " hits"]:
        """Return the positions in the set of those of `hashes` that are in it."""
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
        # searchsorted gives the set's length for a hash that is larger than all of the set.
        positions = np.searchsorted(self._hashes, hashes[likely])
        positions = np.minimum(positions, len(self._hashes) - 1)
        is_member = self._hashes[positions] == hashes[likely]
        return likely[is_member], positions[is_member]

    def _slots(self, hashes: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the slot of each hash in the table: its first bits."""
        return (hashes >> self._shift).astype(np.int64)


def _end_of_piece(text: str, start: int, size: int) -> int:
    """Return the end of a piece of about `size` characters that cuts no word.

    Only a word that goes on for another `size` characters is cut. The end may exceed the text's.
    """
    end = start + size
    last = min(len(text), start + 2 * size)
    while end < last and text[end].isalnum():
        end += 1
    return end


def _hash_piece(
    text: str,
) -> tuple[UInt64[np.ndarray, " words"], Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """Return the hash of each word of a piece, its start and its end.

    A word's hash is the sum of code * LETTER_BASE^position over its letters, mixed. The sum is a
    difference of prefix sums of the piece, divided by LETTER_BASE^start so that it does not depend
    on where the word is.
    """
    # Characters beyond the first 65,536 share the tables' rows with these.
    data = text.lower().encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(data, np.uint32) & 0xFFFF
    starts, ends = _word_bounds(points)
    codes, _, _ = _character_tables()
    # Sizes are powers of 2, so that few tables are made.
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
    # [characters + 2]: a place that is no letter is added at either end
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
    """Return three tables of the 16-bit code points: codes, in_word and alone.

    A character's code is a random number. in_word says whether it is a letter or digit, alone
    whether it is a word by itself.
    """
    codes = np.random.PCG64(13).random_raw(1 << 16)  # 13 is the seed: stored hashes depend on it
    in_word = np.fromiter(map(str.isalnum, map(chr, range(1 << 16))), bool)
    alone = np.zeros(1 << 16, bool)
    for first, last in ALONE:
        alone[first : last + 1] = in_word[first : last + 1]
    return codes, in_word, alone


@functools.cache
def _powers(bits: int) -> tuple[UInt64[np.ndarray, " n"], UInt64[np.ndarray, " n"]]:
    """Return LETTER_BASE^i and LETTER_BASE^-i modulo 2^64, for i < 2^bits."""
    inverse = pow(LETTER_BASE, -1, 1 << 64)
    return _powers_of(LETTER_BASE, 1 << bits), _powers_of(inverse, 1 << bits)


def _powers_of(base: int, count: int) -> UInt64[np.ndarray, " count"]:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def hash_shingles(
    texts: Sequence[str], width: int
) -> tuple[UInt32[np.ndarray, " shingles"], Int64[np.ndarray, " texts"]]:
    """Return 32-bit shingles of all texts, end to end, and how many each text has.

    A shingle is the upper half of the hash of a run of `width` words. A text of fewer words has one
    run of all of them. A text without words has one hash of all its characters in lower case.
    """
    hash_texts = _shingles_with_kernels if compiled() else _shingles_with_numpy
    shingles, counts = hash_texts(texts, width)
    # A text without words has a place among the shingles, which is filled here.
    wordless = np.flatnonzero(counts == 0)
    counts[wordless] = 1
    places = np.cumsum(counts)[wordless] - 1
    for index, place in zip(wordless, places):
        characters = texts[index].lower().encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(characters, digest_size=4).digest()
        shingles[place] = int.from_bytes(digest, "little")
    return shingles, counts


def _shingles_with_numpy(
    texts: Sequence[str], width: int
) -> tuple[UInt32[np.ndarray, " shingles"], Int64[np.ndarray, " texts"]]:
    """Return shingles and counts for `hash_shingles`.

    A text without words has an empty place among the shingles, and the count 0.
    """
    shingles, counts = [np.zeros(0, np.uint32)], []
    for text in texts:
        words, _, _ = hash_words(text)
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
    # The pieces of all texts, and how many each text has.
    pieces = []
    piece_counts = np.empty(len(texts), np.int64)
    for index, text in enumerate(texts):
        text = text.replace(*DOTTED_I)
        start = 0
        pieces_before = len(pieces)
        while start < len(text):
            end = _end_of_piece(text, start, PIECE)
            pieces.append(_encoded(text[start:end]))
            start = end
        piece_counts[index] = len(pieces) - pieces_before
    data = np.frombuffer(b"".join(pieces), np.uint8)
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    # Room for a shingle at each byte, and one more for each text: untouched memory costs nothing.
    shingles = np.empty(len(data) + len(texts), np.uint32)
    counts = np.empty(len(texts), np.int64)
    codes, _, _ = _character_tables()
    total = compiled_kernels().shingle_hashes(
        data, ends, piece_counts, point_entries(), codes, width, shingles, counts
    )
    return shingles[:total].copy(), counts


def _hash_piece_compiled(
    text: str,
) -> tuple[UInt64[np.ndarray, " words"], Int64[np.ndarray, " words"], Int64[np.ndarray, " words"]]:
    """Return what `_hash_piece` returns."""
    data = np.frombuffer(_encoded(text), np.uint8)
    # The kernels need room for one word more than there may be.
    hashes = np.empty(len(data) + 1, np.uint64)
    starts = np.empty(len(data) + 1, np.int64)
    ends = np.empty(len(data) + 1, np.int64)
    entries = point_entries()
    codes, _, _ = _character_tables()
    count = _kernels.word_hashes(data, 0, len(data), entries, codes, hashes)
    _kernels.word_bounds(data, entries, starts, ends)
    return hashes[:count].copy(), starts[:count].copy(), ends[:count].copy()


def _encoded(text: str) -> bytes:
    """Return a text in UTF-8, such that the kernels can lower each character by itself."""
    # Capital sigma: the only letter whose lower case depends on its neighbours.
    if "\u03a3" in text:
        text = text.lower()
    return text.encode("utf-8", "surrogatepass")


@functools.cache
def point_entries() -> UInt32[np.ndarray, " points"]:
    """Return for each code point what the kernels must know of it, in 32 bits.

    The lowest 16 bits are its lower case, cut to 16 bits as in `_hash_piece`. The highest two bits
    are 1 if it is in words next to others, 2 if it is a word alone, and 0 if it is in no word.
    """
    lower = np.arange(ALL_POINTS, dtype=np.uint32)
    for point in range(LAST_CAPITAL + 1):
        lower_text = chr(point).lower()
        if len(lower_text) == 1:
            lower[point] = ord(lower_text)
    low_bits = lower & np.uint32(0xFFFF)
    _, in_word, alone = _character_tables()
    # A character alone is also in words: 1 + 1 = 2.
    kinds = in_word[low_bits].astype(np.uint32) + alone[low_bits]
    return kinds << np.uint32(30) | low_bits


@functools.cache
def compiled() -> bool:
    """Whether the compiled kernels can be used: numba is installed."""
    return importlib.util.find_spec("numba") is not None


# The module of compiled kernels, once it is loaded.
_kernels: Any = None


def compiled_kernels() -> Any:
    """Load and return the compiled kernels, `hashing_kernels`; needs numba and a second of time.

    From then on `hash_words` uses them, too. It does not load them itself: for a short text loading
    takes longer than it saves.
    """
    global _kernels
    if _kernels is None:
        from slmjax.text import hashing_kernels

        _kernels = hashing_kernels
    return _kernels
