"""Texts of questions: where a sentence goes in, what is counted, and which names occur."""

import json
import re
from functools import cache
from importlib import resources

import numpy as np

# The blanks between two sentences. After a title, or before a small letter, no sentence begins.
SENTENCE_END = re.compile(
    r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?:(?<=[.!?])|(?<=[.!?][\"”]))\s+"
    r"(?=[\"“‘'$(]?[A-Z0-9])"
)
# "How many red marbles does ...": up to four words before an auxiliary verb.
COUNTED = re.compile(
    r"\bhow many ((?:[a-z]+ ){1,4}?)(?:did|does|do|are|is|were|was|will|would|can|could|should|has"
    r"|have|had|must|need|he|she|it|they|you|in)\b",
    re.IGNORECASE,
)
# Words before a noun that belong to the question and not to what is counted.
NOT_COUNTED = {"more", "fewer", "less", "total", "additional", "extra", "other", "of", "the"}
NOT_COUNTED |= {"all", "his", "her"}
AUXILIARY = {"did", "does", "do", "are", "is", "was", "were", "will", "has", "have", "had"}
PLURALS = {"people", "children", "men", "women", "feet", "fish", "sheep", "mice", "geese", "deer"}
# A harmless sentence for each measure that questions ask for; {n} is a number.
MEASURES = {
    "dollars": "a coat costs ${n} in the shop on the corner.",
    "hours": "a train takes {n} hours to get to the coast.",
    "minutes": "a film lasts {n} minutes from the beginning to the end.",
    "seconds": "a song lasts {n} seconds from the beginning to the end.",
    "days": "a ship needs {n} days to get to the next port.",
    "weeks": "a ship needs {n} weeks to get to the next port.",
    "months": "a painter needs {n} months to finish a picture of the sea.",
    "years": "an oak is {n} years old and stands by the church.",
    "miles": "a road of {n} miles leads to a lake and back.",
    "kilometers": "a road of {n} kilometers leads to a lake and back.",
    "meters": "a bridge of {n} meters leads to a lake and back.",
    "feet": "a bridge of {n} feet leads to a lake and back.",
    "inches": "a table is {n} inches wide and stands in the hall.",
    "pounds": "a statue weighs {n} pounds and stands in front of a school.",
    "ounces": "a letter weighs {n} ounces and lies in front of a school.",
    "grams": "a letter weighs {n} grams and lies in front of a school.",
    "kilograms": "a statue weighs {n} kilograms and stands by a school.",
    "gallons": "a tank holds {n} gallons of rain for the school garden.",
    "liters": "a tank holds {n} liters of rain for the school garden.",
    "cups": "a pot holds {n} cups of tea for guests of the inn.",
    "calories": "a cake has {n} calories and is sold on the corner.",
    "times": "a bell rings {n} times before the doors of a school open.",
}
COUNTABLE = "there are {n} other {unit}, as the newspaper says."
ELSEWHERE = ("In a faraway town", "In some other city", "On a distant island")  # of four words each


def split_question(question: str) -> tuple[str, str]:
    """Return (everything before the last sentence, the last sentence)."""
    question = question.strip()
    ends = list(SENTENCE_END.finditer(question))
    if not ends:
        return "", question
    return question[: ends[-1].start()], question[ends[-1].end() :]


def inserted(question: str, sentence: str) -> str:
    """Return the question with a sentence before its last one."""
    before, last = split_question(question)
    return " ".join(part for part in (before, sentence, last) if part)


def asked_unit(question: str) -> str:
    """Return what the last sentence asks for, in the plural: "red marbles"; "" where unclear."""
    _, last = split_question(question)
    match = COUNTED.search(last)
    if match:
        words = match[1].lower().split()
        while words and words[0] in NOT_COUNTED:
            del words[0]
        if not words or not AUXILIARY.isdisjoint(words) or words[-1] in NOT_COUNTED:
            return ""
        plural = words[-1].endswith("s") or words[-1] in PLURALS
        return " ".join(words) if plural else ""
    is_money = "$" in question or "dollar" in question
    asks_amount = re.search(r"\bhow much (?!time|longer|faster|older|taller)", last, re.IGNORECASE)
    return "dollars" if is_money and asks_amount else ""


def irrelevant_sentence(unit: str, number: int, rng: np.random.Generator) -> str:
    """Return a sentence with a number of this unit, which changes no answer.

    Args:
      unit: plural, see `asked_unit`.
    """
    place = ELSEWHERE[rng.integers(len(ELSEWHERE))]
    frame = MEASURES.get(unit.split()[-1], COUNTABLE)
    return f"{place} {frame.format(n=number, unit=unit)}"


def other_unit(question: str, rng: np.random.Generator) -> str:
    """Return a measure that a question does not mention."""
    text = question.lower().replace("$", " dollar ")
    free = [unit for unit in MEASURES if unit.rstrip("s") not in text]
    return free[rng.integers(len(free))]


@cache
def first_names() -> dict[str, list[str]]:
    """Return {"female", "male" or "either": first names}."""
    file = resources.files("slmjax.reasoning") / "first_names.json"
    return json.loads(file.read_text("utf-8"))


def first_names_in(question: str) -> dict[str, str]:
    """Return {first name: its list} of the names of `first_names` that a question has, in order."""
    kinds = {name: kind for kind, names in first_names().items() for name in names}
    words = re.findall(r"\b[A-Z][a-z]+\b", question)
    return {word: kinds[word] for word in words if word in kinds}


def renamed(question: str, rng: np.random.Generator) -> str:
    """Return a question with another first name of the same list for each of its first names."""
    old = first_names_in(question)
    taken = set(old)
    new = {}
    for name, kind in old.items():
        # A name that ends in s would need another genitive.
        free = [other for other in first_names()[kind] if other not in taken and other[-1] != "s"]
        new[name] = free[rng.integers(len(free))]
        taken.add(new[name])
    if not new:
        return question
    # James' book becomes Paul's book.
    genitive = re.compile(rf"\b({'|'.join(new)})(['’])(?!\w)")
    question = genitive.sub(lambda match: f"{match[1]}{match[2]}s", question)
    any_name = re.compile(rf"\b({'|'.join(new)})\b")
    return any_name.sub(lambda match: new[match[1]], question)
