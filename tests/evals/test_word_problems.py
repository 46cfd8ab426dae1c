"""Word problems are read as they are written, and their steps are taken apart without loss."""

import json
import lzma
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.evals import word_problems as wp

SHARED = Path(os.environ.get("SLMJAX_SHARED", Path(__file__).parents[2] / "../shared/data"))
TRAIN = SHARED / "gsm8k" / "train.jsonl.xz"
CLIPS = {
    "question": "Ann sold 1,048 clips in April at 5% tax, and half as many in May. How many in all?",
    "answer": "May: <<1,048/2=524>>524.\nIn all <<1048+524=1572>>1,572.\n#### 1,572",
}
NUMBERS = st.integers(0, 99).map(str) | st.sampled_from(["2.5", ".5", "120.75"])
EQUATIONS = st.recursive(
    NUMBERS,
    lambda inner: st.builds(
        "{}{}{}".format,
        inner | inner.map("({})".format),
        st.sampled_from("+-*/"),
        inner | inner.map("({})".format),
    ),
    max_leaves=8,
)


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def python_value(expression):
    return eval(re.sub(r"\d*\.?\d+", lambda number: f"Fraction('{number[0]}')", expression))


@given(EQUATIONS)
def test_a_step_has_the_value_that_python_computes(expression):
    step = wp.parse_step(f"{expression}=0")
    try:
        expected = python_value(expression)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            wp.evaluate(step.tree, step.operands)
        return
    assert wp.evaluate(step.tree, step.operands) == expected


@given(EQUATIONS)
def test_a_step_that_is_written_and_read_again_keeps_its_numbers_and_value(expression):
    step = wp.parse_step(f"{expression}=1")
    operands = [str(float(value)) for value in step.operands]
    again = wp.parse_step(f"{wp.write_tree(step.tree, operands)}=1")
    assert again.operands == step.operands
    assert again.skeleton == step.skeleton
    try:
        value = wp.evaluate(step.tree, step.operands)
    except ZeroDivisionError:
        return
    assert wp.evaluate(again.tree, again.operands) == value


@pytest.mark.parametrize(
    "text", ["3*4", "3**4=81", "(3+4=7", "3 4=7", "x+1=2", "=3", "3+=3", "560//10=56", "3=x"]
)
def test_what_is_no_equation_is_refused(text):
    with pytest.raises(ValueError):
        wp.parse_step(text)


def test_operands_come_from_the_question_earlier_results_words_and_cued_constants(tmp_path):
    (problem,), faults = wp.read_problems(write_jsonl(tmp_path / "a.jsonl", [CLIPS]))
    assert not faults
    assert problem.answer == 1572
    assert wp.operator_skeleton(problem) == ("x/x", "x+x")
    assert wp.data_flow(problem) == ("q0/w2", "q0+r0")
    half = wp.Origin("word", 2)
    assert wp.operand_origins(problem)[0] == [[wp.Origin("question", 0)], [half]]
    tax = wp.WordProblem(CLIPS["question"], "", Fraction(0), (wp.parse_step("1048*.05=52.4"),))
    assert wp.data_flow(tax) == ("q0*p1",)
    weeks = wp.WordProblem(
        "He runs 3 km a day for 2 weeks.",
        "",
        Fraction(0),
        (wp.parse_step("2*7=14"), wp.parse_step("14*9=126")),
    )
    assert wp.data_flow(weeks) == ("q1*c7", "r0*?")


def test_numbers_are_found_where_they_stand():
    question = "It costs $1,250.50, or 12.5 percent of 3/4 of 10,000; see 1,2 and 5%."
    numbers = wp.question_numbers(question)
    texts = [question[number.start : number.end] for number in numbers]
    assert texts == ["1,250.50", "12.5", "3", "4", "10,000", "1", "2", "5"]
    assert [text for text, number in zip(texts, numbers) if number.percent] == ["12.5", "5"]
    assert wp.word_values("Twenty-five boys eat half a dozen.") == {20, 5, 25, 2, 12}


def test_faults_are_counted_and_mostly_faulty_files_are_refused(tmp_path):
    no_equation = {"question": "How many?", "answer": "<<2 times 3=6>>6\n#### 6"}
    records = [
        CLIPS,
        CLIPS,
        CLIPS,
        CLIPS,
        no_equation,
        {"question": "How many?"},
        {"question": "", "answer": "#### 1"},
    ]
    problems, faults = wp.read_problems(write_jsonl(tmp_path / "some.jsonl", records))
    assert len(problems) == 5
    assert problems[-1].steps == ()
    assert faults == {"annotation is no equation": 1, "no answer": 1, "no question": 1}
    with pytest.raises(UserError, match=r"0 of 2 records are word problems .*no final answer"):
        wp.read_problems(
            write_jsonl(tmp_path / "none.jsonl", [{"question": "Q", "answer": "6"}] * 2)
        )
    with pytest.raises(UserError, match="word problems"):
        wp.read_problems(write_jsonl(tmp_path / "empty.jsonl", []))
    with pytest.raises(UserError, match="missing"):
        wp.read_problems(tmp_path / "missing.jsonl")


def test_of_gsm8k_every_annotation_but_two_is_an_equation_that_is_true():
    if not TRAIN.exists():
        pytest.skip("set SLMJAX_SHARED to the folder that holds gsm8k/")
    problems, faults = wp.read_problems(TRAIN)
    assert faults == {"annotation is no equation": 2}
    with lzma.open(TRAIN, "rt") as lines:
        assert len(problems) == sum(1 for _ in lines)
    for problem in problems:
        for step in problem.steps:
            assert wp.evaluate(step.tree, step.operands) == step.result
