"""What curation does to every text before any rule looks at it: one form for what looks the same, nothing that cannot be seen."""

import re
import unicodedata

# Every way to end a line: Windows, old Macintosh, vertical tab, form feed, and the separators of C1 and Unicode.
_LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")

# Control characters but tab and line feed; soft hyphen; zero-width space, word joiner, byte-order mark; marks and switches of text
# direction. The zero-width joiner and non-joiner stay: they change what Persian, Indic scripts and emoji look like.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)


def normalise(text: str) -> str:
    """Unicode NFC, line feeds as line ends, no unseen characters, no spaces at line ends, at most two blank lines in a row.

    Indentation and all white space within lines stay; blank lines at both ends go. Doing it twice changes nothing. Wrongly decoded text
    ("donâ€™t") is left as it is: what was meant is a guess, and a wrong one in a text about encodings.
    """
    text = _UNSEEN.sub("", _LINE_ENDS.sub("\n", text))
    text = "\n".join(map(str.rstrip, unicodedata.normalize("NFC", text).split("\n")))
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")
