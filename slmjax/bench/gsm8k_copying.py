"""What GSM8K scores by copying: the baselines that learn nothing, and a model next to them.

python -m slmjax.bench copying
python -m slmjax.bench copying --compare=EVALUATION/tasks/gsm8k_test-8-shot.json

Per cent of the problems that each rule answers right, by how many training problems it knows. The
last row answers training problems from the other folds of five; every detail that the rules leave
open was chosen there. With --compare a model's verdicts, as the stage evaluate saves them, are
paired with the vote's. Reads gsm8k/ in $SLMJAX_SHARED (../shared/data unless set).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from slmjax.bench.find_contamination import shared_data
from slmjax.errors import UserError
from slmjax.evals.nearest_problem import VOTERS, baseline_verdicts
from slmjax.evals.paired_verdicts import compare_verdicts
from slmjax.evals.training_coverage import ENDING
from slmjax.evals.word_problems import WordProblem, read_problems

KNOWN = (500, 1000, 2000, 4000)  # training problems, from the beginning of the file; then all
FOLDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench copying`."""
    parser.add_argument("--compare", default="", help="a model's saved result on GSM8K test")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Answer GSM8K test by copying, and training problems by cross-validation.

    Returns: {"bench", "rows", "messages"}; with --compare also "paired".
    Raises: UserError without the data, and for a file that is not of all test problems.
    """
    folder = shared_data() / "gsm8k"
    train, _ = read_problems(folder / f"train{ENDING}")
    test, _ = read_problems(folder / f"test{ENDING}")
    model = None
    if arguments.compare:  # read first: a wrong file is better noticed now
        model = read_verdicts(Path(arguments.compare), test)
    rows = []
    for known in [*KNOWN, len(train)]:
        verdicts = baseline_verdicts(train[:known], test)
        rows.append({"known": known, "asked": len(test)} | _percent(verdicts))
    rows.append({"known": f"{FOLDS} folds", "asked": len(train)} | _percent(_held_out(train)))
    result: dict[str, Any] = {"bench": "copying", "rows": rows, "messages": []}
    if model is not None:
        paired = compare_verdicts(model, verdicts[f"vote of {VOTERS}"])
        result["paired"] = paired._asdict()
        result["messages"].append(paired.sentence)
    return result


def read_verdicts(path: Path, problems: Sequence[WordProblem]) -> Bool[np.ndarray, " problems"]:
    """Return which problems a model has right, from a result that the stage evaluate saved.

    Raises: UserError where the file cannot be read or holds other problems.
    """
    try:
        items = json.loads(path.read_text("utf-8"))["items"]
        pairs = [(str(item["prompt"]), bool(item["right"])) for item in items]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"--compare: '{path}' cannot be read ({type(error).__name__}: {error}); expected "
            "tasks/gsm8k_test-*.json of a work directory of the stage evaluate."
        ) from error
    same = len(pairs) == len(problems)
    for (prompt, _), problem in zip(pairs, problems):
        same = same and problem.question.strip() in prompt
    if not same:
        raise UserError(
            f"--compare: '{path}' has {len(pairs)} items, which are not the {len(problems)} "
            "problems of GSM8K test in their order; measure all of gsm8k_test."
        )
    return np.array([right for _, right in pairs])


def _held_out(problems: Sequence[WordProblem]) -> dict[str, Bool[np.ndarray, " problems"]]:
    """Return {rule: verdicts} of problems that are answered from those of the other folds."""
    fold = np.random.default_rng(0).integers(0, FOLDS, len(problems))
    verdicts: dict[str, Bool[np.ndarray, " problems"]] = {}
    for number in range(FOLDS):
        asked = np.flatnonzero(fold == number)
        known = [problem for problem, own in zip(problems, fold) if own != number]
        answered = baseline_verdicts(known, [problems[place] for place in asked])
        for rule, right in answered.items():
            verdicts.setdefault(rule, np.zeros(len(problems), bool))[asked] = right
    return verdicts


def _percent(verdicts: dict[str, Bool[np.ndarray, " problems"]]) -> dict[str, float]:
    return {rule: 100 * float(right.mean()) for rule, right in verdicts.items()}
