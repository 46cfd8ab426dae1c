"""Coordinate checks: how much each kind of activation changes in the first steps of training.

Source: Yang et al. 2022 (Tensor Programs V), appendix D.1.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from slmjax import config as configs
from slmjax.models import lm
from slmjax.models.block import DecoderBlock
from slmjax.models.declare import DECLARED_GROUPS, merged
from slmjax.models.layers import Context
from slmjax.models.pattern import from_config
from slmjax.train.optimizer import Optimizer, group_multiplier
from slmjax.train.schedule import scaled_rates
from slmjax.train.trainable import split

VOCABULARY, ROWS, LENGTH, STEPS = 64, 8, 32, 4
HEAD = 16


def shape(width, layers):
    """A decoder with heads of one size, as many as its width has room for."""
    c = configs.base()
    heads = width // HEAD
    c.model.update({"width": width, "layers": layers, "heads": heads, "kv_heads": heads // 2})
    c.model.update({"head_dim": HEAD, "ff_width": 2 * width})
    return configs.freeze(c).model


def slopes(models, train, sizes):
    """{kind of activation: power of the size with which its change after STEPS steps grows}."""
    found = [changes(model, train) for model in models]
    powers = {}
    for kind in found[0]:
        logs = [np.log(each[kind]) for each in found]
        powers[kind] = float(np.polyfit(np.log(sizes), logs, 1)[0])
    return powers


def changes(model, train):
    """{kind of activation: root mean square of its change after STEPS steps}."""
    arch = from_config(model, VOCABULARY, attention="reference", unroll=False)
    params = jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(0))
    # The rates are arguments, so that one program serves both with and without the rule.
    rates = {}
    for group in DECLARED_GROUPS:
        rates[group] = {"lr": np.float32(group_multiplier(model.multipliers, group, "lr"))}
    before, after = _trained(dataclasses.replace(arch, init_scales=()), train, params, rates)
    return {kind: float(np.sqrt(np.mean((after[kind] - before[kind]) ** 2))) for kind in before}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _trained(arch, train, params, rates):
    """The activations on one batch, before the first step and after the last."""
    optimizer = Optimizer(train, rates, lm.declare(arch))
    draw = np.random.default_rng(0)
    tokens = jnp.asarray(draw.integers(0, VOCABULARY, (ROWS, LENGTH + 1)), jnp.int32)

    def loss(params):
        seen = activations(arch, params, tokens[:, :-1])
        logs = jax.nn.log_softmax(seen["logits"])
        targets = tokens[:, 1:, None]
        logits = seen["logits"] - seen["logits"].mean(-1, keepdims=True)
        seen["target"] = jnp.take_along_axis(logits, targets, axis=-1)
        return -jnp.take_along_axis(logs, targets, axis=-1).mean(), seen

    def step(carry, _):
        params, state = carry
        gradients, seen = jax.grad(loss, has_aux=True)(params)
        trained, frozen = split(params, optimizer.trainable)
        moved, _ = split(gradients, optimizer.trainable)
        trained, state = optimizer.update(moved, state, trained, scaled_rates(train, 1))
        return (merged(trained, frozen), state), seen

    _, seen = jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS + 1)
    before = {kind: values[0] for kind, values in seen.items()}
    return before, {kind: values[-1] for kind, values in seen.items()}


def activations(arch, params, tokens):
    """{kind: activation}; those of blocks are the last layer's, before which all others have changed."""
    segments = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    ctx = Context(segments, positions)
    (((block,), _),) = arch.stack

    def wanted(module, method):
        return method == "_heads" or module.name in ("mixer", "channel")

    def layer(x, variables):
        (x, _, _), captured = DecoderBlock(arch, block).apply(
            {"params": variables},
            x,
            {},
            ctx=ctx,
            capture_intermediates=wanted,
            mutable=["intermediates"],
        )
        mixer, channel = (captured["intermediates"][name] for name in ("mixer", "channel"))
        seen = {"query": mixer["_heads"][0]["query"], "value": mixer["_heads"][0]["value"]}
        seen |= {"mixer": mixer["__call__"][0][0], "channel": channel["__call__"][0][0]}
        return x, seen

    x, seen = jax.lax.scan(layer, params["embedding"][tokens], params["stack"]["0"]["0"])
    seen = jax.tree.map(lambda values: values[-1], seen)
    hidden = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + arch.norm_eps)
    logits = lm.logits(arch, params, hidden * params["final_norm"]["scale"])
    return seen | {"hidden": hidden, "logits": logits}
