"""The textbook: what is held out is new, answers follow from the text alone, and everything is a function of the seed."""

import json
import operator
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.textbook.draw import (
    NAMES,
    ONSETS,
    RESERVED_NAMES,
    RESERVED_NUMBERS,
    RESERVED_WORDS,
    WORDS,
)
from slmjax.textbook.passages import (
    KINDS,
    SPLITS,
    TEMPLATES,
    documents,
    extract_answer,
    passage,
    questions,
    write_corpus,
)

COUNT = 300
ANY = given(
    kind=st.sampled_from(KINDS),
    split=st.sampled_from(SPLITS),
    index=st.integers(0, 10**6),
    seed=st.integers(0, 10**6),
)


@pytest.fixture(scope="module")
def book():
    return {
        (kind, split): list(documents(kind, COUNT, seed=0, split=split))
        for kind in KINDS
        for split in SPLITS
    }


def everything(book, split):
    return [found for kind in KINDS for found in book[kind, split]]


def numbers_in(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def words_in(text):
    return set(re.findall(r"[A-Za-z]+", text))


def test_no_passage_is_in_both_splits_or_twice_in_one(book):
    train, heldout = ([found.text for found in everything(book, split)] for split in SPLITS)
    assert len(set(train)) == len(train) and len(set(heldout)) == len(heldout)
    assert not set(train) & set(heldout)


def test_every_heldout_passage_has_a_number_that_no_training_text_contains(book):
    trained = {number for found in everything(book, "train") for number in numbers_in(found.text)}
    assert not trained & set(RESERVED_NUMBERS)
    for found in everything(book, "heldout"):
        assert set(numbers_in(found.text)) - trained, found.text
    digits = {
        (place, digit)
        for number in trained
        if number < 100
        for place, digit in enumerate(f"{number:02d}")
    }
    assert {
        (place, digit) for number in RESERVED_NUMBERS for place, digit in enumerate(str(number))
    } <= digits


def test_operands_of_the_two_splits_are_disjoint(book):
    for kind in KINDS:
        train, heldout = ({found.operands for found in book[kind, split]} for split in SPLITS)
        assert all(train) and all(heldout) and not train & heldout


def test_heldout_names_and_words_never_stand_in_training_text(book):
    trained = set().union(*(words_in(found.text) for found in everything(book, "train")))
    assert not trained & set(RESERVED_NAMES) and not trained & set(RESERVED_WORDS)
    for found in everything(book, "heldout"):
        words = words_in(found.text)
        assert not words & set(NAMES) and not words & set(WORDS)
        assert found.names and set(found.names) <= words & set(RESERVED_NAMES)
    assert {onset for onset in ONSETS for name in NAMES if name.startswith(onset)} == set(ONSETS)


def test_each_kind_has_four_training_templates_and_one_that_only_heldout_passages_use(book):
    for kind in KINDS:
        train, heldout = ({found.template for found in book[kind, split]} for split in SPLITS)
        assert len(train) >= 4 and train < heldout
        assert heldout - train == {
            f"{t.problem.__name__}-{i}" for i, t in enumerate(TEMPLATES[kind]) if t.heldout
        }


def test_heldout_templates_use_only_words_that_training_uses(book):
    trained = set().union(*(words_in(found.text) for found in everything(book, "train")))
    for found in everything(book, "heldout"):
        assert words_in(found.text) - set(RESERVED_NAMES) - set(RESERVED_WORDS) <= trained, (
            found.text
        )


def test_passages_are_short_and_end_in_their_answer(book):
    for split in SPLITS:
        for found in everything(book, split):
            assert found.text.startswith(found.prompt + "\n") and found.text.endswith(
                f"\nAnswer: {found.answer}."
            )
            assert found.text.isascii() and len(found.text) <= 230
            assert extract_answer(found.text) == found.answer
            assert not any(line.split()[0] in found.names for line in found.text.split("\n"))
        lengths = [len(found.text) for found in everything(book, split)]
        assert 120 < sum(lengths) / len(lengths) < 220


@settings(max_examples=300, deadline=None)
@ANY
def test_every_equation_in_the_working_is_true(kind, split, index, seed):
    operations = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": Fraction}
    for a, sign, b, result in re.findall(
        r"(\d+) ([-+x/]) (\d+) = (\d+)", passage(kind, index, seed=seed, split=split).text
    ):
        assert operations[sign](int(a), int(b)) == int(result)


@settings(max_examples=600, deadline=None)
@ANY
def test_the_answer_follows_from_the_text_of_the_prompt(kind, split, index, seed):
    found = passage(kind, index, seed=seed, split=split)
    assert READERS[kind](found.prompt) == found.answer, found.text


def test_a_passage_is_a_function_of_its_arguments_in_every_process():
    code = "from slmjax.textbook.passages import *; print([passage(k, 7, seed=5, split=s).text for k in KINDS for s in SPLITS])"
    here = str([passage(kind, 7, seed=5, split=split).text for kind in KINDS for split in SPLITS])
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == here


def test_other_seeds_write_other_books():
    assert all(
        passage(kind, 0, seed=0, split="train") != passage(kind, 0, seed=1, split="train")
        for kind in KINDS
    )


def test_corpus_files_hold_the_passages_and_are_reused(tmp_path):
    files = write_corpus(tmp_path / "book", seed=1, train_per_kind=20, heldout_per_kind=5)
    for kind in KINDS:
        for key, split, count in (("path", "train", 20), ("heldout", "heldout", 5)):
            rows = [json.loads(line) for line in Path(files[kind][key]).read_text().splitlines()]
            expected = documents(kind, count, seed=1, split=split)
            assert [(row["text"], row["template"]) for row in rows] == [
                (found.text, found.template) for found in expected
            ]
            assert len({row["id"] for row in rows}) == count
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "book").iterdir()}
    assert write_corpus(tmp_path / "book", seed=1, train_per_kind=20, heldout_per_kind=5) == files
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "book").iterdir()} == before
    write_corpus(tmp_path / "book", seed=1, train_per_kind=21, heldout_per_kind=5)
    assert len(Path(files["units"]["path"]).read_text().splitlines()) == 21


def test_a_damaged_corpus_is_written_again(tmp_path):
    how = {"seed": 1, "train_per_kind": 3, "heldout_per_kind": 1}
    files = write_corpus(tmp_path, **how)
    whole = {
        path: path.read_bytes()
        for path in (
            tmp_path / "textbook.json",
            Path(files["units"]["path"]),
            Path(files["logic"]["heldout"]),
        )
    }
    for path, text in whole.items():
        for damaged in (text[:-9], text.replace(b"t", b"u", 1), b"[" * 100_000, b"\xff"):
            path.write_bytes(damaged)
            write_corpus(tmp_path, **how)
            assert path.read_bytes() == text


def test_a_half_written_corpus_is_written_again(tmp_path):
    files = write_corpus(tmp_path, seed=1, train_per_kind=5, heldout_per_kind=2)
    whole = Path(files["logic"]["path"]).read_text()
    (tmp_path / "textbook.json").unlink()
    Path(files["logic"]["path"]).write_text("torn")
    write_corpus(tmp_path, seed=1, train_per_kind=5, heldout_per_kind=2)
    assert Path(files["logic"]["path"]).read_text() == whole


def test_questions_are_heldout_prompts_with_the_chance_of_guessing():
    for kind in KINDS:
        asked = questions(kind, 40, seed=0)
        found = list(documents(kind, 40, seed=0, split="heldout"))
        assert [(question.prompt, question.answer) for question in asked] == [
            (one.prompt, one.answer) for one in found
        ]
        for question, one in zip(asked, found):
            assert (1 / len(one.choices) if one.choices else 0) <= question.chance < 0.6


def test_an_answer_is_read_only_from_a_complete_answer_line():
    assert extract_answer("2 + 3 = 5.\nAnswer: 5.\nAnswer: 6.") == "5"
    assert extract_answer("\nAnswer: 1, 2, 3.") == "1, 2, 3"
    assert (
        extract_answer("Answer: 5") is None
        and extract_answer("The answer is 5.") is None
        and extract_answer("") is None
    )


def test_unknown_kinds_and_splits_are_refused():
    with pytest.raises(ValueError, match="word_problems"):
        passage("poems", 0, seed=0, split="train")
    with pytest.raises(ValueError, match="heldout"):
        passage("logic", 0, seed=0, split="test")


# Readers: each solves the prompts of one kind from nothing but their text.


def read_word_problem(prompt):
    a, b, c = numbers_in(prompt)
    if "bags of" in prompt:
        return str(a + b * c)
    return str(a * b + c) if "Each day" in prompt else str(a + b - c)


def read_units(prompt):
    sizes = {"months": 1, "years": 12, "decades": 120, "inches": 1, "feet": 12, "yards": 36}
    sizes |= {"days": 1, "weeks": 7, "minutes": 1, "hours": 60}
    sizes |= {
        "millimeters": 1,
        "centimeters": 10,
        "meters": 1000,
        "cents": 1,
        "dollars": 100,
        "quarts": 1,
        "gallons": 4,
    }
    asked = re.search(r"[Hh]ow many (\w+)", prompt).group(1)
    return str(
        Fraction(
            sum(int(amount) * sizes[unit] for amount, unit in re.findall(r"(\d+) (\w+)", prompt)),
            sizes[asked],
        )
    )


def read_comparison(prompt):
    if "in order" in prompt:
        return ", ".join(map(str, sorted(numbers_in(prompt), reverse="largest" in prompt)))
    held = {name: int(number) for name, number in re.findall(r"(\w+) ha(?:s|ve) (\d+)", prompt)}
    if "How many more" in prompt:
        first, second = held.values()
        return str(first - second)
    return (max if re.search(r"\b(most|more)\b", prompt) else min)(held, key=held.get)


def read_sequence(prompt):
    numbers = numbers_in(prompt)
    if "doubles" in prompt:
        value, bound = numbers
        while not value > bound:
            value += value
        return str(value)
    if "three times" in prompt:
        return str(numbers[0] + 3 * numbers[1])
    return str(numbers[1] if "turns" in prompt else 2 * numbers[-1] - numbers[-2])


def read_logic(prompt):
    if older := re.findall(r"(\w+) is (\w+er) than (\w+)", prompt):
        (top,) = {first for first, _, _ in older} - {second for _, _, second in older}
        return top
    if "lamp" in prompt:
        x, joint, y = re.search(r"only if (\w+) (and|or) (\w+) ", prompt).groups()
        here = [f"{name} is in" in prompt.split("Now")[1] for name in (x, y)]
        return "yes" if (here[0] and here[1] if joint == "and" else here[0] or here[1]) else "no"
    if "more than" in prompt:
        limit, owned = numbers_in(prompt)
        return "yes" if owned > limit else "no"
    quantifier, trait = re.search(r"\b(all|no) \w+ are (\w+)", prompt).groups()
    assert prompt.endswith(f" {trait}?")
    return "yes" if quantifier == "all" else "no"


def read_definition(prompt):
    numbers = numbers_in(prompt)
    if "to add" in prompt:
        return str(sum(numbers))
    if "coins" in prompt:
        return "yes" if numbers[1] > numbers[0] else "no"
    return re.search(r"means (\w+)", prompt).group(1) if "means" in prompt else str(numbers[0])


READERS = dict(
    zip(
        KINDS,
        (
            read_word_problem,
            read_units,
            read_comparison,
            read_sequence,
            read_logic,
            read_definition,
        ),
    )
)
