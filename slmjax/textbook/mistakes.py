"""Wrong solutions of the textbook's problems: the same form, another result.

Only the last step goes wrong, and the sentence with the result and the answer line agree about it.
A wrong result looks like a right one: it has as many digits, or is another answer that the prompt
offers, or another thing of the same sort.
"""

import itertools
import random
from collections.abc import Callable

from slmjax.textbook.draw import COLOURS, RESERVED_NUMBERS
from slmjax.textbook.number_kinds import listed
from slmjax.textbook.passages import TEMPLATES, Passage

# By how much a wrong number is off, by the digits of the right one; longer ones as three.
STEPS = {1: (1, 2, 3), 2: (1, 2, 3, 10, 20), 3: (1, 2, 3, 10, 20, 100)}


def wrong_solution(item: Passage, rng: random.Random) -> tuple[str, str]:
    """Return a working of a passage with a wrong result, and the wrong answer.

    Its numbers are reserved only where those of the right solution are: what is true of the split
    of a passage is true of its wrong solution.
    """
    problem, number = item.template.rsplit("-", 1)
    changed, answer = _MISTAKES[problem](item, rng)
    template = TEMPLATES[item.kind][int(number)]
    return template.working.format_map(item.fields | changed), answer


def other_number(number: int, rng: random.Random) -> int:
    """Return a number near another one with as many digits; for a reserved one a reserved one."""
    # Otherwise the split alone would tell which of the two is right.
    if number in RESERVED_NUMBERS:
        return rng.choice([other for other in RESERVED_NUMBERS if other != number])
    digits = len(str(number))
    steps = STEPS[min(digits, max(STEPS))]
    # From 2 on: the textbook always writes nouns in the plural.
    lowest, end = max(2, 10 ** (digits - 1)), 10**digits
    near = [number + sign * step for step in steps for sign in (-1, 1)]
    allowed = set(range(lowest, end)).difference(RESERVED_NUMBERS)
    return rng.choice([other for other in near if other in allowed])


# Each mistake returns the fields that it changes, and the answer that they lead to.


def _wrong_number(field: str) -> Callable:
    """Return the mistake of problems whose answer is the number in a field."""

    def mistake(item: Passage, rng: random.Random) -> tuple[dict, str]:
        wrong = other_number(item.fields[field], rng)
        return {field: wrong}, str(wrong)

    return mistake


def _wrong_truth(field: str, words: dict[str, str]) -> Callable:
    """Return the mistake of problems with yes or no, which a word in a field decides.

    Args:
      words: each word's opposite.
    """

    def mistake(item: Passage, rng: random.Random) -> tuple[dict, str]:
        opposite = {"yes": "no", "no": "yes"}[item.answer]
        return {field: words[item.fields[field]]}, opposite

    return mistake


def _doubled_wrongly(item: Passage, rng: random.Random) -> tuple[dict, str]:
    """One doubling too few or too many."""
    terms, result = item.fields["o"], item.fields["r"]
    if rng.random() < 0.5:
        wrong, terms = result // 2, terms.removesuffix(f", {result}")
    else:
        wrong, terms = result * 2, f"{terms}, {result * 2}"
    return {"o": terms, "r": wrong}, str(wrong)


def _other_turn(item: Passage, rng: random.Random) -> tuple[dict, str]:
    """The number whose turn it is not."""
    a, b = item.fields["a"], item.fields["b"]
    return {"a": b, "b": a}, str(a)


def _other_owner(item: Passage, rng: random.Random) -> tuple[dict, str]:
    """Another of the three, who wrongly stands first in the order."""
    order = item.fields["o"].split(", ")
    first = order.pop(rng.randrange(1, len(order)))
    name = first.split()[-1]
    return {"o": ", ".join([first, *order]), "who": name}, name


def _other_side(item: Passage, rng: random.Random) -> tuple[dict, str]:
    """The other of two, by a comparison the wrong way round."""
    (name,) = set(item.choices) - {item.answer}
    first, second = item.fields["second"], item.fields["first"]
    return {"first": first, "second": second, "who": name}, name


def _other_order(item: Passage, rng: random.Random) -> tuple[dict, str]:
    places = ("first", "second", "third")
    _, *wrong = itertools.permutations(item.fields[place] for place in places)
    order = rng.choice(wrong)
    return dict(zip(places, order)), listed(list(order))


def _other_top(item: Passage, rng: random.Random) -> tuple[dict, str]:
    """Another of a chain, who changes places with the one at the top."""
    lower = rng.choice(("y", "z"))
    name = item.fields[lower]
    return {"x": name, lower: item.fields["x"]}, name


def _other_colour(item: Passage, rng: random.Random) -> tuple[dict, str]:
    colour = rng.choice([colour for colour in COLOURS if colour != item.answer])
    return {"q": colour}, colour


_NEGATED = {"": "not ", "not ": ""}
_MISTAKES: dict[str, Callable[[Passage, random.Random], tuple[dict, str]]] = {
    "change": _wrong_number("r"),
    "groups": _wrong_number("r"),
    "to_small": _wrong_number("r"),
    "to_large": _wrong_number("r"),
    "extreme": _other_owner,
    "more": _other_side,
    "arrange": _other_order,
    "difference": _wrong_number("d"),
    "rising": _wrong_number("r"),
    "falling": _wrong_number("r"),
    "doubling": _doubled_wrongly,
    "taking_turns": _other_turn,
    "syllogism": _wrong_truth("not", _NEGATED),
    "bound": _wrong_truth("not", _NEGATED),
    "chain": _other_top,
    "lamp": _wrong_truth("on", {"on": "off", "off": "on"}),
    "pack": _wrong_number("k"),
    "act": _wrong_number("r"),
    "quality_of_word": _wrong_truth("not", _NEGATED),
    "look": _other_colour,
}
