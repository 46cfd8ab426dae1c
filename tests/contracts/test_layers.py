"""What a user's layers declare reaches sharding, optimizer, buffers and loss, without a change of the library."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.models.block import Out
from slmjax.models.layers import Term
from slmjax.models.pattern import parse_block
from slmjax.parallel.rules import flatten_tree
from slmjax.tasks.task import Loss, with_terms_of_layers
from slmjax.testing import _batch, _random, check_mixer
from tests.contracts.own import Halves, TwoParts
from tests.train.small import Setup, largest_difference, packed_batch, small_config, whole

OWN = "tests.contracts.own"
MESHES = {"two by two by two": {"data": 2, "fsdp": 2, "tensor": 2}, "rows": {"data": 8}}


def with_pattern(*pattern, **train):
    config = small_config(lr=1e-3, **train)
    config.model.pattern, config.model.layers = pattern, 2 * len(pattern)
    config.model.update({"width": 32, "ff_width": 64})
    return config


COUNTED = (f"attention+{OWN}:Counted bins=3",)


@functools.cache
def counted(mesh=None, **train):
    unroll = train.pop("unroll", "False")
    config = with_pattern(*COUNTED, **train)
    config.model.unroll = unroll
    return Setup(config, MESHES.get(mesh), 8 if mesh else 1)


def three_steps(setup):
    setup.reset()
    return (
        [setup.step(packed_batch(setup.config, seed)) for seed in range(3)],
        whole(setup.state.buffers),
        whole(setup.state.params),
    )


@pytest.fixture(scope="module")
def expected():
    """One device, the stack unrolled, one part."""
    return three_steps(counted(unroll="True"))


@pytest.mark.parametrize(
    "how",
    [{}, {"microbatches": 4}, {"mesh": "two by two by two", "microbatches": 2}, {"mesh": "rows"}],
    ids=str,
)
def test_a_buffer_that_sums_integers_and_an_auxiliary_term_are_the_same_scanned_in_parts_and_on_meshes(
    how, expected
):
    metrics, buffers, params = three_steps(counted(**how))
    for found, wanted in zip(metrics, expected[0]):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=2e-5)
        assert (
            found["terms"] == pytest.approx(wanted["terms"], rel=2e-5)
            and "output" in found["terms"]
        )
        # the loss holds the penalty of each of the two layers, whose mean is logged
        assert found["loss"] == pytest.approx(
            found["terms"]["loss"] + 0.25 * 2 * found["terms"]["output"], rel=1e-5
        )
    jax.tree.map(np.testing.assert_array_equal, buffers, expected[1])
    assert largest_difference(params, expected[2]) < 1e-6


def test_a_term_of_a_shared_block_is_logged_as_the_mean_of_all_its_applications():
    config = with_pattern(*COUNTED)
    config.model.share_blocks = 2
    metrics = Setup(config).step(packed_batch(config))
    # two layers, each applied twice: the loss holds the penalty of each application
    assert metrics["loss"] == pytest.approx(
        metrics["terms"]["loss"] + 0.25 * 4 * metrics["terms"]["output"], rel=1e-5
    )


def test_a_term_of_layers_leaves_the_loss_finite_where_no_token_is_real():
    out = Out(cache=None, seen={}, terms={"0": {"0": {"output": Term(jnp.zeros(2), 0.5)}}})
    totals = {"main": jnp.zeros(()), "tokens": jnp.zeros((), jnp.int32)}
    loss = Loss(jnp.zeros(()), jnp.zeros(()), {}, {})
    batch = {"segments": jnp.zeros((2, 8), jnp.int32)}
    assert with_terms_of_layers(loss, out, batch, totals).sum == 0


def test_each_layers_count_is_that_of_the_tokens_and_a_rejected_step_leaves_it(expected):
    setup = counted(unroll="True").reset()
    batches = [packed_batch(setup.config, seed) for seed in range(3)]
    counts = np.zeros(3, int)
    for batch in batches:
        counts += np.bincount((batch["positions"] % 3)[batch["segments"] > 0], minlength=3)
        setup.step(batch)
    (kept,) = jax.tree.leaves(whole(setup.state.buffers))
    assert kept.dtype == np.int32
    np.testing.assert_array_equal(kept, [counts, counts])
    assert setup.step({**batches[0], "tokens": np.full_like(batches[0]["tokens"], 7)})["skips"] == 1
    np.testing.assert_array_equal(jax.tree.leaves(whole(setup.state.buffers))[0], [counts, counts])


def test_a_frozen_backbone_has_no_optimizer_state_and_does_not_move():
    config = small_config(lr=1e-2, trainable=("stack/0/0/channel/up",), optimizer="adamw")
    setup = Setup(config)
    before = flatten_tree(whole(setup.state.params))
    moments = [leaf for leaf in jax.tree.leaves(setup.state.optimizer) if leaf.ndim]
    trained = before["stack/0/0/channel/up"]
    assert (
        sum(leaf.nbytes for leaf in moments) == 2 * trained.nbytes
    )  # AdamW's two moments of one weight
    for seed in range(20):
        setup.step(packed_batch(config, seed))
    after = flatten_tree(whole(setup.state.params))
    changed = [path for path in before if before[path].tobytes() != after[path].tobytes()]
    assert changed == ["stack/0/0/channel/up"]


def test_a_users_weights_are_split_over_tensor_and_decay_as_declared():
    config = with_pattern(f"{OWN}:Halves rate=0.125", weight_decay=0.5, clip=0.0)
    many, one = Setup(config, {"data": 2, "fsdp": 1, "tensor": 4}, 8), Setup(config)
    state = flatten_tree(many.state.params)
    assert state["stack/0/0/own/read"].sharding.spec == P(None, "fsdp", "tensor")
    assert state["stack/0/0/own/read"].addressable_shards[0].data.shape == (2, 32, 16)
    before = flatten_tree(whole(one.state.params))
    batch = packed_batch(config)
    for setup in (one, many):
        setup.step(
            {**batch, "weights": np.zeros_like(batch["weights"]) + 1e-30}
        )  # no gradient to speak of: decay alone
    declared = flatten_tree(lm.declare(one.arch))
    assert {path for path, w in declared.items() if "/own/" in path and w.decays} == {
        "stack/0/0/own/read",
        "stack/0/0/own/write",
    }
    assert largest_difference(whole(one.state.params), whole(many.state.params)) < 1e-6
    after = flatten_tree(whole(one.state.params))
    assert np.abs(after["stack/0/0/own/read"]).sum() < np.abs(before["stack/0/0/own/read"]).sum()
    assert sizes.parameters(one.arch).matmul == sum(w.size * w.uses for w in declared.values())
    assert len(check_mixer(Halves)) == 4


def test_two_loss_parts_with_unequal_denominators_are_exact_in_four_unequal_parts():
    batch = packed_batch(small_config())
    batch["weights"][::4] = 0.0
    batch["segments"][1::4] = np.minimum(
        batch["segments"][1::4], 1
    )  # fewer documents end in the second of four parts
    once, parts = (Setup(small_config(microbatches=n), of=TwoParts) for n in (1, 4))
    for _ in range(3):
        a, b = once.step(batch), parts.step(batch)
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6) and b["grad_norm"] == pytest.approx(
            a["grad_norm"], rel=1e-5
        )
        assert b["terms"] == pytest.approx(a["terms"], rel=1e-5) and set(a["terms"]) == {
            "loss",
            "z",
            "ends",
        }
        terms, z_loss = a["terms"], once.config.train.z_loss
        assert a["loss"] == pytest.approx(
            terms["loss"] + z_loss * terms["z"] + 0.1 * terms["ends"], rel=1e-6
        )


def test_what_is_lent_across_repeats_is_the_same_scanned_and_unrolled_in_values_gradients_and_memory():
    arch = Architecture(
        64,
        32,
        4,
        2,
        8,
        48,
        (((parse_block(f"{OWN}:Residual"),), 6),),
        attention="reference",
        unroll=False,
    )
    params = _random(jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0)))
    batch = _batch([(64,)] * 8)

    def run(arch):
        def loss(params):
            hidden = lm.forward(arch, params, {}, batch)[0]
            return jnp.sum(jnp.sin(hidden) * batch["segments"][..., None])

        return jax.jit(jax.value_and_grad(loss)).lower(params).compile()

    scanned, unrolled = run(arch), run(dataclasses.replace(arch, unroll=True))
    (a, da), (b, db) = scanned(params), unrolled(params)
    assert float(a) == pytest.approx(float(b), rel=1e-6)
    for x, y in zip(jax.tree.leaves(da), jax.tree.leaves(db)):
        assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x)
    # each repeat's values are kept once for the backward pass: memory grows with the repeats alike
    kept = [program.memory_analysis().temp_size_in_bytes for program in (scanned, unrolled)]
    assert kept[0] < 1.5 * kept[1] and kept[1] < 1.5 * kept[0]


def test_what_is_lent_across_repeats_is_by_hand_the_value_of_the_layer_before():
    arch = Architecture(64, 8, 2, 1, 4, 8, (((parse_block(f"{OWN}:Residual+none"),), 3),))
    params = _random(jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0)))
    layers = params["stack"]["0"]["0"]
    batch = _batch([(9,)])
    x, lent = params["embedding"][batch["tokens"]], 0.0

    def norm(a, scale):
        return a * jax.lax.rsqrt(jnp.mean(a**2, -1, keepdims=True) + 1e-6) * scale

    for r in range(3):
        lent = norm(x, layers["mixer_norm"]["scale"][r]) @ layers["own"]["value"][r] + 0.5 * lent
        x = x + jnp.tanh(lent) @ layers["own"]["out"][r]
    np.testing.assert_allclose(
        lm.forward(arch, params, {}, batch)[0], norm(x, params["final_norm"]["scale"]), atol=1e-5
    )
