"""The textbook's problems about words: simple logic, and definitions in use.

Each function draws a problem and solves it in two ways, as in number_kinds.py; its docstring says
what the problem is about. A problem has the fields that its templates in templates.json use.
"""

from slmjax.textbook.draw import COLOURS, JOBS, NOUNS, TRAITS, Draw, Problem

# Fields that the templates share:
#   x, y, z  people
#   n        the number of a place, or of things: it only makes passages differ
#   t        a sort of thing
#   j        a job
#   w        an invented word, or the quality that is compared
#   q        a trait or colour; in `lamp`, p and q are "in" or "out"
#   a, b     given numbers
#   k        how many things an invented noun stands for
#   d, r     a number that is added, and the result
#   not      "not " or nothing, before what may not hold
#   every    "all" or "no"
#   rule     who must be in for the lamp to be on
#   on       "on" or "off"
#   first, second   facts in the order of the prompt

YES_NO = ("yes", "no")  # the answers that a prompt offers


def syllogism(draw: Draw) -> Problem:
    """Whether a member of a group has a trait, where all or no members have it."""
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
    # The second answer is by membership: the job is in the set of those with the trait.
    return Problem(fields, _yes_no(all_have_it), _yes_no(job in jobs_with_trait), YES_NO)


def bound(draw: Draw) -> Problem:
    """Whether a person has the trait of all people who own more things than a bound."""
    a, b = draw.apart(2)
    fields = {
        "x": draw.name(),
        "t": draw.choice(NOUNS),
        "q": draw.choice(TRAITS),
        "a": a,
        "b": b,
        "not": _negation(b > a),
    }
    # Counted: a range that goes up has members only where b is larger.
    b_is_larger = len(range(a, b)) > 0
    return Problem(fields, _yes_no(b > a), _yes_no(b_is_larger), YES_NO)


def chain(draw: Draw) -> Problem:
    """Who of three is first, from two comparisons in either order."""
    # x is above y, and y above z; the facts name the one above first.
    names = [draw.name() for _ in range(3)]
    x, y, z = names
    word = draw.choice(("old", "tall", "fast"))
    facts = [f"{x} is {word}er than {y}", f"{y} is {word}er than {z}"]
    if draw.coin():
        facts.reverse()
    # From the text: the only one who is not the second name of a fact.
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
    """Whether a lamp is on, by a rule with "and" or with "or"."""
    needs_both = draw.coin()
    present = [draw.coin(), draw.coin()]
    x, y = draw.name(), draw.name()
    if needs_both:
        rule, is_on, needed = f"{x} and {y} are in", all(present), 2
    else:
        rule, is_on, needed = f"{x} or {y} is in", any(present), 1
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
    # Counted: how many are in.
    enough_are_in = states.count("in") >= needed
    return Problem(fields, _yes_no(is_on), _yes_no(enough_are_in), YES_NO)


def pack(draw: Draw) -> Problem:
    """How many things an invented noun stands for."""
    k = draw.number(10, 99)
    fields = {"x": draw.name(), "w": draw.word(), "t": draw.choice(NOUNS), "k": k}
    return Problem(fields, k, len([None] * k))


def act(draw: Draw) -> Problem:
    """The result of an invented verb that stands for an addition."""
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
    """Whether an invented adjective fits, which stands for "costs more than a bound"."""
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
    b_is_larger = len(range(a, b)) > 0
    return Problem(fields, _yes_no(b > a), _yes_no(b_is_larger), YES_NO)


def look(draw: Draw) -> Problem:
    """The colour that an invented adjective stands for."""
    colour = draw.choice(COLOURS)
    fields = {
        "x": draw.name(),
        "w": draw.word(),
        "t": draw.choice(NOUNS),
        "q": colour,
        "n": draw.number(10, 99),
    }
    # From the passage's words: the only colour among them.
    again = next(known for known in COLOURS if known in fields.values())
    return Problem(fields, colour, again)


def _yes_no(holds: bool) -> str:
    return "yes" if holds else "no"


def _negation(holds: bool) -> str:
    """Return the word that a template puts before what does not hold."""
    return "" if holds else "not "
