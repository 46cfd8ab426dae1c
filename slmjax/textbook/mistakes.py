"""Wrong solutions of the textbook's problems: the same form, another result.

Only the last step is wrong, and the answer line agrees with it. A wrong result looks like a right
one: it has as many digits, or is another answer that the prompt offers, or another thing of the
same sort.
"""

import itertools
from collections.abc import Callable
from random import Random

from slmjax.textbook.draw import COLOURS, RESERVED_NUMBERS
from slmjax.textbook.number_kinds import listed
from slmjax.textbook.passages import TEMPLATES, Passage

# By how much a wrong number may be off.
STEPS = (1, 2, 3, 10, 20, 100)
# {problem: the field with the number that is its answer}, where a wrong number is the mistake.
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

    It has reserved numbers only where the right solution has them. So a wrong solution belongs to
    the same split as its passage.
    """
    # As "doubling-3": the problem and the number of its wording.
    problem, wording = item.template.rsplit("-", 1)
    if problem in _NUMBER_FIELDS:
        field = _NUMBER_FIELDS[problem]
        answer = other_number(item.fields[field], rng)
        changed = {field: answer}
    else:
        changed, answer = _MISTAKES[problem](item, rng)
    template = TEMPLATES[item.kind][int(wording)]
    working = template.working.format_map(item.fields | changed)
    return working, str(answer)


def other_number(number: int, rng: Random) -> int:
    """Return a near number with as many digits; for a reserved number another reserved one."""
    # If only right answers were reserved numbers, a model could tell them by that.
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


# What a mistake returns: the fields that it changes, and the answer to which they lead.
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
    """Another of the three, who is wrongly first in the order."""
    # Entries are like "12 of Lena".
    order = item.fields["o"].split(", ")
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
    """The three numbers in another order."""
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
    """Another colour than the answer."""
    others = set(COLOURS) - {item.answer}
    # Sorted, since the order of a set is not the same in every process.
    colour = rng.choice(sorted(others))
    return {"q": colour}, colour


def _other_choice(item: Passage) -> str:
    """Return the wrong one of the two answers that a prompt offers."""
    (other,) = set(item.choices) - {item.answer}
    return other


# {problem: the mistake that is made in it}.
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
