"""Solvers of known kinds, with which the probe is tried before any model is."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from slmjax.evals.nearest_problem import EquationCopier
from slmjax.evals.word_problems import WordProblem
from slmjax.reasoning.probe_scores import ProbeInstance, Scores
from slmjax.reasoning.probe_statistics import ARM_SPREAD, TEMPLATE_SPREAD

# Answers of a solver to instances, in their order.
ProbeSolver = Callable[[Sequence[ProbeInstance]], list[Fraction | None]]


def perfect_solver(instances: Sequence[ProbeInstance]) -> list[Fraction | None]:
    """Return the right answers."""
    return [instance.problem.answer for instance in instances]


def careless_solver(right_steps: float = 0.8, seed: int = 0) -> ProbeSolver:
    """Return a solver that has the right equations, but works out each with this chance only.

    Slips are independent; after one the answer is wrong.
    """

    def solve(instances: Sequence[ProbeInstance]) -> list[Fraction | None]:
        rng = np.random.default_rng(seed)
        answers: list[Fraction | None] = []
        for instance in instances:
            slips = int((rng.random(len(instance.problem.steps)) >= right_steps).sum())
            answers.append(instance.problem.answer + slips)
        return answers

    return solve


def surface_solver(trained_on: Sequence[WordProblem]) -> ProbeSolver:
    """Return a solver that puts a question's numbers into the equations of the nearest problem.

    It knows words, and nothing of their meaning; see `EquationCopier`.
    """
    copier = EquationCopier(trained_on)

    def solve(instances: Sequence[ProbeInstance]) -> list[Fraction | None]:
        copied = copier.answers([instance.problem.question for instance in instances])
        return [each.nearest for each in copied]

    return solve


def unaffected_scores(scores: Scores, seed: int, *, accuracy: float = 0.3) -> Scores:
    """Return scores of a solver that no arm affects, for the same instances.

    The log-odds of a template vary with TEMPLATE_SPREAD, those of its arms with ARM_SPREAD around
    them, in all arms alike.

    Args:
      scores: of any solver; nan there is nan here.
      accuracy: of the template in the middle.
    """
    rng = np.random.default_rng(seed)
    (count,) = {len(values) for values in scores.values()}
    common = np.log(accuracy / (1 - accuracy)) + rng.normal(0, TEMPLATE_SPREAD, count)
    drawn = {}
    for arm, values in scores.items():
        log_odds = common + rng.normal(0, ARM_SPREAD, count)
        chances = 1 / (1 + np.exp(-log_odds))[:, None]
        solved = (rng.random(values.shape) < chances).astype(np.float64)
        drawn[arm] = np.where(np.isnan(values), np.nan, solved)
    return drawn
