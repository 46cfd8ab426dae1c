"""The plan: items are functions of seed and number, combinations come up equally often, prompts say what they must."""

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.synthesize import subjects
from slmjax.synthesize.plan import (
    AUDIENCES,
    FORMATS,
    PASSAGE_CHARACTERS,
    DocumentPlan,
    key,
    opening,
    prompt,
)
from slmjax.synthesize.plan_inputs import read_seeds, read_topics
from slmjax.synthesize.synthesize_settings import chosen
from slmjax.textbook.passages import KINDS

TOPICS = subjects.topics()


def plan(seed=0, topics=TOPICS, audiences=tuple(AUDIENCES), formats=tuple(FORMATS), **more):
    return DocumentPlan(seed=seed, topics=topics, audiences=audiences, formats=formats, **more)


def test_the_subject_tree_names_each_topic_once_and_has_one_for_each_kind_of_problem():
    assert len(TOPICS) == len(set(TOPICS)) > 190 and all(
        topic.count(" > ") == 2 for topic in TOPICS
    )
    assert set(subjects.KINDS) == set(KINDS) and set(subjects.KINDS.values()) <= set(TOPICS)


@given(st.integers(0, 10**6), st.integers(0, 10**5))
def test_an_item_is_a_function_of_seed_and_number(seed, number):
    one, other = plan(seed), plan(seed)
    other.item(number // 2)  # whatever was asked for before
    assert one.item(number) == other.item(number)
    assert prompt(one.item(number)) == prompt(other.item(number))


def test_prompts_are_the_same_in_every_process():
    code = (
        "from slmjax.synthesize.plan import *; from slmjax.synthesize.subjects import topics\n"
        "p = DocumentPlan(seed=3, topics=topics(), audiences=tuple(AUDIENCES), formats=tuple(FORMATS), passages=['a b ' * 900, 'c ' * 900])\n"
        "print([prompt(p.item(i)) for i in range(50)], key('m', 'text', {'b': 1, 'a': 2.5}))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    here = plan(3, passages=["a b " * 900, "c " * 900])
    assert (
        runs[0]
        == runs[1]
        == f"{[prompt(here.item(i)) for i in range(50)]} {key('m', 'text', {'a': 2.5, 'b': 1})}\n"
    )


def test_every_combination_comes_up_once_in_a_cycle_and_each_cycle_in_another_order():
    small = plan(topics=("a", "b", "c"), audiences=("x", "y"), formats=("faq", "table"))
    cycles = [
        [(i.topic, i.audience, i.format) for i in map(small.item, range(12 * n, 12 * n + 12))]
        for n in range(3)
    ]
    assert all(Counter(cycle) == Counter(cycles[0]) and len(set(cycle)) == 12 for cycle in cycles)
    assert cycles[0] != cycles[1] != cycles[2]


def test_requests_differ_from_each_other_and_with_the_model_and_the_parameters():
    items = list(map(plan().item, range(3000)))
    assert len({key("m", prompt(item), {"seed": item.number}) for item in items}) == 3000
    assert (
        len({key(m, t, p) for m in "ab" for t in "ab" for p in ({}, {"seed": 1}, {"seed": 2})})
        == 12
    )


def test_a_prompt_has_topic_audience_format_and_a_piece_of_the_passage():
    passage = " ".join(f"word{i}" for i in range(1000))
    for number in range(100):
        item = plan(passages=[passage]).item(number)
        text = prompt(item)
        assert (
            item.topic.split(" > ")[-1] in text
            and AUDIENCES[item.audience] in text
            and FORMATS[item.format] in text
        )
        piece = text.split("---\n")[1].rstrip("\n-")
        assert piece == item.passage and 0 < len(piece) <= PASSAGE_CHARACTERS
        assert f" {piece} " in f" {passage} "  # whole words
        assert all(problem.prompt in text for problem in item.problems)


def test_problems_are_given_where_a_topic_has_some_and_no_two_documents_share_their_numbers():
    items = list(map(plan(solved=True).item, range(6 * 4 * len(TOPICS))))
    with_problems = [item for item in items if item.problems]
    assert {item.topic for item in with_problems} == set(subjects.KINDS.values())
    assert {item.format for item in with_problems} == set(FORMATS)
    told = [problem.prompt for item in with_problems for problem in item.problems]
    assert len(set(told)) > 0.99 * len(told)
    unsolved = map(plan().item, range(2000))
    assert {item.format for item in unsolved if item.problems} == {"problems", "reasoning"}


def test_a_model_of_our_own_is_given_the_problem_or_a_title():
    for item in map(plan(solved=True).item, range(2000)):
        assert opening(item) == (
            f"{item.problems[0].prompt}\n"
            if item.problems
            else f"# {item.topic.split(' > ')[2].capitalize()}\n\n"
        )


def test_topics_are_the_lines_of_a_file(tmp_path):
    (tmp_path / "topics.txt").write_text("# mine\nknots > sailing\n\n  flags\nflags\n")
    assert read_topics(str(tmp_path / "topics.txt")) == ["knots > sailing", "flags"]
    assert read_topics("") == TOPICS
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf# mine\nknots\n")  # with a byte-order mark
    assert read_topics(str(tmp_path / "marked.txt")) == ["knots"]
    for content, told in (
        (b"# none\n", "has no topic"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "No such file"),
    ):
        place = tmp_path / "bad.txt"
        place.unlink(missing_ok=True)
        if content is not None:
            place.write_bytes(content)
        with pytest.raises(UserError, match=rf"config\.synthesize\.topics: '.*bad\.txt'.*{told}"):
            read_topics(str(place))


def test_passages_that_are_not_there_are_named_as_passages(tmp_path):
    with pytest.raises(
        UserError, match=r"^config.synthesize.passages.a: '.*a.jsonl' matches no file"
    ):
        read_seeds(f"{tmp_path}/a.jsonl")


def test_passages_are_documents_of_the_sources_a_user_names(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": " "}\nbroken\n{"text": "two"}\n')
    assert read_seeds(f"{tmp_path}/a.jsonl") == ["one", "two"] and read_seeds("") == []


def test_an_unknown_format_is_told_with_the_nearest():
    assert chosen("formats", "faq, table", tuple(FORMATS)) == ("faq", "table")
    with pytest.raises(
        UserError,
        match=r"config\.synthesize\.formats: there is no 'dialog'.* Did you mean 'dialogue'\?",
    ):
        chosen("formats", ("dialog",), tuple(FORMATS))
    with pytest.raises(UserError, match="is empty"):
        chosen("formats", (), tuple(FORMATS))


def test_a_topic_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "topics.txt").write_bytes("\ufeffknots > sailing\n".encode())
    assert read_topics(str(tmp_path / "topics.txt")) == ["knots > sailing"]


def test_pieces_of_a_passage_without_blanks_come_from_all_of_it():
    passage = "".join(chr(0x4E00 + i) for i in range(8000))
    places = {passage.index(plan(passages=[passage]).item(number).passage) for number in range(50)}
    assert len(places) > 40 and max(places) > 6000
