"""The attention bench: a row for each kernel and number of documents, whose figures fit together."""

import argparse

import pytest

from slmjax import config as configs
from slmjax.bench import attention_speed as attention
from slmjax.errors import UserError


def arguments(*words):
    parser = argparse.ArgumentParser()
    attention.add_arguments(parser)
    out = parser.parse_args(["--runs=1", *words])
    recipe = configs.base()
    recipe.model.update({"heads": 4, "kv_heads": 2, "head_dim": 8})
    recipe.data.seq_len, recipe.train.batch = 16, 3
    out.config = configs.freeze(recipe)
    return out


def test_each_kernel_and_number_of_documents_gives_a_row():
    rows = attention.run(arguments("--documents=1,2", "--kernels=blockwise,reference"))["rows"]
    assert [(row["kernel"], row["documents"]) for row in rows] == [
        (k, d) for k in ("blockwise", "reference") for d in (1, 2)
    ]
    for row in rows:
        pairs = {1: 16 * 17 / 2, 2: 2 * 8 * 9 / 2}[
            row["documents"]
        ]  # of a query and a key that it sees, in a row
        assert row["TFLOP/s"] * row["both ms"] * 1e9 == pytest.approx(7 * 2 * 3 * pairs * 4 * 8)
        assert row["forward ms"] > 0 and row["shape"] == "3 x 16, 4/2 heads of 8"
    assert (
        attention.run(arguments("--documents=1"))["rows"][0]["kernel"] == "blockwise"
    )  # what a CPU trains with


@pytest.mark.parametrize(
    ("kernels", "told"), [("flash", "'flash' is not among"), ("cudnn", "cudnn does not run here")]
)
def test_a_kernel_that_is_none_or_not_for_this_device_is_named(kernels, told):
    with pytest.raises(UserError, match=told):
        attention.run(arguments(f"--kernels={kernels}"))
