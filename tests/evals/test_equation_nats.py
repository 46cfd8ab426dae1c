"""Nats of gold equations: which tokens count, and the development set in the stage evaluate."""

import json

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evals import evaluation_items
from slmjax.evals.development_set import question_id
from slmjax.evals.equation_nats import equation_nats, equation_pairs
from slmjax.evals.evaluate_stage import examined_run
from slmjax.evals.evaluation_items import read_set
from tests.evals.test_evaluate_stage import evaluate, write_items

SOLUTION = "Sie kauft für 3 Tage 3*4 = <<3*4=12>>12 Äpfel.\nDann <<12-5=7>>7.\n#### 7"


@pytest.fixture(scope="module")
def model(undisturbed):
    return examined_run(str(undisturbed), ())[0]


@pytest.mark.parametrize("chat", [True, False])
def test_the_tokens_of_an_equation_are_those_that_hold_its_characters(model, chat):
    tokenizer = model.loaded.tokenizer
    pairs = equation_pairs(tokenizer, [5, 6], SOLUTION, chat)
    token_bytes = tokenizer.token_bytes()
    text = (SOLUTION if chat else f" {SOLUTION}").encode()
    for pair, equation in zip(pairs, (b"3*4=12", b"12-5=7"), strict=True):
        assert pair.context[:2] == [5, 6]
        before = b"".join(token_bytes[number] for number in pair.context[2:])
        scored = b"".join(token_bytes[number] for number in pair.continuation)
        assert text.startswith(before + scored) and equation in scored
        # Neither the first nor the last token could be left out.
        for rest in (pair.continuation[1:], pair.continuation[:-1]):
            assert equation not in b"".join(token_bytes[number] for number in rest)
    assert not equation_pairs(tokenizer, [5], "No equation. #### 7", chat)


def test_nats_of_a_problem_are_the_sum_over_its_equations(model):
    tokenizer = model.loaded.tokenizer
    short = "<<1+2=3>>3"
    pairs = [equation_pairs(tokenizer, [7], short, False), []]
    pairs.append(equation_pairs(tokenizer, [8], f"{short} <<3-1=2>>2", False))
    nats, tokens = equation_nats(model.scorer, pairs)
    expected = [sum(-model.scorer.alone(pair)[0] for pair in of_problem) for of_problem in pairs]
    np.testing.assert_allclose(nats, expected, rtol=1e-4)
    assert tokens.tolist() == [sum(len(pair.continuation) for pair in each) for each in pairs]


def test_the_development_set_is_measured_and_is_no_look(undisturbed, tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    monkeypatch.setenv("SLMJAX_SHARED", str(shared))
    records = [
        {"question": f"{n}+2?", "answer": f"<<{n}+2={n + 2}>>\n#### {n + 2}"} for n in range(6)
    ]
    write_items(shared / "gsm8k" / "train.jsonl", *records)
    with pytest.raises(UserError, match="expected all 7,473 of GSM8K train"):
        read_set("gsm8k_dev", {}, 0, 0)

    def groups(questions):
        return {question_id(question): n // 2 for n, question in enumerate(questions) if n < 4}

    monkeypatch.setattr(evaluation_items, "development_groups", groups)
    found = read_set("gsm8k_dev", {}, 0, 0)
    assert [item.neighbours for item in found.items] == [0, 0, 1, 1] and not found.is_test
    run = tmp_path / "runs" / "base"
    run.parent.mkdir()
    run.symlink_to(undisturbed)
    flags = ("max_tokens=4", "samples=2")
    assert evaluate(run, tmp_path / "dev", *flags, part="development") == 0
    results = json.loads((tmp_path / "dev" / "results.json").read_text())
    figures = results["tasks"]["gsm8k_dev-0-shot"]["figures"]
    assert list(figures)[:2] == ["equation_nats", "exact"] and figures["pass@2"]["count"] == 4
    assert figures["equation_nats"]["low"] <= figures["equation_nats"]["value"] > 0
    assert results["looks"] == {}
