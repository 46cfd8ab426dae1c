"""The quality and repetition rules of Gopher: Rae et al. 2021, "Scaling Language Models", appendix A.1.1.

The paper leaves open what a word is and how characters of repeated n-grams are counted; both are done as in datatrove 0.10.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np

from slmjax.curate.english import SYMBOLS
from slmjax.curate.words import split_words

STOP_WORDS = frozenset(
    ("the", "be", "to", "of", "and", "that", "have", "with")
)  # Rae et al. 2021, appendix A.1.1
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
    """Drop what is no running prose: too short or long, odd words, mostly lists, cut sentences, symbols, no common English words.

    Args:
      min_words, max_words: words with more than punctuation in them; at least one is always asked for.
      min_word_length, max_word_length: the mean of such words, in characters.
      max_symbols: "#" per word, and ellipses ("..." or "…") per word.
      max_bullet_lines, max_ellipsis_lines: shares of the lines that begin with "•" or "-", and that end in an ellipsis.
      min_alphabetic: share of words with a letter; punctuation marks count as words, so dialogue and formulas fail it first.
      min_stop_words: how many of STOP_WORDS must occur, in lower case.
    Source: all defaults from Rae et al. 2021, appendix A.1.1.
    """
    every = split_words(text)
    counts = Counter(every)
    proper = {word: count for word, count in counts.items() if not SYMBOLS.issuperset(word)}
    total = sum(proper.values())
    if total < max(1, min_words):
        return text, "gopher_quality: too few words"
    if total > max_words:
        return text, "gopher_quality: too many words"
    length = sum(len(word) * count for word, count in proper.items()) / total
    if length < min_word_length:
        return text, "gopher_quality: words too short"
    if length > max_word_length:
        return text, "gopher_quality: words too long"
    if text.count("#") / len(every) > max_symbols:
        return text, "gopher_quality: too many hashes"
    if (text.count("...") + text.count("…")) / len(every) > max_symbols:
        return text, "gopher_quality: too many ellipses"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > max_bullet_lines:
        return text, "gopher_quality: too many bullet lines"
    if (
        sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
        > max_ellipsis_lines
    ):
        return text, "gopher_quality: too many lines end in an ellipsis"
    if (
        sum(count for word, count in proper.items() if any(map(str.isalpha, word))) / len(every)
        < min_alphabetic
    ):
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
    """Drop what repeats itself: lines, paragraphs (between blank lines) and n-grams of words that occurred before in the text.

    Args:
      max_lines, max_paragraphs: share of them that are repetitions.
      max_line_characters, max_paragraph_characters: characters in repetitions over those of the text.
      max_top: n to the share of the text's characters in all occurrences of the commonest n-gram (of several, the one that comes first).
      max_repeated: n to the share of characters, white space left out, in n-grams that occurred before, none counted twice.
    Source: all defaults from Rae et al. 2021, table A1.
    """
    if not text.strip():
        return text, "gopher_repetition: empty"
    parts = (
        ("paragraphs", r"\n{2,}", text.strip(), max_paragraphs, max_paragraph_characters),
        ("lines", r"\n+", text, max_lines, max_line_characters),
    )
    for name, separator, whole, most, most_characters in parts:
        items = re.split(separator, whole)
        count, characters = repetitions(items)
        if count / len(items) > most:
            return text, f"gopher_repetition: repeated {name}"
        if characters / len(text) > most_characters:
            return text, f"gopher_repetition: repeated {name} by characters"
    every = split_words(text)
    starts = [0, *accumulate(map(len, every))]  # of each word in the text without white space
    for n, places, names in _repeated_grams(every, max((*max_top, *max_repeated))):
        if n in max_top and _top(starts, n, places, names) / len(text) > max_top[n]:
            return text, f"gopher_repetition: top {n}-gram"
        if n in max_repeated and _repeated(starts, n, places, names) / len(text) > max_repeated[n]:
            return text, f"gopher_repetition: repeated {n}-grams"
    return text, None


def repetitions(items: Sequence[str]) -> tuple[int, int]:
    """How many items occurred before in the sequence, and the characters in them."""
    unique = set(items)
    return len(items) - len(unique), sum(map(len, items)) - sum(map(len, unique))


def _repeated_grams(
    every: Sequence[str], longest: int
) -> Iterator[tuple[int, list[int], list[int]]]:
    """For n from 2 to `longest`: n, where the n-grams of words begin that occur more than once, and a number for each that names it.

    An n-gram that occurs twice begins with an (n-1)-gram that does, so each n looks only at the places left by the one before.
    """
    numbers = {word: i for i, word in enumerate(dict.fromkeys(every))}
    ids = np.fromiter(map(numbers.__getitem__, every), np.int64, len(every))
    places, names = np.arange(len(ids)), ids
    for n in range(2, longest + 1):
        inside = places + n <= len(ids)
        places = places[inside]
        _, names, counts = np.unique(
            names[inside] * len(ids) + ids[places + n - 1], return_inverse=True, return_counts=True
        )
        again = counts[names] > 1
        places, names = places[again], names[again]
        yield n, places.tolist(), names.tolist()


def _top(starts: list[int], n: int, places: list[int], names: list[int]) -> int:
    """Characters of the commonest n-gram, with its spaces, times its occurrences; the text's first n-gram where none occurs twice."""
    if len(starts) <= n:
        return 0
    name, count = Counter(names).most_common(1)[0] if names else (0, 1)
    first = places[names.index(name)] if names else 0
    return (starts[first + n] - starts[first] + n - 1) * count


def _repeated(starts: list[int], n: int, places: list[int], names: list[int]) -> int:
    """Characters of the n-grams that occurred before, going from left to right and over each of them once."""
    seen, characters, resume = set(), 0, 0
    for place, name in zip(places, names):
        if place < resume:
            continue
        if name in seen:
            characters += starts[place + n] - starts[place]
            resume = place + n
        seen.add(name)
    return characters
