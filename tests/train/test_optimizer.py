"""Declared weights in action: AdamW against its formula, Muon on stacked layers against Muon on each layer alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slmjax import config as configs
from slmjax.models import lm
from slmjax.models.pattern import from_config
from slmjax.parallel.rules import flatten_tree
from slmjax.train.optimizer import Optimizer, clip
from slmjax.train.schedule import scaled_rates
from tests.train.small import small_config


def arch_of(layers):
    config = small_config()
    config.model.layers = layers
    return from_config(configs.freeze(config).model, 512)


def tree(layers, seed=0):
    return jax.jit(lm.init, static_argnums=0)(arch_of(layers), jax.random.key(seed))


def optimizer_of(layers, multipliers=None, **train):
    train = configs.freeze(small_config(**train)).train
    return Optimizer(train, multipliers or {}, lm.declare(arch_of(layers)))


def steps(optimizer, params, gradients, count=3):
    """Parameters after `count` updates, of which the n-th has n times the gradients."""

    rates = scaled_rates(optimizer.train, 0.5)

    def update(carry, times):
        return optimizer.update(
            jax.tree.map(lambda g: g * times, gradients), carry[1], carry[0], rates
        ), None

    run = jax.jit(
        lambda params, state: jax.lax.scan(update, (params, state), jnp.arange(1.0, count + 1))[0][
            0
        ]
    )
    return run(params, optimizer.init(params))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_one_update_of_the_stacked_tree_equals_updates_of_each_layer(name):
    params, gradients = tree(3), tree(3, seed=1)
    stacked = flatten_tree(steps(optimizer_of(3, optimizer=name), params, gradients))
    optimizer = optimizer_of(1, optimizer=name)
    for layer in range(3):
        pick = lambda t, layer=layer: {
            **t,
            "stack": jax.tree.map(lambda x: x[layer : layer + 1], t["stack"]),
        }
        alone = flatten_tree(steps(optimizer, pick(params), pick(gradients)))
        for path, value in alone.items():
            whole = stacked[path][layer : layer + 1] if path.startswith("stack/") else stacked[path]
            np.testing.assert_allclose(value, whole, atol=2e-6, err_msg=path)


def test_adamw_is_optax_adamw_on_matrices():
    train = small_config().train
    optimizer = optimizer_of(2)
    params, gradients = tree(2), tree(2, seed=1)
    ours = flatten_tree(steps(optimizer, params, gradients))["stack/0/0/channel/up"]
    rule = optax.adamw(
        train.lr * 0.5, b1=0.9, b2=train.b2, eps=train.eps, weight_decay=train.weight_decay
    )
    value, gradient = (
        flatten_tree(params)["stack/0/0/channel/up"],
        flatten_tree(gradients)["stack/0/0/channel/up"],
    )
    state = rule.init(value)
    for i in range(3):
        update, state = rule.update(gradient * (1 + i), state, value)
        value = value + update
    np.testing.assert_allclose(ours, value, atol=1e-6)


def test_muon_updates_have_equal_singular_values_and_adamws_size():
    train = small_config(optimizer="muon", weight_decay=0.0).train
    optimizer = optimizer_of(2, optimizer="muon", weight_decay=0.0)
    params, gradients = tree(2), tree(2, seed=1)
    new, _ = jax.jit(optimizer.update)(
        gradients, optimizer.init(params), params, scaled_rates(optimizer.train, 1)
    )
    change = (
        flatten_tree(new)["stack/0/0/mixer/query"] - flatten_tree(params)["stack/0/0/mixer/query"]
    )[0].reshape(64, 64) / train.lr
    singular = np.linalg.svd(np.asarray(change), compute_uv=False)
    assert (
        singular.max() / np.median(singular) < 1.8
    )  # five Newton-Schulz iterations leave about 0.7 to 1.2
    assert np.sqrt(np.mean(np.asarray(change) ** 2)) == pytest.approx(
        0.2, rel=0.25
    )  # Liu et al. 2025, section 2.2


def test_multipliers_scale_rate_and_decay_of_their_group_alone():
    plain = optimizer_of(2)
    scaled = optimizer_of(2, {"embedding": {"lr": 0.5}})
    params, gradients = tree(2), tree(2, seed=1)
    a, b, start = (
        flatten_tree(t)
        for t in (steps(plain, params, gradients, 1), steps(scaled, params, gradients, 1), params)
    )
    np.testing.assert_allclose(
        b["embedding"] - start["embedding"], 0.5 * (a["embedding"] - start["embedding"]), atol=1e-7
    )
    np.testing.assert_array_equal(a["stack/0/0/channel/up"], b["stack/0/0/channel/up"])


def test_clipping_bounds_the_global_norm_and_reports_the_one_before():
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    clipped, norm = clip(gradients, 1.0)
    assert float(norm) == pytest.approx(5.0)
    np.testing.assert_allclose(clipped["b"], [[0.8]], rtol=1e-6)
    np.testing.assert_array_equal(clip(gradients, 0.0)[0]["b"], gradients["b"])
