"""Words and sentences as the quality rules count them: English, by rules.

This is not how the rest of the library cuts words (`text.hashing`). The thresholds of the rules
mean little without the way of counting, so they need datatrove's: a punctuation mark is a word and
"don't" is two. datatrove takes the rule-based English tokenizer and the sentence splitter of spaCy
3. Of 148,063 different pieces of text in tests/parity/test_datatrove_quality.py, 3 split otherwise
than with spaCy: rare letters and signs.

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


@lru_cache(maxsize=1)  # the rules look at one text after each other
def split_words(text: str) -> tuple[str, ...]:
    """Return the words, numbers and punctuation marks of a text, in order, without white space."""
    return tuple(_words(text))


def sentences(text: str, enough: int) -> int:
    """Return how many sentences a text has, counted up to `enough`; 0 without words."""
    count, has_ended = 0, True
    for word in _words(text):
        # Punctuation after the end of a sentence (a bracket, a quotation mark) belongs to it.
        if has_ended and (not count or not is_punctuation(word)):
            count += 1
            has_ended = False
            if count >= enough:
                break
        if word in TERMINAL:
            has_ended = True
    return count


def _words(text: str) -> Iterable[str]:
    return chain.from_iterable(map(_split, text.split()))


@lru_cache(maxsize=2**14)
def is_punctuation(word: str) -> bool:
    """Return whether every character is punctuation to Unicode ("$" and "+" are not)."""
    return all(unicodedata.category(c)[0] == "P" for c in word)


@lru_cache(maxsize=2**17)  # about 50 MB when full
def _split(piece: str) -> tuple[str, ...]:
    """Return the words of a piece between two spaces."""
    if piece in SPECIAL:
        return SPECIAL[piece]
    if piece.isalpha():  # most pieces
        return (piece,)
    front, rest, back = _affixes(piece, SPECIAL)
    middle = SPECIAL.get(rest)
    if middle is None:
        middle = _middle(rest)
    return _joined([*front, *middle, *back])


def _affixes(piece: str, special: Mapping[str, object]) -> tuple[list[str], str, list[str]]:
    """Return the parts that are cut from the front, the rest, and those cut from the back.

    They are punctuation, currency and units. One of each side is cut at a time, until nothing is
    left to cut or a special word is left.
    """
    front, back = [], []
    start, end = 0, len(piece)

    def is_special(start: int, end: int) -> bool:
        return end - start <= _LONGEST and piece[start:end] in special

    while start < end and not is_special(start, end):
        prefix = PREFIX.match(piece, start, end)
        after = prefix.end() if prefix else start
        before = end
        if not is_special(after, end):
            before -= _suffix_length(piece, after, end)
        if before < end and is_special(start, before):
            after = start  # the front belongs to a special word
        if after == start and before == end:
            break
        if after > start:
            front.append(piece[start:after])
        if before < end:
            back.append(piece[before:end])
        start, end = after, before
    return front, piece[start:end], back[::-1]


def _suffix_length(piece: str, start: int, end: int) -> int:
    """Return the length of the mark, unit or possessive at the end of piece[start:end], or 0."""
    if start == end:
        return 0
    last = piece[end - 1]
    near_start = max(start, end - NEAR_END)
    near = piece[near_start:end]
    if last == ".":
        if near.endswith(".."):
            without_stops = piece[start:end].rstrip(".")
            return end - start - len(without_stops)
        # A full stop after a capital may be an abbreviation's.
        is_stop = STOP.search(near) is not None
        return int(is_stop)
    if END.match(last):
        return 1
    if near.endswith(POSSESSIVES):
        return 2
    unit = UNIT.search(near)
    return len(unit[1]) if unit else 0


def _middle(piece: str) -> list[str]:
    """Return a piece without affixes, cut at hyphens, slashes and the like within it.

    The address of a page or a person stays whole.
    """
    if ADDRESS.match(piece):
        return [piece]
    parts, start = [], 0
    for infix in INFIX.finditer(piece):
        cut = infix.start()
        if cut > 0:
            parts.append(piece[start:cut])
            parts.append(infix.group())
            start = infix.end()
    parts.append(piece[start:])
    return [part for part in parts if part]


def _joined(parts: list[str]) -> tuple[str, ...]:
    """Return parts with special words put together again where all their parts follow each other.

    Longer special words go first, and none takes a part of another.
    """
    # Where a special word starts: how many parts it has, and its words.
    specials: dict[int, tuple[int, tuple[str, ...]]] = {}
    taken: set[int] = set()
    longest = min(len(parts), _MOST_PARTS)
    for size in range(longest, 1, -1):
        for start in range(len(parts) - size + 1):
            stop = start + size
            word = _PARTS.get(tuple(parts[start:stop]))
            # Those taken are at least as long: looking at both ends is enough.
            if word and taken.isdisjoint((start, stop - 1)):
                specials[start] = size, SPECIAL[word]
                taken.update(range(start, stop))
    if not specials:
        return tuple(parts)
    words, at = [], 0
    while at < len(parts):
        size, own = 1, (parts[at],)
        if at in specials:
            size, own = specials[at]
        words += own
        at += size
    return tuple(words)


def _special_parts() -> dict[tuple[str, ...], str]:
    """Return the special words that the rules alone would take apart, by their parts."""
    table = {}
    for word in SPECIAL:
        front, rest, back = _affixes(word, {})
        parts = (*front, *_middle(rest), *back)
        if len(parts) > 1:
            table[parts] = word
    return table


_LONGEST = max(map(len, SPECIAL))
_PARTS = _special_parts()
_MOST_PARTS = max(map(len, _PARTS))
