"""The recall study: a mixer that can look back learns the task, one that averages does not, and the stage leaves what it found."""

import json

import numpy as np
import pytest

from slmjax import config as configs
from slmjax import launch
from slmjax.errors import UserError
from slmjax.studies import recall

SMALL = {"tasks": "recall:16:2", "vocab": 16, "examples": 4096, "tested": 256, "rates": (1e-2,), "seeds": 1, "enough": 1}


def small(steps=300, **study):
    config = configs.load("configs/studies/recall.py")
    config.model.update({"width": 32, "head_dim": 16})
    config.train.update({"steps": steps, "batch": 64, "warmup": steps // 20})
    return configs.override(config, [f"study.{name}={value}" for name, value in (SMALL | study).items()])


@pytest.mark.slow
def test_gated_deltanet_recalls_what_a_running_mean_cannot():
    """Two pairs of 16 tokens: guessing among the values that stand there is right half of the time."""
    config = small(steps=250)
    measure = lambda pattern: recall.measure(config, recall.settings(config), "recall:16:2", pattern, (pattern,))  # noqa: E731
    gdn, mean = measure("gdn+none"), measure("tests.models.own:Mean")
    assert gdn["accuracy"] > 0.9 > 0.75 > mean["accuracy"] > 0.3


@pytest.mark.slow
def test_the_row_of_a_variant_is_that_of_its_best_rate():
    config = small(steps=200, rates=(1e-2, 1e-9), seeds=2)
    row = recall.measure(config, recall.settings(config), "recall:16:2", "attention", ("attention+none",))
    assert list(row["by_rate"]) == ["0.01", "1e-09"] and all(len(of) == 2 for of in row["by_rate"].values())
    assert row["rate"] == 1e-2 and row["accuracy"] == np.mean(row["by_rate"]["0.01"]) and row["deviation"] == np.std(row["by_rate"]["0.01"])
    assert row["by_rate"]["1e-09"][0] != row["by_rate"]["1e-09"][1]  # seeds differ in what they start from
    assert np.mean(row["by_rate"]["1e-09"]) < 0.2 < row["accuracy"]  # one of 16 tokens, untrained


def test_training_ends_where_one_rate_has_enough(monkeypatch):
    monkeypatch.setattr(recall, "CHUNK", 2)
    monkeypatch.setattr(recall, "LOOK", 2)

    def steps(enough):
        config = small(steps=7, examples=128, tested=32, enough=enough)
        return recall.measure(config, recall.settings(config), "recall:16:2", "attention", ("attention+none",))["steps"]

    assert steps(0) == 4 and steps(1) == 7  # looked at after every fourth step and the last; chance is far from 1


def test_the_stage_writes_rows_and_a_stopped_study_goes_on(tmp_path, capsys, monkeypatch):
    words = [f"--config.study.{name}={value}" for name, value in (SMALL | {"examples": 128, "tested": 32}).items()]
    words += [
        "--config.train.steps=3",
        "--config.train.batch=64",
        "--config.train.warmup=1",
        "--config=configs/studies/recall.py",
        f"--workdir={tmp_path}",
        "--config.model.width=16",
        "--config.model.head_dim=8",
    ]
    one = ["--config.study.variants={'attention': ('attention+none',)}"]
    two = ["--config.study.variants={'attention': ('attention+none',), 'gla': ('gla+none',)}"]
    monkeypatch.setattr("slmjax.readable.SILENCE", 0.0)
    assert launch.main(words + one) == 0
    assert "training attention on recall:16:2 ...\n" in capsys.readouterr().out
    monkeypatch.undo()
    first = json.loads((tmp_path / "study.json").read_text())["rows"]
    capsys.readouterr()
    assert launch.main(words + two) == 0
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert rows[:1] == first and [row["variant"] for row in rows] == ["attention", "gla"]
    printed = capsys.readouterr().out.replace("training gla on recall:16:2 ...\n", "")
    assert printed.count("recall:16:2") == 2  # the row that was missing, and the table's head
    assert "| mixer | recall:16:2 |" in printed and "| gla |" in printed
    others = {"seed": "--config.seed=1", "tested": "--config.study.tested=64"}
    others["attention"] = "--config.study.variants={'attention': ('gla+none',)}"
    for name, other in others.items():
        assert launch.main([*words, *two, other]) == 2
        assert f"holds rows of other settings ({name})" in capsys.readouterr().err
    assert json.loads((tmp_path / "study.json").read_text())["rows"] == rows


@pytest.mark.parametrize("change, told", [
    ({"task": "recall:16:2"}, "config.study.task: .*Did you mean 'tasks'"), ({"tasks": "recal:16:2"}, "'recal:16:2' is none of"),
    ({"tasks": "recall:16:0"}, "'recall:16:0' is none of"), ({"tasks": 3}, "'3' is none of"),
    ({"tasks": "recall:4:64"}, "'recall:4:64' cannot be made: 64 pairs and 64 queries need"),
    ({"tasks": "recall:64:16"}, "'recall:64:16' cannot be made"),  # of 16 tokens there are not enough keys
    ({"tasks": "induction:1"}, "'induction:1' cannot be made: induction needs a length of at least 3"),
    ({"variants": {}}, "variants is {}; expected patterns by name"), ({"variants": 3}, "variants is 3; expected"),
    ({"variants": {"a": 3}}, "variants.a is 3; expected a pattern"), ({"variants": {"a": "atention"}}, "Did you mean 'attention'"),
    ({"rates": ()}, "expected numbers"), ({"rates": ("x",)}, "expected numbers"), ({"rates": (-1,)}, "expected numbers"),
    ({"enough": "all"}, "expected numbers"), ({"seeds": 0}, "seeds is 0; expected a whole number of at least 1"),
    ({"tested": "many"}, "tested is 'many'; expected"), ({"vocab": 0.5}, "vocab is 0.5; expected"),
    ({"tasks": "recall:16"}, "'recall:16' is none of"), ({"tasks": "induction:many"}, "'induction:many' is none of"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_named(change, told):
    with pytest.raises(UserError, match=told):
        recall.settings(small(**change))


def test_a_rate_and_a_pattern_may_stand_alone():
    study = recall.settings(small(rates=0.01, variants={"a": "attention+none"}))
    assert study["rates"] == [0.01] and study["variants"] == {"a": ("attention+none",)}


def test_a_missing_setting_is_named():
    config = small()
    del config.study["rates"]
    with pytest.raises(UserError, match=r"config.study.rates is missing; configs/studies/recall.py"):
        recall.settings(config)
