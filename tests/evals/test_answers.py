"""Exact-answer accuracy: what counts as right, and that nothing is mixed up between kinds."""

import pytest

from slmjax.evals.answers import exact_answers
from slmjax.textbook.passages import KINDS, Question, documents, extract_answer, questions


def test_the_books_own_working_scores_one_and_anothers_scores_zero():
    asked = {kind: questions(kind, 12, seed=3) for kind in KINDS}
    texts = {
        passage.prompt: passage.text
        for kind in KINDS
        for passage in documents(kind, 12, seed=3, split="heldout")
    }
    right = exact_answers(
        lambda prompts: [texts[prompt][len(prompt) :] for prompt in prompts],
        asked,
        extract=extract_answer,
    )
    wrong = exact_answers(
        lambda prompts: ["\nAnswer: 1000000." for _ in prompts], asked, extract=extract_answer
    )
    assert {kind: result["accuracy"] for kind, result in right.items()} == dict.fromkeys(KINDS, 1.0)
    assert {kind: result["accuracy"] for kind, result in wrong.items()} == dict.fromkeys(KINDS, 0.0)
    assert all(result["count"] == 12 and 0 <= result["chance"] < 1 for result in right.values())


def test_accuracy_and_chance_are_means_over_the_kinds_own_questions():
    asked = {
        "sums": [Question("1 + 1?", "2", 0.1), Question("1 + 2?", "3", 0.3)],
        "names": [Question("Who?", "Ana", 0.5)],
        "none": [],
    }
    said = {"1 + 1?": "\nAnswer: 2.\nMore", "1 + 2?": "\nAnswer: 33.", "Who?": " Answer: Ana."}
    assert exact_answers(
        lambda prompts: [said[prompt] for prompt in prompts], asked, extract=extract_answer
    ) == {
        "sums": {"accuracy": 0.5, "chance": 0.2, "count": 2},
        "names": {"accuracy": 1.0, "chance": 0.5, "count": 1},
    }


def test_a_completion_too_few_is_an_error():
    with pytest.raises(ValueError, match="1 prompts were given, 0 completions"):
        exact_answers(
            lambda prompts: [],
            {"sums": [Question("1 + 1?", "2", 0.1)]},
            extract=extract_answer,
        )
