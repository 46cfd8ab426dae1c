"""The decode bench: rows of the engine's own programs, the floor that memory sets, and the peer."""

import argparse
import dataclasses

import jax
import pytest

from slmjax import config
from slmjax.bench import decode
from slmjax.errors import UserError
from slmjax.infer import programs
from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block

COLUMNS = [
    "who",
    "batch",
    "prompt",
    "prefill ms",
    "ms a token",
    "tokens/s",
    "state MB",
    "floor ms",
    "compile s",
    "peak GiB",
]


def arguments(*words):
    parser = argparse.ArgumentParser()
    decode.add_arguments(parser)
    out = parser.parse_args(["--batch=1,3", "--prompt=20", "--tokens=4", "--runs=1", *words])
    recipe = config.base()
    recipe.model.update(
        {"width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "ff_width": 24}
    )
    recipe.data.vocab_size = 256
    out.config = config.freeze(recipe)
    return out


def test_each_batch_gives_a_row_whose_figures_fit_together():
    found = decode.run(arguments())
    assert found["bench"] == "decode" and not found["messages"]
    assert [(list(row), row["batch"], row["prompt"]) for row in found["rows"]] == [
        (COLUMNS, batch, 20) for batch in (1, 3)
    ]
    for row in found["rows"]:
        assert row["tokens/s"] == pytest.approx(1e3 * row["batch"] / row["ms a token"])
        assert (
            row["prefill ms"] > 0 and row["floor ms"] is None
        )  # the bandwidth of a CPU is not in the table


def test_the_floor_is_the_bytes_of_matrices_and_of_the_cache_over_the_bandwidth(monkeypatch):
    """Those of the arrays that a step reads; the embedding of an untied model is only looked up in."""
    monkeypatch.setattr(decode.devices, "memory_bandwidth", lambda kind: 1e9)
    asked = arguments("--batch=3")
    asked.config = dataclasses.replace(
        asked.config, model=dataclasses.replace(asked.config.model, tied=False)
    )
    row = decode.run(asked)["rows"][0]
    arch = Architecture(256, 16, 2, 1, 8, 24, (((Block(),), 2),), tied=False)
    ready = jax.eval_shape(lambda: programs.ready_params(arch, lm.init(arch, jax.random.key(0))))
    matrices = sum(
        leaf.size * 4
        for path, leaf in jax.tree.leaves_with_path(ready)
        if path[-1].key not in ("scale", "embedding")
    )
    layers = jax.eval_shape(
        lambda: lm.init_cache(arch, 3, 22)
    ).layers  # 20 of the prompt and half of the 4 that are drawn
    assert row["floor ms"] == pytest.approx(
        (matrices + sum(leaf.size * 4 for leaf in jax.tree.leaves(layers))) / 1e9 * 1e3
    )


def test_compiler_options_reach_their_program_and_lists_keep_their_commas():
    found = decode.parse_xla(["a=FUSION,WHILE,prefill.b=False,c=3", "d="])
    assert found == {"decode": {"a": "FUSION,WHILE", "c": 3, "d": ""}, "prefill": {"b": False}}
    assert decode.run(arguments("--batch=1", "--xla=xla_llvm_disable_expensive_passes=True"))[
        "rows"
    ]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--tokens=1"], "--tokens=1"),
        (["--prompt=0"], "--prompt=0"),
        (["--xla=flag"], "--xla=flag"),
        (["--batch=1", "--xla=no_such_option=1"], "no_such_option"),
        (["--batch=1", "--xla=prefill.no_such_option=1"], "no_such_option"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(words, named):
    with pytest.raises(UserError, match=named):
        decode.run(arguments(*words))


@pytest.mark.parametrize("word", ["--batch=1,x", "--batch=0"])
def test_batches_are_positive_numbers(word, capsys):
    with pytest.raises(SystemExit):
        arguments(word)
    assert (
        f"invalid comma-separated list of whole numbers of 1 or more value: '{word[8:]}'"
        in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parity
def test_the_peer_gives_rows_of_the_same_columns():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    found = decode.run(arguments("--batch=2", "--peers"))
    ours, theirs = found["rows"]
    assert list(ours) == list(theirs) == COLUMNS
    assert theirs["who"].startswith("transformers") and theirs["who"].endswith("dynamic cache")
    assert theirs["tokens/s"] == pytest.approx(2e3 / theirs["ms a token"])


def test_a_missing_peer_is_told_and_a_model_that_it_cannot_be_is_refused(monkeypatch):
    monkeypatch.setattr(decode.decode_peers.importlib.util, "find_spec", lambda name: None)
    found = decode.run(arguments("--batch=1", "--peers"))
    assert (
        len(found["rows"]) == 1 and "torch and transformers not installed" in found["messages"][0]
    )
    monkeypatch.undo()
    pytest.importorskip("transformers")
    asked = arguments("--peers")
    asked.config = dataclasses.replace(
        asked.config, model=dataclasses.replace(asked.config.model, qk_norm=True)
    )
    with pytest.raises(UserError, match="qk_norm"):
        decode.run(asked)
