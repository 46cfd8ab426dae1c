"""Checkpoints: what is saved is read back on any mesh, what changed since is noticed, and pruning keeps what a longer run needs."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax import checkpoint
from slmjax.checkpoint import Checkpoints
from slmjax.errors import UserError
from slmjax.parallel.mesh import make_mesh


def tree(seed=0):
    """Some arrays of every kind that a state holds."""
    rng = np.random.default_rng(seed)
    return {
        "matrix": jnp.asarray(rng.standard_normal((16, 8)), jnp.float32),
        "moment": jnp.asarray(rng.standard_normal((8, 16)), jnp.bfloat16),
        "step": jnp.int32(rng.integers(1000)),
    }


def described(of, devices=1):
    """ShapeDtypeStructs of a tree, its arrays split over the first axis."""
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, P("data") if x.ndim else P())
        ),
        of,
    )


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Checkpoints of steps 1 to 6; that of step 2 was the trunk of a shorter run."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("several"), keep=2)
    for step in range(1, 7):
        checkpoints.save(
            step, {"params": tree(step), "optimizer": tree(-step % 100)}, {"trunk": step == 2}
        )
    checkpoints.wait()
    return checkpoints


def test_what_was_saved_is_read_back_on_one_device_and_on_eight(several):
    saved = tree(3)
    for devices in (1, 8):
        found = several.restore(
            3, {"params": described(saved, devices), "optimizer": described(tree(97), devices)}
        )
        for name, value in saved.items():
            assert (
                found.items["params"][name].tobytes() == value.tobytes()
                and found.items["params"][name].dtype == value.dtype
            )
        assert found.step == 3 and found.items["optimizer"]["step"] == tree(97)["step"]
    assert several.restore(3, {"params": described(saved)}).items.keys() == {"params"}


def test_values_that_are_not_those_that_were_saved_are_noticed(several, monkeypatch):
    right = checkpoint.digest(tree(4))
    assert several.meta(4)["digests"]["params"] == right
    monkeypatch.setattr(checkpoint, "digest", lambda _: "another")
    with pytest.raises(ValueError, match="'params' are not those that were saved"):
        several.restore(4, {"params": described(tree(4))})


META = {
    "config": {"train": {"steps": 6}},
    "tokenizer": "t",
    "fingerprint": "f",
    "parents": [],
    "window": [[0.1, 0.0]],
    "trunk": False,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    st.lists,
    max_leaves=3,
)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """(checkpoints with one of step 3, its meta as saved); the folder is the test's to damage."""
    checkpoints = Checkpoints(tmp_path_factory.mktemp("sealed"))
    checkpoints.save(3, {"params": tree()}, META)
    checkpoints.wait()
    return checkpoints, checkpoints.meta(3)


@given(name=st.sampled_from([*META, "step", "digests", "seal"]), value=JSON | st.just("gone"))
def test_a_meta_item_is_what_was_saved_or_damaged(sealed, name, value):
    checkpoints, saved = sealed
    changed = dict(saved)
    if value == "gone":
        del changed[name]
    else:
        changed[name] = value
    (checkpoints.root / "3" / "meta" / "metadata").write_text(json.dumps(changed))
    meta, fault = checkpoints.read_meta(3)
    if meta:
        assert {**saved, "seal": meta.get("seal")} == meta and not fault
    else:
        assert fault.startswith("its meta item ")


@given(cut=st.integers(0, 200), junk=st.binary(max_size=5), depth=st.sampled_from([0, 100_000]))
def test_a_meta_item_of_any_bytes_is_damaged(sealed, cut, junk, depth):
    checkpoints, saved = sealed
    text = json.dumps(saved).encode()
    (checkpoints.root / "3" / "meta" / "metadata").write_bytes(text[:cut] + junk + b"[" * depth)
    assert checkpoints.read_meta(3)[0] == {}


def test_a_checkpoint_under_another_steps_name_is_damaged_and_one_without_a_seal_is_judged_by_its_keys(
    sealed,
):
    _, saved = sealed
    assert (
        checkpoint.meta_fault(saved, 3) == ""
        and checkpoint.meta_fault(saved, 4) == "its meta item is that of step 3"
    )
    older = {name: value for name, value in saved.items() if name != "seal"}
    assert checkpoint.meta_fault(older, 3) == ""
    for name in checkpoint.META:
        assert (
            checkpoint.meta_fault({**older, name: 7}, 3) == f"its meta item has no valid '{name}'"
        )


@given(st.sampled_from(["matrix", "moment"]), st.integers(0, 127), st.integers(0, 15))
def test_one_flipped_bit_changes_the_digest_and_another_mesh_does_not(name, at, bit):
    changed = {key: np.array(value) for key, value in tree().items()}
    changed[name].view(np.uint32 if name == "matrix" else np.uint16).reshape(-1)[at] ^= 1 << bit
    assert checkpoint.digest(changed) != checkpoint.digest(tree())
    spread = jax.device_put(tree()["matrix"], NamedSharding(make_mesh({"data": 8}), P("data")))
    assert checkpoint.digest({**tree(), "matrix": spread}) == checkpoint.digest(tree())


def test_pruning_keeps_the_newest_this_runs_trunk_and_earlier_trunks(several, tmp_path):
    # A copy: workers may run this file's tests in another order.
    several = Checkpoints(shutil.copytree(several.root.parent, tmp_path / "copy"), keep=2)
    several.prune(trunk=3)
    assert several.steps() == [2, 3, 5, 6]
    assert several.meta(4) == {} and several.meta(2)["trunk"] is True


def test_later_checkpoints_are_set_aside_and_their_steps_can_be_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9)
    for round in range(2):
        for step in (1, 2, 3)[round:]:
            checkpoints.save(step, {"params": tree(step + 10 * round)}, {})
        checkpoints.wait()
        checkpoints.set_aside(1)
        assert checkpoints.steps() == [1]
        assert sorted(path.name for path in (tmp_path / "checkpoints-aside").iterdir()) == [
            "2",
            "3",
        ]


def test_asking_an_empty_folder_leaves_nothing_behind(tmp_path):
    assert Checkpoints(tmp_path / "none").steps() == []
    Checkpoints(tmp_path / "none").close()
    assert not (tmp_path / "none").exists()


def test_what_the_storage_keeps_of_a_step_is_one_sentence_where_it_is_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": tree()}, {})
    checkpoints.wait()
    file = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": [0]}))
    with pytest.raises(UserError, match=r"a _CHECKPOINT_METADATA in .* is damaged"):
        Checkpoints(tmp_path).steps()
