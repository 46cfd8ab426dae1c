"""Baselines that learn nothing: what GSM8K scores by matching words and reusing equations.

A score means little until it is above what copying gives. The strongest rule here is a vote of
the 20 training problems that are nearest in words: their equations, applied to the numbers of the
question at hand. It knows nothing of what the words mean.

What the paper-and-pencil rule leaves open was chosen by five-fold cross-validation on GSM8K train,
never on test (3,500 problems, the vote's accuracy): answers that are no positive whole number do not
vote (4.7 without this rule, 6.1 with it); numbers are kept in the text (6.1; 5.6 without).
"""

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from slmjax.errors import UserError
from slmjax.evals.question_neighbours import QuestionNeighbours
from slmjax.evals.word_problems import (
    NUMBER_TEXT,
    NUMBER_WORDS,
    Tree,
    WordProblem,
    evaluate,
)

VOTERS = 20  # nearest problems whose equations vote
# Words that count as numbers of a question. "One" is a pronoun as often.
CARDINALS = frozenset(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred "
    "thousand million".split()
)
NUMBER_OR_WORD = re.compile(rf"{NUMBER_TEXT.pattern}|[a-z]+")
Verdicts = Bool[np.ndarray, " problems"]  # which problems a rule answers right


class ReusedStep(NamedTuple):
    """An equation whose operands are to be filled in: its tree, and where each operand is from."""

    tree: Tree
    # ("question", place), ("percent", place), ("result", step) or ("fixed", the number itself).
    operands: tuple[tuple[str, int | Fraction], ...]


class Copied(NamedTuple):
    """Answers to one question by the equations of its neighbours; None without any.

    Attributes:
      nearest: by the nearest problem.
      vote: the most frequent of `candidates`; of equally frequent ones that of the nearest.
      candidates: by the VOTERS nearest, the nearest first.
    """

    nearest: Fraction | None
    vote: Fraction | None
    candidates: list[Fraction]


class EquationCopier:
    """Answers questions with the equations of the known problems that are nearest in words.

    Only problems with as many numbers as the question, and whose equations give a positive whole
    number there, count as near.
    """

    def __init__(self, known: Sequence[WordProblem]):
        """Take the training problems. Raises: UserError without scikit-learn or problems."""
        self._neighbours = QuestionNeighbours([problem.question for problem in known])
        self._steps = [reusable_steps(problem) for problem in known]
        self._sizes = np.array([len(numbers_in_order(problem.question)) for problem in known])

    def answers(self, questions: Sequence[str]) -> list[Copied]:
        """Return the answers to each question; only the question's text is used."""
        copied = []
        for question, ranking in zip(questions, self._neighbours.ranked(questions), strict=True):
            numbers = numbers_in_order(question)
            candidates = []
            for known in ranking[self._sizes[ranking] == len(numbers)]:
                answer = reuse(self._steps[known], numbers)
                if answer is not None and answer > 0 and answer.denominator == 1:
                    candidates.append(answer)
                if len(candidates) == VOTERS:
                    break
            # A Counter keeps the order in which answers came first.
            ranked = [answer for answer, _ in Counter(candidates).most_common(1)]
            nearest = candidates[0] if candidates else None
            copied.append(Copied(nearest, ranked[0] if ranked else None, candidates))
        return copied


def numbers_in_order(question: str) -> list[Fraction]:
    """Return the numbers of a question, in digits or as one of CARDINALS; "twenty-five" is one."""
    numbers: list[Fraction] = []
    tens = False  # whether the piece before was a word such as "twenty"
    for piece in NUMBER_OR_WORD.findall(question.lower()):
        value = NUMBER_WORDS[piece] if piece in CARDINALS else None
        if tens and value is not None and value < 10:
            numbers[-1] += value
        elif value is not None:
            numbers.append(Fraction(value))
        elif not piece.isalpha():
            numbers.append(Fraction(piece.replace(",", "")))
        tens = value in range(20, 100, 10)
    return numbers


def reusable_steps(problem: WordProblem) -> tuple[ReusedStep, ...]:
    """Return a problem's equations with where each operand is from.

    The latest equal result counts first, then the first equal number of the question, then the
    first number of which it is a hundredth. Any other operand stays as it is.
    """
    numbers = numbers_in_order(problem.question)
    results: list[Fraction] = []
    steps = []
    for step in problem.steps:
        operands = []
        for value in step.operands:
            if value in results:
                latest = len(results) - 1 - results[::-1].index(value)
                operands.append(("result", latest))
            elif value in numbers:
                operands.append(("question", numbers.index(value)))
            elif value < 1 and value * 100 in numbers:
                operands.append(("percent", numbers.index(value * 100)))
            else:
                operands.append(("fixed", value))
        steps.append(ReusedStep(step.tree, tuple(operands)))
        results.append(step.result)
    return tuple(steps)


def reuse(steps: Sequence[ReusedStep], numbers: Sequence[Fraction]) -> Fraction | None:
    """Return the last result of equations applied to other numbers, exactly.

    None without equations, where there are too few numbers, and for a division by zero.
    """
    results: list[Fraction] = []
    for step in steps:
        operands = []
        for kind, place in step.operands:
            if kind == "fixed":
                operands.append(place)
            elif kind == "result":
                operands.append(results[place])
            elif place >= len(numbers):
                return None
            else:
                operands.append(numbers[place] / 100 if kind == "percent" else numbers[place])
        try:
            results.append(evaluate(step.tree, operands))
        except ZeroDivisionError:
            return None
    return results[-1] if results else None


def baseline_verdicts(
    known: Sequence[WordProblem], asked: Sequence[WordProblem]
) -> dict[str, Verdicts]:
    """Return {rule: which of the asked problems it answers right}.

    Rules: "most common answer" of the known problems; "last number", "product" and "sum" of the
    question's numbers; "nearest problem", "vote of 20", and "any of 20", which is no rule but the
    most that a perfect choice among the 20 could get.

    Args:
      known: training problems.
      asked: problems to answer; their solutions are used for the verdicts only.
    Raises: UserError without scikit-learn, and without problems.
    """
    if not asked:
        raise UserError("there is no problem to answer; expected at least one.")
    copies = EquationCopier(known).answers([problem.question for problem in asked])
    ((common, _),) = Counter(problem.answer for problem in known).most_common(1)
    right: dict[str, list[bool]] = {}
    for problem, copied in zip(asked, copies, strict=True):
        numbers = numbers_in_order(problem.question)
        given = {
            "most common answer": [common],
            "last number": numbers[-1:],
            "product": [prod(numbers)] if numbers else [],
            "sum": [sum(numbers)] if numbers else [],
            "nearest problem": [copied.nearest],
            f"vote of {VOTERS}": [copied.vote],
            f"any of {VOTERS}": copied.candidates,
        }
        for rule, answers in given.items():
            right.setdefault(rule, []).append(problem.answer in answers)
    return {rule: np.array(verdicts) for rule, verdicts in right.items()}
