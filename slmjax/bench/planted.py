"""Evaluation items hidden in training documents, as they are found in the wild: other case, other punctuation, other names and numbers."""

import calendar
import random
import re
from collections.abc import Mapping, Sequence

KINDS = {
    "verbatim": "on lines of its own",
    "case and punctuation": "upper, lower or title case; marks left out or exchanged, other white space",
    "mid-line": "without line breaks, inside a sentence of the document",
    "names": "each name another one, the same all through",
    "names and numbers": "and every number, in figures or words, another one",
    "question": "without the answer",
    "reworded": "one word in eight left out, or a word put in before it",
}
# Common first names of several languages; what stands for a name is drawn from them, sometimes with a second one.
NAMES = """
Aaron Abdul Abigail Adam Ahmed Aisha Alan Albert Alejandro Alex Alice Amanda Amy Ana Andrea Andrew Angela Anna Anthony Antonio April
Arthur Ashley Barbara Becky Ben Benjamin Beth Betty Bill Billy Bob Bobby Brad Brandon Brenda Brian Bruce Carl Carla Carlos Carmen Carol
Caroline Catherine Charles Charlie Charlotte Chen Chloe Chris Christina Christopher Cindy Claire Clara Craig Cynthia Dan Daniel David
Deborah Dennis Diana Donald Donna Dorothy Doug Dylan Eddie Edward Elena Eli Elizabeth Ella Ellen Emily Emma Eric Erica Ethan Eva Evan
Evelyn Fatima Felix Fiona Frank Fred Gabriel Gary George Gina Giulia Gloria Grace Grant Greg Hannah Harold Harry Heather Helen Henry
Ingrid Isaac Isabella Ivan Jack Jackson Jacob Jake James Jamie Jane Janet Jason Jean Jeff Jennifer Jenny Jeremy Jerry Jesse Jessica Jill
Jim Joan Joe Joel John Johnny Jose Joseph Josh Juan Judy Julia Julie Justin Karen Kate Katie Keith Kelly Ken Kenji Kevin Kim Kyle Larry
Laura Lauren Leah Leo Liam Lily Linda Lisa Logan Lois Lucas Lucy Luis Luke Mabel Marcus Margaret Maria Marie Mark Martha Martin Mary
Matt Matthew Max Megan Melissa Mia Michael Michelle Miguel Mike Molly Monica Nancy Natalie Nathan Nicholas Nick Nicole Nina Noah Olga
Oliver Olivia Oscar Owen Pam Patricia Patrick Paul Paula Pedro Peter Phil Priya Rachel Ralph Raj Ray Raymond Rebecca Richard Rick Rita
Rob Robert Roger Ron Rosa Rose Roy Ruby Ruth Ryan Sally Sam Samantha Samuel Sandra Sara Sarah Scott Sean Sophia Stephanie Stephen Steve
Steven Sue Susan Sven Tara Ted Terry Theresa Thomas Tim Tina Tom Tony Tracy Valerie Vanessa Victor Victoria Vincent Walter Wendy William
Yolanda Yuki Zach Zoe
""".split()  # noqa: SIM905
OF_THE_CALENDAR = {*calendar.day_name, *calendar.month_name}
NUMBER_WORDS = [
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "twenty",
    "thirty",
    "fifty",
]
MARKS = ",.;:?!'’\"$"
NUMBER = re.compile(r"\d+|\b(?:" + "|".join(NUMBER_WORDS) + r")\b", re.IGNORECASE)


def names_in(item: Mapping[str, str]) -> set[str]:
    """Words with a capital inside a sentence of the question or the answer, and common first names, without days and months."""
    text = f"{item['question']}\n{item['answer']}"
    inside = set(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", text))
    return (inside | set(NAMES) & set(re.findall(r"[A-Z][a-z]+", text))) - OF_THE_CALENDAR


def variant(item: Mapping[str, str], kind: str, draw: random.Random) -> str:
    """The item (its question and answer) as one of KINDS hides it."""
    text = item["question"] if kind == "question" else f"{item['question']}\n{item['answer']}"
    if kind.startswith("names"):
        text = _other_names(text, sorted(names_in(item)), draw)
    if kind == "names and numbers":
        text = _other_numbers(text, draw)
    if kind == "mid-line":
        text = " ".join(text.split())
    if kind == "reworded":
        text = re.sub(
            r"\S+",
            lambda m: (
                draw.choice(["", f"other {m.group()}"]) if draw.random() < 1 / 8 else m.group()
            ),
            text,
        )
    return (
        _other_marks(draw.choice([str.upper, str.lower, str.title])(text), draw)
        if kind == "case and punctuation"
        else text
    )


def plant(text: str, document: str, kind: str, draw: random.Random) -> tuple[str, int]:
    """(the document with `text` at a random place, where it begins): mid-line between two words of a line, else between two lines."""
    if kind == "mid-line":
        place = draw.choice(
            [m.start() + 1 for m in re.finditer(r"\w \w", document)] or [len(document)]
        )
        before, after = draw.choice([(" ", " "), (" (", ") "), (', "', '" '), ("\u2014", "\u2014")])
    else:
        place = draw.choice([0, *(m.start() for m in re.finditer("\n", document)), len(document)])
        before, after = "\n", "\n"
    return document[:place] + before + text + after + document[place:], place + len(before)


def _other_names(text: str, names: Sequence[str], draw: random.Random) -> str:
    new = draw.sample([name for name in NAMES if name not in text], len(names))
    other = {
        name: f"{a} {draw.choice(NAMES)}" if draw.random() < 0.1 else a
        for name, a in zip(names, new)
    }
    return (
        re.sub(r"\b(?:" + "|".join(names) + r")\b", lambda m: other[m.group()], text)
        if names
        else text
    )


def _other_numbers(text: str, draw: random.Random) -> str:
    def other(found: re.Match) -> str:
        if not found.group().isdigit():
            return draw.choice([word for word in NUMBER_WORDS if word != found.group().lower()])
        size = len(found.group())
        return str(
            draw.choice(
                [n for n in range(10 ** (size - 1), 10 ** min(size, 4)) if n != int(found.group())]
                or [0]
            )
        )

    return NUMBER.sub(other, text)


def _other_marks(text: str, draw: random.Random) -> str:
    """Each mark left out or exchanged one time in two (not inside a number), hyphens and white space exchanged."""

    def other(found: re.Match) -> str:
        if found.group().isspace():
            return draw.choice([" ", "  ", "\n", "\n\n"]) if draw.random() < 0.2 else " "
        if found.group() == "-":
            return draw.choice(["-", " ", "\u2013"])
        return draw.choice(["", draw.choice(MARKS)]) if draw.random() < 0.5 else found.group()

    return re.sub(r"(?<!\d)[" + re.escape(MARKS) + r"](?!\d)|-|\s+", other, text)
