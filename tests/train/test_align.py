"""From a base to an assistant: runs of configs/sft.py and configs/orpo.py, killed and resumed."""

import json
import re
import shutil
import signal

import pytest

from slmjax import config as configs
from slmjax import launch
from slmjax.errors import UserError
from slmjax.record import metrics
from tests import runs
from tests.corpus import ROOT
from tests.data.test_pair_rows import chats, pairs, write

STEPS = 12
SMALL = {
    "data.seq_len": 192,  # long enough for most pairs
    "train.batch": 16,
    "train.microbatches": 2,
    "train.steps": STEPS,
    "train.warmup": 1,
    "eval.every": 6,
    "eval.tokens": 2000,
    "eval.samples": 1,
    "eval.sample_tokens": 4,
    "eval.answers": 4,
    "checkpoint.every": 6,
    "log.every": 1,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    chat = {"path": write(folder / "chats.jsonl", chats(100)), "kind": "chat", "heldout": 0.1}
    pair = {"path": write(folder / "pairs.jsonl", pairs(120, prompts=60)), "kind": "pairs"}
    return {"chats": chat, "pairs": {**pair, "heldout": 0.2}}


def run(recipe, parent, workdir, sources, **fields):
    words = [f"--config={ROOT}/configs/{recipe}.py", f"--init_from={parent}"]
    words += [f"--workdir={workdir}", f"--config.data.sources={json.dumps(sources)}"]
    for name, value in {**SMALL, **fields}.items():
        words.append(f"--config.{name}={value}")
    return launch.main(words)


def sft_sources(sources):
    """Dialogues are trained on; of the pairs only the held-out part is used."""
    return {
        "chats": {**sources["chats"], "weight": 1.0},
        "pairs": {**sources["pairs"], "weight": 0.0},
    }


def orpo_sources(sources):
    return {"pairs": {**sources["pairs"], "weight": 1.0}}


@pytest.fixture(scope="module")
def sft(undisturbed, sources, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sft") / "run"
    assert run("sft", undisturbed, workdir, sft_sources(sources)) == 0
    return workdir


@pytest.fixture(scope="module")
def other_reports_off(sft, without_reports):
    """After the run whose report a test reads, runs write none."""


@pytest.fixture(scope="module")
def orpo(sft, other_reports_off, sources, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("orpo") / "run"
    assert run("orpo", sft, workdir, orpo_sources(sources)) == 0
    return workdir


def test_fine_tuning_learns_answers_and_shows_chats(sft, undisturbed):
    records = metrics.read(sft)
    steps, values = metrics.series(records, "eval/chats/bits_per_byte")
    assert steps.tolist() == [0, 6, 12] and values[-1] < values[0]
    (sample,) = metrics.last_event(records, "samples")["samples"]
    assert sample["is_chat"] and sample["prompt"].startswith("user: ")
    saved = configs.freeze(configs.load_recipe(str(sft / "config.json")))
    base = configs.freeze(configs.load_recipe(str(undisturbed / "config.json")))
    assert saved.model == base.model
    # The pairs are only compared, not trained on.
    preferences = runs.events(sft, "preferences")
    assert [event["step"] for event in preferences] == [0, 6, 12]
    data = runs.events(sft, "data")[0]
    assert data["sources"]["pairs"]["epochs"] == 0 and data["sources"]["chats"]["epochs"] > 0
    for name in ("ended", "empty", "length"):
        for decoding in ("", "greedy/"):
            steps, _ = metrics.series(records, f"eval/answers/{decoding}{name}")
            assert steps.tolist() == [STEPS], name
    report = (sft / "report.html").read_text()
    assert "Preferences" in report and "assistant: " in report


def test_orpo_logs_its_terms_and_scores_before_and_after(orpo, sft):
    records = metrics.read(orpo)
    for name in ("loss", "odds", "preferred", "margin"):
        steps, _ = metrics.series(records, f"train/{name}")
        assert steps.tolist() == list(range(1, STEPS + 1)), name
    before, *_, after = runs.events(orpo, "preferences")
    assert before["step"] == 0 and after["step"] == STEPS
    assert after["sources"]["pairs"]["margin"] > before["sources"]["pairs"]["margin"]
    score = after["sources"]["pairs"]
    assert score["low"] <= score["accuracy"] <= score["high"]
    assert score["pairs"] > score["prompts"] > 5
    # The last scores of the parent are the first of the child.
    last = runs.events(sft, "preferences")[-1]["sources"]["pairs"]
    assert before["sources"]["pairs"]["pairs"] == last["pairs"]
    assert before["sources"]["pairs"]["accuracy"] == pytest.approx(last["accuracy"])


@pytest.mark.usefixtures("other_reports_off")
def test_a_mixture_with_few_pairs_and_held_out_ones_that_fit_in_no_row(
    sft, sources, corpus, tmp_path, capsys
):
    long = [
        {"prompt": f"long {n}", "chosen": "a b " * 90, "rejected": "c d " * 90} for n in range(3)
    ]
    long_chats = [{"prompt": f"also {n}", "response": "a b " * 90} for n in range(3)]
    mixture = {
        "words": {"path": str(corpus), "weight": 0.93, "heldout": 0.05},
        "pairs": {
            **sources["pairs"],
            "weight": 0.03,
            "heldout": write(tmp_path / "long.jsonl", long),
        },
        "chats": {
            **sources["chats"],
            "weight": 0.04,
            "heldout": write(tmp_path / "long_chats.jsonl", long_chats),
        },
    }
    workdir = tmp_path / "run"
    assert run("orpo", sft, workdir, mixture) == 0
    told = capsys.readouterr().out
    assert "3 of 3 held-out documents of pairs (longer than 192 tokens)" in told
    assert "3 of 3 held-out documents of chats (longer than 192 tokens)" in told
    records = metrics.read(workdir)
    names = {name for record in records.kept for name in record if name.startswith("eval/")}
    assert names == {"eval/bits_per_byte", "eval/words/bits_per_byte"}
    assert not runs.events(workdir, "preferences")
    # A batch without pairs says nothing about pairs.
    odds_steps, odds = metrics.series(records, "train/odds")
    loss_steps, _ = metrics.series(records, "train/loss")
    assert 0 < len(odds_steps) < len(loss_steps) == STEPS and odds.min() > 0


@pytest.mark.usefixtures("other_reports_off")
@pytest.mark.parametrize("recipe", ["sft", "orpo"])
def test_a_run_that_was_stopped_goes_on_bit_by_bit(
    recipe, undisturbed, sft, orpo, sources, tmp_path, monkeypatch
):
    if recipe == "sft":
        parent, whole, of_recipe = undisturbed, sft, sft_sources(sources)
    else:
        parent, whole, of_recipe = sft, orpo, orpo_sources(sources)
    shutil.copytree(whole.parent / "prepared", tmp_path / "prepared")
    workdir = tmp_path / "run"
    with monkeypatch.context() as patched:
        runs.signal_after(patched, 7)
        assert run(recipe, parent, workdir, of_recipe) == 128 + signal.SIGTERM
    assert run(recipe, parent, workdir, of_recipe) == 0
    runs.assert_same_end(workdir, whole, STEPS)


def test_a_recipe_that_goes_on_asks_for_its_parent(tmp_path, capsys):
    assert launch.main([f"--config={ROOT}/configs/sft.py", f"--workdir={tmp_path}/run"]) == 2
    assert "goes on from a trained run; give its work directory as --init_from" in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"its config\.json cannot be read"):
        configs.load_recipe(f"{ROOT}/configs/sft.py", init_from=str(tmp_path))
    with pytest.raises(UserError, match=r"there is no work directory '.*/none'"):
        configs.load_recipe(f"{ROOT}/configs/sft.py", init_from=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "options, words",
    [
        ("nll_on=all", "nll_on is 'all'; expected one of chosen, sequence"),
        ("nll_reduction=batch", "nll_reduction is 'batch'"),
        ("odds_weight=-1", "odds_weight is -1; expected a number of 0 or more"),
        ("odds=1", "'orpo' has no option 'odds'.*odds_weight"),
    ],
)
def test_wrong_options_of_the_task_are_named(options, words, sft, sources, tmp_path, capsys):
    shutil.copytree(sft.parent / "prepared", tmp_path / "prepared")
    status = run("orpo", sft, tmp_path / "run", orpo_sources(sources), task=f"orpo {options}")
    assert status == 2
    assert re.search(words, capsys.readouterr().err)


def test_pairs_are_needed_for_the_task(sft, sources, tmp_path, capsys):
    without_pairs = {"chats": {**sources["chats"], "weight": 1.0}}
    assert run("orpo", sft, tmp_path / "run", without_pairs) == 2
    assert "no source of data.sources with a weight has kind='pairs'" in capsys.readouterr().err
