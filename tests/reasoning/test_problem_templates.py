"""Templates are what the rules let through, and their variants are problems with right answers."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.evals.word_problems import WordProblem, question_numbers
from slmjax.reasoning import problem_templates
from slmjax.reasoning.example_problems import example_problems, word_problem
from slmjax.reasoning.problem_templates import (
    NumberPool,
    filled,
    fits,
    make_templates,
    matched_templates,
)

ALL, REASONS = make_templates(example_problems())
POOL, TEMPLATES = NumberPool(ALL), matched_templates(ALL)
SEEDS = st.integers(0, 1000)
PLACES = st.integers(0, len(TEMPLATES) - 1)


def variant(place, seed):
    return POOL.variant(TEMPLATES[place], np.random.default_rng(seed))


def python_value(expression):
    return eval(re.sub(r"\d*\.?\d+", lambda number: f"Fraction('{number[0]}')", expression))


def test_most_of_the_problems_are_templates():
    assert len(TEMPLATES) > 60
    assert set(REASONS) <= {
        "few variants",
        "two equal numbers",
        "an operand with two origins",
        "a number that may be a word or a constant",
    }


@given(PLACES, SEEDS)
def test_a_variant_has_the_answer_that_python_computes_from_its_text(place, seed):
    problem = variant(place, seed)
    results = []
    for left, right in re.findall(r"<<(.*?)=(.*?)>>", problem.solution):
        assert python_value(left) == Fraction(right)
        results.append(Fraction(right))
    assert results[-1] == problem.answer
    assert all(result > 0 and result.denominator == 1 for result in results)


@given(PLACES, SEEDS)
def test_a_variant_has_numbers_and_results_of_the_originals_digits(place, seed):
    template, problem = TEMPLATES[place], variant(place, seed)
    numbers = question_numbers(problem.question)
    new, old = [number.value for number in numbers], list(template.values)
    assert len(set(new)) == len(new)
    assert new != old
    assert [len(str(value)) for value in new] == [len(str(value)) for value in old]
    assert all(number.value < 100 for number in numbers if number.percent)
    for step, original in zip(problem.steps, template.problem.steps):
        assert len(str(step.result)) == len(str(original.result))
    # Nothing but the numbers differs.
    assert re.sub(r"\d+", "", problem.question) == re.sub(r"\d+", "", template.problem.question)


@given(PLACES, SEEDS)
def test_which_numbers_fit_is_what_exact_arithmetic_says(place, seed):
    template = TEMPLATES[place]
    draws = POOL.draws(template, np.random.default_rng(seed), 40)
    for row, good in zip(draws.tolist(), fits(template, draws, any_size=True)):
        try:
            problem = filled(template, row)
        except ValueError:
            assert not good
            continue
        changed = np.mean([new != old for new, old in zip(row, template.values)])
        distinct = len(set(row)) == len(row)
        free = not set(row) & template.taken
        within = all(value <= limit for value, limit in zip(row, template.limits))
        no_loss = all(step.result > 0 for step in problem.steps)
        assert good == (changed > 0.5 and distinct and free and within and no_loss)


@pytest.mark.parametrize(
    "reason, problem",
    [
        (
            "an operand with two origins",
            word_problem(
                "He has 15 pens and gets 4 more, then 19 more are lost of 85. How many?",
                "15+4=19",
                "85-19=66",
            ),
        ),
        (
            "an operand without origin",
            word_problem("He has 15 pens and gets 4 more. How many?", "15+4=19", "19+9=28"),
        ),
        (
            "two equal numbers",
            word_problem("He has 15 pens and 15 caps. How many things?", "15+15=30"),
        ),
        (
            "a number that is not used",
            word_problem("He has 15 pens, 3 caps and 4 hats. How many pens and caps?", "15+3=18"),
        ),
        (
            "a result that is not used",
            word_problem("He has 15 pens, 3 caps and 4 hats. How many?", "15+3=18", "15+4=19"),
        ),
        (
            "an equation without operator",
            word_problem("He has 15 pens and 3 caps. How many?", "15=15", "15+3=18"),
        ),
        (
            "a number that may be a word or a constant",
            word_problem("He has 24 pens and 3 caps. How many?", "24+3=27"),
        ),
        (
            "a small number that is used twice",
            word_problem(
                "A yard is 15 by 8 and he walks it 2 times. How far?",
                "15*2=30",
                "8*2=16",
                "30+16=46",
                "46*2=92",
            ),
        ),
        (
            "a number that is no quantity",
            word_problem("At 3:45 he has 15 pens and 4 caps. How many?", "15+4=19"),
        ),
        (
            "a percentage above 99",
            word_problem("It costs $40 and rises by 150%. By how much?", "40*150/100=60"),
        ),
        (
            "a result that is no positive integer",
            word_problem("He cuts 15 pens in 4 parts. How long?", "15/4=3.75"),
        ),
        (
            "does not end with its only question",
            word_problem("How many pens? He has 15 and 4.", "15+4=19"),
        ),
        ("no steps or no numbers", word_problem("He has fifteen pens. How many?", "15+4=19")),
        (
            "an equation that is wrong",
            word_problem("He has 15 pens and 4 caps. How many?", "15+4=18"),
        ),
    ],
)
def test_a_problem_that_can_be_read_in_two_ways_is_left_out(reason, problem):
    assert make_templates([problem])[1] == {reason: 1}


def test_an_answer_that_is_not_the_last_result_is_left_out():
    sound = word_problem("He has 15 pens and 4 caps. How many?", "15+4=19")
    wrong = WordProblem(sound.question, sound.solution, Fraction(20), sound.steps)
    assert make_templates([wrong])[1] == {"an answer that is not the last result": 1}
    assert make_templates([sound, sound])[1]["question occurs twice"] == 1


def test_fractions_decimals_and_ones_stay_as_they_are():
    problem = word_problem(
        "A 1 mile walk takes 45 minutes; 3/5 of 50 people pay $2.50. How much?",
        "3/5*50=30",
        "30*2.5=75",
        "75+45-1=119",
    )
    # Not all of them are used as in a sound problem; what may vary is known anyway.
    template = problem_templates._template(problem)
    assert template.varied == (False, True, False, False, True, False)


def test_larger_numbers_have_one_digit_more_where_nothing_limits_them():
    template = next(each for each in TEMPLATES if "%" in each.problem.question)
    problem = POOL.variant(template, np.random.default_rng(0), larger=True)
    price, share = [number.value for number in question_numbers(problem.question)]
    assert len(str(price)) == len(str(template.values[0])) + 1
    assert share < 100
    with pytest.raises(ValueError, match="has no variant"):
        # 20 draws of numbers that are all taken.
        NumberPool.variant(POOL, _without_free_numbers(template), np.random.default_rng(0))


def _without_free_numbers(template):
    limits = tuple(0.0 for _ in template.limits)
    return problem_templates.replace(template, limits=limits)
