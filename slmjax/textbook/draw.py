"""The textbook's dice: names, invented words, things and numbers, with a reserved part that only held-out passages use.

Everything reserved is a new combination of seen pieces: a name or an invented word is an onset and an ending, a two-digit number two
digits. Which combinations are reserved is fixed here, and every piece occurs in training. So a model cannot have memorised what it meets in
held-out text, but has met each part of it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ONSETS = tuple(consonant + vowel for consonant in "BDFGHJKLMNRSTVZ" for vowel in "aeo")
ENDINGS = (
    "bi",
    "dan",
    "di",
    "fin",
    "ka",
    "kin",
    "la",
    "lin",
    "ma",
    "min",
    "na",
    "ni",
    "ra",
    "rin",
    "sa",
    "ti",
    "tu",
    "van",
    "vi",
    "zu",
)
WORD_ONSETS = ("ble", "dro", "fi", "glo", "kre", "mu", "pla", "sno", "tri", "zwe")
WORD_ENDINGS = ("bo", "fo", "go", "ko", "lo", "mo", "no", "po", "to", "zo")
NOUNS = (
    "pens",
    "cups",
    "nuts",
    "figs",
    "hats",
    "keys",
    "rings",
    "cards",
    "beads",
    "plums",
    "shells",
    "stones",
)
COLOURS = ("red", "blue", "green", "gold", "pink", "gray", "white", "black")
JOBS = ("baker", "farmer", "sailor", "singer", "painter", "teacher")
TRAITS = ("kind", "calm", "brave", "tall", "quick", "strong")

# Nine numbers in which each digit but 0 is once the tens and once the units: no training passage contains any of them.
RESERVED_NUMBERS = (17, 23, 34, 46, 58, 61, 79, 85, 92)


def _combinations(
    onsets: Sequence[str], endings: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All onsets with all endings, as (those for training, those reserved: one in five)."""
    split: tuple[list[str], list[str]] = ([], [])
    for i, onset in enumerate(onsets):
        for j, ending in enumerate(endings):
            split[(i + 2 * j) % 5 == 0].append(onset + ending)
    return tuple(split[0]), tuple(split[1])


NAMES, RESERVED_NAMES = _combinations(ONSETS, ENDINGS)
WORDS, RESERVED_WORDS = _combinations(WORD_ONSETS, WORD_ENDINGS)


class Draw:
    """Seeded choices for one passage, which remember what was given.

    `numbers` and `names` hold what was drawn, in order. A training draw yields nothing that is reserved; a held-out draw yields only
    reserved names and words, and a reserved number every second time.
    """

    def __init__(self, rng: random.Random, heldout: bool):
        self.rng, self.heldout = rng, heldout
        self.numbers: list[int] = []
        self.names: list[str] = []

    def name(self) -> str:
        """A person, unlike those drawn before."""
        name = self.rng.choice(RESERVED_NAMES if self.heldout else NAMES)
        while name in self.names:
            name = self.rng.choice(RESERVED_NAMES if self.heldout else NAMES)
        self.names.append(name)
        return name

    def word(self) -> str:
        """An invented word."""
        return self.rng.choice(RESERVED_WORDS if self.heldout else WORDS)

    def number(self, low: int, high: int) -> int:
        """A given number between low and high, both included."""
        reserved = [number for number in RESERVED_NUMBERS if low <= number <= high]
        if self.heldout and reserved and self.coin():
            number = self.rng.choice(reserved)
        else:
            number = self.rng.randint(low, high)
            while number in reserved and not self.heldout:
                number = self.rng.randint(low, high)
        self.numbers.append(number)
        return number

    def summands(self, small: int | None = None) -> tuple[int, int]:
        """A given number of two digits and one of one digit (or the one that is known), whose sum stays within the same ten."""
        while True:
            large = self.number(10, 99)
            if large % 10 + (small or 2) <= 9:
                return large, small or self.number(2, 9 - large % 10)
            self.numbers.pop()

    def apart(self, count: int) -> list[int]:
        """Two-digit given numbers, no two with the same tens: which is larger shows in the first digit."""
        while True:
            numbers = [self.number(10, 99) for _ in range(count)]
            if len({number // 10 for number in numbers}) == count:
                return numbers
            del self.numbers[-count:]

    def choice(self, options: Sequence):
        return self.rng.choice(options)

    def coin(self) -> bool:
        return self.rng.random() < 0.5


@dataclass(frozen=True)
class Problem:
    """One drawn problem: `fields` fill a template; `again` is the answer by a second, independent computation."""

    fields: dict
    answer: str | int
    again: str | int
    choices: tuple[
        str, ...
    ] = ()  # the answers that the prompt offers; empty where the question is open


@dataclass(frozen=True)
class Template:
    """A wording of a problem; only held-out passages use it where `heldout` is true.

    A name or an invented word never starts a line, so that its tokens are the same wherever it stands.
    """

    problem: Callable[[Draw], Problem]
    prompt: str
    working: str
    heldout: bool = False
