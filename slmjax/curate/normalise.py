"""Normalises every text before any rule looks at it.

Texts that look the same become equal, and characters that change nothing visible are removed.
"""

import re
import unicodedata

# Every way to end a line: Windows, old Macintosh, vertical tab, form feed, and the separators of C1
# and Unicode.
_LINE_ENDS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")

# Control characters but tab and line feed; soft hyphen; zero-width space, word joiner, byte-order
# mark; marks and switches of text direction. The zero-width joiner and non-joiner stay: they change
# what Persian, Indic scripts and emoji look like.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)


def normalise(text: str) -> str:
    """Return a text in Unicode NFC with line feeds as line ends and without unseen characters.

    It has no spaces at line ends, at most two blank lines in a row, and none at its start or end.
    Indentation and all white space within lines stay. Doing it twice changes nothing.

    Wrongly decoded text ("donâ€™t") stays as it is: to repair it is a guess, and a wrong one in
    a text about encodings.
    """
    text = _UNSEEN.sub("", _LINE_ENDS.sub("\n", text))
    lines = unicodedata.normalize("NFC", text).split("\n")
    text = "\n".join(map(str.rstrip, lines))
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")
