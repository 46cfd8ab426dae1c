"""A fraction of a source: the same documents for every seed, nested, and read as they were."""

import json

import numpy as np
import pytest

from slmjax.config import DataConfig, TrainConfig
from slmjax.data.prepare import prepare
from slmjax.data.prepare_stage import batch_plan
from slmjax.data.shard_part import ShardPart, is_kept
from slmjax.errors import UserError
from slmjax.text.sources import parse_sources
from tests.corpus import write_corpus
from tests.data.test_prepare import settings


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("part")
    sources = {"words": {"path": str(write_corpus(folder / "text.jsonl"))}}
    settings_of_text = settings(sources, vocab_size=320, seq_len=64, group_by="")
    data = DataConfig(sources=sources, seq_len=64)
    return data, prepare(settings_of_text, seed=0, cache=folder / "cache", processes=1)


def test_a_part_reads_the_chosen_documents_alone(prepared):
    _, text = prepared
    shards = text.train["words"]
    part = ShardPart(shards, 0.3)
    chosen = np.flatnonzero(is_kept(shards.keys, 0.3))
    assert 0.2 < len(part) / len(shards) < 0.4 and len(part) == len(chosen)
    assert part.lengths.tolist() == shards.lengths[chosen].tolist()
    assert part.tokens == shards.lengths[chosen].sum()
    for number, original in enumerate(chosen):
        length = int(part.lengths[number])
        assert (part.read(number, 0, length) == shards.read(original, 0, length)).all()
        assert part.name(number) == shards.name(original)
    again = ShardPart(shards, 0.3)
    assert again.fingerprint == part.fingerprint
    assert len({part.fingerprint, ShardPart(shards, 0.4).fingerprint, shards.fingerprint}) == 3


def test_fractions_are_nested_as_large_as_they_say_and_independent_of_the_keys_order():
    keys = np.random.default_rng(0).integers(2**64, size=100_000, dtype=np.uint64)
    small, large = is_kept(keys, 0.25), is_kept(keys, 0.5)
    assert not (small & ~large).any()
    for kept, fraction in ((small, 0.25), (large, 0.5)):
        # Five standard errors.
        assert abs(kept.mean() - fraction) < 5 * (fraction * (1 - fraction) / 100_000) ** 0.5
    # Held-out documents are chosen by their keys, too.
    first_half = keys < np.uint64(2**63)
    assert abs(small[first_half].mean() - 0.25) < 0.01
    assert is_kept(keys, 1.0).all()


def test_a_run_reads_and_counts_only_the_fraction(prepared):
    data, text = prepared
    train = TrainConfig(steps=8, batch=4)
    whole = batch_plan(data, train, text, seed=0)
    source = {"path": "x", "fraction": 0.5}
    half_data = DataConfig(sources={"words": source}, seq_len=64)
    half = batch_plan(half_data, train, text, seed=0)
    shards = text.train["words"]
    kept = set(np.flatnonzero(is_kept(shards.keys, 0.5)).tolist())
    names = {f"words: {shards.name(number)}" for number in kept}
    read = {name for step in range(8) for name in half.documents(step)}
    assert read and read <= names
    assert 1.6 < half.epochs()["words"] / whole.epochs()["words"] < 2.5
    assert half.fingerprint(1) != whole.fingerprint(1)


@pytest.mark.parametrize("fraction", [0, -1, 1.5, "half", float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction):
    with pytest.raises(UserError, match=r"data\.sources\.words\.fraction is"):
        parse_sources({"words": {"path": "text.jsonl", "fraction": fraction}})


def test_a_config_of_before_has_whole_sources():
    saved = json.loads(json.dumps({"words": {"path": "text.jsonl", "max_epochs": 2}}))
    assert parse_sources(saved)[0].fraction == 1.0
