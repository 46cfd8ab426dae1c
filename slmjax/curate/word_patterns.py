"""Patterns of spaCy's English tokenizer: where a piece of text between two spaces is cut.

words.py first cuts affixes from both ends of a piece (PREFIX; END, UNIT, STOP), and then what is
left in its middle (INFIX).
"""

import re
import unicodedata


def _characters(category: str, first: int, last: int) -> str:
    """Return the characters of a Unicode category between two code points."""
    characters = map(chr, range(first, last + 1))
    return "".join(c for c in characters if unicodedata.category(c) == category)


# The insides of character classes, such as [{LOWER}]. The letters are Latin, Greek, Cyrillic and
# Armenian ones, whose code points are below 0x600.
LOWER, UPPER = _characters("Ll", 0, 0x5FF), _characters("Lu", 0, 0x5FF)
QUOTES = r"'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉\u2329\u232a⟦⟧"
MARKS = r"…,:;!?¿؟¡()\[\]{}<>_#*&。？！，、；：～·।،۔؛٪"
# Single characters beyond 0xFFFF would slow every search; ranges of them do not.
SIGNS = _characters("So", 0, 0xFFFF) + "\U0001f000-\U0001f3fa\U0001f400-\U0001fa6d"

LETTER = r"[^\W\d_]"
CURRENCY = r"[$£€¥฿﷼₠-₿]"
DOLLARS = r"(?:US|C|A)\$"
UNITS = (
    "km²|km³|km/h|kmh|km|mm²|mm³|mm|mph|mbar|mb|mg|m²|m³|m/s|m|dm²|dm³|dm|cm²|cm³|cm|ha|µm|µg|nm|"
    "yd|in|ft|kg|kb|g|t|lb|oz|hPa|Pa|MB|KB|gb|GB|tb|TB|T|G|M|K|%"
)

# Cut from the front of a piece.
PREFIX = re.compile(rf"\.\.+|\+(?![0-9])|[§%=—–{MARKS}{QUOTES}{SIGNS}]|{DOLLARS}|{CURRENCY}")

# Cut from the back: a mark, a unit after a number, a full stop.
END = re.compile(rf"[{MARKS}{QUOTES}{SIGNS}—–]")
UNIT = re.compile(rf"[0-9](\+|{DOLLARS}|{CURRENCY}|{UNITS})$")
STOP = re.compile(rf"(?:[0-9%²|\-+{LOWER}{MARKS}{QUOTES}]|[{UPPER}][{UPPER}])\.$")

# Cut out of the middle: a character that may cut, and then a check of what stands around it. The
# look-behinds include that character. A search for one class of characters first is many times
# faster than a search for look-behinds.
_BETWEEN_ANY = (
    r"(?<=\.)\.+",
    rf"(?<=[…{SIGNS}])",
    r"(?<=[0-9][+\-*^])(?=[0-9-])",
    rf"(?<=[{LOWER}{QUOTES}]\.)(?=[{UPPER}{QUOTES}])",
)
_BEFORE_LETTER = (
    rf"(?<={LETTER},)",
    r"(?<=[^\W_]-)-{0,2}",
    r"(?<=[^\W_]—)—?",
    r"(?<=[^\W_][–~])",
    r"(?<=[^\W_][:<>=/])",
)
INFIX = re.compile(
    rf"[.…,+*^:<>=/~–—\-{SIGNS}]"
    rf"(?:{'|'.join(_BETWEEN_ANY)}|(?:{'|'.join(_BEFORE_LETTER)})(?={LETTER}))"
)

# The address of a web page or an e-mail account is not cut in its middle.
_HOST = r"(?:(?:[A-Za-z0-9¡-\uffff][A-Za-z0-9¡-\uffff_-]{0,62})?[A-Za-z0-9¡-\uffff]\.)+"
_TOP_LEVEL = rf"[{LOWER}]{{2,63}}"
ADDRESS = re.compile(
    rf"(?:[\w+\-.]{{2,}}://)?(?:\S+@)?{_HOST}{_TOP_LEVEL}(?::\d{{2,5}})?(?:[/?#]\S*)?$"
)
