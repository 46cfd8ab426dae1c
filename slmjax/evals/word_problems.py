"""Word problems in GSM8K's format: their annotated steps, and where each operand comes from."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from slmjax.errors import UserError
from slmjax.text.readers import read_records
from slmjax.text.records import Fault, Source
from slmjax.text.source_files import list_files

MOST_FAULTS = 0.5  # share of the records; a file with more is refused
ANSWER_MARK = "####"  # between the solution and its answer
ANNOTATION = re.compile(r"<<(.*?)>>")  # an equation such as <<3*4=12>>
# Digits with thousands' commas and decimals: 3, 1,200, 2.50, .5.
NUMBER_TEXT = re.compile(r"(?<![\d.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+")
PERCENT = re.compile(r"\s*(?:%|percent\b|per cent\b)")

_DIGIT_NAMES = "zero one two three four five six seven eight nine ten eleven twelve thirteen"
_NAMES = f"{_DIGIT_NAMES} fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()
NUMBER_WORDS = {
    **{name: value for value, name in enumerate(_NAMES)},
    **{"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80},
    **{"ninety": 90, "hundred": 100, "thousand": 1000, "million": 1_000_000},
    **{"once": 1, "single": 1, "half": 2, "halves": 2, "halved": 2, "twice": 2, "double": 2},
    **{"doubled": 2, "doubles": 2, "both": 2, "couple": 2, "pair": 2, "pairs": 2, "thrice": 3},
    **{"triple": 3, "tripled": 3, "triples": 3, "third": 3, "thirds": 3, "quarter": 4},
    **{"quarters": 4, "fourth": 4, "fourths": 4, "quadruple": 4, "fifth": 5, "fifths": 5},
    **{"sixth": 6, "sixths": 6, "seventh": 7, "eighth": 8, "eighths": 8, "ninth": 9, "tenth": 10},
    **{"tenths": 10, "dozen": 12, "dozens": 12, "twins": 2, "triplets": 3, "quadruplets": 4},
}
# Constants that a question may leave unsaid, each with the beginnings of words that call for it.
CONSTANT_CUES = {
    2: ("way", "round", "twin", "bi"),
    3: ("yard", "trio"),
    4: ("square", "month", "quart", "seasons"),
    5: ("weekday", "workday", "nickel"),
    7: ("week", "daily", "day"),
    10: ("dime", "decade", "millimet"),
    12: ("dozen", "year", "annual", "month", "foot", "feet", "inch"),
    16: ("pound", "ounce"),
    24: ("day", "hour"),
    25: ("quarter",),
    28: ("february", "month"),
    30: ("month", "april", "june", "september", "november"),
    31: ("month", "january", "march", "may", "july", "august", "october", "december"),
    36: ("yard", "inch"),
    52: ("year", "annual", "week"),
    60: ("minute", "hour", "second"),
    100: ("%", "percent", "cent", "penn", "$", "dollar", "meter", "centur", "remain"),
    360: ("degree", "circle"),
    365: ("year", "day", "annual"),
    1000: ("kilo", "gram", "liter", "meter", "km", "kg", "ton", "ml"),
    2000: ("ton",),
    3600: ("hour", "second"),
}
# A tree of a step: the place of an operand, or (operator, left, right).
Tree = int | tuple


class Step(NamedTuple):
    """One annotated equation.

    Attributes:
      tree: its left side.
      operands: the numbers of the left side, in order; the tree holds their places.
      result: the right side as written, which may be rounded.
    """

    tree: Tree
    operands: tuple[Fraction, ...]
    result: Fraction

    @property
    def skeleton(self) -> str:
        """The left side with x for every number, such as "x*x" or "(x+x)*x"."""
        return write_tree(self.tree, ["x"] * len(self.operands))


@dataclass(frozen=True)
class WordProblem:
    """A question with its worked solution.

    Attributes:
      question: as written.
      solution: the worked solution with its annotations, before "####".
      answer: the number after "####".
      steps: the annotated equations, in order; () without annotations.
    """

    question: str
    solution: str
    answer: Fraction
    steps: tuple[Step, ...]


class QuestionNumber(NamedTuple):
    """A number that a question writes in digits: question[start:end].

    Attributes:
      percent: whether "%" or "percent" follows.
    """

    value: Fraction
    start: int
    end: int
    percent: bool


class Origin(NamedTuple):
    """Where an operand may come from.

    Attributes:
      kind: "question" (a number in digits), "percent" (a hundredth of one), "result" (of an earlier
        step), "word" (a number word), "constant" (unsaid, with a cue word).
      place: of the number in the question, or of the step; the value for words and constants.
    """

    kind: str
    place: int


def read_problems(path: str | Path) -> tuple[list[WordProblem], Counter[str]]:
    """Return the problems of a .jsonl file, plain or compressed, and {fault: number of records}.

    Records have the fields question and answer. A record without question or final answer is left
    out. A record with an annotation that is no equation stays, without steps. Both are counted.

    Raises: UserError for a file that is missing, has no problem or has mostly faults.
    Source: Cobbe et al. 2021 (GSM8K).
    """
    source = Source("word problems", (str(path),))
    problems: list[WordProblem] = []
    faults: Counter[str] = Counter()
    records = 0
    for file in list_files(source, lambda message: None):
        for record in read_records(file, source):
            records += 1
            if isinstance(record, Fault):
                faults[record.reason] += 1
                continue
            try:
                problem, fault = _problem(record.fields)
            except ValueError as error:
                faults[str(error)] += 1
                continue
            problems.append(problem)
            if fault:
                faults[fault] += 1
    if not problems or faults.total() > MOST_FAULTS * records:
        raise UserError(
            f"{path}: {len(problems)} of {records} records are word problems ({_counts(faults)}); "
            "expected JSON objects with question and answer, and answers that end in '#### 12'."
        )
    return problems, faults


def parse_step(text: str) -> Step:
    """Return the step of an equation such as "3*(4+1)=15".

    Raises: ValueError where it is no equation of numbers, + - * / and brackets.
    """
    left, equals, right = text.partition("=")
    tokens = re.findall(r"\d[\d,]*\.?\d*|\.\d+|[-+*/()]|\S", left)
    operands: list[Fraction] = []
    tree = _sum(tokens, operands)
    if tokens or not equals:
        raise ValueError(f"'{text}' is no equation")
    return Step(tree, tuple(operands), _number(right))


def evaluate(tree: Tree, operands: Sequence[Fraction]) -> Fraction:
    """Return the exact value of a step's left side. Raises: ZeroDivisionError."""
    if isinstance(tree, int):
        return operands[tree]
    operator, left, right = tree
    return _OPERATIONS[operator](evaluate(left, operands), evaluate(right, operands))


def write_tree(tree: Tree, operands: Sequence[str], strength: int = 0) -> str:
    """Return a step's left side as text, with brackets where they are needed.

    Args:
      strength: 1 or 2 where it is part of a product, or of what is subtracted or divided by.
    """
    if isinstance(tree, int):
        return operands[tree]
    operator, left, right = tree
    own = 0 if operator in "+-" else 1
    after = own + 1 if operator in "-/" else own
    text = f"{write_tree(left, operands, own)}{operator}{write_tree(right, operands, after)}"
    return f"({text})" if own < strength else text


def question_numbers(question: str) -> list[QuestionNumber]:
    """Return the numbers that a question writes in digits, in order."""
    numbers = []
    for match in NUMBER_TEXT.finditer(question):
        percent = PERCENT.match(question, match.end()) is not None
        numbers.append(QuestionNumber(_number(match[0]), *match.span(), percent))
    return numbers


def word_values(question: str) -> set[int]:
    """Return the values of the number words of a question; "twenty-five" gives 20, 5 and 25."""
    values = set()
    words = re.findall(r"[a-z]+", question.lower())
    for word, following in zip(words, [*words[1:], ""], strict=True):
        value = NUMBER_WORDS.get(word)
        if value is None:
            continue
        values.add(value)
        unit = NUMBER_WORDS.get(following, 0)
        if value in range(20, 100, 10) and 0 < unit < 10:
            values.add(value + unit)
    return values


def called_constants(question: str) -> set[int]:
    """Return the constants of CONSTANT_CUES that a word or sign of the question calls for."""
    pieces = re.findall(r"[a-z]+|[%$]", question.lower())
    called = set()
    for value, cues in CONSTANT_CUES.items():
        if any(piece.startswith(cues) for piece in pieces):
            called.add(value)
    return called


def operand_origins(problem: WordProblem) -> list[list[list[Origin]]]:
    """Return every possible origin of each operand of each step; [] for an operand without any.

    They are ordered: the latest result, question numbers, hundredths of percentages, words,
    constants.
    """
    numbers = question_numbers(problem.question)
    words = word_values(problem.question)
    constants = called_constants(problem.question)
    origins = []
    for index, step in enumerate(problem.steps):
        of_step = []
        for operand in step.operands:
            possible = []
            for earlier in reversed(range(index)):
                if problem.steps[earlier].result == operand:
                    possible.append(Origin("result", earlier))
            for place, number in enumerate(numbers):
                if number.value == operand:
                    possible.append(Origin("question", place))
            for place, number in enumerate(numbers):
                if number.percent and number.value == operand * 100:
                    possible.append(Origin("percent", place))
            for kind, values in (("word", words), ("constant", constants)):
                if operand in values:
                    possible.append(Origin(kind, int(operand)))
            of_step.append(possible)
        origins.append(of_step)
    return origins


def operator_skeleton(problem: WordProblem) -> tuple[str, ...]:
    """Return each step's operators without its numbers, such as ("x*x", "x-x-x")."""
    return tuple(step.skeleton for step in problem.steps)


def data_flow(problem: WordProblem) -> tuple[str, ...]:
    """Return each step with its operands' origins, such as ("q0*w2", "q1-r0").

    q counts the question's numbers and r the steps, from 0; p is a percentage, w a number word's
    value, c a constant, ? an operand without origin. The first of several origins counts.
    """
    flow = []
    for step, origins in zip(problem.steps, operand_origins(problem), strict=True):
        labels = []
        for possible in origins:
            labels.append(f"{possible[0].kind[0]}{possible[0].place}" if possible else "?")
        flow.append(write_tree(step.tree, labels))
    return tuple(flow)


def _problem(fields: dict) -> tuple[WordProblem, str]:
    """Return (problem, fault or ""). Raises: ValueError, with the fault."""
    question, answer = fields.get("question"), fields.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("no question")
    if not isinstance(answer, str):
        raise ValueError("no answer")
    solution, mark, final = answer.rpartition(ANSWER_MARK)
    if not mark:
        raise ValueError("no final answer")
    try:
        value = _number(final.strip().removeprefix("$"))
    except ValueError:
        raise ValueError("no final answer") from None
    try:
        steps = tuple(parse_step(text) for text in ANNOTATION.findall(solution))
    except ValueError:
        return WordProblem(question, solution, value, ()), "annotation is no equation"
    return WordProblem(question, solution, value, steps), ""


def _number(text: str) -> Fraction:
    """Return the value of "-1,200.50". Raises: ValueError."""
    plain = text.strip().replace(",", "")
    if not re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", plain, re.ASCII):
        raise ValueError(f"'{text}' is no number")
    return Fraction(plain)


def _sum(tokens: list[str], operands: list[Fraction]) -> Tree:
    return _left_to_right(tokens, operands, "+-", _product)


def _product(tokens: list[str], operands: list[Fraction]) -> Tree:
    return _left_to_right(tokens, operands, "*/", _factor)


def _left_to_right(
    tokens: list[str],
    operands: list[Fraction],
    operators: str,
    part: Callable[[list[str], list[Fraction]], Tree],
) -> Tree:
    """Take parts with operators of one strength between them off the front of `tokens`."""
    tree = part(tokens, operands)
    while tokens and tokens[0] in operators:
        operator = tokens.pop(0)
        tree = (operator, tree, part(tokens, operands))
    return tree


def _factor(tokens: list[str], operands: list[Fraction]) -> Tree:
    """Take a number, or a sum in brackets, off the front of `tokens`."""
    first = tokens.pop(0) if tokens else ""
    if first == "(":
        tree = _sum(tokens, operands)
        if not tokens or tokens.pop(0) != ")":
            raise ValueError("a bracket is not closed")
        return tree
    # A sign belongs to the number, as in "3*-6" or "+10-2".
    sign = -1 if first == "-" else 1
    if first in ("+", "-") and tokens:
        first = tokens.pop(0)
    operands.append(sign * _number(first))
    return len(operands) - 1


def _counts(faults: Counter[str]) -> str:
    return ", ".join(f"{count} {fault}" for fault, count in faults.most_common()) or "no records"


_OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
}
