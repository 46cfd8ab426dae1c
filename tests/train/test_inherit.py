"""What a run that starts from another one takes over: parameters, and the buffers that are part of the model."""

import functools

import jax
import numpy as np
import pytest

from slmjax.checkpoint import Checkpoints
from slmjax.errors import UserError
from slmjax.models.declare import keep_channel
from slmjax.train import inherit as heirs
from slmjax.train.state import saved
from tests import runs
from tests.train.small import Setup, small_config, whole

META = {"tokenizer": "hash", "config": {}, "fingerprint": "", "parents": []}
COUNTED = "attention+tests.contracts.own:Counted bins=3"


@functools.cache
def setup(block=COUNTED, products="compute"):
    config = small_config()
    config.model.update({"pattern": (block,), "width": 32, "ff_width": 64})
    config.precision.products = products
    return Setup(config)


def parent(folder, made, change=lambda buffers: buffers):
    """A checkpoint whose parameters and buffers are not those of a run's start; returns its items."""

    def moved(leaf):
        return leaf + np.arange(1, leaf.size + 1, dtype=leaf.dtype).reshape(leaf.shape)

    items = saved(made.state)
    items["params"] = jax.tree.map(moved, items["params"])
    items["buffers"] = change(jax.tree.map(moved, items["buffers"]))
    checkpoints = Checkpoints(folder)
    checkpoints.save(7, {name: tree for name, tree in items.items() if tree}, META)
    checkpoints.close()
    return whole(items)


def inherit(folder, child):
    return heirs.inherit(
        str(folder), child.state, child.program.shapes, child.program.declared[1], "hash"
    )


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, whole(one), whole(other)))


@pytest.mark.parametrize("theirs", ["compute", "float8"])
@pytest.mark.parametrize("own", ["compute", "float8"])
def test_parameters_and_counts_are_the_parents_and_float8_starts_anew(theirs, own, tmp_path):
    items, child = parent(tmp_path, setup(products=theirs)), setup(products=own)
    state, lineage, faults = inherit(tmp_path, child)
    assert same(state.params, items["params"]) and not same(state.params, child.state.params)
    of_buffers = child.program.declared[1]
    counts, scales = (
        keep_channel(of_buffers, state.buffers, channel) for channel in ("forward", "cotangent")
    )
    assert same(counts, keep_channel(of_buffers, items["buffers"], "forward")) and np.all(
        jax.tree.leaves(counts)[0] > 0
    )
    assert same(scales, keep_channel(of_buffers, child.state.buffers, "cotangent")) and bool(
        scales
    ) == (own == "float8")
    assert same(state.optimizer, child.state.optimizer) and state.step == 0
    assert [one["step"] for one in lineage] == [7] and faults == []
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == child.where


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            lambda tree: jax.tree.map(lambda leaf: leaf[:, :2], tree),
            r"buffers do not fit .*channel/counts is int32\[2, 2\] there and int32\[2, 3\]",
        ),
        (
            lambda tree: jax.tree.map(np.float32, tree),
            r"channel/counts is float32\[2, 3\] there and int32\[2, 3\] here",
        ),
        (lambda tree: {"other": tree}, r"channel/counts is missing there and int32\[2, 3\] here"),
    ],
    ids=["shape", "type", "name"],
)
def test_a_parent_with_other_buffers_is_refused(change, sentence, tmp_path):
    parent(tmp_path, setup(), change)
    with pytest.raises(UserError, match=sentence):
        inherit(tmp_path, setup())


@pytest.mark.parametrize("products", ["compute", "float8"])
def test_counts_that_no_parent_has_start_anew_and_a_line_says_so(products, tmp_path, capsys):
    """A parent of the same products, before its mixer counted."""
    child = setup(products=products)
    of_buffers = child.program.declared[1]
    items = parent(tmp_path, child, lambda buffers: keep_channel(of_buffers, buffers, "cotangent"))
    state, _, _ = inherit(tmp_path, child)
    assert same(state.params, items["params"]) and same(state.buffers, child.state.buffers)
    out = capsys.readouterr().out
    assert (
        f"--init_from={tmp_path} has no buffers (stack/0/0/channel/counts); they start anew" in out
        and out.count("\n") == 1
    )


@pytest.mark.slow
def test_a_child_counts_on_from_where_its_parent_ended(corpus, tmp_path, monkeypatch):
    taken = []
    fields = {"model__pattern": COUNTED, "train__steps": 5}
    assert runs.train(corpus, tmp_path / "parent", **fields) == 0
    monkeypatch.setattr(
        "slmjax.train.loop.train",
        lambda run, leave: taken.append(run.state) or run.writer.close() or 0,
    )
    assert (
        runs.train(corpus, tmp_path / "child", f"--init_from={tmp_path / 'parent'}", **fields) == 0
    )
    (counts,) = jax.tree.leaves(whole(taken[0].buffers))
    (theirs,) = (
        leaf
        for name, leaf in runs.saved(tmp_path / "parent", 5).items()
        if name.startswith("buffers")
    )
    assert counts.sum() > 0 and counts.tobytes() == theirs.tobytes() and int(taken[0].step) == 0
