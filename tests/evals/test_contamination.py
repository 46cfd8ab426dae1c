"""Evaluation items in the training text: counted in the results, scored without, never silently skipped."""

import dataclasses
import json
import shutil

import pytest
from etils import epath

from slmjax.evals import contamination, evaluate_stage
from slmjax.evals.evaluation_items import QuestionItem
from slmjax.evals.evaluation_text import contamination_line, copies_in_brief
from slmjax.evals.question_answers import asked_places
from slmjax.infer.load import load_model
from tests.evals.test_evaluate_stage import evaluate, write_items
from tests.evals.test_training_coverage import OTHER, QUESTION, UNSEEN

SHORT = "1+2?"


@pytest.fixture
def parent(undisturbed, tmp_path):
    """A copy of a run, whose config says that it has read QUESTION."""
    place = shutil.copytree(undisturbed, tmp_path / "runs" / "parent")
    path = write_items(
        tmp_path / "texts" / "web.jsonl", {"text": f"Once. {QUESTION}"}, {"text": "x"}
    )
    config = json.loads((place / "config.json").read_text())
    config["data"]["sources"] = {"web": str(path)}
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.fixture
def child(parent, undisturbed, tmp_path, monkeypatch):
    """A run without any item in its own text that is taken to have started from `parent`."""
    place = tmp_path / "runs" / "child"
    place.symlink_to(undisturbed)
    load = evaluate_stage.load_model

    def load_child(*words, **settings):
        loaded = load(*words, **settings)
        ancestor = {**loaded.lineage[0], "workdir": str(parent)}
        return dataclasses.replace(loaded, lineage=[*loaded.lineage, ancestor])

    monkeypatch.setattr(evaluate_stage, "load_model", load_child)
    return place


@pytest.fixture
def mine(tmp_path):
    questions = (UNSEEN, QUESTION, SHORT)
    records = [{"query": text, "choices": ["a", "b"], "gold": 0} for text in questions]
    return write_items(tmp_path / "mine.jsonl", *records)


def results_of(run, mine, workdir):
    assert evaluate(run, workdir, f"files.mine={mine}", part="files") == 0
    return json.loads((workdir / "results.json").read_text())


def test_an_item_that_an_ancestor_has_read_is_counted_and_left_out(
    child, parent, mine, tmp_path, monkeypatch, capsys
):
    results = results_of(child, mine, tmp_path / "out")
    task = results["tasks"]["mine"]
    assert results["contamination"]["sets"]["mine"]["copied"] == [1]
    assert results["contamination"]["documents"]["web"] == 2
    found = task["contamination"]
    assert (found["copied"], found["undecided"], found["unchecked"]) == (1, 1, [])
    records = json.loads((tmp_path / "out" / "tasks" / "mine.json").read_text())["items"]
    others = [records[0]["right"], records[2]["right"]]
    assert found["without"]["count"] == 2 and found["without"]["value"] == sum(others) / 2
    assert "1 of 2 items are in the training text; 1 more" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 of 2 items are in the training text" in page and ">1 of 2<" in page
    # A later start does not search again, unless a file has changed.
    searched = []
    search = contamination._search
    monkeypatch.setattr(
        contamination, "_search", lambda *words: searched.append(1) or search(*words)
    )
    assert results_of(child, mine, tmp_path / "out")["contamination"] == results["contamination"]
    assert not searched
    web = tmp_path / "texts" / "web.jsonl"
    write_items(web, {"text": f"Now {UNSEEN}"})
    again = results_of(child, mine, tmp_path / "out")
    assert searched and again["contamination"]["sets"]["mine"]["copied"] == [0]
    # Text that is gone is named next to the score.
    web.unlink()
    gone = results_of(child, mine, tmp_path / "out")["tasks"]["mine"]["contamination"]
    assert gone["copied"] == 0 and "web.jsonl" in gone["unchecked"][0]
    shutil.rmtree(parent)
    orphan = results_of(child, mine, tmp_path / "out")["tasks"]["mine"]["contamination"]
    assert "config.json of the ancestor" in orphan["unchecked"][0]


def test_without_any_training_text_the_report_says_so(undisturbed, mine, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "runs" / "base")
    loaded = load_model(str(run))
    sources = {"web": f"{tmp_path}/nowhere.jsonl", "hub": "hf://datasets/a/b/c.jsonl"}
    data = dataclasses.replace(loaded.config.data, sources=sources)
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=data))
    of = contamination.EvaluationSet("mine", "questions", (QuestionItem(OTHER, "", ""),), 1)
    found = contamination.find_contamination(loaded, [of], epath.Path(tmp_path))
    assert not found["sets"] and "nowhere.jsonl" in found["unchecked"][1]
    assert found["unchecked"][0] == "data.sources.hub: its text is not on this machine."


def test_templates_of_gsm_symbolic_are_looked_for_with_the_problems_of_gsm8k(
    undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path / "shared"))
    loaded = load_model(str(undisturbed))
    text = write_items(tmp_path / "web.jsonl", {"text": OTHER})
    data = dataclasses.replace(loaded.config.data, sources={"web": str(text)})
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, data=data))
    of = contamination.EvaluationSet("gsm8k_test", "questions", (QuestionItem(UNSEEN, "", ""),), 1)
    found = contamination.find_contamination(loaded, [of], epath.Path(tmp_path))
    assert "templates.jsonl.xz is not there" in found["not_looked_for"]["gsm_symbolic"]
    template = {"question": OTHER, "answer": "#### 3"}
    write_items(tmp_path / "shared" / "gsm_symbolic" / "templates.jsonl.xz", template)
    found = contamination.find_contamination(loaded, [of], epath.Path(tmp_path))
    assert found["sets"]["gsm_symbolic"]["copied"] == [0] and not found["not_looked_for"]
    assert found["sets"]["gsm8k_test"]["copied"] == []


def test_worked_examples_are_not_asked_whatever_their_groups_of_neighbours():
    items = [QuestionItem(question, "#### 3", "3", neighbours=4) for question in "abc"]
    assert asked_places(items, [QuestionItem("b", "#### 3", "3")]) == [0, 2]


def test_a_count_of_none_says_what_was_looked_for():
    nothing = {"copied": 0, "undecided": 5, "items": 5, "unchecked": []}
    assert copies_in_brief(nothing) == "cannot be told"
    assert contamination_line(nothing).startswith("all 5 items are too short")
    partly = {**nothing, "undecided": 2, "unchecked": ["The source web is gone."]}
    assert copies_in_brief(partly) == "0 of 3, partly checked"
    assert "0 of 3 items" in contamination_line(partly) and "is gone" in contamination_line(partly)
    assert copies_in_brief({"sentence": "could not be looked for"}) == "not checked"
