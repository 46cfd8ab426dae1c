"""Each arm changes one thing, and its answer is the one that its text has."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.evals.word_problems import question_numbers
from slmjax.reasoning import wording
from slmjax.reasoning.arms import ARMS, make_instance
from slmjax.reasoning.example_problems import example_problems
from slmjax.reasoning.problem_templates import NumberPool, make_templates, matched_templates

ALL, _ = make_templates(example_problems())
POOL, TEMPLATES = NumberPool(ALL), matched_templates(ALL)
DRAWN = st.tuples(st.integers(0, len(TEMPLATES) - 1), st.integers(0, 10**6))


def instance(arm, drawn):
    place, seed = drawn
    return make_instance(arm, TEMPLATES[place], POOL, seed)


def numbers(problem):
    return [number.value for number in question_numbers(problem.question)]


def python_value(expression):
    return eval(re.sub(r"\d*\.?\d+", lambda number: f"Fraction('{number[0]}')", expression))


def applied(answer, clause):
    """The slow reference: what a clause in words does to a number."""
    (amount,) = map(Fraction, re.findall(r"\d+", clause))
    if "added to" in clause or "add " in clause:
        return answer + amount
    if "taken away" in clause or "subtract" in clause:
        return answer - amount
    assert "multipl" in clause
    return answer * amount


@pytest.mark.parametrize("arm", ARMS)
def test_an_instance_is_a_pure_function_and_its_solution_ends_in_its_answer(arm):
    for place in range(0, len(TEMPLATES), 9):
        problem = instance(arm, (place, 5))
        assert problem == instance(arm, (place, 5))
        assert problem.steps[-1].result == problem.answer > 0
        for left, right in re.findall(r"<<(.*?)=(.*?)>>", problem.solution):
            assert python_value(left) == Fraction(right)
        assert ARMS[arm].baseline in ("", *ARMS)


@given(DRAWN)
def test_added_clauses_say_what_the_added_steps_do(drawn):
    baseline = instance("p0", drawn)
    for arm, count in (("p1", 1), ("p2", 2)):
        problem = instance(arm, drawn)
        original, _, added = problem.question.rpartition(", if ")
        assert original == baseline.question.removesuffix("?")
        clauses = added.split(" and ")
        assert len(clauses) == count == len(problem.steps) - len(baseline.steps)
        answer = baseline.answer
        for clause in clauses:
            answer = applied(answer, clause)
        assert answer == problem.answer


@given(DRAWN)
def test_a_longer_chain_has_twice_the_steps_in_its_words_too(drawn):
    baseline, problem = instance("p0", drawn), instance("longer", drawn)
    assert len(problem.steps) == 2 * len(baseline.steps)
    added = problem.question.removeprefix(baseline.question).removesuffix(
        " What is the final number?"
    )
    answer = baseline.answer
    for clause in added.split(", then ")[1:]:
        answer = applied(answer, clause)
    assert answer == problem.answer


@given(DRAWN)
def test_bare_arithmetic_and_new_operators_evaluate_to_the_answer_of_p0(drawn):
    baseline = instance("p0", drawn)
    bare = instance("bare", drawn)
    assert python_value(bare.question.removeprefix("What is ").removesuffix("?")) == baseline.answer
    swapped = instance("operators", drawn)
    expression = swapped.question.rpartition("What is ")[2].removesuffix("?")
    signs = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
    for symbol, name in re.findall(r"(\S) means (plus|minus|times|divided by)", swapped.question):
        expression = expression.replace(symbol, signs[name])
    assert python_value(expression) == baseline.answer == swapped.answer


@given(DRAWN)
def test_a_new_unit_multiplies_the_answer(drawn):
    baseline, problem = instance("p0", drawn), instance("units", drawn)
    worth = re.search(r"count (\d+) (\w+) for each of the", problem.question)
    assert f"Give the answer in {worth[2]}" in problem.question
    assert problem.answer == baseline.answer * int(worth[1])


@given(DRAWN)
def test_other_names_leave_everything_else(drawn):
    baseline, problem = instance("p0", drawn), instance("names", drawn)
    old, new = wording.first_names_in(baseline.question), wording.first_names_in(problem.question)
    assert list(old.values()) == list(new.values())
    assert not set(old) & set(new)
    question = problem.question
    for before, after in zip(old, new):
        question = question.replace(after, before)
    assert question == baseline.question
    assert problem.answer == baseline.answer


@given(DRAWN)
def test_an_irrelevant_sentence_and_its_control_differ_in_that_sentence_alone(drawn):
    baseline = instance("p0", drawn)
    for kind in ("none", "other", "same"):
        noop, control = instance(f"noop_{kind}", drawn), instance(f"control_{kind}", drawn)
        assert len(noop.question.split()) == len(control.question.split())
        before, last = wording.split_question(baseline.question)
        for problem in (noop, control):
            assert problem.answer == baseline.answer
            assert problem.question.startswith(before)
            assert problem.question.endswith(last)
        added_by_control = set(numbers(control)) - set(numbers(baseline))
        assert not added_by_control
        added = set(numbers(noop)) - set(numbers(baseline))
        assert len(added) == (kind != "none")
        # A distractor equals nothing that the solution has.
        results = {step.result for step in noop.steps}
        assert not added & results


def test_the_distractor_has_the_answers_unit_or_another_one():
    for place in range(0, len(TEMPLATES), 5):
        unit = wording.asked_unit(TEMPLATES[place].problem.question)
        sign = "$" if unit == "dollars" else unit
        same, other = instance("noop_same", (place, 1)), instance("noop_other", (place, 1))
        p0 = instance("p0", (place, 1))
        assert same.question.count(sign) == p0.question.count(sign) + 1
        assert other.question.count(sign) == p0.question.count(sign)


@given(DRAWN)
def test_larger_numbers_are_ten_times_as_large(drawn):
    problem, template = instance("larger", drawn), TEMPLATES[drawn[0]]
    for new, old, limit in zip(numbers(problem), template.values, template.limits):
        assert len(str(new)) == len(str(old)) + np.isinf(limit)


def test_sentences_are_split_after_their_end_only():
    question = (
        'Mr. Lee pays $2.50 for "bread." Dr. Lin pays $3. How much do Mrs. Lee and Ms. Ito pay?'
    )
    before, last = wording.split_question(question)
    assert last == "How much do Mrs. Lee and Ms. Ito pay?"
    assert wording.inserted(question, "It rains.") == f"{before} It rains. {last}"
    assert wording.split_question("How many?") == ("", "How many?")
    assert wording.inserted("How many?", "It rains.") == "It rains. How many?"


def test_what_a_question_asks_for_is_a_plural_or_nothing():
    assert wording.asked_unit("How many red marbles does Ann have?") == "red marbles"
    assert wording.asked_unit("How many more bags of chips are there?") == "bags of chips"
    assert wording.asked_unit("It costs $5. How much money is left?") == "dollars"
    assert wording.asked_unit("How much time is left?") == ""
    assert wording.asked_unit("What is the total?") == ""


def test_a_new_name_takes_the_genitive_of_its_own():
    renamed = wording.renamed(
        "James' hat and James’s coat are Ann's. James is here.", np.random.default_rng(0)
    )
    james, ann = wording.first_names_in(renamed)
    assert renamed == f"{james}'s hat and {james}’s coat are {ann}'s. {james} is here."
    assert wording.renamed("The dog sleeps.", np.random.default_rng(0)) == "The dog sleeps."
