"""The development set is drawn in whole groups, from the questions alone, and its figures are ratios."""

import os
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evals import development_set as dev
from slmjax.evals.question_neighbours import QuestionNeighbours, neighbour_groups
from slmjax.evals.word_problems import WordProblem, read_problems

SHARED = Path(os.environ.get("SLMJAX_SHARED", Path(__file__).parents[2] / "../shared/data"))
WORDS = [
    "plums",
    "jars",
    "boats",
    "hats",
    "books",
    "cats",
    "rows",
    "bulbs",
    "coins",
    "miles",
    "hours",
    "shells",
    "figs",
    "pens",
]


@pytest.fixture(scope="module")
def problems():
    draw = random.Random(0)
    questions = {" ".join(draw.choices(WORDS, k=8)) for _ in range(300)}
    return [WordProblem(question, "", Fraction(1), ()) for question in sorted(questions)]


def held_out(problems, count=60):
    return dev.development_groups([problem.question for problem in problems], count)


def test_no_nearest_neighbour_stays_on_the_other_side(problems):
    chosen = held_out(problems)
    assert len(chosen) == 60
    questions = [problem.question for problem in problems]
    inside = np.array([dev.question_id(question) in chosen for question in questions])
    nearest = QuestionNeighbours(questions).nearest_others(questions)
    assert (inside[nearest] == inside).all()
    groups = neighbour_groups(questions)
    for question, group in zip(questions, groups.tolist(), strict=True):
        if dev.question_id(question) in chosen:
            assert chosen[dev.question_id(question)] == group


def test_the_draw_depends_on_the_questions_and_not_on_their_order(problems):
    turned = list(reversed(problems))
    assert set(held_out(problems)) == set(held_out(turned))


def test_development_and_training_problems_are_all_problems_once(problems):
    development = dev.development_problems(problems, 60)
    training = dev.training_problems(problems, 60)
    assert len(development) == 60
    assert sorted([*development, *training], key=str) == sorted(problems, key=str)


def test_too_few_questions_are_refused_in_a_sentence(problems):
    with pytest.raises(UserError, match="questions do not give a development set of 500"):
        dev.training_problems(problems)


def test_the_spans_are_the_equations_between_the_marks():
    solution = "May: 48/2 = <<48/2=24>>24.\nIn all 48+24 = <<48+24=72>>72."
    spans = dev.equation_spans(solution)
    assert [solution[start:end] for start, end in spans] == ["48/2=24", "48+24=72"]


def test_nats_per_token_is_a_ratio_of_sums_and_its_interval_resamples_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 5)
    tokens = rng.integers(5, 20, 500)
    # Problems of a group are equally hard, so 500 problems are worth only 100.
    nats = tokens * np.repeat(rng.normal(2, 0.5, 100), 5)
    figure = dev.nats_per_token(nats, tokens, groups)
    assert figure.value == pytest.approx(nats.sum() / tokens.sum())
    assert figure.count == 500
    width = figure.high - figure.low
    assert width == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.25)
    alone = dev.nats_per_token(nats, tokens, np.arange(500))
    assert alone.high - alone.low < 0.6 * width
    with pytest.raises(ValueError, match="no problem has a token"):
        dev.nats_per_token(np.zeros(2), np.zeros(2, int), np.arange(2))


def test_a_mean_over_problems_weighs_each_problem_once():
    figure = dev.mean_over_problems(np.array([0.0, 1.0, 1.0, 0.5]), np.array([0, 0, 1, 2]))
    assert figure.value == pytest.approx(0.625)
    assert figure.low <= 0.625 <= figure.high


@pytest.mark.slow
def test_the_development_set_of_gsm8k_is_always_the_same():
    if not (SHARED / "gsm8k").is_dir():
        pytest.skip("set SLMJAX_SHARED to the folder that holds gsm8k/")
    problems, _ = read_problems(SHARED / "gsm8k" / "train.jsonl.xz")
    chosen = dev.development_groups([problem.question for problem in problems])
    assert len(chosen) == 500
    assert dev.question_id("".join(sorted(chosen))) == "da5ab137f5971f71"
