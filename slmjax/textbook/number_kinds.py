"""The textbook's problems about numbers: word problems, units, comparison, sequences.

Each function draws a problem, solves it, and solves it again in another way (counting, ranks, a
closed form); its docstring says what the problem asks. No sum carries from one digit to the next,
so a model of a million parameters learns to add within a minute or two of training. A problem has
the fields that its templates in templates.json use.
"""

import operator

from slmjax.textbook.draw import NOUNS, Draw, Problem

# Fields that the templates share:
#   x, y, z   people
#   t         a sort of thing
#   a, b, c   given numbers
#   n         how many units or groups
#   k         how many things in a group
#   d         a difference
#   p, s      a product and a sum on the way to the result
#   r         the result
#   u, us, v  the large unit, its plural, the plural of the small unit
#   f         how many small units make a large one
#   w, who    what is asked for, in a word, and the person who has it
#   o         the working's list: owners in order, or terms
#   first, second, third   numbers in the order that is asked for

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
    """How many are left after some are added and some are taken away."""
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
    """How many are some things and a few equal groups together."""
    n, k = draw.choice(FEW_GROUPS)
    # `a` is a number to which the product can be added without a carry.
    a, _ = draw.summands(n * k)
    # The prompt gives both factors, but not their product.
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
    """A measure in two units, converted into the smaller unit."""
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
    # Counted: b small units below 0 and the product's above.
    return Problem(fields, result, len(range(-b, product)))


def to_large(draw: Draw) -> Problem:
    """A measure in two units, converted into the larger unit, of which it is a whole number."""
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
    asks_for_most = draw.coin()
    word = "most" if asks_for_most else "fewest"
    order = sorted(numbers, reverse=asks_for_most)
    owner = dict(zip(numbers, names))
    winner = owner[order[0]]
    fields = {
        "a": numbers[0],
        "b": numbers[1],
        "c": numbers[2],
        "x": names[0],
        "y": names[1],
        "z": names[2],
        "t": draw.choice(NOUNS),
        "w": word,
        "who": winner,
        "o": ", ".join(f"{number} of {owner[number]}" for number in order),
    }
    # Without sorting: the place of the largest or smallest number.
    best = max(numbers) if asks_for_most else min(numbers)
    again = names[numbers.index(best)]
    return Problem(fields, winner, again, tuple(names))


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
    numbers = draw.apart(3)
    a, b, c = numbers
    asks_for_largest = draw.coin()
    if asks_for_largest:
        word, comes_before = "largest", operator.gt
    else:
        word, comes_before = "smallest", operator.lt
    order = sorted(numbers, reverse=asks_for_largest)
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
    a, d = sequence_steps(draw, sign=1)
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
    a, d = sequence_steps(draw, sign=-1)
    fields = {
        "x": draw.name(),
        "a": a,
        "b": a - d,
        "c": a - 2 * d,
        "d": d,
        "r": a - 3 * d,
    }
    # The fourth step on the way down to 0; the result is positive.
    return Problem(fields, a - 3 * d, range(a, 0, -d)[3])


def doubling(draw: Draw) -> Problem:
    """The first doubled term above a bound."""
    a = draw.number(2, 9)
    # Above every start, so that at least one doubling is needed.
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
    """Return a start and a step; three steps change the units only, or the tens only.

    Args:
      sign: 1 for steps up, -1 for steps down.
    """
    while True:
        start = draw.number(10, 99)
        step = draw.choice((1, 2, 3, 10, 20))
        end = start + sign * 3 * step
        if step < 10:
            changes_one_digit = end // 10 == start // 10
        else:
            changes_one_digit = 10 <= end <= 99
        if changes_one_digit:
            draw.numbers.append(step)
            return start, step
        # The prompt does not give a start that did not fit.
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
