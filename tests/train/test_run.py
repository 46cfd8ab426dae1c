"""A whole run: skipped steps, another run's parameters, a profile, and what is written where."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax import config as configs
from slmjax.infer.load import load_model
from slmjax.models.pattern import from_config
from slmjax.ops.softmax_attention import reference
from slmjax.tasks.language_modeling import LanguageModeling
from slmjax.train import next_commands
from tests import runs

# Of tensorstore: reads that the failure of another one ended.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def no_report(monkeypatch):
    """Reports have tests of their own, and each costs a second."""
    monkeypatch.setattr("slmjax.train.loop.write_report", lambda *_, **__: "report.html")


@pytest.fixture
def poisoned(monkeypatch):
    """From now on the loss of these steps (0-based) is not a number."""

    def poison(*steps):
        class Bad(LanguageModeling):
            def loss(self, *arguments, key, step):
                found = super().loss(*arguments, key=key, step=step)
                return found._replace(
                    sum=jnp.where(jnp.isin(step, jnp.array(steps)), jnp.nan, found.sum)
                )

        monkeypatch.setattr("slmjax.train.text.LanguageModeling", Bad)

    return poison


def test_skipped_steps_change_no_parameter_or_moment_and_leave_the_statistics_alone(
    corpus, tmp_path, poisoned, no_report, capsys
):
    poisoned(4, 5)
    folder = tmp_path / "run"
    assert (
        runs.train(
            corpus,
            folder,
            train__steps=8,
            train__decay=0,
            checkpoint__every=2,
            checkpoint__keep=9,
            train__max_skips=3,
        )
        == 0
    )
    before, after = runs.saved(folder, 4), runs.saved(folder, 6)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {
        "optimizer['step']",
        "optimizer['spikes']['skips']",
        "optimizer['spikes']['exponent']",
    }
    assert after["optimizer['step']"] == 6 and after["optimizer['spikes']['skips']"] == 2
    later = runs.saved(folder, 8)
    assert later["optimizer['spikes']['skips']"] == 0 and later["optimizer['spikes']['count']"] == 6
    assert later["params['embedding']"].tobytes() != after["params['embedding']"].tobytes()
    assert [event["step"] for event in runs.events(folder, "skipped")] == [5, 6]
    assert "step 5 skipped: loss nan" in capsys.readouterr().out


def test_a_batch_with_more_documents_than_places_takes_a_program_of_its_own(
    corpus, tmp_path, undisturbed, no_report, monkeypatch, capsys
):
    """cuDNN's kernel, which a CPU does not have, is played: it computes nothing where the rows hold more than its places."""

    def played(query, key, value, segments, places, window):
        few = segments.max() <= places  # each device has one row
        return jnp.where(few, reference(query, key, value, segments, segments), jnp.nan)

    monkeypatch.setattr("slmjax.ops.cudnn_attention.cudnn_attention", played)
    monkeypatch.setattr("slmjax.train.program.check_kernel", lambda *_: None)
    usual = []

    def few(plan):
        crowds = sorted(
            plan.documents_on_device(step, *plan.cuts) for step in range(6)
        )  # a device has one row of a microbatch
        usual.append(crowds[2])
        assert crowds[2] < crowds[-1]  # of six steps at most four fit
        return crowds[2]

    monkeypatch.setattr("slmjax.data.loader.BatchPlan.usual_places", property(few))
    folder = tmp_path / "run"
    assert (
        runs.train(
            corpus,
            folder,
            train__steps=6,
            train__warmup=4,
            train__decay=0,
            model__attention="cudnn",
            checkpoint__every=100,
        )
        == 0
    )
    assert "has other shapes (places): compiling" in capsys.readouterr().out
    assert not runs.events(folder, "skipped")
    np.testing.assert_allclose(runs.losses(folder)[1], runs.losses(undisturbed)[1][:6], rtol=1e-5)


def test_too_many_skipped_steps_in_a_row_end_the_run_naming_the_documents(
    corpus, tmp_path, poisoned, capsys
):
    poisoned(1, 6, 7, 8)
    folder = tmp_path / "run"
    assert runs.train(corpus, folder, train__max_skips=3) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "slmjax: 3 steps in a row were skipped (config.train.max_skips), the last one, step 9, for loss nan"
    )
    assert err.count("\n") == 1 and "words: corpus.jsonl line " in err and " more." in err
    assert runs.events(folder, "stopped")[0]["step"] == 9 and runs.steps_saved(folder) == [5]


@pytest.mark.parametrize("steps", [(6, 7), ()], ids=["loss", "held-out score"])
def test_a_run_that_ends_with_numbers_that_are_not_finite_is_not_finished(
    steps, corpus, tmp_path, poisoned, monkeypatch, capsys
):
    poisoned(*steps)
    folder = tmp_path / "run"
    if not steps:
        monkeypatch.setattr(
            "slmjax.train.evaluation.metrics", lambda losses: {"eval/bits_per_byte": float("nan")}
        )
    assert runs.train(corpus, folder, train__steps=8, train__max_skips=3) == 2
    name = "loss" if steps else "eval/bits_per_byte"
    err = capsys.readouterr().err
    assert (
        f"slmjax: after the last step, 8, {name} is nan, so the run is not finished" in err
        and err.count("\n") == 1
    )
    assert not runs.events(folder, "finish") and runs.events(folder, "stopped")[0]["step"] == 8
    assert runs.steps_saved(folder)[-1] < 8


def test_init_from_refuses_another_tokenizer_and_a_folder_that_holds_another_run(
    corpus, undisturbed, tmp_path, capsys
):
    other = runs.write_corpus(tmp_path / "other.jsonl", seed=1)
    assert runs.train(corpus, tmp_path / "own", data__sources=f"words={other}", train__steps=5) == 0
    tokenizer = tmp_path / "own" / "tokenizer.json"
    assert (
        runs.train(
            corpus, tmp_path / "child", f"--init_from={undisturbed}", data__tokenizer=tokenizer
        )
        == 2
    )
    assert "its parameters were trained with another tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "child").exists()
    assert runs.train(corpus, tmp_path / "own", f"--init_from={undisturbed}", train__steps=5) == 2
    assert "already holds a run that did not start from it" in capsys.readouterr().err


@pytest.mark.slow
def test_init_from_starts_from_the_parents_parameters_and_records_the_lineage(
    corpus, undisturbed, tmp_path, capsys, monkeypatch
):
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "slmjax.train.loop.train",
            lambda run, leave: taken.append(run.state) or run.writer.close() or 0,
        )
        assert runs.train(corpus, tmp_path / "child", f"--init_from={undisturbed}", seed=5) == 0
    theirs = load_model(str(undisturbed)).params
    same = jax.tree.map(
        lambda mine, other: jnp.asarray(mine).tobytes() == other.tobytes(), taken[0].params, theirs
    )
    assert jax.tree.all(same) and int(taken[0].step) == 0

    child, grandchild = tmp_path / "child", tmp_path / "grandchild"
    assert (
        runs.train(corpus, child, f"--init_from={undisturbed}", train__steps=5, log__profile="1:3")
        == 0
    )
    assert list((child / "profile").rglob("*.xplane.pb"))
    (parent,) = runs.events(child, "lineage")[-1]["parents"]
    assert (parent["workdir"], parent["step"]) == (str(undisturbed), 30)
    assert (
        f"{undisturbed} step 30 ({parent['hash']})" in capsys.readouterr().out
        and parent["hash"] in (child / "report.html").read_text()
    )
    monkeypatch.setattr("slmjax.train.loop.train", lambda run, leave: run.writer.close() or 0)
    assert runs.train(corpus, grandchild, f"--init_from={child}") == 0
    assert [one["workdir"] for one in runs.events(grandchild, "lineage")[-1]["parents"]] == [
        str(child),
        str(undisturbed),
    ]
    assert runs.train(corpus, child, train__steps=6) == 0  # without the flag
    assert runs.events(child, "lineage")[-1]["parents"] == [parent]
    elsewhere = shutil.copytree(undisturbed, tmp_path / "moved")
    for same in (undisturbed, elsewhere):
        assert runs.train(corpus, child, f"--init_from={same}", train__steps=6) == 0


@pytest.mark.parametrize("field", ["model__width=24", "model__layers=3", "model__qk_norm=True"])
def test_parameters_of_other_shapes_are_refused(field, corpus, undisturbed, tmp_path, capsys):
    name, _, value = field.partition("=")
    assert runs.train(corpus, tmp_path / "run", f"--init_from={undisturbed}", **{name: value}) == 2
    err = capsys.readouterr().err
    assert (
        "its parameters do not fit config.model: " in err
        and err.count("\n") == 1
        and not (tmp_path / "run").exists()
    )


def test_of_a_parent_whose_newest_checkpoint_is_damaged_the_one_before_is_taken_and_said(
    corpus, undisturbed, tmp_path, monkeypatch, capsys
):
    taken = []
    monkeypatch.setattr(
        "slmjax.train.loop.train",
        lambda run, leave: taken.append(run.state) or run.writer.close() or 0,
    )
    parent, child = shutil.copytree(undisturbed, tmp_path / "parent"), tmp_path / "run"
    for path in (parent / "checkpoints" / "30" / "params").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:99])
    assert runs.train(corpus, child, f"--init_from={parent}") == 0
    told = f"--init_from={parent}, step 30: "
    assert (
        f"slmjax: {told}" in (out := capsys.readouterr().out)
        and "damaged and was passed over" in out
    )
    theirs, mine = runs.saved(parent, 25), jax.tree.leaves_with_path({"params": taken[0].params})
    for path, value in mine:
        assert (
            theirs[f"params{jax.tree_util.keystr(path[1:])}"].tobytes()
            == np.asarray(value).tobytes()
        )
    (lineage,) = runs.events(child, "lineage")[-1]["parents"]
    assert (lineage["workdir"], lineage["step"]) == (str(parent), 25)
    assert [event["message"].startswith(told) for event in runs.events(child, "damaged")] == [True]

    for step in (24, 25):
        (parent / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")
    assert runs.train(corpus, tmp_path / "other", f"--init_from={parent}") == 2
    err = capsys.readouterr().err
    assert (
        f"--init_from={parent}: none of its checkpoints can be read: step 30: " in err
        and err.count("\n") == 1
    )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("pattern", "field"),
    [("gdn,attention", "--config.model.output_gate=True"), ("gdn", "--config.train.lr=0.0015")],
)
def test_the_field_that_is_suggested_for_a_change_is_one_that_the_model_reads(pattern, field):
    config = configs.freeze(
        configs.override(
            configs.base(), [f"model.pattern={pattern}", "model.layers=2", "train.lr=0.003"]
        )
    )
    assert (
        next_commands.changed_option(
            config, from_config(config.model, vocab_size=300, compute="float32")
        )
        == field
    )


def test_a_run_leaves_what_its_readers_expect(corpus, undisturbed):
    names = {
        "config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "checkpoints",
        "report.html",
        "heldout.npz",
    }
    assert {path.name for path in undisturbed.iterdir()} >= names
    assert json.loads((undisturbed / "config.json").read_text())["train"]["steps"] == 30
    records = runs.metrics.read(undisturbed)
    assert records.torn == 0 and [
        record["event"]
        for record in records.all
        if "event" in record and record["event"] != "goodput"
    ] == ["start", "data", "lineage", "finish"]
    last = [record for record in records.kept if "train/loss" in record][-1]
    assert last["train/tokens"] == 30 * 16 * 64 and last["train/skipped"] == 0
    assert runs.losses(undisturbed)[1][-1] < 0.7 * runs.losses(undisturbed)[1][0]
    assert 24 in runs.steps_saved(undisturbed)  # the trunk
