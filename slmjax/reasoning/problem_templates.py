"""Templates of word problems, made by program from the annotated solutions of real ones.

A template is a problem whose numbers may be replaced, since every operand of its solution has one
possible origin. The rules are strict: a problem that may be read in two ways is left out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float

from slmjax.evals.development_set import question_id
from slmjax.evals.word_problems import (
    Origin,
    QuestionNumber,
    Step,
    Tree,
    WordProblem,
    evaluate,
    operand_origins,
    question_numbers,
    write_tree,
)
from slmjax.reasoning.template_rules import (
    number_limits,
    reason_against,
    taken_values,
    varied_numbers,
)

FEWEST_VARIANTS = 20  # among DRAWS draws; a template with fewer is left out
DRAWS = 4000
FIRST_DRAWS, MOST_DRAWS = 256, 65536  # for one variant
WIDEST = 3  # a new number is at least a third of the original, and at most three times it
EXACT = 1e-9  # a float this near to an integer is looked at again with fractions


@dataclass(frozen=True)
class ProblemTemplate:
    """A word problem whose numbers may be replaced.

    Attributes:
      key: the question's id, 16 hexadecimal digits; see `question_id`.
      problem: the original.
      numbers: the question's numbers in digits; each is an operand somewhere.
      varied: which of them may be replaced. Decimals, 0, 1 and the parts of fractions may not.
      origins: the one origin of each operand of each step.
      limits: the largest value that each number may take.
    """

    key: str
    problem: WordProblem
    numbers: tuple[QuestionNumber, ...]
    varied: tuple[bool, ...]
    origins: tuple[tuple[Origin, ...], ...]
    limits: tuple[float, ...]

    @property
    def values(self) -> tuple[Fraction, ...]:
        """The original numbers."""
        return tuple(number.value for number in self.numbers)

    @property
    def taken(self) -> frozenset[int]:
        """Values that no new number may have."""
        return taken_values(self.problem.question)


class NumberPool:
    """The numbers of all templates, by digits and trailing zeros.

    A new number is drawn from those with as many digits and zeros as the original, each as often as
    it occurs. So the numbers of variants are distributed as those of the originals are.
    """

    def __init__(self, templates: Sequence[ProblemTemplate]):
        values: dict[tuple, list[int]] = {}
        for template in templates:
            for number, varied in zip(template.numbers, template.varied, strict=True):
                if varied:
                    values.setdefault(_size(number), []).append(int(number.value))
        self._values = {size: np.array(sorted(found)) for size, found in values.items()}

    def draws(
        self,
        template: ProblemTemplate,
        rng: np.random.Generator,
        count: int,
        *,
        larger: bool = False,
    ) -> Float[np.ndarray, "count numbers"]:
        """Return numbers for a template, of the originals' sizes; not every row is a variant.

        Args:
          larger: numbers without a limit get one digit more.
        """
        columns = []
        for place, number in enumerate(template.numbers):
            column = np.full(count, float(number.value))
            if template.varied[place]:
                pool = self._values[_size(number)]
                near = pool[(pool * WIDEST >= number.value) & (pool <= number.value * WIDEST)]
                column = near[rng.integers(0, len(near), count)].astype(np.float64)
                if larger and np.isinf(template.limits[place]):
                    is_round = number.value % 10 == 0
                    last_digit = 0 if is_round else rng.integers(0, 10, count)
                    column = 10 * column + last_digit
            columns.append(column)
        return np.stack(columns, 1)

    def variant(
        self, template: ProblemTemplate, rng: np.random.Generator, *, larger: bool = False
    ) -> WordProblem:
        """Return a variant of a template: its numbers are drawn until they fit.

        Args:
          larger: numbers get one digit more, and results may have any size.
        Raises: ValueError where MOST_DRAWS draws give none.
        """
        count = FIRST_DRAWS
        while count <= MOST_DRAWS:
            draws = self.draws(template, rng, count, larger=larger)
            places = np.flatnonzero(fits(template, draws, any_size=larger))
            if len(places):
                return filled(template, draws[places[0]].tolist())
            count *= 16
        raise ValueError(f"template {template.key} has no variant in {MOST_DRAWS} draws")


def make_templates(problems: Sequence[WordProblem]) -> tuple[list[ProblemTemplate], Counter[str]]:
    """Return the templates among the problems, and {reason: problems left out}.

    Every operand has one origin: a number of the question, an earlier result, a number word, or a
    constant with a cue word. The question's numbers are all different and all used. Results are
    positive integers, all used, the last one the answer. A question occurs once and ends with its
    only question mark.
    """
    templates: dict[str, ProblemTemplate] = {}
    reasons: Counter[str] = Counter()
    for problem in problems:
        reason = reason_against(problem)
        if reason:
            reasons[reason] += 1
            continue
        template = _template(problem)
        if template.key in templates:
            reasons["question occurs twice"] += 1
            continue
        templates[template.key] = template
    pool = NumberPool(list(templates.values()))
    kept = []
    for template in templates.values():
        if variant_count(template, pool, any_size=True) >= FEWEST_VARIANTS:
            kept.append(template)
        else:
            reasons["few variants"] += 1
    return kept, reasons


def matched_templates(templates: Sequence[ProblemTemplate]) -> list[ProblemTemplate]:
    """Return the templates that have FEWEST_VARIANTS variants of the original's magnitude."""
    pool = NumberPool(templates)
    return [each for each in templates if variant_count(each, pool) >= FEWEST_VARIANTS]


def variant_count(template: ProblemTemplate, pool: NumberPool, *, any_size: bool = False) -> int:
    """Return the number of different variants among DRAWS draws; see `fits`."""
    rng = np.random.default_rng(int(template.key, 16))
    draws = pool.draws(template, rng, DRAWS)
    good = fits(template, draws, any_size=any_size)
    return len(np.unique(draws[good], axis=0))


def fits(
    template: ProblemTemplate, draws: Float[np.ndarray, "count numbers"], *, any_size: bool = False
) -> Bool[np.ndarray, " count"]:
    """Return which rows of numbers make a variant of the same magnitude.

    The numbers are all different, and more than half of those that may vary differ from the
    original's. Results are positive integers with as many digits as the original's, and no
    difference on the way is zero or negative.

    Args:
      any_size: results may have any number of digits.
    """
    varied = np.array(template.varied)
    values = np.array([float(value) for value in template.values])
    changed = (draws != values)[:, varied]
    new = draws[:, varied]
    good = (np.diff(np.sort(draws, axis=1), axis=1) > 0).all(1)
    good &= (changed.mean(1) > 0.5) & (draws <= np.array(template.limits)).all(1)
    good &= ~np.isin(new, sorted(template.taken)).any(1)
    results: list[Float[np.ndarray, " count"]] = []
    for step, origins in zip(template.problem.steps, template.origins, strict=True):
        operands = []
        for origin in origins:
            operands.append(_operand_column(origin, draws, results))
        value, positive = _evaluate_columns(step.tree, operands)
        good &= positive & (value > 0.5) & (np.abs(value - np.round(value)) < EXACT * value)
        if not any_size:
            good &= np.floor(np.log10(np.maximum(value, 1)) + EXACT) == len(str(step.result)) - 1
        results.append(np.round(value))
    return good


def filled(template: ProblemTemplate, values: Sequence[float]) -> WordProblem:
    """Return the template's problem with other numbers, its solution as equations only.

    Args:
      values: of all numbers; those that do not vary are not read.
    Raises: ValueError where a result is no positive integer.
    """
    exact = list(template.values)
    for place, varied in enumerate(template.varied):
        if varied:
            exact[place] = Fraction(int(values[place]))
    steps: list[Step] = []
    for original, origins in zip(template.problem.steps, template.origins, strict=True):
        operands = tuple(_operand(origin, exact, steps) for origin in origins)
        result = evaluate(original.tree, operands)
        if result.denominator != 1 or result <= 0:
            raise ValueError(f"{values} give {result}, expected a positive integer")
        steps.append(Step(original.tree, operands, result))
    question = template.problem.question
    # From the last number to the first, so that earlier places stay right.
    for number, value in reversed(list(zip(template.numbers, exact, strict=True))):
        if value == number.value:
            continue
        written = question[number.start : number.end]
        with_comma = value >= 1000 and ("," in written or number.value < 1000)
        text = f"{int(value):,}" if with_comma else str(value)
        question = question[: number.start] + text + question[number.end :]
    return solved(replace(template.problem, question=question), steps)


def solved(problem: WordProblem, steps: Sequence[Step]) -> WordProblem:
    """Return a problem with these steps as its solution; the last result is its answer."""
    lines = [_equation(step) for step in steps]
    return WordProblem(problem.question, "\n".join(lines) + "\n", steps[-1].result, tuple(steps))


def written_number(value: Fraction) -> str:
    """Return an integer, or a decimal without zeros at its end, as text."""
    return str(value) if value.denominator == 1 else f"{float(value):.6f}".rstrip("0")


def _equation(step: Step) -> str:
    left = write_tree(step.tree, [written_number(operand) for operand in step.operands])
    return f"{left} = <<{left}={step.result}>>{step.result}"


def _template(problem: WordProblem) -> ProblemTemplate:
    numbers = tuple(question_numbers(problem.question))
    origins = []
    for of_step in operand_origins(problem):
        origins.append(tuple(possible[0] for possible in of_step))
    return ProblemTemplate(
        key=question_id(problem.question),
        problem=problem,
        numbers=numbers,
        varied=varied_numbers(problem.question, numbers),
        origins=tuple(origins),
        limits=number_limits(problem.question, numbers),
    )


def _size(number: QuestionNumber) -> tuple:
    """Return the digits of a number, how many of them are zeros at its end, and `percent`."""
    digits = str(number.value)
    return len(digits), len(digits) - len(digits.rstrip("0")), number.percent


def _operand(origin: Origin, values: Sequence[Fraction], steps: Sequence[Step]) -> Fraction:
    if origin.kind == "question":
        return values[origin.place]
    if origin.kind == "percent":
        return values[origin.place] / 100
    if origin.kind == "result":
        return steps[origin.place].result
    return Fraction(origin.place)


def _operand_column(
    origin: Origin,
    draws: Float[np.ndarray, "count numbers"],
    results: Sequence[Float[np.ndarray, " count"]],
) -> Float[np.ndarray, " count"]:
    """Return an operand in each row of numbers."""
    if origin.kind == "question":
        return draws[:, origin.place]
    if origin.kind == "percent":
        return draws[:, origin.place] / 100
    if origin.kind == "result":
        return results[origin.place]
    return np.full(len(draws), float(origin.place))


def _evaluate_columns(
    tree: Tree, operands: Sequence[Float[np.ndarray, " count"]]
) -> tuple[Float[np.ndarray, " count"], Bool[np.ndarray, " count"]]:
    """Return a tree's value in each row, and whether no part of it is zero or negative."""
    if isinstance(tree, int):
        return operands[tree], operands[tree] > 0
    operator, left, right = tree
    first, first_good = _evaluate_columns(left, operands)
    second, second_good = _evaluate_columns(right, operands)
    good = first_good & second_good
    if operator == "+":
        value = first + second
    elif operator == "-":
        value = first - second
    elif operator == "*":
        value = first * second
    else:
        value = first / np.where(second == 0, np.nan, second)
    return value, good & (value > 0)
