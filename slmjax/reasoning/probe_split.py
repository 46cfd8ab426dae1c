"""Which problems the probe holds out, and training text from those that it does not.

The split is a file of question ids, drawn once by a fixed seed before any training data is made.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from importlib import resources
from typing import NamedTuple

from slmjax.errors import UserError
from slmjax.evals.development_set import development_groups, question_id
from slmjax.evals.question_neighbours import neighbour_groups
from slmjax.evals.word_problems import WordProblem
from slmjax.reasoning.arms import redrawn
from slmjax.reasoning.problem_templates import (
    NumberPool,
    ProblemTemplate,
    make_templates,
    matched_templates,
)

PROBE_TEMPLATES = 200  # held out, and as many others for the trained-on column
SEED = 0  # never changed: the held-out templates of another split would have been trained on
PROBE_VARIANTS = 10  # of a template; their numbers are not trained on
FIRST_TRAINING_VARIANT = 1_000_000
FILE = "probe_split.json"


class ProbeSplit(NamedTuple):
    """Question ids of GSM8K train; see `question_id`.

    Attributes:
      held_out: of the templates that nothing may be trained on.
      trained_on: of the templates whose variants training text may have.
      forbidden: of every question in a neighbour group of a held-out template, these included.
    """

    held_out: tuple[str, ...]
    trained_on: tuple[str, ...]
    forbidden: frozenset[str]


def draw_split(problems: Sequence[WordProblem], count: int = PROBE_TEMPLATES) -> ProbeSplit:
    """Return the split of all of GSM8K train.

    Groups of nearest neighbours are drawn, all with the same chance, and one template of each. The
    development set is left out, since it is looked at.

    Raises: UserError without scikit-learn, and where there are too few templates.
    """
    questions = [problem.question for problem in problems]
    ids = [question_id(question) for question in questions]
    group_of = dict(zip(ids, neighbour_groups(questions).tolist(), strict=True))
    used = {group_of[name] for name in development_groups(questions)}
    # The first template of each group in a random order, then the groups in another one.
    first_of: dict[int, str] = {}
    templates, _ = make_templates(problems)
    candidates = [template.key for template in matched_templates(templates)]
    for key in sorted(candidates, key=lambda key: _draw(f"template {key}")):
        if group_of[key] not in used:
            first_of.setdefault(group_of[key], key)
    drawn = sorted(first_of.values(), key=lambda key: _draw(f"group {key}"))
    if len(drawn) < 2 * count:
        raise UserError(f"{len(drawn)} templates have groups of their own; expected {2 * count}.")
    held_out, trained_on = tuple(drawn[:count]), tuple(drawn[count : 2 * count])
    groups = {group_of[key] for key in held_out}
    forbidden = frozenset(name for name in ids if group_of[name] in groups)
    return ProbeSplit(held_out, trained_on, forbidden)


def read_split() -> ProbeSplit:
    """Return the split that the package carries, which `draw_split` drew."""
    content = json.loads((resources.files("slmjax.reasoning") / FILE).read_text("utf-8"))
    held_out, trained_on = tuple(content["held_out"]), tuple(content["trained_on"])
    return ProbeSplit(held_out, trained_on, frozenset([*held_out, *content["neighbours"]]))


def write_split(split: ProbeSplit) -> str:
    """Return a split as the text of its file."""
    neighbours = sorted(split.forbidden.difference(split.held_out))
    parts = {"held_out": split.held_out, "trained_on": split.trained_on, "neighbours": neighbours}
    return json.dumps(parts, indent=1) + "\n"


def without_held_out(problems: Sequence[WordProblem], split: ProbeSplit) -> list[WordProblem]:
    """Return the problems that may be trained on."""
    return [each for each in problems if question_id(each.question) not in split.forbidden]


def training_variants(
    templates: Sequence[ProblemTemplate], split: ProbeSplit, pool: NumberPool, variants: int
) -> Iterator[WordProblem]:
    """Yield variants with equations only as solutions, at most `variants` of each template.

    No question comes twice, and none is of the probe's PROBE_VARIANTS.

    Raises: UserError for a template that is not in the trained-on column.
    """
    allowed = frozenset(split.trained_on)
    for template in templates:
        if template.key not in allowed:
            kind = "held out" if template.key in split.forbidden else "not in the trained-on column"
            raise UserError(f"template {template.key} is {kind}; no training text is made from it.")
    taken = set()
    for template in templates:
        taken.update(redrawn(template, pool, each).question for each in range(PROBE_VARIANTS))
    for template in templates:
        for variant in range(variants):
            problem = redrawn(template, pool, FIRST_TRAINING_VARIANT + variant)
            if problem.question not in taken:
                taken.add(problem.question)
                yield problem


def worked_answer(problem: WordProblem) -> str:
    """Return a problem's solution and answer in GSM8K's format."""
    return f"{problem.solution.rstrip()}\n#### {problem.answer}"


def templates_by_key(
    templates: Sequence[ProblemTemplate], keys: Collection[str]
) -> list[ProblemTemplate]:
    """Return the templates of these keys, in the keys' order.

    Raises: UserError where one is missing, since then the problems are not GSM8K train.
    """
    by_key = {template.key: template for template in templates}
    missing = [key for key in keys if key not in by_key]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(keys)} templates of the split are not among the problems; "
            "expected all of GSM8K train."
        )
    return [by_key[key] for key in keys]


def _draw(name: str) -> bytes:
    return hashlib.sha256(f"probe {SEED} {name}".encode()).digest()
