"""The baselines that learn nothing: equations are reused exactly, and what they score on GSM8K."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evals.nearest_problem import (
    EquationCopier,
    baseline_verdicts,
    reusable_steps,
    reuse,
)
from slmjax.evals.word_problems import WordProblem, parse_step, read_problems

SHARED = Path(os.environ.get("SLMJAX_SHARED", Path(__file__).parents[2] / "../shared/data"))


def problem(question, *steps, answer=None):
    parsed = tuple(parse_step(step) for step in steps)
    return WordProblem(question, "", Fraction(answer or parsed[-1].result), parsed)


JARS = problem("Each of 4 jars holds 9 plums. How many plums?", "4*9=36")
SALE = problem("A hat of 40 dollars is 25% off. What is the price?", "40*.25=10", "40-10=30")
BOATS = problem("A boat carries 6 people. How many boats do 42 people need?", "42/6=7")
GIFTS = problem("Ann has 30 gifts and gives 3 away. How many are left?", "30-3=27")
KNOWN = [JARS, SALE, BOATS, GIFTS]


@pytest.mark.parametrize(
    "source, numbers, expected",
    [
        (JARS, [5, 12], 60),
        (SALE, [80, 10], 72),  # the percentage stays one
        (BOATS, [8, 60], Fraction(15, 2)),
        (BOATS, [0, 60], None),  # a division by zero
        (JARS, [5], None),  # too few numbers
        (problem("None.", answer=1), [5], None),  # no equation
    ],
)
def test_equations_are_applied_to_other_numbers_exactly(source, numbers, expected):
    assert reuse(reusable_steps(source), [Fraction(number) for number in numbers]) == expected


def test_equations_on_their_own_numbers_give_their_own_answer():
    for known in KNOWN:
        (copied,) = EquationCopier([known]).answers([known.question])
        assert copied.nearest == known.answer


def test_the_nearest_problem_with_as_many_numbers_and_a_whole_positive_result_answers():
    copier = EquationCopier(KNOWN)
    nearest = [
        # Nearest to GIFTS.
        "Bob has 50 gifts and gives 8 away. How many are left?",
        # Nearest to BOATS, which gives 42/8: no whole number.
        "A boat carries 8 people. How many boats do 42 people need now?",
        # Nearest to GIFTS, which gives -20; three others have two numbers.
        "Ann has 30 gifts and gives 50 away. How many are left?",
        # No known problem has one number.
        "Ann has 30 gifts. How many are left?",
    ]
    answers = [copied.nearest for copied in copier.answers(nearest)]
    assert answers[0] == 42
    assert answers[1] != Fraction(42, 8) and answers[1] > 0
    assert answers[2] > 0
    assert answers[3] is None


def test_the_vote_is_the_most_frequent_answer_and_the_nearer_one_of_a_tie():
    asked = "Each of 3 jars holds 12 plums. How many plums?"
    plus = [
        problem(f"Each {thing} of 4 gets 9 more. How many?", "4+9=13") for thing in ("cat", "dog")
    ]
    (copied,) = EquationCopier([JARS, plus[0]]).answers([asked])
    assert (copied.nearest, copied.vote, copied.candidates) == (36, 36, [36, 15])
    (copied,) = EquationCopier([JARS, *plus]).answers([asked])
    assert (copied.nearest, copied.vote, sorted(copied.candidates)) == (36, 15, [15, 15, 36])


def test_each_rule_is_judged_by_its_own_answer():
    asked = [
        problem("Each of 5 jars holds 2 plums. How many plums?", answer=10),  # product, nearest
        problem("Ann has 2 and 36 shells. How many?", answer=36),  # common, last
        problem("Nobody came. How many did?", answer=1),  # an empty product is no answer
    ]
    known = [JARS, problem("Tim eats 6 figs and 6 plums a day for 3 days.", "6+6=12", "12*3=36")]
    verdicts = baseline_verdicts(known, asked)
    table = {rule: row.tolist() for rule, row in verdicts.items()}
    assert table == {
        "most common answer": [False, True, False],
        "last number": [False, True, False],
        "product": [True, False, False],
        "sum": [False, False, False],
        "nearest problem": [True, False, False],
        "vote of 20": [True, False, False],
        "any of 20": [True, False, False],
    }


def test_nothing_to_answer_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="there is no problem to answer"):
        baseline_verdicts(KNOWN, [])
    with pytest.raises(UserError, match="there is no question to compare with"):
        baseline_verdicts([], KNOWN)


@pytest.fixture(scope="module")
def gsm8k():
    if not (SHARED / "gsm8k").is_dir():
        pytest.skip("set SLMJAX_SHARED to the folder that holds gsm8k/")
    return [read_problems(SHARED / "gsm8k" / f"{part}.jsonl.xz")[0] for part in ("train", "test")]


@pytest.mark.slow
def test_gsm8k_scores_what_independent_code_measured(gsm8k):
    """Percent of 1,319, measured by another program on another day, within half a point."""
    expected = {"most common answer": 2.7, "last number": 2.3, "product": 1.7, "sum": 0.8}
    expected |= {"nearest problem": 4.1, "vote of 20": 6.1}
    verdicts = baseline_verdicts(*gsm8k)
    assert {len(row) for row in verdicts.values()} == {1319}
    for rule, percent in expected.items():
        assert abs(100 * np.mean(verdicts[rule]) - percent) <= 0.5, rule
