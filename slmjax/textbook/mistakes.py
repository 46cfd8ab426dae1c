"""Wrong solutions of the textbook's problems: the same form, another result.

Only the last step goes wrong, and the sentence with the result and the answer line agree about it.
A wrong result looks like a right one: it has as many digits, or is another answer that the prompt
offers, or another thing of the same sort.
"""

import itertools
from collections.abc import Callable
from random import Random

from slmjax.textbook.draw import COLOURS, RESERVED_NUMBERS
from slmjax.textbook.number_kinds import listed
from slmjax.textbook.passages import TEMPLATES, Passage

# By how much a wrong number may be off.
STEPS = (1, 2, 3, 10, 20, 100)
# Problems whose answer is a number that stands in one field.
_NUMBER_FIELDS = {
    "change": "r",
    "groups": "r",
    "to_small": "r",
    "to_large": "r",
    "difference": "d",
    "rising": "r",
    "falling": "r",
    "pack": "k",
    "act": "r",
}


def wrong_solution(item: Passage, rng: Random) -> tuple[str, str]:
    """Return a working of a passage with a wrong result, and the wrong answer.

    Its numbers are reserved only where those of the right solution are: what is true of the split
    of a passage is true of its wrong solution.
    """
    problem, number = item.template.rsplit("-", 1)
    if problem in _NUMBER_FIELDS:
        field = _NUMBER_FIELDS[problem]
        answer = other_number(item.fields[field], rng)
        changed = {field: answer}
    else:
        changed, answer = _MISTAKES[problem](item, rng)
    template = TEMPLATES[item.kind][int(number)]
    working = template.working.format_map(item.fields | changed)
    return working, str(answer)


def other_number(number: int, rng: Random) -> int:
    """Return a number near another one with as many digits; for a reserved one a reserved one."""
    # Otherwise the split alone would tell which of the two is right.
    if number in RESERVED_NUMBERS:
        candidates = set(RESERVED_NUMBERS)
        candidates.remove(number)
        return rng.choice(sorted(candidates))
    near = []
    for step in STEPS:
        near += [number - step, number + step]
    # From 2 on, since the textbook always writes nouns in the plural.
    candidates = {other for other in near if other >= 2 and len(str(other)) == len(str(number))}
    return rng.choice(sorted(candidates.difference(RESERVED_NUMBERS)))


# Each mistake returns the fields that it changes, and the answer to which they lead.
Mistake = tuple[dict, str | int]


def _doubled_wrongly(item: Passage, rng: Random) -> Mistake:
    """One doubling too few or too many."""
    terms = item.fields["o"]
    result = item.fields["r"]
    if rng.random() < 0.5:
        wrong = result // 2
        terms = terms.removesuffix(f", {result}")
    else:
        wrong = result * 2
        terms = f"{terms}, {wrong}"
    return {"o": terms, "r": wrong}, wrong


def _other_turn(item: Passage, rng: Random) -> Mistake:
    """The number whose turn it is not."""
    a, b = item.fields["a"], item.fields["b"]
    return {"a": b, "b": a}, a


def _other_owner(item: Passage, rng: Random) -> Mistake:
    """Another of the three, who wrongly stands first in the order."""
    order = item.fields["o"].split(", ")
    # As "12 of Lena".
    first = order.pop(rng.randrange(1, len(order)))
    name = first.split()[-1]
    changed = {
        "o": ", ".join([first, *order]),
        "who": name,
    }
    return changed, name


def _other_side(item: Passage, rng: Random) -> Mistake:
    """The other of two, by a comparison the wrong way round."""
    name = _other_choice(item)
    changed = {
        "first": item.fields["second"],
        "second": item.fields["first"],
        "who": name,
    }
    return changed, name


def _other_order(item: Passage, rng: Random) -> Mistake:
    places = ("first", "second", "third")
    numbers = [item.fields[place] for place in places]
    # The first of the six orders is the right one.
    _, *wrong = itertools.permutations(numbers)
    order = rng.choice(wrong)
    return dict(zip(places, order)), listed(list(order))


def _other_top(item: Passage, rng: Random) -> Mistake:
    """Another of a chain, who changes places with the one at the top."""
    lower = rng.choice(("y", "z"))
    name = item.fields[lower]
    changed = {
        "x": name,
        lower: item.fields["x"],
    }
    return changed, name


def _denied(item: Passage, rng: Random) -> Mistake:
    """The opposite of what holds."""
    negation = "" if item.fields["not"] else "not "
    return {"not": negation}, _other_choice(item)


def _switched(item: Passage, rng: Random) -> Mistake:
    """A lamp that is on instead of off, or off instead of on."""
    state = "off" if item.fields["on"] == "on" else "on"
    return {"on": state}, _other_choice(item)


def _other_colour(item: Passage, rng: Random) -> Mistake:
    others = set(COLOURS) - {item.answer}
    # Sorted, since the order of a set is not the same in every process.
    colour = rng.choice(sorted(others))
    return {"q": colour}, colour


def _other_choice(item: Passage) -> str:
    """Return the wrong one of the two answers that a prompt offers."""
    (other,) = set(item.choices) - {item.answer}
    return other


_MISTAKES: dict[str, Callable[[Passage, Random], Mistake]] = {
    "extreme": _other_owner,
    "more": _other_side,
    "arrange": _other_order,
    "doubling": _doubled_wrongly,
    "taking_turns": _other_turn,
    "syllogism": _denied,
    "bound": _denied,
    "chain": _other_top,
    "lamp": _switched,
    "quality_of_word": _denied,
    "look": _other_colour,
}
