"""The runs of a study: side by side or one after another, known again from one small file."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.studies import study_runs
from slmjax.studies.study_runs import StudyRun, StudyRuns, device_lanes
from slmjax.text.files import sealed
from tests.corpus import RECIPE, write_corpus

STEPS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The config of a run of a few steps on the corpus of the tests."""
    folder = tmp_path_factory.mktemp("study")
    corpus = write_corpus(folder / "text.jsonl")
    recipe = configs.load_recipe(f"{RECIPE}:{corpus}")
    fields = [
        f"train.steps={STEPS}",
        "train.warmup=1",
        "eval.samples=0",
        f"data.cache={folder / 'prepared'}",
    ]
    return configs.freeze(configs.override(recipe, fields))


def two(config):
    """Two runs that differ in their seed."""
    return [StudyRun(f"seed-{s}", dataclasses.replace(config, seed=s)) for s in range(2)]


def study(folder, config, identity="text", **more):
    return StudyRuns(epath.Path(folder), config, identity=identity, vocab_size=512, **more)


def refuse_to_train(*_, **__):
    raise AssertionError("this run has a result already")


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """(folder, results) of a study whose two runs trained side by side."""
    folder = tmp_path_factory.mktemp("side")
    return folder, study(folder, config).train(two(config))


def test_runs_side_by_side_have_the_results_of_runs_one_after_another(
    config, finished, tmp_path, monkeypatch, capsys
):
    _, side_by_side = finished
    assert len(device_lanes(config)) == len(jax.local_devices()) > 1
    monkeypatch.setattr(study_runs, "device_lanes", lambda _: [jax.local_devices()[:1]])
    alone = study(tmp_path, config).train(two(config))
    assert list(alone) == list(side_by_side) == ["seed-0", "seed-1"]
    scores = []
    for name, result in alone.items():
        measured = {key: value for key, value in result["metrics"].items() if "eval/" in key}
        there = {key: side_by_side[name]["metrics"][key] for key in measured}
        assert measured == there and "eval/bits_per_byte" in measured
        scores.append(measured["eval/bits_per_byte"])
    assert len(set(scores)) == 2
    printed = capsys.readouterr().out
    assert "training 2 runs: " in printed and "run 2 of 2: seed-1: " in printed
    assert "slmjax 0" not in printed  # a run's own lines are dropped


def test_a_study_goes_on_from_its_results_file_alone(config, finished, tmp_path, monkeypatch):
    folder, results = finished
    for name in ("results.json", "scores"):
        source = folder / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    assert (tmp_path / "results.json").stat().st_size < 30_000
    monkeypatch.setattr("slmjax.train.run.run_train", refuse_to_train)
    runs = study(tmp_path, config)
    assert runs.train(two(config)) == results
    scores = np.load(runs.scores_file("seed-1"))
    original = np.load(folder / "runs" / "seed-1" / "heldout.npz")
    assert set(scores) == set(original)
    assert not (folder / "runs" / "seed-1" / "checkpoints").exists()


def test_results_of_other_settings_or_other_text_are_refused(config, finished, tmp_path):
    folder, _ = finished
    runs = study(folder, config)
    train = dataclasses.replace(config.train, lr=0.5)
    other = StudyRun("seed-1", dataclasses.replace(config, train=train, seed=1))
    with pytest.raises(UserError, match=r"the run 'seed-1' with other settings \(train\.lr\)"):
        runs.train([other])
    # How often a run is logged does not change its result.
    log = dataclasses.replace(config.log, every=1)
    runs.train([StudyRun("seed-1", dataclasses.replace(config, log=log, seed=1))])
    with pytest.raises(UserError, match="holds runs on other text"):
        study(folder, config, identity="other")
    (tmp_path / "results.json").write_text('{"format": 1, "runs": {"a": {}}}')
    with pytest.raises(UserError, match=r"results\.json' cannot be read .* another --workdir"):
        study(tmp_path, config)
    text = (folder / "results.json").read_text()
    (tmp_path / "results.json").write_text(text.replace('"diverged": ""', '"diverged": "no"', 1))
    with pytest.raises(UserError, match="changed after it was written"):
        study(tmp_path, config)
    newer = sealed(json.loads(text) | {"format": 99})
    (tmp_path / "results.json").write_text(json.dumps(newer))
    with pytest.raises(UserError, match="format 99 instead of 1"):
        study(tmp_path, config)


def test_a_run_that_cannot_be_trained_ends_the_study_and_the_others_leave(config, tmp_path):
    broken = dataclasses.replace(config.model, attention="splash")
    runs = [StudyRun("broken", dataclasses.replace(config, model=broken)), *two(config)]
    with pytest.raises(UserError, match=r"the run .broken.: .*splash"):
        study(tmp_path, config).train(runs)


def test_a_run_that_diverges_is_a_result(config, tmp_path):
    train = dataclasses.replace(config.train, lr=1e30, max_skips=1, warmup=0, clip=0.0)
    diverging = StudyRun("diverging", dataclasses.replace(config, train=train))
    runs = study(tmp_path, config)
    results = runs.train([diverging, two(config)[0]])
    assert "steps in a row were skipped" in results["diverging"]["diverged"]
    assert not results["seed-0"]["diverged"]
    assert study(tmp_path, config).results == results


def test_a_mesh_larger_than_the_host_is_refused(config):
    lanes = device_lanes(dataclasses.replace(config, mesh=configs.MeshConfig(data=-1, tensor=2)))
    assert [len(lane) for lane in lanes] == [2] * (len(jax.local_devices()) // 2)
    large = dataclasses.replace(config, mesh=configs.MeshConfig(data=64))
    with pytest.raises(UserError, match="asks for 64 devices for each run"):
        device_lanes(large)
