"""Words and sentences as the quality rules count them: English, by rules.

This is not how the rest of the library cuts words (`text.hashing`). The thresholds of the quality
rules hold only for words as datatrove counts them: a punctuation mark is a word and "don't" is two.
datatrove takes the rule-based English tokenizer and the sentence splitter of spaCy 3. Of 148,063
different pieces of text in tests/parity/test_datatrove_quality.py, 3 split otherwise than with
spaCy: rare letters and signs.

How a piece between two spaces splits does not depend on the text around it. Pieces repeat, so their
splits are remembered.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain

from slmjax.curate.english import SPECIAL, TERMINAL
from slmjax.curate.word_patterns import ADDRESS, END, INFIX, PREFIX, STOP, UNIT

POSSESSIVES = ("'s", "'S", "’s", "’S")
NEAR_END = 6  # characters at the end of a piece that decide what is cut there


@lru_cache(maxsize=1)  # several rules look at one text before the next text comes
def split_words(text: str) -> tuple[str, ...]:
    """Return the words, numbers and punctuation marks of a text, in order, without white space."""
    return tuple(_words(text))


def sentences(text: str, enough: int) -> int:
    """Return how many sentences a text has, counted up to `enough`; 0 without words."""
    count, is_between_sentences = 0, True
    for word in _words(text):
        # Punctuation after the end of a sentence (a bracket, a quotation mark) begins no new one.
        if is_between_sentences and (not count or not _is_punctuation(word)):
            count += 1
            is_between_sentences = False
            if count >= enough:
                break
        if word in TERMINAL:
            is_between_sentences = True
    return count


def _words(text: str) -> Iterable[str]:
    return chain.from_iterable(map(_split, text.split()))


@lru_cache(maxsize=2**14)
def _is_punctuation(word: str) -> bool:
    """Return whether every character is punctuation to Unicode ("$" and "+" are not)."""
    return all(unicodedata.category(c)[0] == "P" for c in word)


@lru_cache(maxsize=2**17)  # about 50 MB when full
def _split(piece: str) -> tuple[str, ...]:
    """Return the words of a piece between two spaces."""
    if piece in SPECIAL:
        return SPECIAL[piece]
    if piece.isalpha():  # most pieces
        return (piece,)
    front, core, back = _cut_affixes(piece, SPECIAL)
    middle = SPECIAL.get(core)
    if middle is None:
        middle = _cut_middle(core)
    return _join_special([*front, *middle, *back])


def _cut_affixes(piece: str, special: Mapping[str, object]) -> tuple[list[str], str, list[str]]:
    """Return the parts that are cut from the front, what is left, and those cut from the back.

    The parts are punctuation marks, currencies and units. At most one is cut from each end at a
    time, until there is none to cut, or a special word is left.

    Args:
      special: the special words; {} to cut by the rules alone.
    """
    front, back = [], []
    start, end = 0, len(piece)  # of what is left

    def is_special(start: int, end: int) -> bool:
        return end - start <= _LONGEST and piece[start:end] in special

    while start < end and not is_special(start, end):
        prefix = PREFIX.match(piece, start, end)
        new_start = prefix.end() if prefix else start
        new_end = end
        if not is_special(new_start, end):
            new_end -= _suffix_length(piece, new_start, end)
        if new_end < end and is_special(start, new_end):
            new_start = start  # the front belongs to a special word
        if new_start == start and new_end == end:
            break
        if new_start > start:
            front.append(piece[start:new_start])
        if new_end < end:
            back.append(piece[new_end:end])
        start, end = new_start, new_end
    return front, piece[start:end], back[::-1]


def _suffix_length(piece: str, start: int, end: int) -> int:
    """Return the length of the mark, unit or possessive at the end of piece[start:end], or 0."""
    if start == end:
        return 0
    last = piece[end - 1]
    tail_start = max(start, end - NEAR_END)
    tail = piece[tail_start:end]
    if last == ".":
        # Several full stops are one mark.
        if tail.endswith(".."):
            without_stops = piece[start:end].rstrip(".")
            return end - start - len(without_stops)
        # STOP leaves the full stop after a single capital, which may be an abbreviation's.
        is_stop = STOP.search(tail) is not None
        return int(is_stop)
    if END.match(last):
        return 1
    if tail.endswith(POSSESSIVES):
        return 2
    unit = UNIT.search(tail)
    return len(unit[1]) if unit else 0


def _cut_middle(piece: str) -> list[str]:
    """Return the parts of a piece without affixes, cut at hyphens, slashes and the like.

    The address of a web page or an e-mail account stays whole.
    """
    if ADDRESS.match(piece):
        return [piece]
    parts, start = [], 0
    for infix in INFIX.finditer(piece):
        cut = infix.start()
        if cut > 0:  # an infix has something before it
            parts.append(piece[start:cut])
            parts.append(infix.group())
            start = infix.end()
    parts.append(piece[start:])
    return [part for part in parts if part]


def _join_special(parts: list[str]) -> tuple[str, ...]:
    """Return parts with special words put together again where all their parts follow each other.

    Longer special words go first, and none takes a part of another.
    """
    # For each part at which a special word starts: how many parts it has, and its words.
    specials: dict[int, tuple[int, tuple[str, ...]]] = {}
    taken: set[int] = set()
    longest = min(len(parts), _MOST_PARTS)
    for size in range(longest, 1, -1):
        for start in range(len(parts) - size + 1):
            stop = start + size
            special = _SPECIAL_OF_PARTS.get(tuple(parts[start:stop]))
            # The special words found so far are at least as long: one that overlaps these parts
            # has taken the first or the last of them.
            if special and taken.isdisjoint((start, stop - 1)):
                specials[start] = size, SPECIAL[special]
                taken.update(range(start, stop))
    if not specials:
        return tuple(parts)
    words, at = [], 0
    while at < len(parts):
        size, words_here = 1, (parts[at],)
        if at in specials:
            size, words_here = specials[at]
        words += words_here
        at += size
    return tuple(words)


def _special_parts() -> dict[tuple[str, ...], str]:
    """Return the special words that the rules alone would take apart, by their parts."""
    table = {}
    for word in SPECIAL:
        front, core, back = _cut_affixes(word, {})
        parts = (*front, *_cut_middle(core), *back)
        if len(parts) > 1:
            table[parts] = word
    return table


_LONGEST = max(map(len, SPECIAL))
_SPECIAL_OF_PARTS = _special_parts()
_MOST_PARTS = max(map(len, _SPECIAL_OF_PARTS))
