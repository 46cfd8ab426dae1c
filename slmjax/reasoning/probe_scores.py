"""The instances of a probe, and which of them were solved."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.errors import UserError
from slmjax.evals.word_problems import WordProblem
from slmjax.reasoning.arms import ARMS, make_instance
from slmjax.reasoning.problem_templates import NumberPool, ProblemTemplate

# {arm: 1 for each instance that was solved, 0 for others, nan where the arm does not apply}.
Scores = Mapping[str, Float[np.ndarray, "templates variants"]]


class ProbeInstance(NamedTuple):
    """A problem of the probe: its arm, its template's place, its variant's number."""

    arm: str
    template: int
    variant: int
    problem: WordProblem


def probe_instances(
    templates: Sequence[ProblemTemplate],
    pool: NumberPool,
    *,
    arms: Sequence[str] = tuple(ARMS),
    variants: int = 10,
) -> list[ProbeInstance]:
    """Return every arm's instances of the templates; those of one variant share their numbers.

    The originals have one variant. Raises: UserError without templates.
    """
    if not templates:
        raise UserError("a probe without templates says nothing; expected at least one.")
    instances = []
    for arm in arms:
        count = 1 if arm == "original" else variants
        for place, template in enumerate(templates):
            for variant in range(count):
                problem = make_instance(arm, template, pool, variant)
                if problem is not None:
                    instances.append(ProbeInstance(arm, place, variant, problem))
    return instances


def probe_scores(
    instances: Sequence[ProbeInstance], answers: Sequence[Fraction | None]
) -> dict[str, Float[np.ndarray, "templates variants"]]:
    """Return the scores of answers to instances, one each and in their order.

    Raises: ValueError where the numbers of instances and answers differ.
    """
    shape = (
        1 + max(instance.template for instance in instances),
        1 + max(instance.variant for instance in instances),
    )
    scores = {arm: np.full(shape, np.nan) for arm in dict.fromkeys(item.arm for item in instances)}
    for instance, answer in zip(instances, answers, strict=True):
        right = answer == instance.problem.answer
        scores[instance.arm][instance.template, instance.variant] = right
    return scores


def run_probe(
    instances: Sequence[ProbeInstance],
    solve: Callable[[Sequence[ProbeInstance]], Sequence[Fraction | None]],
) -> dict[str, Float[np.ndarray, "templates variants"]]:
    """Return the scores of a solver; a model reads an instance's problem.question and no more."""
    return probe_scores(instances, solve(instances))


def step_counts(instances: Sequence[ProbeInstance]) -> dict[str, Float[np.ndarray, " templates"]]:
    """Return {arm: steps of each template's solution}; nan where the arm does not apply."""
    size = 1 + max(instance.template for instance in instances)
    counts: dict[str, np.ndarray] = {}
    for instance in instances:
        column = counts.setdefault(instance.arm, np.full(size, np.nan))
        column[instance.template] = len(instance.problem.steps)
    return counts
