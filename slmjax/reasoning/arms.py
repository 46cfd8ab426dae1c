"""The arms of the reasoning probe: pure functions of a template and a seed.

Every arm changes one thing about an instance of its baseline that has the same numbers, so the two
are paired by template and seed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from slmjax.evals.word_problems import (
    Origin,
    Step,
    Tree,
    WordProblem,
    question_numbers,
    write_tree,
)
from slmjax.reasoning.problem_templates import NumberPool, ProblemTemplate, solved, written_number
from slmjax.reasoning.wording import (
    asked_unit,
    first_names_in,
    inserted,
    irrelevant_sentence,
    other_unit,
    renamed,
)

LARGEST_RESULT = 999_999  # of an added step
MOST_ADDED = 6  # steps of a longer chain
SYMBOLS = ("@", "#", "&", "~", "^", "!")
OPERATION_NAMES = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
NEW_UNITS = ("glims", "dorps", "wugs", "zaffs", "plinks", "murbs")
# Sentences without a number and their controls, of as many words, which point at the facts.
IDLE = (
    ("It was a quiet day and a light wind was blowing.",
     "All of the facts in this text matter for the answer."),
    ("Somebody hummed an old song while the radio played the news.",
     "Please use every fact that is given here for the answer."),
    ("A dog slept in the sun on the other side of town.",
     "To find the answer, read again what is said here and count."),
)  # fmt: skip
# A control of a sentence with a number repeats one of the question's. The ends have 0 to 7 words.
REPEATED = "As this text says, {n} is one of the numbers"
ENDS = (
    "",
    "here",
    "given here",
    "that are needed",
    "that are needed here",
    "that the answer depends on",
    "that the right answer depends on",
    "that the right answer here depends on",
)


class Added(NamedTuple):
    """A step that goes on from a result: result <operator> number."""

    operator: str
    number: int


class Arm(NamedTuple):
    """One arm of the probe.

    Attributes:
      baseline: the arm that it is compared with; "" for the first.
      meaning: what was changed, as a phrase.
      make: (template, pool, seed) -> instance, or None where the arm does not apply.
    """

    baseline: str
    meaning: str
    make: Callable[[ProblemTemplate, NumberPool, int], WordProblem | None]


def original(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem:
    """Return the problem as it was written, its solution as equations only."""
    del pool, seed
    return solved(template.problem, template.problem.steps)


@lru_cache(maxsize=4096)  # all arms of a probe begin with it
def redrawn(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem:
    """Return a variant with numbers of the same magnitude (P0)."""
    return pool.variant(template, _rng(template, seed, "redrawn"))


def larger(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem | None:
    """Return a variant whose numbers have one digit more, where nothing limits them.

    None where no such numbers give integers.
    """
    try:
        return pool.variant(template, _rng(template, seed, "larger"), larger=True)
    except ValueError:
        return None


def other_names(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem | None:
    """Return P0 with other first names; None where the question has none that is known."""
    problem = redrawn(template, pool, seed)
    if not first_names_in(problem.question):
        return None
    question = renamed(problem.question, _rng(template, seed, "names"))
    return replace(problem, question=question)


def added_clauses(count: int) -> Callable[[ProblemTemplate, NumberPool, int], WordProblem]:
    """Return the arm with this many clauses after the question, each of which adds a step.

    Source: Mirzadeh et al. 2024 (GSM-Symbolic), P1 and P2; the clauses are our own.
    """

    def make(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem:
        problem = redrawn(template, pool, seed)
        rng = _rng(template, seed, "added")
        in_dollars = asked_unit(problem.question) == "dollars"
        clauses = []
        steps = list(problem.steps)
        for place in range(count):
            step, added = _added_step(steps[-1].result, rng)
            steps.append(step)
            clauses.append(_clause(added, in_dollars, "the answer" if place == 0 else "the result"))
        question = problem.question.rstrip().removesuffix("?")
        question = f"{question}, if {' and '.join(clauses)}?"
        return solved(replace(problem, question=question), steps)

    return make


def longer_chain(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem:
    """Return P0 followed by as many further steps as it has, at most MOST_ADDED."""
    problem = redrawn(template, pool, seed)
    rng = _rng(template, seed, "longer")
    steps = list(problem.steps)
    orders = []
    for _ in range(min(len(problem.steps), MOST_ADDED)):
        step, added = _added_step(steps[-1].result, rng)
        steps.append(step)
        words = {"+": "add", "-": "subtract", "*": "multiply by"}[added.operator]
        orders.append(f"{words} {added.number}")
    listed = ", then ".join(["Take that number", *orders])
    question = f"{problem.question.rstrip()} {listed}. What is the final number?"
    return solved(replace(problem, question=question), steps)


def idle_sentence(relevant: bool) -> Callable[[ProblemTemplate, NumberPool, int], WordProblem]:
    """Return the arm with a sentence without a number that changes nothing, or its control."""

    def make(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem:
        problem = redrawn(template, pool, seed)
        pair = IDLE[_rng(template, seed, "idle").integers(len(IDLE))]
        return replace(problem, question=inserted(problem.question, pair[relevant]))

    return make


def numbered_sentence(
    same_unit: bool, relevant: bool
) -> Callable[[ProblemTemplate, NumberPool, int], WordProblem | None]:
    """Return the arm with a sentence with a number that changes nothing, or its control.

    The control repeats a number of the question, in as many words. None where it is not clear in
    which unit the answer is.

    Args:
      same_unit: whether the number has the unit of the answer.

    Source: Shi et al. 2023 (GSM-IC): distractors on topic and in range hurt most.
    """

    def make(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem | None:
        problem = redrawn(template, pool, seed)
        unit = asked_unit(problem.question)
        if not unit:
            return None
        rng = _rng(template, seed, "numbered")
        places = np.flatnonzero(template.varied)
        number = int(question_numbers(problem.question)[rng.choice(places)].value)
        if not same_unit:
            unit = other_unit(problem.question, rng)
        sentence = irrelevant_sentence(unit, _distractor(problem, number, rng), rng)
        if relevant:
            count = len(sentence.split()) - len(REPEATED.split())
            sentence = f"{REPEATED.format(n=number)} {ENDS[count]}".rstrip() + "."
        return replace(problem, question=inserted(problem.question, sentence))

    return make


def bare_arithmetic(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem:
    """Return the calculation of P0 alone, as one expression."""
    problem = redrawn(template, pool, seed)
    question = f"What is {_expression(template, problem)}?"
    return solved(replace(problem, question=question), problem.steps)


def new_operators(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem:
    """Return the calculation of P0 with symbols for the operators, which the prompt defines."""
    problem = redrawn(template, pool, seed)
    expression = _expression(template, problem)
    rng = _rng(template, seed, "operators")
    used = [operator for operator in OPERATION_NAMES if f" {operator} " in expression]
    symbols = rng.choice(SYMBOLS, len(used), replace=False)
    meanings = []
    for operator, symbol in zip(used, symbols, strict=True):
        expression = expression.replace(f" {operator} ", f" {symbol} ")
        meanings.append(f"{symbol} means {OPERATION_NAMES[operator]}")
    question = (
        f"In this exercise {_listed(meanings)}. Products and quotients come before sums and "
        f"differences, as always. What is {expression}?"
    )
    return solved(replace(problem, question=question), problem.steps)


def new_unit(template: ProblemTemplate, pool: NumberPool, seed: int) -> WordProblem | None:
    """Return P0 with its answer in a unit that the prompt defines; None without a clear unit."""
    problem = redrawn(template, pool, seed)
    unit = asked_unit(problem.question)
    if not unit:
        return None
    rng = _rng(template, seed, "unit")
    name = NEW_UNITS[rng.integers(len(NEW_UNITS))]
    worth = int(rng.integers(3, 10))
    question = (
        f"{problem.question.rstrip()} Give the answer in {name}, and count {worth} {name} for each "
        f"of the {unit}."
    )
    result = problem.steps[-1].result
    step = _step("*", result, worth)
    return solved(replace(problem, question=question), [*problem.steps, step])


ARMS = {
    "original": Arm("", "the problem as written", original),
    "p0": Arm("original", "other numbers of the same magnitude", redrawn),
    "names": Arm("p0", "other names", other_names),
    "larger": Arm("p0", "numbers with one more digit", larger),
    "p1": Arm("p0", "one more clause and step", added_clauses(1)),
    "p2": Arm("p0", "two more clauses and steps", added_clauses(2)),
    "longer": Arm("p0", "twice as many steps", longer_chain),
    "control_none": Arm("p0", "a reminder without a number", idle_sentence(True)),
    "noop_none": Arm("control_none", "an irrelevant sentence", idle_sentence(False)),
    "control_other": Arm("p0", "a reminder of a number", numbered_sentence(False, True)),
    "noop_other": Arm(
        "control_other",
        "an irrelevant number of another unit",
        numbered_sentence(False, False),
    ),
    "control_same": Arm("p0", "a reminder of a number", numbered_sentence(True, True)),
    "noop_same": Arm(
        "control_same", "an irrelevant number of the same unit", numbered_sentence(True, False)
    ),
    "bare": Arm("p0", "the calculation alone", bare_arithmetic),
    "operators": Arm("bare", "operators that the prompt defines", new_operators),
    "units": Arm("p1", "a unit that the prompt defines", new_unit),
}


def make_instance(
    arm: str, template: ProblemTemplate, pool: NumberPool, seed: int
) -> WordProblem | None:
    """Return the instance of an arm; None where the arm does not apply to the template.

    It is a pure function of its arguments. The same seed gives the same numbers in all arms but
    "original" and "larger".
    """
    return ARMS[arm].make(template, pool, seed)


def _rng(template: ProblemTemplate, seed: int, purpose: str) -> np.random.Generator:
    """Return random numbers for a template, seed and purpose, which arms of a pair share."""
    letters = int.from_bytes(purpose.encode()[:8], "little")
    return np.random.default_rng([int(template.key, 16), seed, letters])


def _step(operator: str, result: Fraction, number: int) -> Step:
    operands = (result, Fraction(number))
    value = {
        "+": operands[0] + operands[1],
        "-": operands[0] - operands[1],
        "*": operands[0] * operands[1],
    }[operator]
    return Step((operator, 0, 1), operands, value)


def _added_step(result: Fraction, rng: np.random.Generator) -> tuple[Step, Added]:
    """Return a step that goes on from a result and stays a positive integer."""
    operators = ["+"]
    if result > 10:
        operators.append("-")
    if result * 9 <= LARGEST_RESULT:
        operators.append("*")
    operator = operators[rng.integers(len(operators))]
    if operator == "*":
        number = int(rng.integers(2, 10))
    elif operator == "-":
        number = int(rng.integers(2, min(result, 100)))
    else:
        number = int(rng.integers(2, 100))
    return _step(operator, result, number), Added(operator, number)


def _clause(added: Added, in_dollars: bool, what: str) -> str:
    """Return what happens to a number, as the clause after "if"."""
    amount = f"${added.number}" if in_dollars else str(added.number)
    if added.operator == "+":
        return f"{amount} is then added to {what}"
    if added.operator == "-":
        return f"{amount} is then taken away from {what}"
    return f"{what} is then multiplied by {added.number}"


def _distractor(problem: WordProblem, near: int, rng: np.random.Generator) -> int:
    """Return a number between half and twice `near` that the problem does not have."""
    taken = {number.value for number in question_numbers(problem.question)}
    for step in problem.steps:
        taken.update([*step.operands, step.result])
    low, high = max(2, near // 2), 2 * near + 10
    free = [number for number in range(low, high + 1) if number not in taken]
    return free[rng.integers(len(free))]


def _expression(template: ProblemTemplate, problem: WordProblem) -> str:
    """Return the whole calculation as one expression, with spaces around operators."""
    leaves: list[str] = []
    last = len(problem.steps) - 1
    tree = _merged(template.origins, problem.steps, last, leaves)
    return re.sub(r"([-+*/])", r" \1 ", write_tree(tree, leaves))


def _merged(
    origins: Sequence[Sequence[Origin]], steps: Sequence[Step], index: int, leaves: list[str]
) -> Tree:
    """Return a step's tree with the steps that it uses in place of their results."""

    def merge(tree: Tree) -> Tree:
        if not isinstance(tree, int):
            operator, left, right = tree
            return operator, merge(left), merge(right)
        origin = origins[index][tree]
        if origin.kind == "result":
            return _merged(origins, steps, origin.place, leaves)
        leaves.append(written_number(steps[index].operands[tree]))
        return len(leaves) - 1

    return merge(steps[index].tree)


def _listed(items: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last
