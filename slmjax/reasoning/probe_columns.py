"""The two columns of a probe: templates that are held out, and templates that are trained on."""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from slmjax.errors import UserError
from slmjax.evals.development_set import question_id
from slmjax.evals.evaluation_items import shared_folder
from slmjax.evals.word_problems import WordProblem, read_problems
from slmjax.reasoning.example_problems import example_problems
from slmjax.reasoning.probe_scores import ProbeInstance, probe_instances
from slmjax.reasoning.probe_split import (
    PROBE_TEMPLATES,
    PROBE_VARIANTS,
    ProbeSplit,
    read_split,
    templates_by_key,
    without_held_out,
)
from slmjax.reasoning.problem_templates import (
    NumberPool,
    ProblemTemplate,
    make_templates,
    matched_templates,
)
from slmjax.reasoning.wording import first_names_in

EXAMPLES = "examples"  # the name of the package's own problems
HELD_OUT, TRAINED_ON = "held-out", "trained-on"
SPLIT_SEED = "probe of own problems"  # never changed: another half would have been trained on


class Column(NamedTuple):
    """Held-out or trained-on templates, with their instances in all arms."""

    name: str
    templates: list[ProblemTemplate]
    instances: list[ProbeInstance]


@dataclasses.dataclass(frozen=True)
class ProbeProblems:
    """Word problems and the templates that are made of them.

    Attributes:
      path: of their file; "" for the package's own.
      sha256: of all questions and solutions.
      templates: of all problems; the pool of numbers is theirs.
      split: which of them are held out and trained on.
      left_out: {reason: problems that are no templates}.
    """

    path: str
    sha256: str
    problems: list[WordProblem]
    templates: list[ProblemTemplate]
    split: ProbeSplit
    left_out: Counter[str]

    @property
    def trainable(self) -> list[WordProblem]:
        """The problems that may be trained on."""
        return without_held_out(self.problems, self.split)

    @property
    def is_gsm8k_train(self) -> bool:
        """Whether the split is the package's."""
        return self.split == read_split()

    def column(self, name: str, templates: int, variants: int) -> Column:
        """Return a column of the first templates of its part of the split, with all instances."""
        keys = {HELD_OUT: self.split.held_out, TRAINED_ON: self.split.trained_on}[name]
        chosen = templates_by_key(self.templates, keys[:templates])
        instances = probe_instances(chosen, NumberPool(self.templates), variants=variants)
        return Column(name, chosen, instances)


def read_probe_problems(path: str = "") -> ProbeProblems:
    """Return word problems with their templates and split.

    Of GSM8K train the split is the package's, and neighbours of held-out problems count as held
    out. Of other problems half of the wordings are held out, drawn by a hash: questions that differ
    in numbers and names alone are of one wording.

    Args:
      path: a .jsonl file in GSM8K's format; "examples": the package's own; "": GSM8K train in
        $SLMJAX_SHARED (../shared/data unless set).
    Raises: UserError for a file that is missing or has no templates, and for a part of GSM8K train.
    """
    if path == EXAMPLES:
        path, problems = "", example_problems()
    else:
        path = path or str(_gsm8k_train())
        problems, _ = read_problems(path)
    written = [f"{each.question}\n{each.solution}\n{each.answer}" for each in problems]
    digest = hashlib.sha256("\n\n".join(written).encode()).hexdigest()
    templates, left_out = make_templates(problems)
    split = _split_of(problems, templates)
    return ProbeProblems(path, digest, problems, templates, split, left_out)


def _gsm8k_train() -> Path:
    folder = shared_folder()
    found = sorted(folder.glob("gsm8k/train.jsonl*"))
    if not found:
        raise UserError(
            f"'{folder}' (SLMJAX_SHARED) has no gsm8k/train.jsonl; give a file of word problems "
            f"with the fields question and answer, or '{EXAMPLES}' for the embedded ones."
        )
    return found[0]


def _split_of(problems: Sequence[WordProblem], templates: Sequence[ProblemTemplate]) -> ProbeSplit:
    """Return the package's split where it is of these templates, else halves by wording.

    Raises: UserError for a part of GSM8K train, and for fewer than two templates a column.
    """
    keys = {template.key for template in templates}
    split = read_split()
    drawn = {*split.held_out, *split.trained_on}
    if drawn <= keys:
        return split
    if drawn & keys:
        raise UserError(
            f"{len(drawn & keys)} of the {len(drawn)} templates of GSM8K train's split are among "
            "the problems; expected all of GSM8K train, or none of it."
        )
    by_wording: dict[str, list[str]] = {}
    for template in matched_templates(templates):
        by_wording.setdefault(_wording(template.problem.question), []).append(template.key)
    columns: tuple[list[str], list[str]] = ([], [])
    held_out_wordings = set()
    for wording in sorted(by_wording, key=_draw):
        # To the smaller column, so that both are of about one size.
        column = min(columns, key=len)
        column += by_wording[wording]
        if column is columns[0]:
            held_out_wordings.add(wording)
    if min(map(len, columns)) < 2:
        raise UserError(
            f"the problems give {sum(map(len, columns))} templates of {len(by_wording)} wordings; "
            "expected two or more for each of two columns. Solutions need equations such as "
            "<<3*4=12>> whose operands the question has."
        )
    forbidden = set()
    for problem in problems:
        if _wording(problem.question) in held_out_wordings:
            forbidden.add(question_id(problem.question))
    held_out, trained_on = (tuple(sorted(column, key=_draw)) for column in columns)
    return ProbeSplit(held_out, trained_on, frozenset(forbidden))


def _wording(question: str) -> str:
    """Return a question without its numbers and first names."""
    for name in first_names_in(question):
        question = re.sub(rf"\b{re.escape(name)}\b", "_", question)
    return re.sub(r"[\d.,]*\d", "0", question)


def _draw(name: str) -> bytes:
    return hashlib.sha256(f"{SPLIT_SEED} {name}".encode()).digest()


def check_sizes(templates: int, variants: int) -> None:
    """Raises: UserError for sizes that no probe has."""
    # Training text has numbers of the variants beyond PROBE_VARIANTS.
    if not 2 <= templates <= PROBE_TEMPLATES or not 1 <= variants <= PROBE_VARIANTS:
        raise UserError(
            f"expected 2 to {PROBE_TEMPLATES} templates and 1 to {PROBE_VARIANTS} variants."
        )
