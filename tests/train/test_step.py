"""The train step against a golden step, against itself on other meshes and in other parts, and its compiled program's buffers."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models import lm
from slmjax.ops.cross_entropy import reference
from slmjax.parallel.rules import flatten_tree
from slmjax.tasks.language_modeling import LanguageModeling
from tests.train.small import Setup, largest_difference, packed_batch, small_config, whole

MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 1, "fsdp": 8},
    "tensor": {"data": 2, "tensor": 4},
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
}


@functools.cache
def compiled_once(mesh=None, optimizer="adamw", pattern=("attention",), parts=1):
    """A set-up large enough that each device's share can be read from its program; all tests of a mesh use this one."""
    config = small_config(optimizer=optimizer, lr=1e-3, microbatches=parts)
    config.model.pattern, config.model.layers = pattern, max(2, len(pattern))
    config.model.update({"width": 128, "heads": 8, "kv_heads": 4, "ff_width": 384})
    config.data.seq_len = 96
    return Setup(config, MESHES.get(mesh), 8 if mesh else 1, chunks=3)


def on_mesh(mesh, **more):
    """The set-up of a mesh at its first step; "mixed" also cuts the batch into two microbatches."""
    return compiled_once(mesh, parts=2 if mesh == "mixed" else 1, **more).reset()


@functools.cache
def one_device_program(**train):
    return Setup(small_config(**train))


def one_device(**train):
    """One device's set-up at its first step; compiled once for all tests."""
    return one_device_program(**train).reset()


@functools.cache
def in_float16():
    """One device's set-up in float16, with four microbatches, whose losses are scaled each on its own."""
    config = small_config(microbatches=4)
    config.precision.compute = "float16"
    return Setup(config)


def test_a_single_step_is_the_golden_one():
    """A change of these numbers is legitimate only when initialisation, data contract, loss, clipping or AdamW is meant to change."""
    setup = one_device()
    before = whole(setup.state.params)
    metrics = setup.step(packed_batch(setup.config))
    updates = jax.tree.map(lambda new, old: new - old, whole(setup.state.params), before)
    rms = np.sqrt(np.mean(np.concatenate([u.ravel() for u in jax.tree.leaves(updates)]) ** 2))
    found = [metrics["loss"], metrics["grad_norm"], rms]
    np.testing.assert_allclose(found, GOLDEN, rtol=2e-5)


GOLDEN = [6.260368, 1.568203, 6.703821e-4]


def test_one_compiled_step_serves_every_rate_schedule_and_length():
    def text(**train):
        setup = Setup(small_config(weight_decay=0.1, **train))
        return setup.lowered().as_text()

    usual = text(decay_lr=1e-3)
    assert "stablehlo" in usual
    others = {"lr": 0.02, "steps": 50, "warmup": 7, "decay": 0.5, "schedule": "cosine"}
    assert text(decay_lr=4e-3, **others) == usual
    # The comparison sees what is part of the step.
    assert text(decay_lr=1e-3, clip=0.5) != usual
    # Without its own rate the decay follows the learning rate: other arithmetic.
    assert text() != usual


def test_gradients_of_the_step_are_those_of_a_plain_loss():
    config = small_config(optimizer="adamw", clip=0.0, weight_decay=0.0, z_loss=1e-3)
    setup, batch = (
        Setup(config, of=LanguageModeling),
        jax.tree.map(jnp.array, packed_batch(small_config())),
    )
    params = jax.tree.map(jnp.array, whole(setup.state.params))

    def plain(params):
        hidden, _ = lm.forward(setup.arch, params, {}, batch)
        log_p, lse = reference(hidden, lm.head(setup.arch, params), batch["targets"])
        return ((-log_p + 1e-3 * lse**2) * batch["weights"]).sum() / batch["weights"].sum()

    value, gradients = jax.jit(jax.value_and_grad(plain))(params)
    metrics = setup.step(batch)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose([metrics["loss"], metrics["grad_norm"]], [value, norm], rtol=1e-5)
    first_moments = setup.state.optimizer["adam"].mu  # after one step (1 - 0.9) times the gradient
    expected = {path: (1 - 0.9) * g for path, g in flatten_tree(gradients).items()}
    for path, moment in first_moments.items():
        np.testing.assert_allclose(moment, expected[path], atol=1e-7, rtol=2e-4, err_msg=path)


@pytest.mark.parametrize(
    ("mesh", "optimizer"),
    [*((mesh, "adamw") for mesh in MESHES), pytest.param("mixed", "muon", marks=pytest.mark.slow)],
)
def test_three_steps_on_eight_devices_equal_one_device(mesh, optimizer):
    one, many = on_mesh(None, optimizer=optimizer), on_mesh(mesh, optimizer=optimizer)
    for seed in range(3):
        batch = packed_batch(one.config, seed)
        alone, together = one.step(batch), many.step(batch)
        for name in ("loss", "grad_norm"):
            assert together[name] == pytest.approx(alone[name], rel=2e-5), name
        assert together["terms"] == pytest.approx(alone["terms"], rel=2e-5)
    assert largest_difference(whole(one.state.params), whole(many.state.params)) < 1e-6
    # AdamW's first moments are sums of gradients: element for element the same.
    moments = [setup.state.optimizer["adam"].mu for setup in (one, many)]
    assert (
        largest_difference(*map(whole, moments))
        < 1e-6
        < max(float(abs(leaf).max()) for leaf in moments[0].values()) / 100
    )


@pytest.mark.parametrize(
    ("mesh", "pattern"),
    [
        *((mesh, ("attention",)) for mesh in MESHES),
        pytest.param("mixed", ("gdn", "ssm key_dim=16", "attention"), marks=pytest.mark.slow),
    ],
)
def test_each_device_holds_and_computes_its_share(mesh, pattern):
    setup = on_mesh(mesh, pattern=pattern)
    parts = setup.config.train.microbatches
    alone = compiled_once(None, pattern=pattern, parts=parts)  # only lowered here
    ways = setup.mesh.shape["fsdp"] * setup.mesh.shape["tensor"]
    for tree, shapes in (
        (setup.state.params, alone.program.shapes.params),
        (setup.state.optimizer, alone.program.shapes.optimizer),
    ):
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        assert held == pytest.approx(total / ways, rel=0.05)
    program = setup.compiled
    assert alone.lowered().cost_analysis()["flops"] / program.cost_analysis()["flops"] > 7.5
    B, T, V = setup.config.train.batch // parts, setup.config.data.seq_len, setup.arch.vocab_size
    shapes = {
        tuple(map(int, found.split(",")))
        for found in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", program.as_text())
    }
    assert not [s for s in shapes if len(s) >= 2 and s[:2] == (B, T)], (
        "an activation of the whole batch is on one device"
    )
    assert not [s for s in shapes if T in s and V in s], "logits of whole rows are in the program"
    assert any(T in s for s in shapes)


def test_accumulated_parts_equal_the_whole_batch_when_their_token_counts_differ():
    batch = packed_batch(small_config())
    batch["weights"][::4] = 0.0  # the first of four interleaved parts has no weight at all
    whole_batch, parts = one_device(), one_device(microbatches=4)
    for _ in range(3):
        a, b = whole_batch.step(batch), parts.step(batch)
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
    assert largest_difference(whole_batch.state.params, parts.state.params) < 3e-6


def test_matrices_are_cast_to_the_compute_type_and_norms_decays_and_own_parameters_are_not():
    """In bfloat16 a decay's bias of -7 has steps of 0.03, and what it learns would not be seen."""
    config, seen = small_config(), {}
    config.precision.compute, config.model.pattern = (
        "bfloat16",
        ("ssm key_dim=16", "tests.models.own:Mean"),
    )

    class Noting(LanguageModeling):
        def loss(self, model, params, *rest, **more):
            seen.update({path: leaf.dtype.name for path, leaf in flatten_tree(params).items()})
            return super().loss(model, params, *rest, **more)

    Setup(config, of=Noting).lowered()
    wide = {path for path, dtype in seen.items() if dtype == "float32"}
    narrow = {path for path, dtype in seen.items() if dtype == "bfloat16"}
    assert wide | narrow == set(seen)
    assert {
        "embedding",
        "stack/0/0/mixer/step",
        "stack/0/0/mixer/out",
        "stack/0/1/channel/up",
    } <= narrow
    assert {
        "final_norm/scale",
        "stack/0/0/mixer_norm/scale",
        "stack/0/0/mixer/step_bias",
        "stack/0/1/own/mix",
    } <= wide


@pytest.mark.parametrize(("compute", "near"), [("bfloat16", 0.03), ("float16", 0.004)])
def test_gradients_in_a_short_type_are_near_those_in_float32(compute, near):
    """Of all parameters together; float16 has eight times the precision, if its range is kept."""
    config = small_config()
    config.precision.compute = compute
    short = in_float16().reset() if compute == "float16" else Setup(config)
    batch, moments = packed_batch(config), []
    for setup in (one_device(), short):
        setup.step(batch)
        moments.append(
            np.concatenate(
                [
                    np.ravel(leaf)
                    for leaf in jax.tree.leaves(whole(setup.state.optimizer["adam"].mu))
                ]
            )
        )
    assert 0 < np.linalg.norm(moments[1] - moments[0]) < near * np.linalg.norm(moments[0])


def test_in_float16_gradients_that_exceed_its_range_halve_the_loss_scale_until_they_fit():
    setup = in_float16().reset()
    batch = packed_batch(setup.config)
    usual = setup.step(batch)
    setup.reset()
    setup.state = dataclasses.replace(
        setup.state, spikes=dataclasses.replace(setup.state.spikes, exponent=jnp.float32(16))
    )
    before, found = whole(setup.state.params), []
    while not found or found[-1]["skips"]:
        assert largest_difference(before, whole(setup.state.params)) == 0 and len(found) < 16
        found.append(setup.step(batch))
    assert len(found) > 2 and not np.isfinite(found[0]["grad_norm"])
    assert found[-1]["loss"] == pytest.approx(usual["loss"], rel=1e-6)
    assert found[-1]["grad_norm"] == pytest.approx(
        usual["grad_norm"], rel=1e-3
    )  # rounding differs only below float16's normal range
    assert largest_difference(before, whole(setup.state.params)) > 0


def test_a_step_with_a_non_finite_loss_changes_nothing_but_the_count():
    setup = one_device()
    batch = packed_batch(setup.config)
    setup.step(batch)
    before = whole(
        (
            setup.state.params,
            setup.state.optimizer,
            setup.state.spikes.mean,
            setup.state.spikes.count,
        )
    )
    metrics = setup.step({**batch, "tokens": np.full_like(batch["tokens"], 7)})
    after = whole(
        (
            setup.state.params,
            setup.state.optimizer,
            setup.state.spikes.mean,
            setup.state.spikes.count,
        )
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert metrics["skips"] == 1 and int(setup.state.step) == 2
    assert setup.step(batch)["skips"] == 0
