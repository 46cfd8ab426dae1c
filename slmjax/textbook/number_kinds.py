"""The textbook's problems about numbers: word problems, units, comparison, sequences.

Each is drawn, solved, and solved again in another way (counted one by one, by ranks, by closed
forms). No sum carries from one digit to the next, so that a model of a million parameters can learn
to compute in a minute or two. The fields of a problem are those of its templates in templates.json.
"""

import operator

from slmjax.textbook.draw import NOUNS, Draw, Problem

# Fields that the templates share:
#   x, y, z   people
#   t         a sort of thing
#   a, b, c   given numbers; n, k: a number of units or groups, and the size of a group
#   d         a difference
#   p, s      a product and a sum on the way to the result
#   r         the result
#   u, us, v  the large unit, its plural, the plural of the small unit; f: small ones in a large one
#   w, who    what is asked for, in a word, and the person who has it

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
# Groups, and things in each: their product has one digit.
FEW_GROUPS = ((2, 2), (2, 3), (2, 4), (3, 2), (4, 2))


def change(draw: Draw) -> Problem:
    """Something is added, something is taken away."""
    a, b = draw.summands()
    # At most the units of the sum, so that nothing is borrowed from the tens.
    c = draw.number(2, (a + b) % 10)
    result = a + b - c
    fields = {
        "x": draw.name(),
        "t": draw.choice(NOUNS),
        "a": a,
        "b": b,
        "c": c,
        "s": a + b,
        "r": result,
    }
    return Problem(fields, result, count_things(a, b, -c))


def groups(draw: Draw) -> Problem:
    """Some things and a few equal groups."""
    n, k = draw.choice(FEW_GROUPS)
    # The product is computed, not given; the two numbers that make it are.
    a, _ = draw.summands(n * k)
    draw.numbers += [n, k]
    result = a + n * k
    fields = {
        "x": draw.name(),
        "t": draw.choice(NOUNS),
        "n": n,
        "k": k,
        "a": a,
        "p": n * k,
        "r": result,
    }
    return Problem(fields, result, count_things(a, *[k] * n))


def to_small(draw: Draw) -> Problem:
    """A measure in two units, into the smaller."""
    large, larges, small, factor = draw.choice(ROUND_UNITS)
    # All factors end in 0, so that adding b changes the units only.
    n = draw.number(10, 99)
    b = draw.number(2, 9)
    product = n * factor
    result = product + b
    fields = {
        "x": draw.name(),
        "u": large,
        "us": larges,
        "v": small,
        "f": factor,
        "n": n,
        "b": b,
        "p": product,
        "r": result,
    }
    return Problem(fields, result, len(range(-b, product)))


def to_large(draw: Draw) -> Problem:
    """A measure in two units, into the larger; the smaller part comes out even."""
    large, larges, small, factor = draw.choice(OTHER_UNITS)
    b, n = draw.summands()
    product = n * factor
    fields = {
        "x": draw.name(),
        "u": large,
        "us": larges,
        "v": small,
        "f": factor,
        "n": n,
        "b": b,
        "p": product,
        "r": b + n,
    }
    # Counted: steps of one large unit through the whole measure in small ones.
    steps = range(0, product + b * factor, factor)
    return Problem(fields, b + n, len(steps))


def extreme(draw: Draw) -> Problem:
    """Who of three has the most or the fewest."""
    numbers = draw.apart(3)
    names = [draw.name() for _ in range(3)]
    if draw.coin():
        word, order, best = "most", sorted(numbers, reverse=True), max(numbers)
    else:
        word, order, best = "fewest", sorted(numbers), min(numbers)
    owner = dict(zip(numbers, names))
    winner = owner[order[0]]
    fields = dict(zip("abcxyz", (*numbers, *names)))
    fields |= {
        "t": draw.choice(NOUNS),
        "w": word,
        "who": winner,
        "o": ", ".join(f"{number} of {owner[number]}" for number in order),
    }
    return Problem(fields, winner, names[numbers.index(best)], tuple(names))


def more(draw: Draw) -> Problem:
    """Who of two has more or fewer."""
    a, b = draw.apart(2)
    x, y = draw.name(), draw.name()
    asks_for_more = draw.coin()
    if asks_for_more:
        word, first, second = "more", max(a, b), min(a, b)
    else:
        word, first, second = "fewer", min(a, b), max(a, b)
    winner = {a: x, b: y}[first]
    fields = {
        "x": x,
        "y": y,
        "a": a,
        "b": b,
        "t": draw.choice(NOUNS),
        "w": word,
        "who": winner,
        "first": first,
        "second": second,
    }
    # Counted: a range that goes up has members only where b is larger.
    b_is_larger = len(range(a, b)) > 0
    again = y if b_is_larger == asks_for_more else x
    return Problem(fields, winner, again, (x, y))


def arrange(draw: Draw) -> Problem:
    """Three numbers in order."""
    a, b, c = numbers = draw.apart(3)
    if draw.coin():
        word, order, comes_before = "largest", sorted(numbers, reverse=True), operator.gt
    else:
        word, order, comes_before = "smallest", sorted(numbers), operator.lt
    fields = {
        "a": a,
        "b": b,
        "c": c,
        "x": draw.name(),
        "w": word,
        "first": order[0],
        "second": order[1],
        "third": order[2],
    }
    # By ranks: a number's place is how many of them come before it.
    ranked = [0, 0, 0]
    for number in numbers:
        place = sum(comes_before(other, number) for other in numbers)
        ranked[place] = number
    return Problem(fields, listed(order), listed(ranked))


def difference(draw: Draw) -> Problem:
    """How many more one has than another."""
    # The larger number is made as a sum, so that taking b away borrows nothing.
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


def rising(draw: Draw) -> Problem:
    """The next term where each term adds the same."""
    a, d = sequence_steps(draw, 1)
    fields = {
        "x": draw.name(),
        "a": a,
        "b": a + d,
        "c": a + 2 * d,
        "d": d,
        "r": a + 3 * d,
    }
    return Problem(fields, a + 3 * d, range(a, a + 4 * d, d)[3])


def falling(draw: Draw) -> Problem:
    """The next term where each term takes away the same."""
    # The steps go down to the result, which is positive.
    a, d = sequence_steps(draw, -1)
    fields = {
        "x": draw.name(),
        "a": a,
        "b": a - d,
        "c": a - 2 * d,
        "d": d,
        "r": a - 3 * d,
    }
    return Problem(fields, a - 3 * d, range(a, 0, -d)[3])


def doubling(draw: Draw) -> Problem:
    """The first doubled term above a bound."""
    a = draw.number(2, 9)
    bound = draw.number(12, 70)
    terms = [a]
    while terms[-1] <= bound:
        terms.append(2 * terms[-1])
    fields = {
        "x": draw.name(),
        "a": a,
        "b": bound,
        "o": listed(terms),
        "r": terms[-1],
    }
    # By a closed form: the smallest power for which a * 2^power is more than the bound.
    power = (bound // a).bit_length()
    return Problem(fields, terms[-1], a << power)


def taking_turns(draw: Draw) -> Problem:
    """The next term where two numbers take turns."""
    a, b = draw.apart(2)
    fields = {"x": draw.name(), "a": a, "b": b}
    # The sixth term is asked for.
    terms = [a, b] * 3
    return Problem(fields, b, terms[5])


def sequence_steps(draw: Draw, sign: int) -> tuple[int, int]:
    """Return a start and a difference; three steps change the units only, or the tens only."""
    while True:
        start = draw.number(10, 99)
        difference = draw.choice((1, 2, 3, 10, 20))
        end = start + sign * 3 * difference
        same_tens = end // 10 == start // 10
        changes_tens_only = difference >= 10 and 10 <= end <= 99
        if changes_tens_only or (difference < 10 and same_tens):
            draw.numbers.append(difference)
            return start, difference
        # What was drawn in vain was not given.
        draw.numbers.pop()


def count_things(*groups: int) -> int:
    """Count groups of things one by one; a negative group takes away."""
    heap: list[None] = []
    for size in groups:
        if size >= 0:
            heap.extend([None] * size)
        else:
            del heap[size:]
    return len(heap)


def listed(numbers: list[int]) -> str:
    """Return numbers as a list in a sentence: "3, 4, 5"."""
    return ", ".join(map(str, numbers))
