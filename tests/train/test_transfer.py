"""The rule from size to rates, scales and decay: its numbers, and activations that change as much at every size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax import cli
from slmjax import config as configs
from slmjax.models import lm
from slmjax.models.pattern import from_config
from slmjax.parallel.rules import flatten_tree
from slmjax.train.optimizer import Optimizer
from slmjax.train.schedule import scaled_rates
from slmjax.train.transfer import transfer
from tests.train import coordinates


def train_of(**values):
    c = configs.base()
    c.train.update(values)
    return configs.freeze(c).train


def ruled(base, model, train):
    """A model with the multipliers that transfer from `base`."""
    return dataclasses.replace(model, multipliers=transfer(base, model, train)["model.multipliers"])


def config_of(*words):
    return cli.make_config(*cli.read_options(["--config=configs/10m.py", *words]))


@pytest.mark.parametrize(("optimizer", "power"), [("adamw", 1), ("muon", 0.5)])
def test_the_factors_are_those_of_the_table(optimizer, power):
    base, target = coordinates.shape(32, 2), coordinates.shape(128, 8)
    fields = transfer(base, target, train_of(optimizer=optimizer, lr=2e-3))
    assert fields["train.decay_lr"] == 2e-3
    hidden = 4.0**-power
    assert fields["model.multipliers"] == {
        "matrix": {"lr": hidden / 2},
        "residual": {"lr": hidden / 4},
        "vector": {"lr": 0.5},
        "final_norm": {"init": 0.25, "lr": 0.25},
    }


def test_at_the_bases_own_size_no_multiplier_is_set():
    base = coordinates.shape(64, 4)
    assert transfer(base, base, train_of())["model.multipliers"] == {}


def test_the_bases_own_multipliers_are_carried_over_with_the_decay_that_they_gave():
    own = {"embedding": {"lr": 2.0}, "matrix": {"lr": 0.5, "decay": 3.0, "init": 0.7}}
    base = dataclasses.replace(coordinates.shape(32, 2), multipliers=own)
    found = transfer(base, coordinates.shape(64, 2), train_of(optimizer="adamw"))
    found = found["model.multipliers"]
    assert found["embedding"] == {"lr": 2.0}
    # Before, a step shrank it by lr * 0.5 * weight_decay * 3.
    assert found["matrix"] == {"lr": 0.25, "decay": 1.5, "init": 0.7}
    assert found["residual"] == {"lr": 0.25, "decay": 1.5, "init": 0.7}


def shrunk(lr, multipliers, **train):
    """The factor by which a step without gradients multiplies each parameter that decays."""
    model = coordinates.shape(32, 2)
    declared = lm.declare(from_config(model, 64))
    optimizer = Optimizer(train_of(lr=lr, weight_decay=0.1, **train), multipliers, declared)
    params = jax.tree.map(lambda weight: jnp.ones(weight.shape), declared)
    zeros = jax.tree.map(jnp.zeros_like, params)
    new, _ = optimizer.update(
        zeros, optimizer.init(params), params, scaled_rates(optimizer.train, 0.5)
    )
    new = flatten_tree(new)
    assert float(new["embedding"].min()) == 1
    return float(new["stack/0/0/mixer/query"].max())


def test_decay_follows_the_schedule_and_no_learning_rate():
    once = 1 - 0.5 * 4e-3 * 0.1
    for lr in (1e-3, 4e-3, 3e-2):
        for multipliers in ({}, {"matrix": {"lr": 0.3}}):
            assert shrunk(lr, multipliers, decay_lr=4e-3) == pytest.approx(once, rel=1e-6)
    # Without a rate of its own, it is the learning rate's.
    assert shrunk(3e-2, {}) == pytest.approx(1 - 0.5 * 3e-2 * 0.1, rel=1e-6)
    twice = {"matrix": {"decay": 2.0}}
    assert shrunk(3e-2, twice, decay_lr=4e-3) == pytest.approx(2 * once - 1, rel=1e-6)


def test_a_part_of_a_group_has_the_groups_multipliers_unless_it_has_its_own():
    model = coordinates.shape(64, 2)
    multipliers = {"matrix": {"init": 2.0}, "final_norm": {"init": 0.25}}
    plain = lm.init(from_config(model, 64), jax.random.key(0))

    def scaled(multipliers):
        own = dataclasses.replace(model, multipliers=multipliers)
        return flatten_tree(lm.init(from_config(own, 64), jax.random.key(0)))

    found = scaled(multipliers)
    for path, value in flatten_tree(plain).items():
        times = {"final_norm/scale": 0.25}.get(path, 1 if "scale" in path else 2)
        times = 1 if path == "embedding" else times
        np.testing.assert_allclose(found[path], times * value, rtol=1e-6, err_msg=path)
    down = "stack/0/0/channel/down"
    found = scaled(multipliers | {"residual": {"init": 3.0}})
    np.testing.assert_allclose(found[down], 3 * flatten_tree(plain)[down], rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_spectral_norm_of_an_aligned_update_does_not_depend_on_the_width(optimizer):
    """Condition 1 of Yang, Simon and Bernstein 2023, for a gradient of rank one."""
    base, norms = coordinates.shape(32, 2), []
    train = train_of(optimizer=optimizer, weight_decay=0.0, lr=1e-2)
    for width in (32, 64, 128):
        model = ruled(base, coordinates.shape(width, 2), train)
        declared = lm.declare(from_config(model, 64))
        update = Optimizer(train, model.multipliers, declared)
        params = jax.tree.map(lambda weight: jnp.zeros(weight.shape), declared)

        def aligned(weight):
            draw = np.random.default_rng(0)
            return jnp.broadcast_to(draw.choice([-1.0, 1.0], weight.shape[-1]), weight.shape)

        gradients = jax.tree.map(aligned, declared)
        new, _ = update.update(gradients, update.init(params), params, scaled_rates(train, 1))
        query = np.asarray(flatten_tree(new)["stack/0/0/mixer/query"][0]).reshape(width, width)
        norms.append(np.linalg.norm(query, 2))
    # Muon's five Newton-Schulz iterations leave singular values between 0.7 and 1.2.
    assert max(norms) / min(norms) < {"adamw": 1.05, "muon": 1.8}[optimizer]


# For each way to grow: models, and the kinds of activations whose changes must not grow with it. The
# writes of a single block (mixer, channel) fall with depth, as more blocks write.
GROWS = {
    "width": ([(width, 4) for width in (32, 64, 128, 256)], ("mixer", "channel")),
    "depth": ([(32, layers) for layers in (4, 8, 16, 32)], ("logits",)),
}
ALWAYS = ("query", "value", "hidden")
# Rates at which changes are small next to the activations: Muon's updates are a fifth as large.
SMALL = {"adamw": 2e-4, "muon": 1e-3}


def powers(grows, train):
    """The slopes without the rule and with it."""
    sizes = GROWS[grows][0]
    plain = [coordinates.shape(*size) for size in sizes]
    with_rule = [ruled(plain[0], model, train) for model in plain]
    products = [width * layers for width, layers in sizes]
    return [coordinates.slopes(models, train, products) for models in (plain, with_rule)]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("grows", GROWS)
def test_hidden_layers_change_activations_as_much_at_every_size_with_the_rule_only(
    grows, optimizer
):
    """The embedding is held: AdamW moves it by as much at any size, which would hide the rest."""
    train = train_of(
        optimizer=optimizer,
        weight_decay=0.0,
        lr=SMALL[optimizer],
        trainable=("matrix", "vector"),
    )
    without, with_rule = powers(grows, train)
    kinds = (*ALWAYS, *GROWS[grows][1])
    # A power of 0.25 is a factor of 1.7 over the eight sizes between first and last.
    assert all(abs(with_rule[kind]) < 0.25 for kind in kinds), with_rule
    assert all(without[kind] > 0.4 for kind in kinds), without


@pytest.mark.slow
def test_the_tied_head_changes_the_targets_logits_as_much_at_every_width_with_the_rule_only():
    """Logits of other tokens change by chance, as the root of the width; training moves the targets'.

    At the smallest width chance is a good part of the targets' change too, so that it falls a little.
    """
    train = train_of(weight_decay=0.0, lr=2e-4, trainable=("embedding", "final_norm"))
    without, with_rule = powers("width", train)
    assert abs(with_rule["target"]) < 0.35, with_rule
    assert without["target"] > 0.6, without


def test_params_sets_what_transfers_and_says_why():
    config = config_of("--params=50m")
    width, depth = config.model.width / 192, config.model.layers / 16
    assert config.model.multipliers["matrix"]["lr"] == pytest.approx((width * depth) ** -0.5)
    assert config.model.multipliers["residual"]["lr"] == pytest.approx(width**-0.5 / depth)
    assert config.train.decay_lr == config.train.lr == 3e-3
    first, *lines = config.model.transfer
    assert first == "transfer from width 192 and 16 layers to width 384 and 28 layers"
    assert [line.split()[0] for line in lines] == [
        "embedding",
        "matrix",
        "residual",
        "vector",
        "final_norm",
        "decay",
    ]
    assert lines[1].startswith("matrix rate 0.0016, initial scale x 1: Muon")
    assert lines[5].startswith("decay 0.0003 a step")
    plain = config_of()
    assert (plain.model.multipliers, plain.model.transfer, plain.train.decay_lr) == ({}, (), 0)


def test_a_sweep_over_the_rate_changes_no_decay_and_no_multiplier():
    one, other = (config_of("--params=20m", f"--config.train.lr={lr}") for lr in (1e-3, 1e-2))
    assert one.train.decay_lr == other.train.decay_lr == 3e-3
    assert one.model.multipliers == other.model.multipliers
    assert "matrix rate 0.01," not in one.model.transfer[2] != other.model.transfer[2]


def test_what_the_command_line_sets_wins_over_the_rule_and_is_said():
    config = config_of(
        "--params=50m",
        "--config.model.multipliers.matrix={'lr': 0.9}",
        "--config.train.decay_lr=0.001",
    )
    assert config.model.multipliers["matrix"] == {"lr": 0.9}
    assert config.model.multipliers["final_norm"] == {"init": 0.5, "lr": 0.5}
    assert config.train.decay_lr == 1e-3
    said = [line.split()[0] for line in config.model.transfer if "command line" in line]
    assert said == ["matrix", "decay"]
    config = config_of("--params=50m", "--config.model.multipliers={}")
    assert config.model.multipliers == {}
    said = [line.split()[0] for line in config.model.transfer if "command line" in line]
    assert said == ["embedding", "matrix", "residual", "vector", "final_norm"]
