"""The textbook's problems about words: simple logic, and definitions in use.

Each is solved twice, as those about numbers are. The fields of a problem are those of its templates
in templates.json.
"""

from slmjax.textbook.draw import COLOURS, JOBS, NOUNS, TRAITS, Draw, Problem

# Fields that the templates share:
#   x, y, z  people
#   n        the number of a place, which only makes passages differ
#   t        a sort of thing; j: a job; w: an invented word, or the quality that is compared
#   q        a trait or colour
#   a, b     given numbers
#   not      "not " or nothing, before what may not hold
YES_NO = ("yes", "no")  # indexed by whether something does not hold


def syllogism(draw: Draw) -> Problem:
    """All or no members of a group have a trait; one is a member."""
    all_have_it = draw.coin()
    job = draw.choice(JOBS)
    if all_have_it:
        every, jobs_with_trait = "all", {job}
    else:
        every, jobs_with_trait = "no", set()
    fields = {
        "x": draw.name(),
        "n": draw.number(10, 99),
        "j": job,
        "q": draw.choice(TRAITS),
        "every": every,
        "not": _negation(all_have_it),
    }
    # By membership: whose job is among those with the trait.
    return Problem(fields, _yes_no(all_have_it), YES_NO[job not in jobs_with_trait], YES_NO)


def bound(draw: Draw) -> Problem:
    """A trait that holds exactly above a bound."""
    a, b = draw.apart(2)
    fields = {
        "x": draw.name(),
        "t": draw.choice(NOUNS),
        "q": draw.choice(TRAITS),
        "a": a,
        "b": b,
        "not": _negation(b > a),
    }
    # Counted: a range that goes up has no members where b is smaller.
    return Problem(fields, _yes_no(b > a), YES_NO[len(range(a, b)) == 0], YES_NO)


def chain(draw: Draw) -> Problem:
    """A transitive chain of three, given in either order."""
    # x is above y, and y above z; the facts name the one above first.
    names = [draw.name() for _ in range(3)]
    x, y, z = names
    word = draw.choice(("old", "tall", "fast"))
    facts = [f"{x} is {word}er than {y}", f"{y} is {word}er than {z}"]
    if draw.coin():
        facts.reverse()
    # From the text: the one of whom no fact says that somebody is above.
    (top,) = set(names) - {fact.split()[-1] for fact in facts}
    fields = {
        "x": x,
        "y": y,
        "z": z,
        "w": word,
        "first": facts[0],
        "second": facts[1],
        "n": draw.number(10, 99),
    }
    return Problem(fields, x, top, tuple(names))


def lamp(draw: Draw) -> Problem:
    """Truth of "and" and of "or"."""
    needs_both = draw.coin()
    present = [draw.coin(), draw.coin()]
    x, y = draw.name(), draw.name()
    if needs_both:
        rule, is_on = f"{x} and {y} are in", all(present)
    else:
        rule, is_on = f"{x} or {y} is in", any(present)
    states = ["in" if is_present else "out" for is_present in present]
    fields = {
        "x": x,
        "y": y,
        "n": draw.number(10, 99),
        "rule": rule,
        "p": states[0],
        "q": states[1],
        "on": "on" if is_on else "off",
    }
    # Counted: "or" needs one who is in, "and" needs two.
    is_off = states.count("in") < 1 + needs_both
    return Problem(fields, _yes_no(is_on), YES_NO[is_off], YES_NO)


def pack(draw: Draw) -> Problem:
    """A noun for a number of things."""
    k = draw.number(10, 99)
    fields = {"x": draw.name(), "w": draw.word(), "t": draw.choice(NOUNS), "k": k}
    return Problem(fields, k, len([None] * k))


def act(draw: Draw) -> Problem:
    """A verb for an addition."""
    a, d = draw.summands()
    fields = {
        "x": draw.name(),
        "w": draw.word(),
        "d": d,
        "a": a,
        "r": a + d,
    }
    return Problem(fields, a + d, len([*range(a), *range(d)]))


def quality_of_word(draw: Draw) -> Problem:
    """An adjective for what costs more than a bound."""
    a, b = draw.apart(2)
    fields = {
        "x": draw.name(),
        "w": draw.word(),
        "t": draw.choice(NOUNS),
        "a": a,
        "b": b,
        "not": _negation(b > a),
    }
    # Counted, as in `bound`.
    return Problem(fields, _yes_no(b > a), YES_NO[len(range(a, b)) == 0], YES_NO)


def look(draw: Draw) -> Problem:
    """An adjective for a colour."""
    colour = draw.choice(COLOURS)
    fields = {
        "x": draw.name(),
        "w": draw.word(),
        "t": draw.choice(NOUNS),
        "q": colour,
        "n": draw.number(10, 99),
    }
    # From the text: the only colour in it.
    again = next(known for known in COLOURS if known in fields.values())
    return Problem(fields, colour, again)


def _yes_no(holds: bool) -> str:
    return "yes" if holds else "no"


def _negation(holds: bool) -> str:
    """Return the word that a template puts before what does not hold."""
    return "" if holds else "not "
