"""Phases with their own rate, rows and order; branches that are the longer run; soups that are the mean."""

import json
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax import cli, compare
from slmjax.checkpoint import Checkpoints
from slmjax.data.prepare_stage import prepared_text
from slmjax.errors import UserError
from slmjax.infer.load import load_model
from slmjax.models.lm import Model
from slmjax.train import inherit as heirs
from tests import runs
from tests.parallel.test_hosts import ends, start_all
from tests.train.small import whole
from tests.train.test_inherit import META, inherit, parent, same, setup

STEP = 16 * 64  # tokens of a step of the smallest recipe
PHASES = (
    {"tokens": 12 * STEP, "weights": {"words": 1}, "rate": (1, 1)},
    {
        "tokens": 6 * STEP,
        "weights": {"other": 0.3, "*": 0.7},
        "rate": (1, 0.5),
        "seq_len": 32,
        "batch": 32,
    },
    {"tokens": 4 * STEP, "weights": {"other": 1}, "ramp": STEP, "rate": (0.5, 0), "seed": 7},
)
STEPS = 22
RUN = {"data__phases": PHASES, "train__schedule": "phases", "train__steps": 0}


pytestmark = pytest.mark.usefixtures("without_reports")


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory, without_reports):
    """{name: work directory}: a trunk of 14 steps at its peak, and the whole run with the phases."""
    folder = tmp_path_factory.mktemp("branch")
    other = runs.write_corpus(folder / "other.jsonl", seed=5)
    sources = f"words={corpus},other:0={other}"
    assert runs.train(corpus, folder / "trunk", train__steps=14, train__decay=0) == 0
    fields = {"data__sources": sources, **RUN}
    tokenizer = folder / "trunk" / "tokenizer.json"
    assert runs.train(corpus, folder / "whole", data__tokenizer=tokenizer, **fields) == 0
    return {"trunk": folder / "trunk", "whole": folder / "whole", "sources": sources}


def train(corpus, made, workdir, *flags, **fields):
    fields = {"data__sources": made["sources"], **RUN, **fields}
    return runs.train(corpus, workdir, *flags, **fields)


def branch(corpus, made, workdir, *flags, **fields):
    """Branch from the trunk."""
    flags = (f"--init_from={made['trunk']}", *flags)
    return train(corpus, made, workdir, *flags, train__branch=True, **fields)


@pytest.mark.slow
def test_a_run_killed_before_at_and_after_a_boundary_ends_as_if_nothing_had_happened(
    corpus, made, tmp_path, monkeypatch
):
    """At 12 rows change, at 18 rows and order. The third session has a worker."""
    fields = {"data__tokenizer": made["trunk"] / "tokenizer.json"}
    for logged, workers in ((11, 0), (16, 0), (18, 1)):
        with monkeypatch.context() as patch:
            runs.signal_after(patch, logged)
            assert train(corpus, made, tmp_path / "run", data__workers=workers, **fields) == 143
        assert runs.steps_saved(tmp_path / "run")[-1] == logged + 1
    assert train(corpus, made, tmp_path / "run", **fields) == 0
    runs.assert_same_end(tmp_path / "run", made["whole"], STEPS)


def test_metrics_follow_the_shapes_and_rates_of_the_phases(made):
    records = runs.metrics.read(made["whole"])
    steps, tokens = runs.metrics.series(records, "train/tokens")
    assert dict(zip(steps.tolist(), tokens.tolist(), strict=True))[22] == 22 * STEP
    config = json.loads((made["whole"] / "config.json").read_text())
    assert config["train"]["steps"] == STEPS
    steps, rates = runs.metrics.series(records, "train/learning_rate")
    rate = dict(zip(steps.tolist(), rates.tolist(), strict=True))
    assert rate[12] == pytest.approx(0.01) and rate[13] == pytest.approx(0.01)
    half = 1 - 0.5 * np.sqrt(3 / 6)
    assert rate[16] == pytest.approx(0.01 * half, rel=1e-6)
    assert rate[22] == pytest.approx(0.01 * 0.5 * (1 - np.sqrt(3 / 4)), rel=1e-6)
    steps, flops = runs.metrics.series(records, "train/flops")
    flops = dict(zip(steps.tolist(), flops.tolist(), strict=True))
    # As many tokens in shorter rows: attention looks at fewer keys.
    assert flops[18] - flops[17] < flops[12] - flops[11]


def test_a_branch_is_the_undisturbed_longer_run_bit_for_bit(
    corpus, made, tmp_path, monkeypatch, capsys
):
    child = tmp_path / "child"
    with monkeypatch.context() as patch:
        runs.signal_after(patch, 15)
        assert branch(corpus, made, child) == 143
    assert "branches from its parent's step 10" in capsys.readouterr().out
    assert branch(corpus, made, child) == 0
    assert runs.steps_saved(child)[-1] == STEPS
    (steps, mine), (_, theirs) = runs.losses(child), runs.losses(made["whole"])
    assert steps == list(range(11, STEPS + 1)) and mine == theirs[10:]
    ours, others = runs.saved(child, STEPS), runs.saved(made["whole"], STEPS)
    assert ours.keys() == others.keys() and len(ours) > 20
    assert [name for name in ours if ours[name].tobytes() != others[name].tobytes()] == []
    (first, *_) = runs.events(child, "lineage")
    (parents,) = first["parents"]
    assert parents["step"] == 10 and parents["how"] == "branch"
    assert parents["workdir"] == str(made["trunk"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"train__lr": 0.02}, "its parent's config, but train.lr was 0.01 and is 0.02"),
        ({"seed": 3, "model__qk_norm": True}, "model.qk_norm was False and is True; seed was 0"),
        (
            {"train__warmup": 6},
            "agree in the first 0 steps, but .* of step 5, 10, 14.*train.warmup",
        ),
        (
            {"data__phases": ({"tokens": 22 * STEP, "weights": {"other": 1}, "rate": (1, 1)},)},
            r"the data of its checkpoints \(of step 5, 10, 14\) is not this run's; .*data.phases",
        ),
        ({"init_from": ""}, "there is no run to branch from; give its work directory"),
        ({"init_from": "elsewhere"}, "no checkpoint that can be read"),
    ],
)
def test_a_branch_without_a_checkpoint_to_branch_from_is_refused_in_one_sentence(
    fields, sentence, corpus, made, tmp_path, capsys
):
    flags = ()
    fields = dict(fields)
    init_from = fields.pop("init_from", str(made["trunk"]))
    if init_from:
        (tmp_path / "elsewhere").mkdir()
        init_from = init_from.replace("elsewhere", str(tmp_path / "elsewhere"))
        flags = (f"--init_from={init_from}",)
    words = {"train__branch": True, **fields}
    assert train(corpus, made, tmp_path / "child", *flags, **words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(sentence, error), error
    assert not (tmp_path / "child" / "checkpoints").exists()


@pytest.mark.slow
def test_other_rates_than_those_of_the_checkpoint_go_back_to_where_both_agree(
    corpus, made, tmp_path, capsys
):
    run = shutil.copytree(made["whole"], tmp_path / "run")
    tokenizer = made["trunk"] / "tokenizer.json"
    steps = runs.steps_saved(run)
    assert 12 in steps  # the first step of the first phase that falls is kept
    phases = (*PHASES[:2], {**PHASES[2], "rate": (0.5, 0.5)})
    fields = {"data__phases": phases, "data__tokenizer": tokenizer}
    assert train(corpus, made, run, **fields) == 0
    assert f"goes back to step {max(s for s in steps if s <= 19)}" in capsys.readouterr().out
    steps, rates = runs.metrics.series(runs.metrics.read(run), "train/learning_rate")
    assert rates[-1] == pytest.approx(0.005)


def test_the_soup_of_one_run_is_that_run_and_of_two_their_mean(tmp_path):
    made = setup()
    one = parent(tmp_path / "one", made)
    two = parent(tmp_path / "two", made, lambda buffers: jax.tree.map(lambda x: x * 3 + 1, buffers))
    two["params"] = jax.tree.map(lambda x: x * np.float32(1.7) - 3, two["params"])
    save(tmp_path / "scaled", two)
    twice, lineage, _ = inherit(f"{tmp_path / 'one'},{tmp_path / 'one'}", made)
    assert same(twice.params, one["params"]) and same(twice.buffers, one["buffers"])
    assert [entry["how"] for entry in lineage] == ["soup of 2"] * 2
    mixed, _, _ = inherit(f"{tmp_path / 'one'},{tmp_path / 'scaled'}", made)
    mean = jax.tree.map(lambda a, b: (a + b) / np.float32(2), one["params"], two["params"])
    assert same(mixed.params, mean) and not same(mixed.params, one["params"])
    # Counts are whole numbers: the first run's.
    assert same(mixed.buffers, one["buffers"]) and not same(two["buffers"], one["buffers"])
    assert jax.tree.map(lambda leaf: leaf.sharding, mixed) == made.where
    assert int(mixed.step) == 0 and same(mixed.optimizer, made.state.optimizer)


def save(folder, items, **meta):
    checkpoints = Checkpoints(folder)
    checkpoints.save(7, {name: tree for name, tree in items.items() if tree}, {**META, **meta})
    checkpoints.close()


def test_runs_of_different_architectures_or_tokenizers_have_no_soup(tmp_path):
    made = setup()
    items = parent(tmp_path / "one", made)
    save(tmp_path / "theta", items, config={"model": {"rope_theta": 500.0}})
    save(tmp_path / "words", items, tokenizer="another")
    with pytest.raises(UserError, match=r"model.rope_theta is 10000.0 in .*one' and 500.0 in"):
        heirs.parents(f"{tmp_path / 'one'},{tmp_path / 'theta'}")
    with pytest.raises(UserError, match="words: its parameters were trained with another token"):
        inherit(f"{tmp_path / 'one'},{tmp_path / 'words'}", made)
    with pytest.raises(UserError, match="gone: there is no checkpoint"):
        heirs.parents(f"{tmp_path / 'one'},{tmp_path / 'gone'}")


def test_a_run_without_steps_scores_a_soup_as_its_model_scores_document_by_document(
    corpus, made, tmp_path, capsys
):
    soup = tmp_path / "soup"
    flags = (f"--init_from={made['trunk']},{made['whole']}",)
    fields = {"train__steps": 0, "data__sources": made["sources"]}
    assert runs.train(corpus, soup, *flags, **fields) == 0
    assert runs.train(corpus, soup, *flags, **fields) == 0
    assert "This run is finished: 0 steps." in capsys.readouterr().out
    assert len(runs.events(soup, "finish")) == 1 and runs.steps_saved(soup) == [0]

    model = load_model(str(soup))
    parents = [whole(load_model(str(made[name])).params) for name in ("trunk", "whole")]
    mean = jax.tree.map(lambda a, b: (a + b) / np.float32(2), *parents)
    assert same(model.params, mean)
    config = cli.make_config(*cli.read_options(runs.argv(corpus, soup, **fields)))
    prepared = prepared_text(config.data, str(soup), init_from=str(made["trunk"]))
    with np.load(soup / "heldout.npz") as scores:
        for name, shards in prepared.heldout.items():
            keys = list(np.asarray(shards.keys))
            for key, nats in list(zip(scores[f"{name}/keys"], scores[f"{name}/nats"]))[:1]:
                document = keys.index(key)
                tokens = shards.read(document, 0, int(shards.lengths[document]))
                assert nats == pytest.approx(direct_nats(model, tokens), rel=1e-4)
    # Compared as any run is.
    compared = compare.compare([str(soup), str(made["whole"])])
    assert len(compared.runs) == 2


def direct_nats(model, tokens):
    """Nats of a document, cut into rows of 64 as the evaluation cuts it, one after the other."""
    total = 0.0
    for start in range(0, len(tokens) - 1, 64):
        piece = np.asarray(tokens[start : start + 65])
        length = len(piece) - 1
        batch = {
            "tokens": jnp.asarray(piece[None, :-1]),
            "segments": jnp.ones((1, length), jnp.int32),
            "positions": jnp.arange(length, dtype=jnp.int32)[None],
        }
        lm = Model(model.arch, 1)
        hidden, _ = lm.forward(model.params, model.buffers, batch)
        logits = jnp.asarray(hidden, jnp.float32) @ jnp.asarray(lm.head(model.params), jnp.float32)
        log_probs = jax.nn.log_softmax(logits[0])
        total -= float(log_probs[np.arange(length), piece[1:]].sum())
    return total


def test_a_run_without_steps_scores_a_model_as_its_own_run_did(corpus, made, tmp_path):
    tokenizer = made["trunk"] / "tokenizer.json"
    fields = {"data__sources": made["sources"], "data__tokenizer": tokenizer}
    flags = (f"--init_from={made['whole']}",)
    assert runs.train(corpus, tmp_path / "scored", *flags, train__steps=0, **fields) == 0
    scored, trained = tmp_path / "scored" / "heldout.npz", made["whole"] / "heldout.npz"
    with np.load(scored) as mine, np.load(trained) as other:
        assert set(mine) == set(other) and len(mine) == 8
        for name in mine:
            if mine[name].dtype.kind == "f":
                np.testing.assert_allclose(mine[name], other[name], rtol=1e-5)
            else:
                np.testing.assert_array_equal(mine[name], other[name])


@pytest.mark.slow
def test_two_processes_leave_in_a_phase_of_other_rows_and_one_goes_on(
    corpus, made, tmp_path, monkeypatch
):
    # Long enough that the signal comes in the middle of the second phase.
    phases = ({**PHASES[0], "tokens": 4 * STEP}, {**PHASES[1], "tokens": 56 * STEP})
    fields = {"data__sources": made["sources"], **RUN, "data__phases": phases}
    fields["data__tokenizer"] = made["trunk"] / "tokenizer.json"
    assert runs.train(corpus, tmp_path / "alone", **fields) == 0
    processes = start_all(corpus, tmp_path / "run", 2, 1, monkeypatch, **fields)
    if runs.wait_for_step(tmp_path / "run", 6, processes[0]):
        processes[-1].send_signal(signal.SIGTERM)
    told = ends(processes)
    assert [status for status, _, _ in told] == [143, 143], told
    assert 6 < runs.steps_saved(tmp_path / "run")[-1] < 60
    assert runs.train(corpus, tmp_path / "run", **fields) == 0
    # Sums over devices are in another order.
    mine, undisturbed = runs.losses(tmp_path / "run"), runs.losses(tmp_path / "alone")
    assert mine[0] == undisturbed[0] == list(range(1, 61))
    np.testing.assert_allclose(mine[1], undisturbed[1], rtol=1e-5)
