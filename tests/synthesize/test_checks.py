"""What is rejected and why: each rule on texts that it must and must not stop, and arithmetic against Python's own."""

import dataclasses
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.synthesize.checks import (
    answers,
    calculations,
    format_fault,
    judge_text,
    same_answer,
    without_thoughts,
)
from slmjax.synthesize.plan import FORMATS, DocumentPlan, Item
from slmjax.synthesize.subjects import KINDS
from tests.synthesize.server import article

PLAIN = Item(0, "rivers", "", "adults", "section", "", (), "")


def solved(form, kind="word_problems"):
    return DocumentPlan(
        seed=1, topics=[KINDS[kind]], audiences=["adults"], formats=[form], solved=True
    ).item(0)


REASONS = {
    "": "empty",
    " \n": "empty",
    "I'm sorry, but I cannot help with that." + " word" * 100: "refusal",
    "As an AI, I have no view. # Title" + " word" * 100: "refusal",
    "# Title\n\nFew words.": "too short",
    "I’m sorry, but I cannot help with that." + " word" * 100: "refusal",
    "No title" + " word" * 100: "no title or heading",
    article("a") + " So 12 + 5 = 18.": "false equation: 12 + 5 = 18",
    article("a"): "",
}


@pytest.mark.parametrize("text", REASONS)
def test_a_text_is_rejected_for_its_first_fault(text):
    assert judge_text(PLAIN, text, "stop")[0] == REASONS[text]


def test_a_text_that_was_cut_is_rejected_and_what_was_checked_is_told():
    assert judge_text(PLAIN, article("a"), "length") == ("cut at max_tokens", "")
    assert judge_text(PLAIN, article("a"), "stop") == ("", "equations")
    assert judge_text(PLAIN, "# Title\n" + "word " * 100, "stop") == ("", "")


def test_an_answer_that_ended_for_another_reason_is_rejected_with_it():
    for finish in ("content_filter", "abort", "tool_calls", "error"):
        assert judge_text(PLAIN, article("a"), finish) == (f"ended by {finish}", "")


THOUGHTS = {
    f"<think>\nI plan it.\n</think>\n\n{article('a')}": "",
    f"I plan it.\n</think>\n\n{article('a')}": "",
    f" <think>one</think>\n<thinking>two</thinking>{article('a')}": "",
    f"[THINK]I plan it.[/THINK]{article('a')}": "",
    f"◁think▷I plan it.◁/think▷{article('a')}": "",
    f"<|channel|>analysis<|message|>I plan it.<|end|><|start|>assistant<|channel|>final<|message|>{article('a')}": "",
    f"<think>{article('a')}": "only thoughts",
    f"<think>{article('a')}</think>\n": "only thoughts",
    f"# Title\n<think>I plan it.</think>\n{article('a')}": "thoughts in the text",
    f"{article('a')}<|im_end|>": "special token in the text: <|im_end|>",
}


@pytest.mark.parametrize("text", THOUGHTS)
def test_the_thoughts_of_a_model_are_in_no_document(text):
    reason = judge_text(PLAIN, text, "stop")[0]
    assert reason == THOUGHTS[text]
    assert reason or without_thoughts(text) == article("a")


def test_a_text_without_thoughts_stays_byte_for_byte():
    assert without_thoughts("\n a <b> text \n") == "\n a <b> text \n"
    assert judge_text(PLAIN, "<think>hm", "length")[0] == "only thoughts, which used up max_tokens"


WRITTEN = {
    "zh": "三角形的内角和等于一百八十度。",
    "ja": "三角形の内角の和は百八十度です。",
    "th": "มุมภายในของรูปสามเหลี่ยมรวมกันได้หนึ่งร้อยแปดสิบองศา ",
}


@pytest.mark.parametrize("code", WRITTEN)
def test_length_in_scripts_without_spaces_is_counted_in_characters(code):
    assert judge_text(PLAIN, f"# 1\n\n{WRITTEN[code] * 30}", "stop")[0] == ""
    assert judge_text(PLAIN, f"# 1\n\n{WRITTEN[code] * 2}", "stop")[0] == "too short"
    form = dataclasses.replace(PLAIN, format="faq")
    assert judge_text(form, f"Q：1\nA：{WRITTEN[code] * 30}\n" * 3, "stop")[0] == ""


def reasoned(item, answer):
    return f"Problem: {item.problems[0].prompt}\nStep 1: think about it for a while.\nStep 2: say it.\nAnswer: {answer}"


def test_an_answer_is_compared_with_the_computed_one():
    item = solved("reasoning")
    right = int(item.problems[0].answer)
    for told in (f"{right}", f"{right}.", f"**{right}**", f"${right}.00", f" {right}.0 "):
        assert judge_text(item, reasoned(item, told), "stop") == ("", "answers"), told
    assert (
        judge_text(item, reasoned(item, right + 1), "stop")[0]
        == f"wrong answer: {right + 1} instead of {right}"
    )
    assert judge_text(item, reasoned(item, f"{right} pens"), "stop")[0].startswith("wrong answer")
    assert (
        judge_text(item, reasoned(item, f"{right}\nAnswer: {right}"), "stop")[0]
        == "no steps with one answer"
    )


def test_a_problem_set_needs_as_many_right_answers_as_problems():
    item = solved("problems")
    text = "\n".join(
        f"Problem {i}: {p.prompt}\nSome words of working.\nAnswer: {p.answer}."
        for i, p in enumerate(item.problems, 1)
    )
    assert judge_text(item, text, "stop") == ("", "answers")
    last = item.problems[-1]
    assert judge_text(item, text.replace(f"Answer: {last.answer}.", ""), "stop")[0] in (
        "3 answers to 4 problems",
        "2 answers to 4 problems",
    )
    swapped = text.replace(f"Answer: {last.answer}.", "Answer: 1000.")
    assert judge_text(item, swapped, "stop")[0] == f"wrong answer: 1000 instead of {last.answer}"


FORMED = {
    "section": ("# Title\ntext", "Title\ntext"),
    "problems": ("Problem 1\nAnswer: 3", "Problem 1\nno"),
    "reasoning": ("Say\nStep 1: so\nAnswer: 3", "Say\nAnswer: 3\nAnswer: 4"),
    "faq": ("Q: a\nA: b\nQ: c\nA: d\n**Q:** e\n**A:** f", "Q: a\nA: b\nQ: c\nA: d\nQ: e"),
    "table": ("|a|b|\n|-|-|\n|1|2|\n|3|4|\n|5|6|", "|a|b|\n|-|-|\n|1|2|\n|3|4|5|\n|5|6|"),
    "dialogue": (
        "Teacher: a\nStudent: b\nTeacher: c\nStudent: d\nTeacher: e",
        "Teacher: a\nTeacher: b\nTeacher: c",
    ),
}


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_known_by_its_form(form):
    good, bad = FORMED[form]
    assert format_fault(form, good) == "" != format_fault(form, bad)


def test_answers_are_read_from_lines_cells_and_ends_of_turns():
    text = "Answer: 42.\nFinal **Answer:** 7\n| a | b | Answer: yes. |\nStudent: So it is 3. Answer: 1, 2, 3.\nThe answer is 9.\nanswer: x"
    assert answers(text) == ["42", "7", "yes", "1, 2, 3", "x"]


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("42", "42.0", True),
        ("1,000", "1000", True),
        ("1/2", "0.5", True),
        ("Ana", "ana", True),
        ("$5", "5", True),
        ("1, 2, 3", "1, 2, 3", True),
        ("1, 2, 3", "1, 3, 2", False),
        ("42", "43", False),
        ("yes", "no", False),
        ("1/0", "0", False),
        ("", "0", False),
    ],
)
def test_answers_agree_as_numbers_or_as_words(one, other, agree):
    assert same_answer(one, other) is agree


CALCULATIONS = {
    "2 + 3 = 5": [True],
    "2 + 3 = 6": [False],
    "1 + 2 + 3 = 6": [True],
    "2 + 3 x 4 = 14": [True],
    "2 + 3 x 4 = 20": [False],
    "10 / 3 = 3.33": [True],
    "10 / 3 = 3.34": [False],
    "10 ÷ 4 = 2.5": [True],
    "1,000 + 1 = 1,001": [True],
    "5 - 8 = -3": [True],
    "5 − 8 = 3": [False],
    "0.1 + 0.2 = 0.3": [True],
    "3 × 4 = 12 and 12 + 1 = 14": [True, False],
    "6*7=42": [True],
    "2 + 2 = 4.": [True],
    # What is no whole equation of numbers is left alone.
    "x + 2 + 3 = 6": [],
    "2x + 3 = 7": [],
    "2 + 3 = 5 + y": [],
    "n x 2 + 3 = 8": [],
    "2^3 + 1 = 10": [],
    "(1 + 2) x 3 = 9": [],
    "50 % + 1 = 3": [],
    "5 / 0 = 5": [],
    "a1 + 2 = 4": [],
    "3 + 4 = x": [],
    "2 + 2 = 22 %": [],
    "1 + 1 = 2x": [],
}


@pytest.mark.parametrize("text", CALCULATIONS)
def test_calculations_are_done_again_and_nothing_else_is_taken_for_one(text):
    assert [holds for _, holds in calculations(text)] == CALCULATIONS[text]


@given(
    st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(1, 99)), min_size=1, max_size=4),
    st.integers(0, 99),
    st.integers(-2, 2),
)
def test_arithmetic_agrees_with_pythons(pieces, first, off):
    expression = str(first) + "".join(f" {sign} {number}" for sign, number in pieces)
    value = eval(
        f"Fraction({first})" + "".join(f" {sign} Fraction({number})" for sign, number in pieces),
        {"Fraction": Fraction},
    )
    if value.denominator == 1:
        ((_, holds),) = calculations(f"So {expression} = {value + off}.")
        assert holds is (off == 0)


def test_no_text_makes_the_checks_fail():
    rng, items = random.Random(0), (PLAIN, solved("table"))
    for _ in range(3000):
        text = "".join(rng.choice("12.,+-*/x÷=()|%: \n#AQa'$") for _ in range(rng.randrange(60)))
        for item in items:
            judge_text(item, text, "stop")
