"""The memory bench: variants of equal parameters, rows that agree with the closed forms, the picture."""

import argparse
import dataclasses

import pytest

from slmjax import config as configs
from slmjax.bench import memory, memory_figure
from slmjax.errors import UserError
from slmjax.infer.engine import bucket
from slmjax.models import sizes
from slmjax.models.pattern import from_config


def arguments(*words):
    parser = argparse.ArgumentParser()
    memory.add_arguments(parser)
    out = parser.parse_args(["--lengths=64", "--tokens=128", "--steps=3", "--drawn=16", *words])
    config = configs.base()
    config.model.update(
        {"width": 32, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 8, "ff_width": 160}
    )
    config.data.vocab_size = 256
    out.config = configs.freeze(config)
    return out


@pytest.mark.slow
def test_a_row_has_the_measured_state_and_the_picture_every_variant(tmp_path):
    asked = arguments("--variants=mqa,shared,gla", f"--figure={tmp_path}/memory.svg")
    found = memory.run(asked)
    assert [(row["variant"], row["context"], row["remat"]) for row in found["rows"]] == [
        (v, 64, "none") for v in ("mqa", "shared", "gla")
    ]
    for row in found["rows"]:
        assert row["train GiB"] > 0 and row["train tokens/s"] > 0 and row["decode tokens/s"] > 0
        config = memory.variant(asked.config, row["variant"])
        slots = bucket(64 - 16 - 1) + bucket(16)
        segments = (
            0 if row["variant"] != "gla" else 16 * 4
        )  # numbers of segments in each layer's memory
        assert (
            1e6 * row["state MB"]
            == sizes.cache_bytes(from_config(config.model, 256), slots) + segments
        )
    picture = (tmp_path / "memory.svg").read_text()
    assert (
        picture.startswith("<?xml")
        and picture.count("</svg>") == 1
        and "nan" not in picture.lower()
    )


@pytest.mark.parametrize("name", memory.VARIANTS)
def test_variants_have_as_many_parameters_as_the_recipe_within_three_percent(name):
    config = configs.freeze(configs.load_recipe("configs/304m.py"))
    found = memory.variant(config, name)
    total = sizes.parameters(from_config(found.model, 32_768)).total
    assert total == pytest.approx(
        sizes.parameters(from_config(config.model, 32_768)).total, rel=0.03
    )
    assert found.model.ff_width % 8 == 0 and config.model.ff_width == 2816


def test_the_default_hybrid_keeps_less_than_a_third_of_attentions_state_at_16k():
    config = configs.freeze(configs.load_recipe("configs/304m.py"))
    dense, hybrid = (
        from_config(memory.variant(config, name).model, 32_768, compute="bfloat16")
        for name in ("gqa", "gdn-hybrid")
    )
    assert sizes.cache_bytes(hybrid, 16_384) < 0.3 * sizes.cache_bytes(dense, 16_384)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--variants=mha,rnn"], "'rnn' is not among"),
        (["--lengths=32", "--drawn=32"], "a context of 32 tokens has no room"),
        (["--variants=kda"], "the mixers kda has .* more than 23,840"),
    ],
)
def test_what_makes_no_sense_is_named(words, told):
    asked = arguments(*words)
    asked.config = dataclasses.replace(
        asked.config, model=dataclasses.replace(asked.config.model, ff_width=8)
    )
    with pytest.raises(UserError, match=told):
        memory.run(asked)


def test_training_that_does_not_fit_is_tried_again_with_less_kept_and_told(monkeypatch):
    import jax

    tried = []

    def full(config, mesh, steps):
        tried.append(config.model.remat)
        if config.model.remat == "none" or config.data.seq_len > 64:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {"peak_gib": 1.0, "tokens_per_second": 2.0}, []

    monkeypatch.setattr(memory, "measure_train", full)
    monkeypatch.setattr(
        memory, "measure_decoding", lambda *_: ({"state MB": 1.0, "decode tokens/s": 1.0}, [])
    )
    found = memory.run(arguments("--variants=gqa", "--lengths=64,128"))
    assert tried == ["none", "full"] * 2
    assert [(row["remat"], row["train GiB"]) for row in found["rows"]] == [
        ("full", 1.0),
        ("", None),
    ]
    assert (
        len(found["messages"]) == 3
        and "gqa, 64: training with remat=none does not fit" in found["messages"][0]
    )


def test_the_picture_takes_more_variants_than_there_are_colors(monkeypatch):
    monkeypatch.setattr(memory_figure, "POINTS", 2)  # of each line: 33 would take 10 s
    recipe = configs.freeze(configs.load_recipe("configs/304m.py"))
    architectures, rows = {}, []
    for name in memory.VARIANTS:
        model = memory.variant(recipe, name).model
        architectures[name] = from_config(model, 32_768, compute="bfloat16")
        rows.append({"variant": name, "context": 1024, "remat": "none", "train GiB": 1.0})
    assert len(architectures) > len(memory_figure.COLORS)
    assert memory_figure.draw(rows, architectures).count("</svg>") == 1
