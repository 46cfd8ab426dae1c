"""The textbook's seeded draws: names, invented words, things and numbers, some of them reserved.

Only held-out passages use what is reserved. Each reserved name, word or number is a new combination
of pieces that training shows: a name or an invented word is an onset and an ending, a two-digit
number is two digits. Which combinations are reserved is fixed here. So a model cannot have
memorised what it meets in held-out text, but has met each part of it.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any


def read_data(name: str) -> Any:
    """Return the content of a .json file of this folder."""
    return json.loads((resources.files("slmjax.textbook") / name).read_text())


def _combinations(
    onsets: Sequence[str], endings: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return every onset with every ending: (four in five for training, one in five reserved)."""
    for_training: list[str] = []
    reserved: list[str] = []
    for i, onset in enumerate(onsets):
        for j, ending in enumerate(endings):
            # Along diagonals of the table of onsets and endings, so that each of them is in both
            # parts.
            if (i + 2 * j) % 5 == 0:
                reserved.append(onset + ending)
            else:
                for_training.append(onset + ending)
    return tuple(for_training), tuple(reserved)


_LISTS = read_data("words.json")
NOUNS = tuple(_LISTS["nouns"])
COLOURS = tuple(_LISTS["colours"])
JOBS = tuple(_LISTS["jobs"])
TRAITS = tuple(_LISTS["traits"])
# Every name begins with one of these syllables.
ONSETS = tuple(consonant + vowel for consonant in "BDFGHJKLMNRSTVZ" for vowel in "aeo")
NAMES, RESERVED_NAMES = _combinations(ONSETS, _LISTS["name_endings"])
WORDS, RESERVED_WORDS = _combinations(_LISTS["word_onsets"], _LISTS["word_endings"])
# Nine numbers in which each digit but 0 is once the tens and once the units. No training passage
# contains any of them.
RESERVED_NUMBERS = (17, 23, 34, 46, 58, 61, 79, 85, 92)


@dataclass(frozen=True)
class Problem:
    """One drawn problem.

    Attributes:
      fields: {name: value} that a template's prompt and working are filled with.
      again: the answer by a second, independent computation.
      choices: the answers that the prompt offers; empty where the question is open.
    """

    fields: dict
    answer: str | int
    again: str | int
    choices: tuple[str, ...] = ()


class Draw:
    """Seeded choices for one passage, which remember what was given.

    `numbers` and `names` hold what was drawn, in order. A training draw yields nothing that is
    reserved. A held-out draw yields only reserved names and words; where a range has reserved
    numbers, it yields one of them at least every other time on average. All calls share one random
    sequence, so a change in their order changes the book.
    """

    def __init__(self, rng: random.Random, heldout: bool):
        self.rng = rng
        self.heldout = heldout
        self.numbers: list[int] = []
        self.names: list[str] = []
        if heldout:
            self._usable_names, self._usable_words = RESERVED_NAMES, RESERVED_WORDS
        else:
            self._usable_names, self._usable_words = NAMES, WORDS

    def name(self) -> str:
        """Return a person's name, unlike those drawn before."""
        # A person who comes twice would make the passage ambiguous.
        name = self.rng.choice(self._usable_names)
        while name in self.names:
            name = self.rng.choice(self._usable_names)
        self.names.append(name)
        return name

    def word(self) -> str:
        """Return an invented word."""
        return self.rng.choice(self._usable_words)

    def number(self, low: int, high: int) -> int:
        """Return a number for the prompt to give, between low and high, both included."""
        reserved = [number for number in RESERVED_NUMBERS if low <= number <= high]
        # The coin is last in the condition: it is thrown only where it decides something, and one
        # throw more or less would change all that is drawn later.
        if self.heldout and reserved and self.coin():
            number = self.rng.choice(reserved)
        else:
            number = self.rng.randint(low, high)
            # A held-out draw may be reserved here too; a training draw never is.
            while number in reserved and not self.heldout:
                number = self.rng.randint(low, high)
        self.numbers.append(number)
        return number

    def summands(self, small: int | None = None) -> tuple[int, int]:
        """Return a number of two digits and one of one digit, whose sum does not carry.

        Args:
          small: the second number; None: it is drawn.
        """
        while True:
            large = self.number(10, 99)
            units = large % 10
            # A drawn second number is at least 2.
            if units + (small or 2) <= 9:
                return large, small or self.number(2, 9 - units)
            # The prompt does not give a number that did not fit.
            self.numbers.pop()

    def apart(self, count: int) -> list[int]:
        """Return numbers of two digits, no two with the same tens.

        So the first digit alone says which is larger.
        """
        while True:
            numbers = [self.number(10, 99) for _ in range(count)]
            if len({number // 10 for number in numbers}) == count:
                return numbers
            # The prompt does not give numbers that did not fit.
            del self.numbers[-count:]

    def choice(self, options: Sequence):
        return self.rng.choice(options)

    def coin(self) -> bool:
        return self.rng.random() < 0.5


@dataclass(frozen=True)
class Template:
    """A wording of a problem; only held-out passages use it where `heldout` is true.

    A name or an invented word never starts a line, so that its tokens are the same wherever it
    stands.
    """

    problem: Callable[[Draw], Problem]
    prompt: str
    working: str
    heldout: bool = False
