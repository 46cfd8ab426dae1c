"""The textbook's kinds of passage about words: simple logic, and definitions in use. Each problem is solved twice, as in the others."""

from slmjax.textbook.draw import COLOURS, JOBS, NOUNS, TRAITS, Draw, Problem, Template

YES_NO = ("yes", "no")


def syllogism(draw: Draw) -> Problem:
    """All or no members of a group have a trait; one is a member."""
    every, job = draw.coin(), draw.choice(JOBS)
    fields = {"x": draw.name(), "n": draw.number(10, 99), "j": job, "q": draw.choice(TRAITS)}
    fields |= {"every": "all" if every else "no", "not": "" if every else "not "}
    having = {job} if every else set()
    return Problem(fields, "yes" if every else "no", YES_NO[job not in having], YES_NO)


def bound(draw: Draw) -> Problem:
    """A trait that holds exactly above a bound."""
    a, b = draw.apart(2)
    fields = {
        "x": draw.name(),
        "t": draw.choice(NOUNS),
        "q": draw.choice(TRAITS),
        "a": a,
        "b": b,
        "not": "" if b > a else "not ",
    }
    return Problem(fields, "yes" if b > a else "no", YES_NO[len(range(a, b)) == 0], YES_NO)


def chain(draw: Draw) -> Problem:
    """A transitive chain of three, told in either order."""
    x, y, z = names = [draw.name() for _ in range(3)]
    word = draw.choice(("old", "tall", "fast"))
    facts = [f"{x} is {word}er than {y}", f"{y} is {word}er than {z}"]
    if draw.coin():
        facts.reverse()
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
    both, here = draw.coin(), [draw.coin(), draw.coin()]
    x, y = draw.name(), draw.name()
    value = all(here) if both else any(here)
    states = ["in" if present else "out" for present in here]
    fields = {
        "x": x,
        "y": y,
        "n": draw.number(10, 99),
        "rule": f"{x} and {y} are in" if both else f"{x} or {y} is in",
    }
    fields |= {"p": states[0], "q": states[1], "on": "on" if value else "off"}
    return Problem(fields, "yes" if value else "no", YES_NO[states.count("in") < 1 + both], YES_NO)


LOGIC = (
    Template(
        syllogism,
        "In house {n} there are only {j}s, and {every} {j}s are {q}. Now {x} lives in house {n}. Is {x} {q}?",
        "In house {n} {x} must be a {j}, and {every} {j}s are {q}, so {x} is {not}{q}.",
    ),
    Template(
        syllogism,
        "We know that {every} {j}s are {q}. In house {n} there are only {j}s, and {x} lives there. Is {x} {q}?",
        "In house {n} {x} must be a {j}, and {every} {j}s are {q}, so {x} is {not}{q}.",
    ),
    Template(
        bound,
        "People with more than {a} {t} are {q}, and others are not. Now {x} has {b} {t}. Is {x} {q}?",
        "{b} is {not}more than {a}, so {x} is {not}{q}.",
    ),
    Template(
        chain,
        "In class {n}, {first}, and {second}. Who is the {w}est?",
        "As {x} is {w}er than {y} and {y} is {w}er than {z}, in class {n} {x} is the {w}est.",
    ),
    Template(
        lamp,
        "The lamp in room {n} is on only if {rule}. Now {x} is {p} and {y} is {q}. Is the lamp on?",
        "It is on if {rule}. As {x} is {p} and {y} is {q}, the lamp in room {n} is {on}.",
    ),
    Template(
        syllogism,
        "Now {x} lives in house {n}. In house {n} there are only {j}s, and {every} {j}s are {q}. Is {x} {q}?",
        "In house {n} {x} must be a {j}, and {every} {j}s are {q}, so {x} is {not}{q}.",
        heldout=True,
    ),
)


def pack(draw: Draw) -> Problem:
    """A noun for a number of things."""
    k = draw.number(10, 99)
    fields = {"x": draw.name(), "w": draw.word(), "t": draw.choice(NOUNS), "k": k}
    return Problem(fields, k, len([None] * k))


def act(draw: Draw) -> Problem:
    """A verb for an addition."""
    a, d = draw.summands()
    return Problem(
        {"x": draw.name(), "w": draw.word(), "d": d, "a": a, "r": a + d},
        a + d,
        len([*range(a), *range(d)]),
    )


def quality_of_word(draw: Draw) -> Problem:
    """An adjective for what costs more than a bound."""
    a, b = draw.apart(2)
    fields = {
        "x": draw.name(),
        "w": draw.word(),
        "t": draw.choice(NOUNS),
        "a": a,
        "b": b,
        "not": "" if b > a else "not ",
    }
    return Problem(fields, "yes" if b > a else "no", YES_NO[len(range(a, b)) == 0], YES_NO)


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
    return Problem(fields, colour, next(known for known in COLOURS if known in fields.values()))


DEFINITIONS = (
    Template(
        pack,
        "A {w} is a bag of {k} {t}. In use: {x} has a {w}. How many {t} does {x} have?",
        "A {w} is a bag of {k} {t}, so {x} has {k} {t}.",
    ),
    Template(
        act,
        "To {w} is to add {d}. In use: {x} can {w} {a}. What does {x} get?",
        "To {w} {a} is to add {d} to {a}. {a} + {d} = {r}, so {x} gets {r}.",
    ),
    Template(
        quality_of_word,
        "Things are {w} if they cost more than {a} coins. The {t} of {x} cost {b} coins. Are they {w}?",
        "{b} is {not}more than {a}, so the {t} of {x} are {not}{w}.",
    ),
    Template(
        look,
        "The word {w} means {q}. In use: {x} has {n} {w} {t}. What colour are they?",
        "As {w} means {q}, the {n} {w} {t} of {x} are {q}.",
    ),
    Template(
        act,
        "The word {w} means to add {d}. In use: {x} can {w} {a}. What does {x} get?",
        "To {w} {a} is to add {d} to {a}. {a} + {d} = {r}, so {x} gets {r}.",
        heldout=True,
    ),
)
