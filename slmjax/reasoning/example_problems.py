"""Word problems of our own in GSM8K's format, for a first probe without any data."""

from slmjax.evals.word_problems import WordProblem, parse_step

NAMES = ("Anna", "Robert", "Lucy", "Kevin", "Maria", "Peter", "Sarah", "Frank")


def word_problem(question: str, *equations: str) -> WordProblem:
    """Return the problem whose solution is these equations, such as "3*4=12"."""
    steps = tuple(parse_step(equation) for equation in equations)
    solution = "".join(f"So it is <<{equation}>>.\n" for equation in equations)
    return WordProblem(question, solution, steps[-1].result, steps)


def _apples(name: str, bags: int, each: int, eaten: int) -> WordProblem:
    total = bags * each
    return word_problem(
        f"{name} buys {bags} bags with {each} apples each. Her family eats {eaten} apples. How "
        f"many apples does {name} have left?",
        f"{bags}*{each}={total}",
        f"{total}-{eaten}={total - eaten}",
    )


def _prices(name: str, shirts: int, price: int, tie: int) -> WordProblem:
    total = shirts * price
    return word_problem(
        f"{name} buys {shirts} shirts for ${price} each and a tie for ${tie}. How much money does "
        f"{name} spend?",
        f"{shirts}*{price}={total}",
        f"{total}+{tie}={total + tie}",
    )


def _discount(name: str, price: int, share: int) -> WordProblem:
    off = price * share // 100
    return word_problem(
        f"{name} wants a bike that costs ${price}. Today it is {share}% cheaper. How much does the "
        "bike cost today?",
        f"{price}*.{share:02d}={off}",
        f"{price}-{off}={price - off}",
    )


def _twice(name: str, pages: int, more: int) -> WordProblem:
    return word_problem(
        f"{name} reads {pages} pages on Monday and twice as many on Tuesday. On Sunday it is "
        f"{more} pages more than on Tuesday. How many pages does {name} read on Sunday?",
        f"{pages}*2={2 * pages}",
        f"{2 * pages}+{more}={2 * pages + more}",
    )


def example_problems() -> list[WordProblem]:
    """Return 4 x 24 problems, whose numbers have one to three digits."""
    found = []
    for number in range(24):
        name = NAMES[number % len(NAMES)]
        small = 3 + number % 6 + (number % 6 > 3)  # 3 to 9, without 7
        middle = 13 + 3 * number + (13 + 3 * number in (52, 100))
        found.append(_apples(name, small, middle, 11 + number))
        found.append(_prices(name, small, middle, 14 + 2 * number))
        found.append(_discount(name, 110 + 10 * number, (20, 30, 40, 70)[number % 4]))
        found.append(_twice(name, middle, small))
    return found
