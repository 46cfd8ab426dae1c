"""The benches of copying and of contamination at toy size: their rows, and a model's verdicts next to them."""

import argparse
import json
import lzma
import types

import pytest

from slmjax.bench import gsm8k_copying, mixture_contamination
from slmjax.errors import UserError
from slmjax.evals import training_coverage


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(lines.encode()))
    else:
        path.write_text(lines)


def problem(name, number, times):
    return {
        "question": f"{name} fills {number} tall jars near the harbour market with {times} ripe "
        f"plums each because the neighbours asked for them. How many plums does {name} need?",
        "answer": f"<<{number}*{times}={number * times}>>\n#### {number * times}",
    }


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """Training problems of one form, two test problems of it and one of another form."""
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path))
    names = ("Ann", "Bob", "Cem", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon")
    train = [problem(name, number, 3) for number, name in enumerate(names, 4)]
    other = {
        "question": "Kim counts to 9 and Lou to 5. How far apart are they?",
        "answer": "#### 4",
    }
    test = [problem("Max", 30, 3), problem("Ned", 20, 5), other]
    write(tmp_path / "gsm8k" / "train.jsonl.xz", train)
    write(tmp_path / "gsm8k" / "test.jsonl.xz", test)
    return tmp_path, test


def saved(path, test, right):
    items = [{"prompt": of["question"], "right": r} for of, r in zip(test, right)]
    write(path, [{"part": {}, "result": {}, "items": items}])
    return argparse.Namespace(compare=str(path))


def test_rules_are_scored_by_training_problems_known_and_paired_with_a_model(shared):
    folder, test = shared
    result = gsm8k_copying.run(saved(folder / "model.json", test, [True, False, True]))
    assert [row["known"] for row in result["rows"]] == [500, 1000, 2000, 4000, 10, "5 folds"]
    last, folds = result["rows"][-2:]
    assert last["vote of 20"] == last["nearest problem"] == pytest.approx(200 / 3)
    assert folds["vote of 20"] == folds["product"] == 100 and folds["asked"] == 10
    assert result["paired"]["first_only"] == result["paired"]["second_only"] == 1
    assert result["messages"] == [result["paired"]["sentence"]]


def test_verdicts_on_other_items_are_refused_in_a_sentence(shared):
    folder, test = shared
    for items in (test[:2], [*reversed(test)], [test[0], test[1], test[1]]):
        asked = saved(folder / "model.json", items, [True] * 3)
        with pytest.raises(UserError, match="which are not the 3 problems of GSM8K test"):
            gsm8k_copying.run(asked)
    with pytest.raises(UserError, match=r"--compare: '.*none.json' cannot be read"):
        gsm8k_copying.run(argparse.Namespace(compare=str(folder / "none.json")))


def test_contamination_of_a_recipe_is_a_row_for_each_set_and_a_line_for_each_copy(
    shared, monkeypatch
):
    folder, test = shared
    sets = {"gsm8k": training_coverage.EVALUATION_SETS["gsm8k"]}
    monkeypatch.setattr(training_coverage, "EVALUATION_SETS", sets)
    write(folder / "web.jsonl", [{"text": test[2]["question"]}, {"text": test[1]["question"]}])
    data = types.SimpleNamespace(sources={"web": str(folder / "web.jsonl")})
    arguments = argparse.Namespace(config=types.SimpleNamespace(data=data), show=9)
    result = mixture_contamination.run(arguments)
    (row,) = result["sets"]
    # The first two differ in their names and numbers alone; the third is too short.
    counts = ("set", "items", "undecided", "copied", "web")
    assert [row[name] for name in counts] == ["gsm8k", 3, 1, 2, 2]
    assert result["items"]["gsm8k"]["copied"] == [1, 1, 0]
    assert result["messages"][0].startswith("documents looked through: 2 of web; 0 unreadable")
    assert {"1.00 gsm8k 1 in web", "1.00 gsm8k 2 in web"} == {
        message.partition(":")[0] for message in result["messages"][2:]
    }
