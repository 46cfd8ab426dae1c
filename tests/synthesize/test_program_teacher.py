"""The embedded teacher: every document stands the checks, and a second reader solves its problems from their text alone."""

import operator
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from slmjax.synthesize import program_teacher as program
from slmjax.synthesize.checks import answers, judge_text
from slmjax.synthesize.lessons import GREETINGS, LESSONS
from slmjax.synthesize.plan import AUDIENCES, FORMATS, DocumentPlan
from slmjax.synthesize.subjects import KINDS
from slmjax.textbook.draw import RESERVED_NAMES, RESERVED_NUMBERS, RESERVED_WORDS
from tests.textbook.test_passages import READERS

COUNT = 6 * 4 * 6 * 3


@pytest.fixture(scope="module")
def book():
    """(item, text) of three documents of each combination."""
    plan = DocumentPlan(
        seed=5,
        topics=list(KINDS.values()),
        audiences=tuple(AUDIENCES),
        formats=tuple(FORMATS),
        solved=True,
    )
    return [(item, program.write_document(item, 5)) for item in map(plan.item, range(COUNT))]


def test_every_document_stands_every_check(book):
    assert all(judge_text(item, text, "stop") == ("", "answers") for item, text in book)


def test_an_independent_reader_finds_the_answers_from_the_questions_in_the_text(book):
    """The readers of the textbook's tests solve a question from its words; here they are given what stands in the document."""
    for item, text in book:
        told = answers(text)
        assert len(told) == len(item.problems) > 0
        for problem, answer in zip(item.problems, told):
            assert text.count(problem.prompt) == 1
            assert READERS[item.kind](problem.prompt) == answer


def test_every_equation_in_the_text_is_true(book):
    operations, count = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": Fraction}, 0
    for _, text in book:
        for a, sign, b, result in re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", text):
            assert operations[sign](int(a), int(b)) == int(result)
            count += 1
    assert count > COUNT


def test_answers_come_after_their_questions_and_in_their_order(book):
    for item, text in book:
        place = 0
        for problem in item.problems:
            place = text.index(problem.prompt, place)
            place = text.index(f"Answer: {problem.answer}.", place)


def test_what_the_textbook_holds_out_stands_in_no_document(book):
    for _, text in book:
        words = set(re.findall(r"[A-Za-z]+", text))
        assert not words & {*RESERVED_NAMES, *RESERVED_WORDS}
        assert not set(map(int, re.findall(r"\d+", text))) & set(RESERVED_NUMBERS)


def test_no_two_documents_are_the_same_and_formats_look_as_they_should(book):
    assert len({text for _, text in book}) == COUNT
    looks = {
        "section": "\n## ",
        "problems": "\nProblem 2\n",
        "reasoning": "\nStep 2: ",
        "faq": "\nQ: ",
        "table": "| --- |",
        "dialogue": "\nStudent: ",
    }
    for item, text in book:
        if not (item.format == "reasoning" and len(program.worked_steps(item.problems[0])) == 1):
            assert looks[item.format] in text
        assert text == text.strip() and text.isascii() and 40 <= len(text.split()) <= 400


def test_steps_are_the_working_and_nothing_else(book):
    for item, _ in book:
        for problem in item.problems:
            plain = [
                re.sub(r"[^a-z0-9]", "", " ".join(text).lower())
                for text in ([program.working(problem)], program.worked_steps(problem))
            ]
            assert plain[0].replace("and", "") == plain[1].replace("and", "")


def test_each_kind_has_a_lesson_of_whole_sentences_without_numbers_and_each_audience_a_greeting():
    assert set(LESSONS) == set(KINDS) and set(GREETINGS) == set(AUDIENCES)
    for lesson in LESSONS.values():
        sentences = [*lesson.ideas, *lesson.methods, *lesson.mistakes, *lesson.checks]
        assert len(set(sentences)) == len(sentences) and not any(
            re.search(r"\d", text) for text in (*sentences, *lesson.titles)
        )
        assert all(text.endswith(".") and text[0].isupper() for text in sentences)


def test_documents_are_the_same_in_every_process_and_others_for_another_seed(book):
    code = (
        "from slmjax.synthesize import program_teacher as program\nfrom slmjax.synthesize.plan import *\n"
        "from slmjax.synthesize.subjects import KINDS\n"
        "p = DocumentPlan(seed=5, topics=list(KINDS.values()), audiences=tuple(AUDIENCES), formats=tuple(FORMATS), solved=True)\n"
        "print([program.write_document(p.item(i), 5) for i in range(60)])"
    )
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout == f"{[text for _, text in book[:60]]}\n"
    other = DocumentPlan(
        seed=6,
        topics=list(KINDS.values()),
        audiences=tuple(AUDIENCES),
        formats=tuple(FORMATS),
        solved=True,
    )
    assert not {program.write_document(other.item(i), 6) for i in range(60)} & {
        text for _, text in book
    }
