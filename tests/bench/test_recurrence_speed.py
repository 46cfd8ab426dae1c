"""The recurrence bench: a row for attention and for every kind, and words that make no sense are named."""

import argparse

import pytest

from slmjax import config as configs
from slmjax.bench import recurrence_speed as recurrence
from slmjax.errors import UserError


def arguments(*words):
    parser = argparse.ArgumentParser()
    recurrence.add_arguments(parser)
    out = parser.parse_args(["--lengths=32", "--tokens=64", "--chunks=16", "--runs=1", *words])
    recipe = configs.base()
    recipe.model.update({"heads": 2, "kv_heads": 1, "head_dim": 16})
    out.config = configs.freeze(recipe)
    return out


def test_each_kind_gives_a_row_beside_attention():
    rows = recurrence.run(arguments("--kinds=ssm,kda"))["rows"]
    assert [(row["who"], row["rows"], row["length"]) for row in rows] == [
        ("attention", 2, 32),
        ("ssm", 2, 32),
        ("kda", 2, 32),
    ]
    for row in rows:
        assert row["forward ms"] > 0 and row["both ms"] > 0
    assert rows[1]["times attention"] == pytest.approx(rows[1]["both ms"] / rows[0]["both ms"])


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--kinds=ssm,rnn", "'rnn' is not among"),
        ("--chunks=24", "24 is not a power of two"),
        ("--lengths=128", "longer than --tokens=64"),
    ],
)
def test_what_makes_no_sense_is_named(word, told):
    with pytest.raises(UserError, match=told):
        recurrence.run(arguments(word))
