"""Evaluation items hidden in training documents, changed as they are found in the wild.

Copies on the web have another case, other punctuation, other names and other numbers.
The common first names and the words for numbers are in planted_words.json.
"""

import calendar
import json
import random
import re
from collections.abc import Mapping, Sequence
from importlib import resources

# {a way in which an item is hidden: what happens to it}
KINDS = {
    "verbatim": "on lines of its own",
    "case and punctuation": (
        "upper, lower or title case; marks left out or exchanged, other white space"
    ),
    "mid-line": "without line breaks, inside a sentence of the document",
    "names": "each name replaced by the same other name throughout",
    "names and numbers": "also every number replaced, in figures or in words",
    "question": "without the answer",
    "reworded": "one word in eight left out, or a word put in before it",
}

_WORDS_FILE = resources.files(__package__) / "planted_words.json"
_WORDS = json.loads(_WORDS_FILE.read_text("utf-8"))
NAMES: list[str] = _WORDS["names"]  # common first names of several languages
NUMBER_WORDS: list[str] = _WORDS["numbers"]
OF_THE_CALENDAR = {*calendar.day_name, *calendar.month_name}  # capitalised, but not people's names
MARKS = ",.;:?!'’\"$"
NUMBER = re.compile(r"\d+|\b(?:" + "|".join(NUMBER_WORDS) + r")\b", re.IGNORECASE)
SECOND_NAME = 0.1  # share of new names that get a second one

# `draw` is always the random generator. The order of its draws is part of the bench: another order
# would hide other texts for the same seed, and earlier figures could not be compared.


def variant(item: Mapping[str, str], kind: str, draw: random.Random) -> str:
    """Return the text of an item, changed in the way that `kind`, one of KINDS, says."""
    text = item_text(item)
    if kind == "question":
        text = item["question"]
    if kind in ("names", "names and numbers"):
        text = _other_names(text, sorted(names_in(item)), draw)
    if kind == "names and numbers":
        text = _other_numbers(text, draw)
    if kind == "mid-line":
        text = " ".join(text.split())
    if kind == "reworded":
        text = _reworded(text, draw)
    if kind == "case and punctuation":
        change_case = draw.choice([str.upper, str.lower, str.title])
        text = _other_marks(change_case(text), draw)
    return text


def item_text(item: Mapping[str, str]) -> str:
    """Return the question of an item and then its answer, on a new line."""
    return f"{item['question']}\n{item['answer']}"


def plant(text: str, document: str, kind: str, draw: random.Random) -> tuple[str, int]:
    """Insert `text` at a random place of a document.

    The place is between two words of a line for the kind "mid-line", else between two lines.

    Returns: (the new document, the index in it at which `text` begins).
    """
    if kind == "mid-line":
        places = [match.start() + 1 for match in re.finditer(r"\w \w", document)]
        place = draw.choice(places or [len(document)])
        # Spaces, parentheses, quotation marks or dashes surround the text.
        before, after = draw.choice([(" ", " "), (" (", ") "), (', "', '" '), ("\u2014", "\u2014")])
    else:
        places = [match.start() for match in re.finditer("\n", document)]
        place = draw.choice([0, *places, len(document)])
        before, after = "\n", "\n"
    planted_document = document[:place] + before + text + after + document[place:]
    return planted_document, place + len(before)


def names_in(item: Mapping[str, str]) -> set[str]:
    """Return the names in an item.

    They are capitalised words inside a sentence, and common first names anywhere; days and months
    are not among them.
    """
    text = item_text(item)
    # After a small letter or a comma, and a space: the first word of a sentence is always
    # capitalised, so it need not be a name.
    inside_sentences = set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))
    common_names = set(NAMES) & set(re.findall(r"[A-Z][a-z]+", text))
    return (inside_sentences | common_names) - OF_THE_CALENDAR


def _other_names(text: str, names: Sequence[str], draw: random.Random) -> str:
    """Return a text in which each name is replaced by a name that the text does not hold."""
    if not names:
        return text
    new_names = draw.sample([name for name in NAMES if name not in text], len(names))
    replacements = {}
    for name, new_name in zip(names, new_names):
        if draw.random() < SECOND_NAME:
            new_name = f"{new_name} {draw.choice(NAMES)}"
        replacements[name] = new_name
    pattern = r"\b(?:" + "|".join(names) + r")\b"
    return re.sub(pattern, lambda match: replacements[match.group()], text)


def _other_numbers(text: str, draw: random.Random) -> str:
    """Return a text in which each number is replaced by another one.

    Words are replaced by words, and digits by as many digits. Numbers of more than four digits,
    which are rare, become 0: listing all candidates would take too long.
    """

    def replace(match: re.Match) -> str:
        number = match.group()
        if not number.isdigit():
            return draw.choice([word for word in NUMBER_WORDS if word != number.lower()])
        digits = len(number)
        # Empty for more than four digits.
        candidates = range(10 ** (digits - 1), 10 ** min(digits, 4))
        others = [candidate for candidate in candidates if candidate != int(number)]
        return str(draw.choice(others or [0]))

    return NUMBER.sub(replace, text)


def _reworded(text: str, draw: random.Random) -> str:
    """Return a text in which one word in eight is left out, or the word "other" put before it."""

    def replace(match: re.Match) -> str:
        word = match.group()
        if draw.random() < 1 / 8:
            return draw.choice(["", f"other {word}"])
        return word

    return re.sub(r"\S+", replace, text)


def _other_marks(text: str, draw: random.Random) -> str:
    """Return a text with other marks, hyphens and white space; numbers keep their marks.

    One mark in two is left out or exchanged.
    """

    def replace(match: re.Match) -> str:
        mark = match.group()
        if mark.isspace():
            if draw.random() < 0.2:
                return draw.choice([" ", "  ", "\n", "\n\n"])
            return " "
        if mark == "-":
            return draw.choice(["-", " ", "\u2013"])
        if draw.random() < 0.5:
            # The inner draw comes first: a new mark is drawn even if the old one is left out.
            return draw.choice(["", draw.choice(MARKS)])
        return mark

    # A mark without a digit next to it, a hyphen, or white space.
    return re.sub(r"(?<!\d)[" + re.escape(MARKS) + r"](?!\d)|-|\s+", replace, text)
