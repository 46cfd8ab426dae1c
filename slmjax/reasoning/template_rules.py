"""Which word problems may become templates: those that can be read in one way only."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from slmjax.evals.word_problems import (
    QuestionNumber,
    WordProblem,
    evaluate,
    operand_origins,
    question_numbers,
    word_values,
)

# A question number with one of these values might be a constant that nobody says.
UNSAID = frozenset((7, 12, 24, 52, 60, 100, 365, 1000))
SMALL = 10  # up to here a second use of a number may be an unsaid constant, such as two sides
LARGEST_PERCENT = 99
FRACTION = re.compile(r"\d+\s*/\s*\d+")
# What may follow a number, and the largest number that makes sense there.
LIMITS = (
    (re.compile(r"\s*(%|percent\b)"), LARGEST_PERCENT),
    (re.compile(r"[\s-]*cents?\b"), 99),
    (re.compile(r"[\s-]*years?[\s-]+(old|older|younger|ago)\b"), 99),
    (re.compile(r"[\s-]*days? (a|per|each|every|of the|in a|this|that) week"), 6),
    (re.compile(r"[\s-]*(school |work)days?\b"), 6),
    (re.compile(r"[\s-]*hours? (a|per|each|every|in a|of the) (\w+ )?(day|night)"), 20),
    (re.compile(r"[\s-]*days? (a|per|each|every|in a|of the) month"), 28),
    (re.compile(r"[\s-]*months? (a|per|each|every|in a|of the) year"), 11),
    (re.compile(r"[\s-]*weeks? (a|per|each|every|in a|of the) year"), 51),
    (re.compile(r"[\s-]*(minutes|seconds)? (a|per|each|every|in an) (hour|minute)"), 59),
)
# Texts in which a number is no quantity: a clock, an ordinal, a size, a year, a name, a date.
NO_QUANTITY = re.compile(
    r"\d:\d|\d\s*(?:am|pm|a\.m|p\.m|o'clock)\b|\d(?:st|nd|rd|th)\b|\d\s*x\s*\d"
    r"|(?<![$\d,])\b(?:18|19|20)\d\d\b(?!,)|[A-Za-z_]\d|\d+-\d|-\d"
    r"|(?:January|February|March|April|May|June|July|August|September|October|November|December)"
    r"\s\d",
    re.IGNORECASE,
)


def reason_against(problem: WordProblem) -> str:
    """Return why a problem is no template, or ""."""
    numbers = question_numbers(problem.question)
    if not problem.steps or not numbers:
        return "no steps or no numbers"
    if problem.question.count("?") != 1 or not problem.question.rstrip().endswith("?"):
        return "does not end with its only question"
    if NO_QUANTITY.search(problem.question):
        return "a number that is no quantity"
    values = [number.value for number in numbers]
    varied = varied_numbers(problem.question, numbers)
    if not any(varied):
        return "no number that may be replaced"
    if any(number.percent and number.value > LARGEST_PERCENT for number in numbers):
        return "a percentage above 99"
    if len(set(values)) < len(values):
        return "two equal numbers"
    if any(len(step.operands) < 2 for step in problem.steps):
        return "an equation without operator"
    origins = operand_origins(problem)
    used: Counter[tuple] = Counter()
    for of_step in origins:
        for possible in of_step:
            if len(possible) != 1:
                return "an operand with two origins" if possible else "an operand without origin"
            used[tuple(possible[0])] += 1
    for place, value in enumerate(values):
        if value <= SMALL and used["question", place] > 1:
            return "a small number that is used twice"
    of_question = {place for kind, place in used if kind in ("question", "percent")}
    if of_question != set(range(len(numbers))):
        return "a number that is not used"
    replaced = [value for value, is_varied in zip(values, varied, strict=True) if is_varied]
    if not taken_values(problem.question).isdisjoint(replaced):
        return "a number that may be a word or a constant"
    if {place for kind, place in used if kind == "result"} != set(range(len(problem.steps) - 1)):
        return "a result that is not used"
    return _reason_against_results(problem)


def _reason_against_results(problem: WordProblem) -> str:
    for step in problem.steps:
        if evaluate(step.tree, step.operands) != step.result:
            return "an equation that is wrong"
        if step.result.denominator != 1 or step.result <= 0:
            return "a result that is no positive integer"
    if problem.steps[-1].result != problem.answer:
        return "an answer that is not the last result"
    return ""


def taken_values(question: str) -> frozenset[int]:
    """Return values that no new number may have: number words, and constants left unsaid."""
    return UNSAID | word_values(question)


def varied_numbers(question: str, numbers: Sequence[QuestionNumber]) -> tuple[bool, ...]:
    """Return which numbers may be replaced: integers above 1 that are no part of a fraction."""
    in_fractions: set[int] = set()
    for fraction in FRACTION.finditer(question):
        in_fractions.update(range(*fraction.span()))
    varied = []
    for number in numbers:
        is_count = number.value.denominator == 1 and number.value > 1
        varied.append(is_count and number.start not in in_fractions)
    return tuple(varied)


def number_limits(question: str, numbers: Sequence[QuestionNumber]) -> tuple[float, ...]:
    """Return the largest value that makes sense for each number; infinity without a limit."""
    limits = []
    for number in numbers:
        following = question[number.end :]
        allowed = [limit for pattern, limit in LIMITS if pattern.match(following)]
        limits.append(float(min(allowed, default=np.inf)))
    return tuple(limits)
