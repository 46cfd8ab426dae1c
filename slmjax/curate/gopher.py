"""The quality and repetition rules of Gopher: Rae et al. 2021, appendix A.1.1.

The paper ("Scaling Language Models") leaves open what a word is and how characters of repeated
n-grams are counted; both are done as in datatrove 0.10.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from slmjax.curate.english import SYMBOLS
from slmjax.curate.words import split_words

# Rae et al. 2021, appendix A.1.1.
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
ELLIPSES = ("...", "…")
BULLETS = ("•", "-")
# n of an n-gram to the largest share of the text's characters, see `gopher_repetition`.
TOP_GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def gopher_quality(
    text: str,
    *,
    min_words: int = 50,
    max_words: int = 100_000,
    min_word_length: float = 3,
    max_word_length: float = 10,
    max_symbols: float = 0.1,
    max_bullet_lines: float = 0.9,
    max_ellipsis_lines: float = 0.3,
    min_alphabetic: float = 0.8,
    min_stop_words: int = 2,
) -> tuple[str, str | None]:
    """Drop text that is not running prose.

    It is too short or long, has odd words, is mostly lists, cut sentences or symbols, or has no
    common English words.

    Args:
      min_words, max_words: words with more than punctuation in them; there must be at least one.
      min_word_length, max_word_length: the mean of such words, in characters.
      max_symbols: "#" per word, and ellipses ("..." or "…") per word.
      max_bullet_lines, max_ellipsis_lines: shares of the lines that begin with "•" or "-", and that
        end in an ellipsis.
      min_alphabetic: share of words with a letter; punctuation marks count as words, so dialogue
        and formulas fail it first.
      min_stop_words: how many of STOP_WORDS must occur, in lower case.
    Returns: the text as it is, and the reason to drop it or None, see quality.py.
    Source: all defaults from Rae et al. 2021, appendix A.1.1.
    """
    words = split_words(text)
    counts = Counter(words)
    # Words with more than punctuation in them.
    proper_words = {word: count for word, count in counts.items() if not SYMBOLS.issuperset(word)}
    total = sum(proper_words.values())
    if total < max(1, min_words):
        return text, "gopher_quality: too few words"
    if total > max_words:
        return text, "gopher_quality: too many words"
    # Characters of these words, and how many of them have a letter.
    characters, alphabetic = 0, 0
    for word, count in proper_words.items():
        characters += len(word) * count
        if any(map(str.isalpha, word)):
            alphabetic += count
    if characters / total < min_word_length:
        return text, "gopher_quality: words too short"
    if characters / total > max_word_length:
        return text, "gopher_quality: words too long"
    if text.count("#") / len(words) > max_symbols:
        return text, "gopher_quality: too many hashes"
    if sum(map(text.count, ELLIPSES)) / len(words) > max_symbols:
        return text, "gopher_quality: too many ellipses"
    # Lists, and first sentences of other pages ("read more ...").
    lines = text.splitlines()
    bullets = sum(line.lstrip().startswith(BULLETS) for line in lines)
    if bullets / len(lines) > max_bullet_lines:
        return text, "gopher_quality: too many bullet lines"
    cut = sum(line.rstrip().endswith(ELLIPSES) for line in lines)
    if cut / len(lines) > max_ellipsis_lines:
        return text, "gopher_quality: too many lines end in an ellipsis"
    if alphabetic / len(words) < min_alphabetic:
        return text, "gopher_quality: too few words with a letter"
    if len(STOP_WORDS & counts.keys()) < min_stop_words:
        return text, "gopher_quality: too few stop words"
    return text, None


def gopher_repetition(
    text: str,
    *,
    max_lines: float = 0.3,
    max_paragraphs: float = 0.3,
    max_line_characters: float = 0.2,
    max_paragraph_characters: float = 0.2,
    max_top: Mapping[int, float] = TOP_GRAMS,
    max_repeated: Mapping[int, float] = REPEATED_GRAMS,
) -> tuple[str, str | None]:
    """Drop text that repeats itself: lines, paragraphs (between blank lines) and n-grams of words.

    A repetition is a line, paragraph or n-gram that occurred before in the text. Each limit is a
    largest share.

    Args:
      max_lines, max_paragraphs: share of the lines, or paragraphs, that are repetitions.
      max_line_characters, max_paragraph_characters: share of the text's characters in such lines,
        or paragraphs.
      max_top: for each n, share of the text's characters in all occurrences of the commonest
        n-gram. Among equally common ones the one that comes first is taken.
      max_repeated: for each n, share of the text's characters in n-grams that are repetitions.
        White space in them is left out, and no character is counted twice.
    Returns: the text as it is, and the reason to drop it or None, see quality.py.
    Source: all defaults from Rae et al. 2021, table A1.
    """
    if not text.strip():
        return text, "gopher_repetition: empty"
    # Name, pattern between two items, text to split, and the two limits.
    parts = (
        ("paragraphs", r"\n{2,}", text.strip(), max_paragraphs, max_paragraph_characters),
        ("lines", r"\n+", text, max_lines, max_line_characters),
    )
    for name, separator, split_text, max_share, max_characters in parts:
        items = re.split(separator, split_text)
        count, characters = repetitions(items)
        if count / len(items) > max_share:
            return text, f"gopher_repetition: repeated {name}"
        if characters / len(text) > max_characters:
            return text, f"gopher_repetition: repeated {name} by characters"
    words = split_words(text)
    longest = max((*max_top, *max_repeated))
    # Where each word begins in the text without white space, and where the last one ends.
    starts = [0, *accumulate(map(len, words))]
    for grams in _repeated_grams(words, longest):
        n = grams.n
        if n in max_top:
            characters = _top_characters(starts, grams)
            if characters / len(text) > max_top[n]:
                return text, f"gopher_repetition: top {n}-gram"
        if n in max_repeated:
            characters = _repeated_characters(starts, grams)
            if characters / len(text) > max_repeated[n]:
                return text, f"gopher_repetition: repeated {n}-grams"
    return text, None


def repetitions(items: Sequence[str]) -> tuple[int, int]:
    """Return how many items occurred before in the sequence, and the characters in them."""
    unique = set(items)
    count = len(items) - len(unique)
    characters = sum(map(len, items)) - sum(map(len, unique))
    return count, characters


class RepeatedGrams(NamedTuple):
    """The n-grams of words that occur more than once in a text."""

    n: int
    places: list[int]  # the first word of each occurrence, in order
    ids: list[int]  # a number for each occurrence; equal n-grams have the same


def _repeated_grams(words: Sequence[str], longest: int) -> Iterator[RepeatedGrams]:
    """Yield the repeated n-grams for n from 2 to `longest`.

    An n-gram that occurs twice begins with an (n-1)-gram that does, so each n looks only at the
    places of repeated (n-1)-grams.
    """
    different = dict.fromkeys(words)
    id_of_word = {word: i for i, word in enumerate(different)}
    size = len(words)
    word_ids = np.fromiter(map(id_of_word.__getitem__, words), np.int64, size)
    places, ids = np.arange(size), word_ids
    for n in range(2, longest + 1):
        inside = places + n <= size
        places = places[inside]
        last_words = word_ids[places + n - 1]
        # An n-gram is the (n-1)-gram that begins it, and its last word: both ids in one number.
        pairs = ids[inside] * size + last_words
        _, ids, counts = np.unique(pairs, return_inverse=True, return_counts=True)
        is_repeated = counts[ids] > 1
        places = places[is_repeated]
        ids = ids[is_repeated]
        yield RepeatedGrams(n, places.tolist(), ids.tolist())


def _top_characters(starts: list[int], grams: RepeatedGrams) -> int:
    """Return the characters of the commonest n-gram, with its spaces, times its occurrences.

    If none occurs twice, the text's first n-gram is taken; a text shorter than n words gives 0.

    Args:
      starts: where each word begins in the text without white space, and where the last one ends.
    """
    if len(starts) <= grams.n:
        return 0
    first, count = 0, 1
    if grams.ids:
        commonest, count = Counter(grams.ids).most_common(1)[0]
        first = grams.places[grams.ids.index(commonest)]
    letters = starts[first + grams.n] - starts[first]
    return (letters + grams.n - 1) * count


def _repeated_characters(starts: list[int], grams: RepeatedGrams) -> int:
    """Return the characters in n-grams that occurred before, none counted twice.

    The n-grams are taken from left to right; one that overlaps a counted one is passed over.

    Args:
      starts: as of `_top_characters`.
    """
    seen, characters, counted_up_to = set(), 0, 0
    for place, gram in zip(grams.places, grams.ids):
        if place < counted_up_to:
            continue
        end = place + grams.n
        if gram in seen:
            characters += starts[end] - starts[place]
            counted_up_to = end
        seen.add(gram)
    return characters
