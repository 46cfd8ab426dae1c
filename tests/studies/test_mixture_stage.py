"""The mixture study, end to end at the smallest size: a comparison, and a search with its weights file."""

import dataclasses
import json

import numpy as np
import pytest

from slmjax import config as configs
from slmjax import launch
from slmjax.data.prepare_stage import prepared_text
from slmjax.errors import UserError
from slmjax.record.metrics import MetricsWriter
from slmjax.record.paired import Paired, bits_per_byte, bootstrap_mean
from slmjax.studies import mixture_study
from slmjax.studies.mixture_file import read_weights
from slmjax.studies.mixture_plan import mixture_of, plan_mixtures, proxy_config, proxy_runs
from slmjax.studies.mixture_study import check_same_documents, chosen_documents
from slmjax.studies.text_study import begin_text_study
from tests.corpus import RECIPE, write_corpus

DOMAINS = ("a", "b", "c")
pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The launcher's words for a study of three domains and a fourth source that is only scored."""
    folder = tmp_path_factory.mktemp("mixture")
    sources = {}
    for number, name in enumerate((*DOMAINS, "scored")):
        documents = 400 if name == "scored" else 200 + 100 * number
        corpus = write_corpus(folder / f"{name}.jsonl", seed=number, documents=documents)
        sources[name] = {"path": str(corpus), "heldout": 0.2}
    sources["scored"]["weight"] = 0
    fields = {
        "stage": "mixture",
        "data.sources": sources,
        "data.cache": str(folder / "prepared"),
        "train.steps": 4,
        "train.warmup": 1,
        "checkpoint.every": 4,
        "mesh.data": 8,  # all devices, so that one run trains at a time
        "mixture.proxies": 5,
        "mixture.target_tokens": 8 * 16 * 64,
        "mixture.basket": "('a', 'b', 'c', 'scored')",
    }
    return [f"--config={RECIPE}", *(f"--config.{name}={value}" for name, value in fields.items())]


def config_of(words, **fields):
    recipe = configs.load_recipe(words[0].removeprefix("--config="))
    given = [word.removeprefix("--config.") for word in words[1:]]
    given += [f"{name.replace('__', '.')}={value}" for name, value in fields.items()]
    return configs.freeze(configs.override(recipe, given))


def made_up_run(config, workdir, **_):
    """Leave what a run leaves whose losses fall with the share of c, and train nothing."""
    (phase,) = config.data.phases
    bits = 1 + np.exp(-phase["weights"]["c"])
    arrays = {}
    for source in (*DOMAINS, "scored"):
        sizes = np.full(40, 100)
        arrays[f"{source}/keys"] = np.random.default_rng(0).integers(2**63, size=40).astype("u8")
        arrays[f"{source}/bytes"] = sizes
        arrays[f"{source}/nats"] = sizes * bits * np.log(2)
    np.savez(f"{workdir}/heldout.npz", **arrays)
    with MetricsWriter(workdir) as writer:
        writer.event("finish", config.train.steps)


@pytest.fixture(scope="module")
def searched(words, tmp_path_factory):
    """The work directory of a search with five proxies, whose losses are made up."""
    workdir = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture_study, "BOOTSTRAPS", 5)
        patch.setattr("slmjax.train.run.run_train", made_up_run)
        assert launch.main([*words, f"--workdir={workdir}"]) == 0
    return workdir


def test_a_search_finds_the_mixture_with_the_lowest_loss_and_writes_its_weights(searched):
    weights = read_weights(searched / "weights.json")
    assert set(weights) == set(DOMAINS) and sum(weights.values()) == pytest.approx(1)
    assert weights["c"] > 0.95
    results = json.loads((searched / "results.json").read_text())["runs"]
    assert sorted(results) == [f"mixture-{number}-0" for number in range(5)]
    report = (searched / "report.html").read_text()
    assert "Leave-one-out on the proxies" in report and "<td>scored</td>" in report
    assert "chosen mixture, predicted" in report


@pytest.mark.slow
def test_a_comparison_reads_the_weights_of_a_search_and_goes_on_from_its_results(
    words, searched, tmp_path, capsys
):
    mixtures = {"natural": "natural", "chosen": str(searched / "weights.json")}
    compared = [
        *words,
        f"--workdir={tmp_path / 'compared'}",
        f"--config.mixture.mixtures={mixtures}",
        "--config.mixture.documents=second half",
    ]
    assert launch.main(compared) == 0
    printed = capsys.readouterr().out
    lines = [line.split("|")[1].strip() for line in printed.splitlines() if line[:1] == "|"]
    assert lines == ["mixture", "---", "natural", "chosen"]
    assert "minus natural (95 %)" in printed and "not an optimum" in printed
    assert ">mean over sources<" in (tmp_path / "compared" / "report.html").read_text()
    # What is there is only read, and gives the same table.
    assert launch.main(compared) == 0
    again = capsys.readouterr().out
    assert "training" not in again and again.splitlines()[-8:] == printed.splitlines()[-8:]


def test_a_proxy_repeats_its_part_as_often_as_the_target_repeats_the_whole(words):
    config = config_of(words)
    prepared = prepared_text(config.data, "runs/x")
    plan = plan_mixtures(config, prepared)
    assert plan.domains == DOMAINS and plan.budget == 2 * 4 * 16 * 64
    assert len(plan.mixtures) == 5
    for mixture in plan.mixtures.values():
        assert mixture.sum() == pytest.approx(1)
        assert (mixture * plan.budget <= 4.0 * plan.tokens + 1e-6).all()
    mixture = plan.mixtures["mixture-3"]
    run = proxy_config(config, plan, mixture, seed=2)
    assert run.stage == "train" and run.seed == config.seed + 2
    assert run.data.sources["b"]["fraction"] == 0.5
    assert run.data.sources["scored"]["weight"] == 0
    assert "fraction" not in run.data.sources["scored"]
    (phase,) = run.data.phases
    assert phase["weights"] == dict(zip(DOMAINS, mixture.tolist()))
    assert len({run.name for run in proxy_runs(config, plan)}) == 5


def test_the_natural_mixture_follows_the_tokens_and_is_compared_with(words):
    mixtures = {"a alone": {"a": 3}, "even": "uniform", "by tokens": "natural"}
    config = config_of(words, mixture__mixtures=mixtures)
    prepared = prepared_text(config.data, "runs/x")
    plan = plan_mixtures(config, prepared)
    tokens = np.array([prepared.train[name].tokens for name in DOMAINS])
    assert list(plan.mixtures) == ["by tokens", "a alone", "even"]
    np.testing.assert_allclose(plan.mixtures["by tokens"], tokens / tokens.sum())
    assert plan.mixtures["a alone"].tolist() == [1, 0, 0]
    assert plan.mixtures["even"].tolist() == [1 / 3] * 3


def test_every_document_is_in_one_half():
    keys = np.random.default_rng(0).integers(2**64, size=400, dtype=np.uint64)
    scores = {name: {"keys": keys, "nats": np.arange(400.0)} for name in ("a", "b")}
    halves = [chosen_documents(scores, ("a",), half) for half in ("first half", "second half")]
    first, second = (set(half["a"]["keys"].tolist()) for half in halves)
    assert not first & second and first | second == set(keys.tolist())
    assert 150 < len(first) < 250
    assert chosen_documents(scores, ("a", "b"), "all").keys() == {"a", "b"}
    few = {"a": {name: column[:1] for name, column in scores["a"].items()}}
    with pytest.raises(UserError, match="no held-out document in the"):
        for half in ("first half", "second half"):
            chosen_documents(few, ("a",), half)


def test_the_mean_over_sources_counts_every_source_the_same():
    random = np.random.default_rng(0)
    # Source b has a hundred times as many bytes, and the second run is worse there alone.
    sizes = {"a": np.full(300, 10.0), "b": np.full(300, 1000.0)}
    nats = {
        name: np.tile(size[:, None], 2) * random.normal(1, 0.1, (300, 1))
        for name, size in sizes.items()
    }
    nats["b"][:, 1] *= 1.1
    paired = Paired(nats, sizes, 0)
    _, difference = bootstrap_mean(paired, [[0], [1]])
    expected = (bits_per_byte(paired, "b") @ [-1, 1]) / 2
    assert difference.value == pytest.approx(expected)
    assert difference.low < expected < difference.high


@pytest.mark.parametrize(
    "change, told",
    [
        ({"mixture__mixtures": {"x": {"d": 1}}}, "weight for 'd', but the sources that are mixed"),
        ({"mixture__mixtures": {"x/y": "natural"}}, "'x/y' is no name of a mixture"),
        ({"mixture__mixtures": {"x": {"a": -1}}}, "expected weights of 0 or more"),
        ({"mixture__mixtures": {"x": {"a": "many"}}}, "expected numbers as weights"),
        ({"mixture__mixtures": {"x": 3}}, r"mixtures\.x is 3; expected"),
        ({"mixture__mixtures": {"x": "nowhere.json"}}, "nowhere.json"),
        ({"mixture__basket": "('d',)"}, r"mixture\.basket: no held-out text of 'd'"),
        ({"mixture__target_tokens": 1}, "expected at least the 4,096 tokens of a proxy"),
        ({"mixture__fixed": {"d": 0.5}}, "fixed share of 'd'"),
        ({"mixture__target_tokens": 10**9}, "no mixture keeps the limits"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(words, change, told):
    config = config_of(words, **change)
    with pytest.raises(UserError, match=told):
        plan_mixtures(config, prepared_text(config.data, "runs/x"))


@pytest.mark.parametrize("stage", ["mixture", "forecast"])
def test_a_study_whose_config_has_phases_is_refused(stage, words):
    phases = [{"until": 1.0, "rate": (1, 0)}]
    config = config_of(words, data__phases=phases, train__schedule="phases")
    told = f"config.data.phases: the stage {stage} sets mixture and learning rate"
    with pytest.raises(UserError, match=told):
        begin_text_study(dataclasses.replace(config, stage=stage), "runs/x", "")


def test_runs_that_were_scored_on_different_documents_are_not_compared():
    keys = np.arange(4, dtype=np.uint64)
    scores = {"x-0": {"a": {"keys": keys}}, "x-1": {"a": {"keys": keys[::-1]}}}
    check_same_documents(scores)
    scores["y-0"] = {"a": {"keys": keys[:3]}}
    with pytest.raises(
        UserError, match=r"'y-0' was scored on 3 documents.* and 'x-0' on 4 documents"
    ):
        check_same_documents(scores)


def test_weights_are_normalised():
    mixture = mixture_of("x", {"a": 1, "c": 3}, list(DOMAINS), np.ones(3))
    assert mixture.tolist() == [0.25, 0, 0.75]
