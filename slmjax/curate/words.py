"""Words and sentences as the quality rules count them: English, rule-based, one table look-up for each piece of text seen before.

The rules' thresholds mean little without the way of counting: here a punctuation mark is a word and "don't" is two, as in datatrove, which
takes the rule-based English tokenizer and the sentence splitter of spaCy 3. Of 148,063 different pieces of text in
tests/parity/test_datatrove_quality.py, 3 split otherwise than with spaCy: rare letters and signs.

What a piece between two spaces splits into does not depend on the text around it; pieces repeat, so their splits are remembered.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain

from slmjax.curate.english import SPECIAL, TERMINAL


@lru_cache(maxsize=1)  # the rules look at one text after each other
def split_words(text: str) -> tuple[str, ...]:
    """The words, numbers and punctuation marks of a text, in order; no white space among them."""
    return tuple(_words(text))


def sentences(text: str, enough: int) -> int:
    """How many sentences there are in a text, counted up to `enough`; 0 in one without words."""
    count, ended = 0, True
    for word in _words(text):
        if ended and (not count or not is_punctuation(word)):
            count, ended = count + 1, False
            if count >= enough:
                break
        if word in TERMINAL:
            ended = True
    return count


def _words(text: str) -> Iterable[str]:
    return chain.from_iterable(map(_split, text.split()))


@lru_cache(maxsize=2**14)
def is_punctuation(word: str) -> bool:
    """Whether every character is punctuation to Unicode ("$" and "+" are not)."""
    return all(unicodedata.category(c)[0] == "P" for c in word)


def _class(category: str, first: int, last: int) -> str:
    """The characters of a Unicode category between two code points, to stand in a character class."""
    return "".join(
        c for c in map(chr, range(first, last + 1)) if unicodedata.category(c) == category
    )


_LOWER, _UPPER = _class("Ll", 0, 0x5FF), _class("Lu", 0, 0x5FF)
_LETTER = r"[^\W\d_]"
_QUOTES = r"'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉\u2329\u232a⟦⟧"
_MARKS = r"…,:;!?¿؟¡()\[\]{}<>_#*&。？！，、；：～·।،۔؛٪"
_CURRENCY = r"[$£€¥฿﷼₠-₿]"
_SIGNS = (
    _class("So", 0, 0xFFFF) + "\U0001f000-\U0001f3fa\U0001f400-\U0001fa6d"
)  # single characters beyond 0xFFFF would slow every search
_UNITS = (
    "km²|km³|km/h|kmh|km|mm²|mm³|mm|mph|mbar|mb|mg|m²|m³|m/s|m|dm²|dm³|dm|cm²|cm³|cm|ha|µm|µg|nm|yd|in|ft|kg|kb|g|t|lb|oz|hPa|Pa|MB|KB|gb|GB|tb|TB|T|"
    "G|M|K|%"
)
_PREFIX = re.compile(
    rf"\.\.+|\+(?![0-9])|[§%=—–{_MARKS}{_QUOTES}{_SIGNS}]|(?:US|C|A)\$|{_CURRENCY}"
)
_END = re.compile(rf"[{_MARKS}{_QUOTES}{_SIGNS}—–]")
_UNIT = re.compile(rf"[0-9](\+|(?:US|C|A)\$|{_CURRENCY}|{_UNITS})$")
_STOP = re.compile(rf"(?:[0-9%²|\-+{_LOWER}{_MARKS}{_QUOTES}]|[{_UPPER}][{_UPPER}])\.$")
# A character that may cut, then what must stand around it: a search for one class of characters is many times faster than for look-behinds.
_INFIX = re.compile(
    rf"[.…,+*^:<>=/~–—\-{_SIGNS}](?:(?<=\.)\.+|(?<=[…{_SIGNS}])|(?<=[0-9][+\-*^])(?=[0-9-])|(?<=[{_LOWER}{_QUOTES}]\.)(?=[{_UPPER}{_QUOTES}])"
    rf"|(?:(?<={_LETTER},)|(?<=[^\W_]-)-{{0,2}}|(?<=[^\W_]—)—?|(?<=[^\W_][–~])|(?<=[^\W_][:<>=/]))(?={_LETTER}))"
)
_ADDRESS = re.compile(
    r"(?:[\w+\-.]{2,}://)?(?:\S+@)?(?:(?:[A-Za-z0-9¡-\uffff][A-Za-z0-9¡-\uffff_-]{0,62})?[A-Za-z0-9¡-\uffff]\.)+"
    rf"[{_LOWER}]{{2,63}}(?::\d{{2,5}})?(?:[/?#]\S*)?$"
)


_LONGEST = max(map(len, SPECIAL))


def _suffix(piece: str, start: int, end: int) -> int:
    """Length of the mark, unit or possessive at the end of piece[start:end]; 0 if there is none. Looks at its last characters only."""
    if start == end:
        return 0
    last, near = piece[end - 1], piece[max(start, end - 6) : end]
    if last == ".":
        return (
            end - start - len(piece[start:end].rstrip("."))
            if near.endswith("..")
            else int(bool(_STOP.search(near)))
        )
    if _END.match(last):
        return 1
    if near.endswith(("'s", "'S", "’s", "’S")):
        return 2
    unit = _UNIT.search(near)
    return len(unit[1]) if unit else 0


def _affixes(piece: str, special: Mapping[str, object]) -> tuple[list[str], str, list[str]]:
    """What is cut from the front, the rest, and what is cut from the back: punctuation, currency, units, until a special word is left."""
    front, back = [], []
    start, end = 0, len(piece)

    def is_special(start: int, end: int) -> bool:
        return end - start <= _LONGEST and piece[start:end] in special

    while start < end and not is_special(start, end):
        found = _PREFIX.match(piece, start, end)
        after = found.end() if found else start
        before = end if is_special(after, end) else end - _suffix(piece, after, end)
        if before < end and is_special(start, before):
            after = start
        if after == start and before == end:
            break
        if after > start:
            front.append(piece[start:after])
        if before < end:
            back.append(piece[before:end])
        start, end = after, before
    return front, piece[start:end], back[::-1]


def _middle(piece: str) -> list[str]:
    """A piece without affixes, cut at hyphens, slashes and the like within it, unless it is the address of a page or a person."""
    if _ADDRESS.match(piece):
        return [piece]
    out, start = [], 0
    for found in _INFIX.finditer(piece):
        if found.start() > 0:
            out += [piece[start : found.start()], found.group()]
            start = found.end()
    return [part for part in (*out, piece[start:]) if part]


def _plain(piece: str) -> tuple[str, ...]:
    front, rest, back = _affixes(piece, {})
    return (*front, *_middle(rest), *back)


# Special words that the splitting above takes apart are put together again wherever their parts follow each other.
_PARTS = {parts: word for word in SPECIAL if len(parts := _plain(word)) > 1}
_MOST_PARTS = max(map(len, _PARTS))


@lru_cache(maxsize=2**17)  # about 50 MB when full
def _split(piece: str) -> tuple[str, ...]:
    if piece in SPECIAL:
        return SPECIAL[piece]
    if piece.isalpha():
        return (piece,)
    front, rest, back = _affixes(piece, SPECIAL)
    parts = [*front, *SPECIAL.get(rest, _middle(rest)), *back]
    found: dict[
        int, tuple[int, tuple[str, ...]]
    ] = {}  # where a special word starts: its count of parts, what it becomes
    taken: set[int] = set()
    for size in range(min(len(parts), _MOST_PARTS), 1, -1):
        for start in range(len(parts) - size + 1):
            if (word := _PARTS.get(tuple(parts[start : start + size]))) and not {
                start,
                start + size - 1,
            } & taken:
                found[start] = size, SPECIAL[word]
                taken.update(range(start, start + size))
    if not found:
        return tuple(parts)
    out, at = [], 0
    while at < len(parts):
        size, own = found.get(at, (1, (parts[at],)))
        out += own
        at += size
    return tuple(out)
