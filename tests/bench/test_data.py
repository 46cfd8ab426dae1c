"""The data bench: every figure is there, and what it times is what a run reads."""

import argparse
import json

import numpy as np
import pytest

from slmjax import config as configs
from slmjax.bench import data
from slmjax.bench.peers import loaders as data_peers
from slmjax.data.loader import BatchPlan, batch_rows, local_batches
from slmjax.errors import UserError
from tests.data.batch_hashes import batch_hash

FEW = ["--seq-lens=64,32", "--tokens=256", "--batches=3", "--repeats=2", "--workers=0"]


def arguments_of(*flags, config=None):
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    arguments = parser.parse_args([*FEW, *flags])
    arguments.config = config
    return arguments


@pytest.fixture
def small(monkeypatch):
    shapes = {"long": (200, 0.8, 40), "short": (12, 0.5, 300), "middling": (60, 0.8, 60)}
    monkeypatch.setattr(data, "MADE_UP", shapes)
    return shapes


def test_rows_say_tokens_a_second_of_each_shape_and_the_time_of_each_stage(small, tmp_path):
    result = data.run(arguments_of("--made-up", f"--cache={tmp_path}"))
    ours = [row for row in result["rows"] if row["loader"] == "slmjax"]
    peers = [row for row in result["rows"] if row["loader"] != "slmjax"]
    assert result["bench"] == "data" and json.dumps(result)
    assert [(row["seq_len"], row["batch"], row["workers"], row["sources"]) for row in ours] == [
        (64, 4, 0, "made up"),
        (32, 8, 0, "made up"),
    ]
    assert all(
        row[name] > 0
        for row in ours
        for name in (
            "tokens_per_second",
            "cpu_ns",
            "plan_ns",
            "read_ns",
            "assemble_ns",
            "max_segments",
        )
    )
    assert {row["loader"] for row in peers} == {
        "grain first-fit",
        "grain concat-then-split",
    } and len(peers) == 4
    assert all(
        row["slowest"] <= row["tokens_per_second"] <= row["fastest"] and row["load"] >= 0
        for row in result["rows"]
    )


def test_worker_processes_are_timed_too_and_their_batches_are_those_of_the_plan(small, tmp_path):
    arguments = arguments_of(
        "--made-up", f"--cache={tmp_path}", "--workers=1", "--no-peers", "--seq-lens=64"
    )
    (row,) = data.run(arguments)["rows"]
    assert row["workers"] == 1 and row["tokens_per_second"] > 0 and "plan_ns" not in row
    _, train = data._sources(arguments, tmp_path)
    plan = BatchPlan(train, seq_len=64, batch=4, steps=10**6, seed=0)
    with local_batches(plan, start_step=5, stop_step=8, local_rows=range(4), workers=1) as batches:
        assert [batch_hash(batch) for batch in batches] == [
            batch_hash(batch_rows(plan, step, range(4))) for step in range(5, 8)
        ]


def test_sources_of_a_given_config_are_prepared_and_read(tmp_path):
    lines = [
        json.dumps({"text": f"the story of {n} and {n + 1} " * (n % 7 + 1)}) for n in range(300)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    config = configs.base()
    config.data.sources["tales"], config.data.vocab_size = {"path": str(tmp_path / "a.jsonl")}, 300
    result = data.run(
        arguments_of("--no-peers", f"--cache={tmp_path / 'cache'}", config=configs.freeze(config))
    )
    assert {row["sources"] for row in result["rows"]} == {"prepared"}


def test_the_pieces_that_peers_pack_are_all_of_the_text_once(small, tmp_path):
    shards = data._made_up(tmp_path, "long", *small["long"])
    pieces = data_peers.Pieces(shards, 64)
    texts = [pieces[i]["tokens"] for i in range(len(pieces))]
    whole = [shards.read(doc, 0, length)[:-1] for doc, length in enumerate(shards.lengths.tolist())]
    assert max(map(len, texts)) <= 64 and np.array_equal(
        np.concatenate(texts), np.concatenate(whole)
    )


@pytest.mark.parametrize("name", ["grain first-fit", "grain concat-then-split"])
def test_peers_give_batches_of_the_same_shape_with_segments_and_positions(small, tmp_path, name):
    train = {source: data._made_up(tmp_path, source, *shape) for source, shape in small.items()}
    with data_peers.packers(train, seq_len=64, batch=4)[name](0) as batches:
        batch = next(batches)
    assert {"tokens", "tokens_segment_ids", "tokens_positions"} <= set(batch)
    assert (
        all(array.shape == (4, 64) for array in batch.values())
        and data._count_peer_tokens(batch) > 3 * 64
    )


def test_numbers_that_cannot_be_are_refused_by_name(capsys):
    with pytest.raises(UserError, match=r"--batches.*1 or more"):
        data.run(arguments_of("--batches=0"))
    with pytest.raises(SystemExit):
        arguments_of("--workers=one")
    assert "--workers: invalid comma-separated list of whole numbers" in capsys.readouterr().err
