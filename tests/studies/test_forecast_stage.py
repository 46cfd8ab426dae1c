"""The forecast study: its ladder, its forecast, its target and its score, on runs of a known law."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from slmjax import config as configs
from slmjax import launch
from slmjax.data.prepare_stage import prepared_text
from slmjax.errors import UserError
from slmjax.models import sizes
from slmjax.record.metrics import MetricsWriter
from slmjax.studies.forecast_plan import plan_rungs, rung_runs
from slmjax.studies.scaling_law import ScalingLaw
from slmjax.studies.study_runs import architecture
from slmjax.studies.text_study import heldout_identity, scored_sources
from tests.corpus import RECIPE, ROOT, write_corpus
from tests.studies.test_mixture_stage import config_of

SIZES = "('45k','60k','80k')"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The launcher's words for a ladder of three sizes on two sources."""
    folder = tmp_path_factory.mktemp("forecast")
    sources = {}
    for number, name in enumerate(("a", "b")):
        corpus = write_corpus(folder / f"{name}.jsonl", seed=number, documents=300)
        sources[name] = {"path": str(corpus), "heldout": 0.2}
    fields = {
        "stage": "forecast",
        "data.sources": sources,
        "data.cache": str(folder / "prepared"),
        "data.vocab_size": 300,
        "train.microbatches": 1,
        "checkpoint.every": 1000,
        "mesh.data": 8,  # all devices, so that one run trains at a time
        "forecast.sizes": SIZES,
        "forecast.target": "120k",
        "forecast.tokens": 12_000,
        "forecast.seeds": "(2,1)",
    }
    return [f"--config={RECIPE}", *(f"--config.{name}={value}" for name, value in fields.items())]


def test_all_rungs_share_text_batch_and_warmup_and_differ_in_size(words):
    config = config_of(words)
    prepared = prepared_text(config.data, "runs/x")
    rungs, target = plan_rungs(config, prepared, devices=8)
    runs = rung_runs(rungs)
    assert [run.name for run in runs] == ["45000-0", "45000-1", "60000-0", "80000-0"]
    assert [run.config.seed for run in runs] == [0, 1, 0, 0]
    every = [*(run.config for run in runs), target.config]
    for name in ("steps", "batch", "warmup", "lr"):
        assert len({getattr(each.train, name) for each in every}) == 1
    train = target.config.train
    assert train.batch % 8 == 0 and train.steps * train.batch * 64 == pytest.approx(12_000, rel=0.1)
    tokens = sum(prepared.train[name].tokens for name in ("a", "b"))
    for each in every:
        fractions = [source["fraction"] for source in each.data.sources.values()]
        expected = 1.02 * train.steps * train.batch * 64 / tokens
        assert fractions == pytest.approx([min(1, expected)] * 2)
    # Of half of a source, twice the part is read for as many tokens.
    sources = {name: {**entry, "fraction": 0.5} for name, entry in config.data.sources.items()}
    halves = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    _, of_halves = plan_rungs(halves, prepared, devices=8)
    fraction = of_halves.config.data.sources["a"]["fraction"]
    assert fraction == pytest.approx(min(0.5, expected)) and expected < 1
    # Rates follow the width.
    widths = [each.model.width for each in every]
    rates = [each.model.multipliers.get("matrix", {}).get("lr", 1.0) for each in every]
    assert widths[-1] > widths[0] and rates[-1] < rates[0]


LAW = ScalingLaw(0.8, 20.0, 0.35)


def made_up_run(config, workdir, **_):
    """Leave what a run leaves whose loss is the law's, a little more with each seed; train nothing."""
    folder = epath.Path(workdir)
    arch = architecture(config, 300)
    tokens = config.train.steps * config.train.batch * config.data.seq_len
    bits = LAW.loss(sizes.parameters(arch).total, tokens) * (1 + 1e-4 * config.seed)
    arrays = {}
    # The mean over sources is the law's loss, that over bytes is not.
    for source, moved, size in (("a", 0.1, 100), ("b", -0.1, 1000)):
        arrays[f"{source}/keys"] = np.arange(20, dtype=np.uint64)
        arrays[f"{source}/bytes"] = np.full(20, size)
        arrays[f"{source}/nats"] = np.full(20, size * (bits + moved) * np.log(2))
    np.savez(folder / "heldout.npz", **arrays)
    (folder / "config.json").write_text(configs.to_json(config))
    with MetricsWriter(folder) as writer:
        writer.event("start", 0)
        writer.event("finish", config.train.steps)
    return 0


def test_a_forecast_is_written_before_the_target_and_scored_after_it(
    words, tmp_path, capsys, monkeypatch
):
    """The commands of docs/forecast.md, on runs whose law is known; test_docs.py trains real ones."""
    monkeypatch.setattr("slmjax.train.run.run_train", made_up_run)
    study = [*words, f"--workdir={tmp_path / 'study'}"]
    assert launch.main(study) == 0
    printed = capsys.readouterr().out
    assert "3 constants pass through 3 rungs exactly" in printed and "Next: python -m" in printed
    content = json.loads((tmp_path / "study" / "forecast.json").read_text())
    assert len(content["runs"]) == 4 and set(content["fits"]) == {"line", "power", "same"}
    losses = {run["name"]: (run["loss"], run["parameters"]) for run in content["runs"]}
    for name, (loss, parameters) in losses.items():
        seed = int(name[-1])
        assert loss == pytest.approx(LAW.loss(parameters, 1) * (1 + 1e-4 * seed))
    truth = LAW.loss(content["parameters"], content["tokens"])
    assert content["fits"]["power"]["prediction"] == pytest.approx(truth, rel=1e-3)
    assert content["fits"]["line"]["prediction"] < truth < content["fits"]["same"]["prediction"]

    target = f"--config={tmp_path / 'study' / 'target.json'}"
    measured = f"--config.forecast.measured=('{tmp_path / 'target'}',)"
    other = f"--config.forecast.measured=('{tmp_path / 'other'}',)"
    assert launch.main([target, f"--workdir={tmp_path / 'target'}"]) == 0
    assert launch.main([target, f"--workdir={tmp_path / 'other'}", "--config.train.lr=0.02"]) == 0
    capsys.readouterr()
    before = (tmp_path / "study" / "forecast.json").read_bytes()
    assert launch.main([*study, measured]) == 0
    printed = capsys.readouterr().out
    assert "| measured | error |" in printed and "training" not in printed
    assert f" | {truth:.4f} | " in printed and "Seed spread: 0.0" in printed
    assert (tmp_path / "study" / "forecast.json").read_bytes() == before
    assert "measured" in (tmp_path / "study" / "report.html").read_text()
    assert launch.main([*study, other]) == 2
    assert "is not the target: it differs in train.lr" in capsys.readouterr().err
    # The forecast of another target does not take the file's place.
    assert launch.main([*study, "--config.forecast.target=130k"]) == 2
    assert "holds another forecast" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, told",
    [
        ({"forecast__sizes": "('45k','60k')"}, "expected three different sizes or more"),
        ({"forecast__sizes": "('45k','60k','60k')"}, "expected three different sizes or more"),
        ({"forecast__target": "60k"}, "80,000 parameters are not below the target's 60,000"),
        ({"forecast__seeds": "()"}, "expected one run of each size or more"),
        ({"forecast__tokens": 10}, "less than one batch"),
        ({"forecast__sizes": "('45k','60k','many')"}, "expected a number of parameters"),
        ({"train__decay": 0}, "over [0-9]+ steps the learning rate does not decay"),
        ({"forecast__basket": "('a','c')"}, r"forecast\.basket: no held-out text of 'c'.* a, b"),
    ],
)
def test_a_ladder_that_makes_no_sense_is_refused_before_it_is_trained(words, change, told):
    config = config_of(words, **change)
    prepared = prepared_text(config.data, "runs/x")
    with pytest.raises(UserError, match=told):
        plan_rungs(config, prepared, devices=1)
        scored_sources("config.forecast.basket", config.forecast.basket, prepared)


def test_the_identity_of_held_out_documents_follows_the_documents_and_not_their_order():
    keys = np.arange(5, dtype=np.uint64)
    assert heldout_identity([keys, keys[:2]]) == heldout_identity([keys[::-1], keys[:2]])
    assert heldout_identity([keys]) != heldout_identity([keys[:4]])


def test_a_config_of_a_forecast_has_no_part_in_its_runs(words):
    config = config_of(words)
    rungs, _ = plan_rungs(config, prepared_text(config.data, "runs/x"), devices=1)
    run = rungs[0][0].config
    assert run.stage == "train" and "forecast" not in configs.to_dict(run)
    assert dataclasses.replace(config.forecast, tokens=1) != run.forecast


@pytest.mark.parametrize("part, rungs", [("classroom", 4), ("100m-tokens", 8)])
def test_a_ladder_on_real_text_is_scored_on_the_real_domains_alone(
    part, rungs, tmp_path, monkeypatch
):
    for domain in ("books", "textbooks", "math", "docs", "code", "reference"):
        (tmp_path / "pretrain" / domain).mkdir(parents=True)
    monkeypatch.setenv("SLMJAX_SHARED", str(tmp_path))
    thirty, config = (
        configs.freeze(configs.load_recipe(str(ROOT / "configs" / name)))
        for name in ("30m.py", f"studies/forecast.py:{part}")
    )
    assert set(config.forecast.basket) == set(thirty.data.sources)
    for name, source in thirty.data.sources.items():
        assert config.data.sources[name] == source
    assert config.data.group_by == thirty.data.group_by
    assert config.data.heldout == thirty.data.heldout
    # What fills up is trained on alone.
    others = set(config.data.sources) - set(thirty.data.sources)
    assert all(config.data.sources[name]["heldout"] == 0 for name in others)
    # Every size is a run, and the seeds are those of the smaller ones.
    seeds = [*config.forecast.seeds, *[1] * 5][: len(config.forecast.sizes)]
    assert sum(seeds) == rungs
