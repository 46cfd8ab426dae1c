"""The runs of a study: side by side or one after another, known again from one small file."""

import dataclasses
import errno
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.studies import study_results, study_runs
from slmjax.studies.study_results import changed_settings, settings_of
from slmjax.studies.study_runs import StudyRun, StudyRuns, device_lanes
from slmjax.text.claims import claimed
from slmjax.text.files import sealed, write_atomic
from slmjax.train import loop
from tests.corpus import RECIPE, write_corpus

STEPS = 4
pytestmark = pytest.mark.usefixtures("without_reports")


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


def copied(finished, folder):
    """Copy what a study goes on from to another folder, and return the folder."""
    source, _ = finished
    shutil.copytree(source / "scores", folder / "scores")
    shutil.copy(source / "results.json", folder)
    return folder


def with_lr(run, lr):
    """The same run with another learning rate."""
    train = dataclasses.replace(run.config.train, lr=lr)
    return StudyRun(run.name, dataclasses.replace(run.config, train=train))


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory, without_reports):
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
    copied(finished, tmp_path)
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
    _, second = two(config)
    before = (folder / "config.json").read_bytes()
    other = with_lr(second, 0.5)
    with pytest.raises(UserError, match=r"the run 'seed-1' with other settings \(train\.lr\)"):
        study(folder, other.config).train([other])
    with pytest.raises(UserError, match="holds runs on other text"):
        study(folder, other.config, identity="other")
    # The folder still says what its results are of.
    assert (folder / "config.json").read_bytes() == before
    # How often a run is logged does not change its result, nor does the place of its text.
    log = dataclasses.replace(config.log, every=1)
    (name,) = config.data.sources
    sources = {name: {**config.data.sources[name], "path": "elsewhere.jsonl"}}
    data = dataclasses.replace(config.data, sources=sources)
    moved = dataclasses.replace(config, log=log, data=data, seed=1)
    assert settings_of(moved) != settings_of(second.config)
    study(copied(finished, tmp_path), moved).train([StudyRun("seed-1", moved)])


def damaged(text):
    """Contents of a results.json that cannot be trusted, and what is said of them."""
    newer = sealed(json.loads(text) | {"format": 99})
    return [
        ('{"format": 1, "runs": {"a": {}}}', "changed after it was written"),
        (text.replace('"diverged": ""', '"diverged": "no"', 1), "changed after it was written"),
        (text[: len(text) // 2], "JSONDecodeError"),
        ("", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ("5", "TypeError"),
        (json.dumps(sealed({"format": 1})), "KeyError"),
        (json.dumps(newer), "format 99 instead of 1"),
    ]


def test_results_that_cannot_be_trusted_are_refused(config, finished, tmp_path):
    text = (finished[0] / "results.json").read_text()
    file = tmp_path / "results.json"
    for content, fault in damaged(text):
        file.write_text(content)
        with pytest.raises(
            UserError, match=r"results\.json' cannot be read .* another --workdir"
        ) as e:
            study(tmp_path, config)
        assert fault in str(e.value)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UnicodeDecodeError"):
        study(tmp_path, config)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="IsADirectoryError"):
        study(tmp_path, config)


def test_settings_that_another_version_stored_count_with_what_they_mean_today(config, monkeypatch):
    now = settings_of(config)
    # Younger than the results: the runs had what the field says of runs before it.
    older = {name: value for name, value in now.items() if name != "train.clip"}
    assert changed_settings(older, now) == []
    clipped = dataclasses.replace(config.train, clip=0.25)
    assert changed_settings(older, settings_of(dataclasses.replace(config, train=clipped))) == [
        "train.clip"
    ]
    # Removed since: the one value that it stands for is no change.
    monkeypatch.setitem(study_results.REMOVED, "train.once", 3)
    assert changed_settings(now | {"train.once": 3}, now) == []
    assert changed_settings(now | {"train.once": 4}, now) == ["train.once"]


def test_lost_scores_come_from_the_runs_folder_or_from_training_it_again(
    config, finished, tmp_path, monkeypatch, capsys
):
    folder, results = finished
    copied(finished, tmp_path)
    scores = tmp_path / "scores" / "seed-0.npz"
    whole = scores.read_bytes()
    # Damaged, but the run's own folder has them.
    scores.write_bytes(whole[:-1])
    (tmp_path / "runs" / "seed-0").mkdir(parents=True)
    shutil.copy(folder / "runs" / "seed-0" / "heldout.npz", tmp_path / "runs" / "seed-0")
    with monkeypatch.context() as patch:
        patch.setattr("slmjax.train.run.run_train", refuse_to_train)
        assert study(tmp_path, config).train(two(config)) == results
    assert scores.read_bytes() == whole
    scores.unlink()
    shutil.rmtree(tmp_path / "runs")
    again = study(tmp_path, config).train(two(config))
    printed = capsys.readouterr().out
    assert "seed-0.npz' is missing or was changed, so the run 'seed-0' is trained again" in printed
    assert "training 1 runs" in printed
    bits = "eval/bits_per_byte"
    assert again["seed-0"]["metrics"][bits] == results["seed-0"]["metrics"][bits]
    assert np.load(scores).keys() == np.load(folder / "scores" / "seed-0.npz").keys()


def test_a_full_disk_costs_no_finished_run_and_lends_no_result_to_other_settings(
    config, finished, tmp_path, monkeypatch
):
    first, _ = two(config)

    def full(path, content):
        if path.name == "results.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomic(path, content)

    runs = study(tmp_path, config)
    with monkeypatch.context() as patch:
        patch.setattr(study_results, "write_atomic", full)
        with pytest.raises(OSError, match="No space left") as caught:
            runs.train([first])
    assert caught.value.__notes__ == [f"in the run 'seed-0' of the study '{tmp_path}'"]
    assert not runs.results and not (tmp_path / "results.json").exists()
    # The run is finished and not stored: what it recorded is of its own settings alone.
    with pytest.raises(UserError, match=r"the run 'seed-0': .*train\.lr was"):
        study(tmp_path, config).train([with_lr(first, 0.5)])
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(loop, "train", refuse_to_train)
    results = study(tmp_path, config).train([first])
    # Seconds and tokens a second are the clock's.
    expected = finished[1]["seed-0"]["metrics"]
    measured = {name: value for name, value in expected.items() if "eval/" in name}
    assert measured.items() <= results["seed-0"]["metrics"].items()


def test_a_lane_that_dies_ends_the_study_and_costs_the_others_nothing(
    config, finished, tmp_path, monkeypatch
):
    train = study_runs.training.run_train

    def die(run, *args, **options):
        if run.seed == 1:
            raise RuntimeError("the device is lost")
        return train(run, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(study_runs.training, "run_train", die)
        with pytest.raises(RuntimeError, match="lost") as caught:
            study(tmp_path, config).train(two(config))
    assert caught.value.__notes__ == [f"in the run 'seed-1' of the study '{tmp_path}'"]
    # The other one goes on where it was, or is finished.
    results = study(tmp_path, config).train(two(config)[:1])
    for key, value in finished[1]["seed-0"]["metrics"].items():
        if "eval/" in key:
            assert results["seed-0"]["metrics"][key] == value


def test_a_run_that_another_start_trains_is_not_trained_twice(config, tmp_path):
    runs = study(tmp_path, config)
    first, _ = two(config)
    with (
        claimed(str(runs.run_folder("seed-0"))),
        pytest.raises(UserError, match=r"the run 'seed-0': .*is writing there"),
    ):
        runs.train([first])


def test_a_run_that_cannot_be_trained_ends_the_study_and_the_others_leave(config, tmp_path):
    broken = dataclasses.replace(config.model, attention="splash")
    runs = [StudyRun("broken", dataclasses.replace(config, model=broken)), two(config)[0]]
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
