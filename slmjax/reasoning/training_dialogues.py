"""Training text of the probe: worked problems that are not held out, as dialogues.

A file next to the dialogues says which split they belong to, so that a probe knows whether a run
has read them.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from slmjax.curate.decontaminate import build_index
from slmjax.curate.normalise import normalise
from slmjax.errors import UserError
from slmjax.evals.development_set import training_problems
from slmjax.evals.evaluation_items import shared_folder
from slmjax.evals.training_coverage import evaluation_sets
from slmjax.evals.word_problems import WordProblem
from slmjax.infer.load import Loaded
from slmjax.reasoning.probe_columns import ProbeProblems
from slmjax.reasoning.probe_split import (
    ProbeSplit,
    templates_by_key,
    training_variants,
    worked_answer,
)
from slmjax.reasoning.problem_templates import NumberPool
from slmjax.text.files import check_writable, write_atomic
from slmjax.text.sources import parse_sources

DIALOGUES, MARK = "dialogues.jsonl", "probe_training.json"
# Sets that training text is searched for before a figure on them is believed; without the first
# one nothing is written.
NEEDED_SET = "gsm8k"


def write_probe_training(of: ProbeProblems, folder: str, variants: int) -> dict[str, Any]:
    """Write the dialogues and their mark to a folder, and return what was counted.

    The dialogues are the problems that may be trained on, without the development set, and
    variants of the trained-on templates. Those in which an item of an evaluation set stands are
    left out. The package's own problems are no part of any set and are not searched.

    Returns: {"problems", "variants", "in evaluation sets", "dialogues": numbers of them, "searched
      for": names of the evaluation sets}.
    Raises: UserError for a folder that holds something else, missing evaluation sets, and where
      nothing is left.
    """
    if variants < 1:
        raise UserError(f"--variants={variants}: expected at least 1.")
    check_writable(folder)
    place = epath.Path(folder)
    if place.exists() and any(place.iterdir()) and not (place / MARK).exists():
        raise UserError(f"--out={folder} holds something else; give a new folder.")
    sets: dict[str, Any] = {}
    if of.path:
        sets = {
            name: each
            for name, each in evaluation_sets(shared_folder()).items()
            if Path(each["path"]).exists()
        }
        if NEEDED_SET not in sets:
            raise UserError(
                f"'{shared_folder()}' (SLMJAX_SHARED) has no gsm8k/test.jsonl.xz, which the "
                "dialogues must be compared with."
            )
    index = build_index(sets) if sets else None
    counts: dict[str, Any] = {"problems": 0, "variants": 0, "in evaluation sets": 0}
    lines, seen = [], set()
    for kind, problem in _trained_problems(of, variants):
        text = f"{problem.question}\n{worked_answer(problem)}"
        if problem.question in seen:
            continue
        seen.add(problem.question)
        if index is not None and index.find_all(normalise(text)):
            counts["in evaluation sets"] += 1
            continue
        counts[kind] += 1
        dialogue = {"prompt": problem.question, "response": worked_answer(problem)}
        lines.append(json.dumps(dialogue) + "\n")
    if not lines:
        raise UserError("no dialogue is left to train on.")
    counts |= {"dialogues": len(lines), "searched for": list(sets)}
    write_atomic(place / DIALOGUES, "".join(lines))
    mark = {"split": split_hash(of.split), "problems": of.sha256, "counts": counts}
    write_atomic(place / MARK, json.dumps(mark, indent=1) + "\n")
    return counts


def trained_on_templates(loaded: Loaded, split: ProbeSplit) -> bool:
    """Return whether a run, or one of its ancestors, is known to have read the split's dialogues.

    Looked at are the sources of the run's config and of its ancestors' config.json, where these
    are still there, and the mark next to the source's files.
    """
    configs = [loaded.config.data.sources]
    for entry in loaded.lineage:
        try:
            config = json.loads((epath.Path(entry["workdir"]) / "config.json").read_text())
            configs.append(config["data"]["sources"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it was moved or shared without
    for sources in configs:
        for source in parse_sources(sources):
            if source.weight != 0 and any(_has_mark(path, split) for path in source.path):
                return True
    return False


def split_hash(split: ProbeSplit) -> str:
    """Return a hash of which templates are held out and trained on."""
    content = json.dumps([split.held_out, split.trained_on])
    return hashlib.sha256(content.encode()).hexdigest()


def _has_mark(path: str, split: ProbeSplit) -> bool:
    place = Path(path).expanduser()
    for folder in (place, place.parent):
        try:
            return json.loads((folder / MARK).read_text("utf-8"))["split"] == split_hash(split)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return False


def _trained_problems(of: ProbeProblems, variants: int) -> Iterator[tuple[str, WordProblem]]:
    """Yield (what it is, problem) of all that is trained on."""
    problems = of.trainable
    if of.is_gsm8k_train:
        ready = {problem.question for problem in training_problems(of.problems)}
        problems = [problem for problem in problems if problem.question in ready]
    for problem in problems:
        yield "problems", problem
    templates = templates_by_key(of.templates, of.split.trained_on)
    pool = NumberPool(of.templates)
    for problem in training_variants(templates, of.split, pool, variants):
        yield "variants", problem
