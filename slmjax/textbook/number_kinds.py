"""The textbook's kinds of passage about numbers: word problems, unit conversion, comparison and ordering, sequences.

Each problem is drawn, solved, and solved again in another way (counted one by one, by ranks, by closed forms). No sum carries from
one digit to the next, so that a model of a million parameters can learn to compute in a minute or two.
"""

from slmjax.textbook.draw import NOUNS, Draw, Problem, Template


def count_things(*groups: int) -> int:
    """Counts groups of things one by one; a negative group takes away."""
    heap: list[None] = []
    for size in groups:
        if size >= 0:
            heap.extend([None] * size)
        else:
            del heap[size:]
    return len(heap)


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def change(draw: Draw) -> Problem:
    """Something is added, something is taken away."""
    a, b = draw.summands()
    c = draw.number(2, (a + b) % 10)
    fields = {
        "x": draw.name(),
        "t": draw.choice(NOUNS),
        "a": a,
        "b": b,
        "c": c,
        "s": a + b,
        "r": a + b - c,
    }
    return Problem(fields, a + b - c, count_things(a, b, -c))


def groups(draw: Draw) -> Problem:
    """Some things and a few equal groups."""
    n, k = draw.choice(((2, 2), (2, 3), (2, 4), (3, 2), (4, 2)))
    a, _ = draw.summands(n * k)
    draw.numbers += [n, k]
    fields = {
        "x": draw.name(),
        "t": draw.choice(NOUNS),
        "n": n,
        "k": k,
        "a": a,
        "p": n * k,
        "r": a + n * k,
    }
    return Problem(fields, a + n * k, count_things(a, *[k] * n))


WORD_PROBLEMS = (
    Template(
        change,
        "At first {x} has {a} {t}. Then {x} gets {b} {t} and loses {c}. How many {t} does {x} have now?",
        "{a} + {b} = {s} and {s} - {c} = {r}, so {x} has {r} {t}.",
    ),
    Template(
        change,
        "On Monday {x} makes {a} {t}. On Friday {x} makes {b} {t} and loses {c}. How many {t} does {x} have now?",
        "{a} + {b} = {s} and {s} - {c} = {r}, so {x} has {r} {t}.",
    ),
    Template(
        change,
        "A box of {x} holds {a} {t}. Then {x} puts in {b} {t} and takes out {c}. How many {t} does {x} have now?",
        "{a} + {b} = {s} and {s} - {c} = {r}, so {x} has {r} {t}.",
    ),
    Template(
        groups,
        "Today {x} has {a} {t} and gets {n} bags of {k} {t} each. How many {t} does {x} have now?",
        "{n} x {k} = {p} and {a} + {p} = {r}, so {x} has {r} {t}.",
    ),
    Template(
        groups,
        "Each day {x} makes {k} {t}. After {n} days {x} puts them in a box of {a} {t}. How many {t} does {x} have now?",
        "{n} x {k} = {p} and {a} + {p} = {r}, so {x} has {r} {t}.",
    ),
    Template(
        change,
        "At first {x} makes {a} {t}. On Friday {x} puts in {b} {t} and takes out {c}. How many {t} does {x} have now?",
        "{a} + {b} = {s} and {s} - {c} = {r}, so {x} has {r} {t}.",
        heldout=True,
    ),
)

# Large unit, its plural, the small unit's plural, how many small ones make a large one.
ROUND_UNITS = (
    ("decade", "decades", "years", 10),
    ("meter", "meters", "centimeters", 100),
    ("dollar", "dollars", "cents", 100),
    ("centimeter", "centimeters", "millimeters", 10),
)
OTHER_UNITS = (
    ("week", "weeks", "days", 7),
    ("hour", "hours", "minutes", 60),
    ("year", "years", "months", 12),
    ("foot", "feet", "inches", 12),
    ("yard", "yards", "feet", 3),
    ("gallon", "gallons", "quarts", 4),
)


def to_small(draw: Draw) -> Problem:
    """A measure in two units, into the smaller."""
    large, larges, small, factor = draw.choice(ROUND_UNITS)
    n, b = draw.number(10, 99), draw.number(2, 9)
    p = n * factor
    fields = {
        "x": draw.name(),
        "u": large,
        "us": larges,
        "v": small,
        "f": factor,
        "n": n,
        "b": b,
        "p": p,
        "r": p + b,
    }
    return Problem(fields, p + b, len(range(-b, p)))


def to_large(draw: Draw) -> Problem:
    """A measure in two units, into the larger; the smaller part comes out even."""
    large, larges, small, factor = draw.choice(OTHER_UNITS)
    b, n = draw.summands()
    p = n * factor
    fields = {
        "x": draw.name(),
        "u": large,
        "us": larges,
        "v": small,
        "f": factor,
        "n": n,
        "b": b,
        "p": p,
        "r": b + n,
    }
    return Problem(fields, b + n, len(range(0, p + b * factor, factor)))


UNIT_CONVERSION = (
    Template(
        to_small,
        "The list of {x} says {n} {us} and {b} {v}. How many {v} is that?",
        "1 {u} is {f} {v}. {n} x {f} = {p} and {p} + {b} = {r}, so {x} has {r} {v}.",
    ),
    Template(
        to_small,
        "Change {n} {us} and {b} {v} to {v} for {x}. How many {v} is that?",
        "1 {u} is {f} {v}. {n} x {f} = {p} and {p} + {b} = {r}, so {x} has {r} {v}.",
    ),
    Template(
        to_large,
        "If {x} needs {b} {us} and {p} {v}, how many {us} does {x} need?",
        "{f} {v} are 1 {u}. {p} / {f} = {n} and {b} + {n} = {r}, so {x} needs {r} {us}.",
    ),
    Template(
        to_large,
        "First {x} asks for {b} {us}, then for {p} {v}. How many {us} is that?",
        "{f} {v} are 1 {u}. {p} / {f} = {n} and {b} + {n} = {r}, so {x} has {r} {us}.",
    ),
    Template(
        to_small,
        "If {x} needs {n} {us} and {b} {v}, how many {v} is that?",
        "1 {u} is {f} {v}. {n} x {f} = {p} and {p} + {b} = {r}, so {x} has {r} {v}.",
        heldout=True,
    ),
)


def extreme(draw: Draw) -> Problem:
    """Who of three has the most or the fewest."""
    numbers, names, most = draw.apart(3), [draw.name() for _ in range(3)], draw.coin()
    owner = dict(zip(numbers, names))
    order = sorted(numbers, reverse=most)
    best = (max if most else min)(numbers)
    fields = dict(zip("abcxyz", (*numbers, *names))) | {
        "t": draw.choice(NOUNS),
        "w": "most" if most else "fewest",
    }
    fields |= {
        "who": owner[order[0]],
        "o": ", ".join(f"{number} of {owner[number]}" for number in order),
    }
    return Problem(fields, owner[order[0]], names[numbers.index(best)], tuple(names))


def more(draw: Draw) -> Problem:
    """Who of two has more or fewer."""
    (a, b), x, y, up = draw.apart(2), draw.name(), draw.name(), draw.coin()
    who = x if (a > b) == up else y
    fields = {
        "x": x,
        "y": y,
        "a": a,
        "b": b,
        "t": draw.choice(NOUNS),
        "w": "more" if up else "fewer",
        "who": who,
    }
    fields |= {"first": max(a, b) if up else min(a, b), "second": min(a, b) if up else max(a, b)}
    return Problem(fields, who, (x, y)[(len(range(a, b)) > 0) == up], (x, y))


def arrange(draw: Draw) -> Problem:
    """Three numbers in order."""
    numbers, down = draw.apart(3), draw.coin()
    order = sorted(numbers, reverse=down)
    rank = {
        sum(other > number if down else other < number for other in numbers): number
        for number in numbers
    }
    fields = dict(zip("abc", numbers))
    fields |= {
        "x": draw.name(),
        "w": "largest" if down else "smallest",
        "first": order[0],
        "second": order[1],
        "third": order[2],
    }
    return Problem(fields, listed(order), listed([rank[i] for i in range(3)]))


def difference(draw: Draw) -> Problem:
    """How many more one has than another."""
    b, d = draw.summands()
    fields = {
        "x": draw.name(),
        "y": draw.name(),
        "t": draw.choice(NOUNS),
        "a": b + d,
        "b": b,
        "d": d,
    }
    return Problem(fields, d, len(range(b, b + d)))


COMPARISON = (
    Template(
        extreme,
        "Here {x} has {a} {t}, {y} has {b} {t} and {z} has {c} {t}. Who has the {w} {t}?",
        "In order: {o}. So {who} has the {w} {t}.",
    ),
    Template(
        more,
        "Now {x} has {a} {t} and {y} has {b} {t}. Who has {w} {t}?",
        "{first} {t} are {w} than {second} {t}, so {who} has {w} {t}.",
    ),
    Template(
        arrange,
        "Put {a}, {b} and {c} in order for {x}, the {w} first. What is the order?",
        "The {w} is {first}. Next are {second} and {third}. So {x} has {first}, {second}, {third}.",
    ),
    Template(
        difference,
        "Let {x} have {a} {t} and {y} have {b} {t}. How many more {t} does {x} have?",
        "{b} + {d} = {a}, so {a} - {b} = {d} and {x} has {d} more {t} than {y}.",
    ),
    Template(
        more,
        "Let {x} have {a} {t} and {y} have {b} {t}. Who has {w} {t}?",
        "{first} {t} are {w} than {second} {t}, so {who} has {w} {t}.",
        heldout=True,
    ),
)


def rising(draw: Draw) -> Problem:
    """The next term where each term adds the same."""
    a, d = sequence_steps(draw, 1)
    fields = {"x": draw.name(), "a": a, "b": a + d, "c": a + 2 * d, "d": d, "r": a + 3 * d}
    return Problem(fields, a + 3 * d, range(a, a + 4 * d, d)[3])


def falling(draw: Draw) -> Problem:
    """The next term where each term takes away the same."""
    a, d = sequence_steps(draw, -1)
    fields = {"x": draw.name(), "a": a, "b": a - d, "c": a - 2 * d, "d": d, "r": a - 3 * d}
    return Problem(fields, a - 3 * d, range(a, 0, -d)[3])


def sequence_steps(draw: Draw, sign: int) -> tuple[int, int]:
    """A start and a difference, three times which changes the units only or the tens only."""
    while True:
        start, difference = draw.number(10, 99), draw.choice((1, 2, 3, 10, 20))
        end = start + sign * 3 * difference
        if end // 10 == start // 10 if difference < 10 else 10 <= end <= 99:
            draw.numbers.append(difference)
            return start, difference
        draw.numbers.pop()


def doubling(draw: Draw) -> Problem:
    """The first doubled term above a bound."""
    a, bound = draw.number(2, 9), draw.number(12, 70)
    terms = [a]
    while terms[-1] <= bound:
        terms.append(2 * terms[-1])
    power = (bound // a).bit_length()  # the smallest k for which a * 2^k is more than the bound
    return Problem(
        {"x": draw.name(), "a": a, "b": bound, "o": listed(terms), "r": terms[-1]},
        terms[-1],
        a << power,
    )


def taking_turns(draw: Draw) -> Problem:
    """The next term where two numbers take turns."""
    a, b = draw.apart(2)
    return Problem({"x": draw.name(), "a": a, "b": b}, b, ([a, b] * 3)[5])


SEQUENCES = (
    Template(
        rising,
        "In the list of {x} are {a}, {b}, {c}. The rule stays the same. What comes next?",
        "Each time {x} adds {d}. {c} + {d} = {r}, so {r} comes next.",
    ),
    Template(
        falling,
        "Going down, {x} writes {a}, {b}, {c}. The rule stays the same. What comes next?",
        "Each time {x} takes away {d}. {c} - {d} = {r}, so {r} comes next.",
    ),
    Template(
        rising,
        "Starting at {a}, {x} adds {d} three times. What does {x} get?",
        "Each time {x} adds {d}. {a} + {d} = {b}, {b} + {d} = {c} and {c} + {d} = {r}, so {x} gets {r}.",
    ),
    Template(
        doubling,
        "From {a}, {x} doubles until the number is more than {b}. What does {x} get?",
        "Doubling gives {o}. {r} is more than {b}, so {x} gets {r}.",
    ),
    Template(
        taking_turns,
        "By turns, {x} writes {a}, {b}, {a}, {b}, {a}. The rule stays the same. What comes next?",
        "Each time {x} takes turns, and {b} comes after {a}, so {b} comes next.",
    ),
    Template(
        rising,
        "Starting at {a}, {x} writes {a}, {b}, {c}. The rule stays the same. What comes next?",
        "Each time {x} adds {d}. {c} + {d} = {r}, so {r} comes next.",
        heldout=True,
    ),
)
