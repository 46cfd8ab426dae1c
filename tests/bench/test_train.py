"""The training bench: it times the launcher's own step, its pieces add up to the work of the step, and its command behaves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax import config as configs
from slmjax.bench import __main__ as bench
from slmjax.bench import device_kernels as kernels
from slmjax.bench import ladder, shell, timing, train
from slmjax.bench.peers import torch_decoder as peers
from slmjax.data.prepare_stage import prepared_text
from slmjax.models import sizes
from slmjax.models.pattern import from_config
from slmjax.parallel.mesh import make_mesh
from slmjax.train.program import make_program


@pytest.fixture
def small():
    c = configs.base()
    c.model.vocab_size, c.model.width, c.model.layers, c.model.ff_width = 256, 32, 2, 64
    c.model.heads, c.model.kv_heads, c.model.head_dim = 2, 1, 16
    c.data.seq_len, c.train.batch = 32, 8
    return c


def test_a_repeated_call_computes_everything_every_time():
    """XLA may neither hoist the call out of the loop nor leave out what nobody reads: the compiled loop holds the product."""
    seen = []

    def f(a):
        jax.debug.callback(lambda: seen.append(1))
        return a @ a, a + 1

    a = jnp.ones((64, 64))
    assert timing.device_ms(f, a, repeats=3, runs=2) > 0
    assert len(seen) == 3 * (2 + 2)  # two programs that warm up, two that count


def test_rates_are_positive():
    assert timing.matmul_flops(jnp.float32, 64) > 0
    assert timing.copy_bytes(1 << 16) > 0


@pytest.mark.parametrize("documents", [1, 3])
def test_random_batches_keep_the_batch_contract(documents):
    batch = train.random_batch(2, 32, 256, documents, 0)
    assert np.array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    for row, positions in zip(batch["segments"], batch["positions"]):
        assert sorted(set(row)) == list(range(1, documents + 1))
        expected = np.concatenate(
            [np.arange((row == number).sum()) for number in range(1, documents + 1)]
        )
        np.testing.assert_array_equal(positions, expected)


def test_the_step_is_the_launchers_and_its_figures_fit_together(small):
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        row, _ = train.measure(configs.freeze(small), mesh, steps=4)
    assert row["tokens_per_second"] == pytest.approx(1e3 * 8 * 32 / row["step_ms"])
    assert abs(row["first_loss"] - np.log(256)) < 0.2  # random tokens, untrained model
    assert row["peak_gib"] > 0 and row["compile_s"] > 0 and row["first_step_s"] > 0


def test_the_pieces_hold_the_work_of_the_step(small):
    """FLOPs of stack and head are those of the step, those of the layers are the stack's, and attention and MLP lie inside a layer."""
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = make_program(configs.freeze(small), mesh, 256)
        batch = jax.device_put(train.random_batch(8, 32, 256, 1, 0))
        found = {piece.name: piece for piece in ladder.step_pieces(program, batch)}
        rows = ladder.ladder(program, batch)
    whole = sizes.train_flops_per_token(program.arch, 32) * 8 * 32
    assert found["stack"].flops + found["head and loss"].flops == pytest.approx(whole)
    assert found["layer"].flops * 2 == pytest.approx(found["stack"].flops)
    assert found["attention"].flops + found["mlp"].flops < found["layer"].flops * 1.2
    assert {row["piece"] for row in rows[1:]} == set(found) and all(
        row["ms"] > 0 and row["reached"] > 0 for row in rows[1:]
    )


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(small, tmp_path, capsys):
    (tmp_path / "config.json").write_text(configs.to_json(configs.freeze(small)))
    out = tmp_path / "figures.json"
    command = [
        "train",
        f"--config={tmp_path}/config.json",
        "--config.train.batch=16",
        "--steps=4",
        "--ladder",
        "--kernels",
        f"--out={out}",
    ]
    assert bench.main(command) == 0
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert "tokens per second" in printed and "head and loss" in printed
    assert written["rows"][0]["who"].startswith("slmjax") and written["machine"]["jax"]
    assert "--config.train.batch=16" in written["command"]
    assert (
        written["kernels"][-1]["kernels"] == "any"
        and len(written["kernels"]) > 2
        and written["kernels"][0]["ms"] > 0
    )
    assert len(written["windows_ms"]["slmjax, blockwise attention"]) == 3


def test_kernels_are_counted_by_kind_for_each_step_and_overlaps_once(monkeypatch):
    events = [
        ("sgemm_128", 0.0, 4e6),
        ("loop_add_fusion_3", 2e6, 5e6),
        ("loop_add_fusion_17", 8e6, 9e6),
        ("sgemm_128", 9e6, 12e6),
    ]
    monkeypatch.setattr(kernels, "_events", lambda data: events)
    rows = kernels.kernels(lambda: jnp.ones(4) + 1, steps=2)
    assert [(row["kernels"], row["ms"], row["calls"]) for row in rows] == [
        ("matrix products", 3.5, 1),
        ("elementwise and the rest", 2.0, 1),
        ("any", 4.5, 2),
    ]
    assert rows[1]["slowest"] == "2 ms loop_add_fusion"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["train", "--config.model.widht=3"], "width"),
        (["train", "--config=nowhere.py"], "nowhere.py"),
        (["trian"], "Did you mean 'train'?"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, sentence, capsys):
    if arguments[-1].startswith("--config."):
        arguments = [arguments[0], "--config=configs/tiny.py", *arguments[1:]]
    assert bench.main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_help_names_the_benches_and_each_has_its_own(capsys):
    assert bench.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in bench.BENCHES)
    with pytest.raises(SystemExit):
        bench.main(["train", "--help"])
    assert "--ladder" in capsys.readouterr().out


def test_a_bench_that_reads_no_recipe_offers_none_and_refuses_its_fields(capsys):
    with pytest.raises(SystemExit):
        bench.main(["dedup", "--help"])
    assert "--config" not in capsys.readouterr().out
    assert bench.main(["dedup", "--config.model.layers=2"]) == 2
    assert "dedup reads no recipe; it takes no --config.model.layers." in capsys.readouterr().err


def test_an_absent_peer_says_so(small, monkeypatch):
    monkeypatch.setattr(shell.sys, "executable", "false")
    (row,), messages = train.peer_rows(configs.freeze(small), 4)
    assert row == {"who": "PyTorch", "skipped": "ended with status 1"} and not messages


def test_a_peer_that_takes_too_long_is_ended_and_what_it_said_counts(tmp_path, monkeypatch):
    (tmp_path / "slow.py").write_text(
        "import json, time\nprint(json.dumps({'a': input()}), flush=True)\ntime.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert shell.ask("slow", [1], seconds=3) == ([{"a": "[1]"}], "not finished after 3 s")


def test_packed_text_is_timed_with_one_batch_and_with_the_loaders(small, corpus):
    """The loader gives other batches than the repeated one, all of them packed rows of the text."""
    small.data.sources["own"] = {"path": str(corpus)}
    small.data.cache, small.data.vocab_size, small.model.vocab_size = (
        str(corpus.parent / "bench"),
        300,
        0,
    )
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        config = configs.freeze(small)
        one, read = train.measure_text(config, mesh, prepared_text(config.data, "unused"), 12)
    assert one["who"].endswith("one batch") and read["who"].endswith("the loader's")
    assert read["times_one_batch"] == pytest.approx(one["step_ms"] / read["step_ms"])
    assert one["documents"] >= 1 and one["first_loss"] == read["first_loss"]


@pytest.mark.parity
def test_the_peer_is_the_same_model(small):
    """PyTorch's decoder with our parameters gives our loss, in float32."""
    torch = pytest.importorskip("torch", reason="needs torch")
    from slmjax.models import lm
    from slmjax.tasks.language_modeling import LanguageModeling
    from tests.train.small import FixedRows

    arch = from_config(configs.freeze(small).model, 256)
    params = lm.init(arch, jax.random.key(0))
    model = peers.Decoder(torch, arch)
    paths = {name: ("mixer", name) for name in ("query", "key", "value", "out")} | {
        name: ("channel", name) for name in ("gate", "up", "down")
    }
    state = {
        "embedding.weight": params["embedding"],
        "final_norm.weight": params["final_norm"]["scale"],
    }
    state["head.weight"] = params["embedding"]
    for i in range(arch.layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["stack"]["0"]["0"])
        for norm in ("mixer_norm", "channel_norm"):
            state[f"layers.{i}.{norm}.weight"] = layer[norm]["scale"]
        for name, (of, own) in paths.items():
            inputs = -1 if own == "out" else layer[of][own].shape[0]
            state[f"layers.{i}.{name}.weight"] = (
                layer[of][own].reshape(inputs, arch.width if own == "out" else -1).T
            )
    model.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
    batch = jax.tree.map(jnp.asarray, train.random_batch(2, 32, 256, 1, 0))
    task = LanguageModeling(FixedRows(2, 32))
    found = task.loss(
        lm.Model(arch),
        params,
        {},
        batch,
        task.totals(batch),
        key=jax.random.key(0),
        step=jnp.int32(0),
    )
    theirs = model.loss(*(torch.tensor(np.int64(batch[name])) for name in ("tokens", "targets")))
    assert float(found.sum / found.weight) == pytest.approx(float(theirs.detach()), abs=1e-5)
