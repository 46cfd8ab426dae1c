"""What is held out is never made into training text."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evals.development_set import development_groups, question_id
from slmjax.evals.question_neighbours import QuestionNeighbours
from slmjax.evals.word_problems import read_problems
from slmjax.reasoning import probe_split
from slmjax.reasoning.arms import redrawn
from slmjax.reasoning.example_problems import example_problems
from slmjax.reasoning.probe_split import ProbeSplit, training_variants, worked_answer
from slmjax.reasoning.problem_templates import NumberPool, make_templates, matched_templates

SHARED = Path(os.environ.get("SLMJAX_SHARED", Path(__file__).parents[2] / "../shared/data"))
TRAIN = SHARED / "gsm8k" / "train.jsonl.xz"
ALL, _ = make_templates(example_problems())
TEMPLATES, POOL = matched_templates(ALL), NumberPool(ALL)
KEYS = [template.key for template in TEMPLATES]
SPLIT = ProbeSplit(tuple(KEYS[:5]), tuple(KEYS[5:10]), frozenset(KEYS[:5]))
needs_data = pytest.mark.skipif(
    not TRAIN.exists(), reason="set SLMJAX_SHARED to the folder that holds gsm8k/"
)


def test_training_text_comes_from_the_trained_on_column_only():
    found = list(training_variants(TEMPLATES[5:10], SPLIT, POOL, 20))
    texts = [f"{problem.question}\n{worked_answer(problem)}" for problem in found]
    probed = set()
    for template in TEMPLATES[5:10]:
        probed.update(redrawn(template, POOL, variant).question for variant in range(10))
    assert 20 < len(set(texts)) == len(texts) <= 100
    for text in texts:
        question, *lines, answer = text.split("\n")
        assert question not in probed
        assert answer == f"#### {re.findall(r'>>(.*)', lines[-1])[0]}"
    with pytest.raises(UserError, match=f"{KEYS[0]} is held out"):
        list(training_variants([TEMPLATES[5], TEMPLATES[0]], SPLIT, POOL, 1))
    with pytest.raises(UserError, match="not in the trained-on column"):
        list(training_variants(TEMPLATES[10:11], SPLIT, POOL, 1))


def test_problems_of_held_out_groups_are_left_out():
    kept = probe_split.without_held_out([template.problem for template in TEMPLATES], SPLIT)
    assert [question_id(problem.question) for problem in kept] == KEYS[5:]


def test_the_split_of_the_package_has_ids_and_no_text():
    split = probe_split.read_split()
    assert len(split.held_out) == len(split.trained_on) == probe_split.PROBE_TEMPLATES
    assert len({*split.held_out, *split.trained_on}) == 2 * probe_split.PROBE_TEMPLATES
    assert not split.forbidden & set(split.trained_on)
    assert set(split.held_out) <= split.forbidden
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in split.forbidden)
    text = (Path(probe_split.__file__).parent / probe_split.FILE).read_text("utf-8")
    assert text == probe_split.write_split(split)


def test_other_problems_than_gsm8k_train_are_refused():
    with pytest.raises(UserError, match="expected all of GSM8K train"):
        probe_split.templates_by_key(TEMPLATES, probe_split.read_split().held_out)
    assert probe_split.templates_by_key(TEMPLATES, KEYS[3:1:-1]) == [TEMPLATES[3], TEMPLATES[2]]


@needs_data
@pytest.mark.slow
def test_the_split_is_drawn_again_as_it_is_and_keeps_neighbours_together():
    train, _ = read_problems(TRAIN)
    split = probe_split.read_split()
    assert probe_split.draw_split(train) == split
    questions = [problem.question for problem in train]
    ids = np.array([question_id(question) for question in questions])
    nearest = QuestionNeighbours(questions).nearest_others(questions)
    # No question that may be trained on has a forbidden one as its nearest, or the other way round.
    forbidden = np.isin(ids, sorted(split.forbidden))
    assert (forbidden == forbidden[nearest]).all()
    assert not set(development_groups(questions)) & {*split.forbidden, *split.trained_on}
