"""The train step against a golden step, against itself on other meshes and in other parts, and its compiled program's buffers."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models import lm
from slmjax.objectives.lm import objective
from slmjax.ops.cross_entropy import reference
from tests.train.small import Setup, largest_difference, packed_batch, small_config, whole

MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 2, "tensor": 4},  # more devices than key/value heads
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
}


@functools.cache
def one_device_program(optimizer):
    return Setup(small_config(optimizer=optimizer, lr=1e-3))


def one_device(optimizer):
    """One device's set-up at its first step; compiled once for all tests."""
    setup = one_device_program(optimizer)
    setup.reset()
    return setup


def test_a_single_step_is_the_golden_one():
    """A change of these numbers is legitimate only when initialisation, data contract, loss, clipping or AdamW is meant to change."""
    setup = Setup(small_config())
    before = whole(setup.state.params)
    metrics = setup.step(packed_batch(setup.config))
    updates = jax.tree.map(lambda new, old: new - old, whole(setup.state.params), before)
    rms = np.sqrt(np.mean(np.concatenate([u.ravel() for u in jax.tree.leaves(updates)]) ** 2))
    found = [metrics["loss"], metrics["grad_norm"], rms]
    np.testing.assert_allclose(found, GOLDEN, rtol=2e-5)


GOLDEN = [6.260368, 1.568203, 6.703821e-4]


def test_gradients_of_the_step_are_those_of_a_plain_loss():
    config = small_config(optimizer="adamw", clip=0.0, weight_decay=0.0, z_loss=1e-3)
    setup, batch = Setup(config), jax.tree.map(jnp.array, packed_batch(small_config()))
    params = jax.tree.map(jnp.array, whole(setup.state.params))

    def plain(params):
        hidden, _, _ = lm.forward(setup.arch, params, {}, batch)
        log_p, lse = reference(hidden, lm.head(setup.arch, params), batch["targets"])
        return ((-log_p + 1e-3 * lse**2) * batch["weights"]).sum() / batch["weights"].sum()

    value, gradients = jax.value_and_grad(plain)(params)
    metrics = setup.step(batch)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose([metrics["loss"], metrics["grad_norm"]], [value, norm], rtol=1e-5)
    first_moments = setup.state.optimizer["adam"].mu  # after one step (1 - b1) times the gradient
    expected = {path: (1 - config.train.b1) * g for path, g in _flat(gradients).items()}
    for path, moment in first_moments.items():
        np.testing.assert_allclose(moment, expected[path], atol=1e-7, rtol=2e-4, err_msg=path)


@pytest.mark.parametrize(
    ("mesh", "optimizer"), [*((mesh, "adamw") for mesh in MESHES), pytest.param("mixed", "muon", marks=pytest.mark.slow)]
)
def test_three_steps_on_eight_devices_equal_one_device(mesh, optimizer):
    one = one_device(optimizer)
    many = Setup(small_config(optimizer=optimizer, lr=1e-3, microbatches=2 if mesh == "mixed" else 1), MESHES[mesh], 8)
    config = one.config
    for seed in range(3):
        batch = packed_batch(config, seed)
        alone, together = one.step(batch), many.step(batch)
        for name in ("loss", "grad_norm", "cross_entropy"):
            assert together[name] == pytest.approx(alone[name], rel=2e-5), name
    assert largest_difference(whole(one.state.params), whole(many.state.params)) < 1e-6
    # AdamW's first moments are sums of gradients: element for element the same.
    moments = [setup.state.optimizer["adam"].mu for setup in (one, many)]
    assert largest_difference(*map(whole, moments)) < 1e-6 < max(float(abs(leaf).max()) for leaf in moments[0].values()) / 100


@pytest.mark.parametrize(
    ("mesh", "pattern"),
    [
        *((mesh, "attention") for mesh in MESHES),
        *(pytest.param("mixed", kind, marks=pytest.mark.slow) for kind in ("gdn", "ssm key_dim=16")),
    ],
)
def test_each_device_holds_and_computes_its_share(mesh, pattern):
    config = small_config()
    config.model.pattern = (pattern, "attention")
    config.model.update({"width": 128, "heads": 8, "kv_heads": 4, "ff_width": 384})
    config.data.seq_len = 96
    setup, alone = Setup(config, MESHES[mesh], 8, chunks=3), Setup(config, chunks=3, program=False)
    ways = setup.mesh.shape["fsdp"] * setup.mesh.shape["tensor"]
    for tree, shapes in ((setup.state.params, alone.shapes.params), (setup.state.optimizer, alone.shapes.optimizer)):
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        assert held == pytest.approx(total / ways, rel=0.05)
    program = setup.compiled()
    assert alone.lowered().cost_analysis()["flops"] / program.cost_analysis()["flops"] > 7.5
    B, T, V = config.train.batch, config.data.seq_len, setup.arch.vocab_size
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", program.as_text())}
    assert not [s for s in shapes if len(s) >= 2 and s[:2] == (B, T)], "an activation of the whole batch is on one device"
    assert not [s for s in shapes if T in s and V in s], "logits of whole rows are in the program"
    assert any(T in s for s in shapes)


def test_accumulated_parts_equal_the_whole_batch_when_their_token_counts_differ():
    batch = packed_batch(small_config())
    batch["weights"][::4] = 0.0  # the first of four interleaved parts has no weight at all
    whole_batch, parts = Setup(small_config()), Setup(small_config(microbatches=4))
    for _ in range(3):
        a, b = whole_batch.step(batch), parts.step(batch)
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    assert largest_difference(whole_batch.state.params, parts.state.params) < 3e-6


def test_matrices_are_cast_to_the_compute_type_and_norms_decays_and_own_parameters_are_not():
    """In bfloat16 a decay's bias of -7 has steps of 0.03, and what it learns would not be seen."""
    config, seen = small_config(), {}
    config.precision.compute, config.model.pattern = "bfloat16", ("ssm key_dim=16", "tests.models.own:Mean")

    def noting(arch, **more):
        def of(params, buffers, batch, **rest):
            seen.update({path: leaf.dtype.name for path, leaf in _flat(params).items()})
            return objective(arch, **more)(params, buffers, batch, **rest)

        return of

    Setup(config, of=noting, program=False).lowered()
    wide = {path for path, dtype in seen.items() if dtype == "float32"}
    narrow = {path for path, dtype in seen.items() if dtype == "bfloat16"}
    assert wide | narrow == set(seen)
    assert {"embedding", "stack/0/0/mixer/step", "stack/0/0/mixer/out", "stack/0/1/channel/up"} <= narrow
    assert {"final_norm/scale", "stack/0/0/mixer_norm/scale", "stack/0/0/mixer/step_bias", "stack/0/1/own/mix"} <= wide


@pytest.mark.parametrize(("compute", "near"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_gradients_in_a_short_type_are_near_those_in_float32(compute, near):
    """Of all parameters together; float16 has eight times the precision, if its range is kept."""
    batch, moments = packed_batch(small_config()), []
    for of in ("float32", compute):
        config = small_config()
        config.precision.compute = of
        setup = Setup(config)
        setup.step(batch)
        moments.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(whole(setup.state.optimizer["adam"].mu))]))
    assert 0 < np.linalg.norm(moments[1] - moments[0]) < near * np.linalg.norm(moments[0])


@pytest.mark.parametrize("parts", [1, 4])
def test_in_float16_gradients_that_exceed_its_range_halve_the_loss_scale_until_they_fit(parts):
    config = small_config(microbatches=parts)
    config.precision.compute = "float16"
    setup, batch = Setup(config), packed_batch(config)
    usual = setup.step(batch)
    setup.reset()
    setup.state = dataclasses.replace(setup.state, spikes=dataclasses.replace(setup.state.spikes, exponent=jnp.float32(16)))
    before, found = whole(setup.state.params), []
    while not found or found[-1]["skips"]:
        assert largest_difference(before, whole(setup.state.params)) == 0 and len(found) < 16
        found.append(setup.step(batch))
    assert len(found) > 2 and not np.isfinite(found[0]["grad_norm"])
    assert found[-1]["loss"] == pytest.approx(usual["loss"], rel=1e-6)
    assert found[-1]["grad_norm"] == pytest.approx(usual["grad_norm"], rel=1e-3)  # rounding differs only below float16's normal range
    assert largest_difference(before, whole(setup.state.params)) > 0


def test_a_step_with_a_non_finite_loss_changes_nothing_but_the_count():
    setup, batch = Setup(small_config(), of=_objective_with_holes), packed_batch(small_config())
    setup.step(batch)
    before = whole((setup.state.params, setup.state.optimizer, setup.state.spikes.mean, setup.state.spikes.count))
    metrics = setup.step({**batch, "tokens": np.full_like(batch["tokens"], 7)})
    after = whole((setup.state.params, setup.state.optimizer, setup.state.spikes.mean, setup.state.spikes.count))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert metrics["skips"] == 1 and int(setup.state.step) == 2
    assert setup.step(batch)["skips"] == 0


def _objective_with_holes(arch, **settings):
    from slmjax.objectives.lm import objective

    of = objective(arch, **settings)

    def holed(params, buffers, batch, **rest):
        total, weight, aux = of(params, buffers, batch, **rest)
        return jnp.where(jnp.all(batch["tokens"] == 7), jnp.nan, total), weight, aux

    return holed


def _flat(tree):
    from slmjax.parallel.rules import flatten

    return flatten(tree)
