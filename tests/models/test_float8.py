"""Float8 products in the model: which products, with whose scales, in every way of running the stack."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models import attention, lm, mlp
from slmjax.models.architecture import Architecture, Block
from slmjax.models.pattern import parse_block
from slmjax.ops import fp8

NOPE = parse_block("attention rope=False")
PLAIN = Architecture(
    64, 32, 4, 2, 8, 48, (((Block(), NOPE), 2), ((Block(),), 1)), output_gate=True, qk_norm=True
)
ARCH = dataclasses.replace(PLAIN, products="float8")
SITES = {"mixer": ("in", "out"), "channel": ("in", "out")}
B, T = 2, 16


@pytest.fixture(scope="module")
def params():
    params = lm.init(PLAIN, jax.random.key(0))
    grow = lambda path, leaf: (
        leaf * 3 ** jnp.arange(len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1))
        if leaf.ndim > 2
        else leaf
    )
    return params | {
        "stack": jax.tree.map_with_path(grow, params["stack"])
    }  # each layer's matrices have a scale of their own


@pytest.fixture(scope="module")
def buffers():
    """Scales that differ between layers and places, some so small that values are cut off."""
    random, tree = np.random.default_rng(0), lm.init_buffers(ARCH)
    return jax.tree.map(lambda leaf: leaf * 2.0 ** random.integers(-4, 4, leaf.shape), tree)


def _batch():
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, 64)
    segments = jnp.repeat(jnp.array([[1], [2]]), T // 2, axis=1).reshape(1, T) * jnp.ones(
        (B, 1), jnp.int32
    )
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": jnp.arange(T)[None] % (T // 2) * jnp.ones((B, 1), jnp.int32),
    }


@functools.cache
def _run(arch):
    """(hidden, gradients with respect to parameters and buffers)."""

    def loss(params, buffers, batch):
        hidden = lm.forward(arch, params, buffers, batch)[0]
        return jnp.sum(jnp.sin(3 * hidden.astype(jnp.float32))), hidden

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))


def test_every_product_of_a_block_has_its_place_in_the_buffers_and_a_plain_model_has_none():
    buffers, params = lm.init_buffers(ARCH), lm.init(ARCH, jax.random.key(0))
    assert lm.init_buffers(PLAIN) == {}
    stack = buffers["stack"]
    assert {g: set(group) for g, group in stack.items()} == {
        g: set(group) for g, group in params["stack"].items()
    }
    for g, (pattern, repeats) in enumerate(ARCH.stack):
        for p in range(len(pattern)):
            of_block = stack[str(g)][str(p)]
            assert {name: tuple(sorted(sites)) for name, sites in of_block.items()} == SITES
            assert all(
                leaf.shape == (repeats,) and leaf.dtype == jnp.float32
                for leaf in jax.tree.leaves(of_block)
            )
    plain = lm.init(PLAIN, jax.random.key(0))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), params, plain))


def test_hidden_states_are_those_of_rounded_inputs_and_weights(params, buffers, monkeypatch):
    """Against the plain model whose products round their operands themselves, told in Python which layer they belong to."""
    found = _run(ARCH)(params, buffers, _batch())[1]
    calls = []

    def rounded(module, site, x, weights, *, fused=False):
        if module.is_initializing():
            return ()
        layer = len(calls) // 4
        calls.append(site)
        g, p, r = [(0, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 0)][layer]
        scale = buffers["stack"][str(g)][str(p)][module.name][site]["input"][r]
        inner = x.ndim - 2
        wide = lambda x, s: fp8.quantize(x, s, fp8.INPUT).astype(jnp.float32) * s
        powers = [2.0 ** jnp.floor(jnp.log2(jnp.abs(w).max() / 448) + 1) for w in weights.values()]
        powers = [max(powers)] * len(powers) if fused else powers  # one tensor, one scale
        return tuple(
            jnp.tensordot(wide(x, scale), wide(w, s), inner)
            for w, s in zip(weights.values(), powers)
        )

    for module in (attention, mlp):
        monkeypatch.setattr(module, "project", rounded)
    expected = lm.forward(PLAIN, params, {}, _batch())[0]
    assert calls == ["in", "out"] * 10
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.slow
def test_scanned_rematerialized_and_unrolled_stacks_are_one_function(params, buffers):
    (expected, seen), hidden = _run(ARCH)(params, buffers, _batch())
    for change in (
        {"unroll": False},
        {"remat": "query,mixed,up"},
        {"remat": "full"},
        {"unroll": False, "remat": "dots"},
    ):
        (gradients, seen_now), hidden_now = _run(dataclasses.replace(ARCH, **change))(
            params, buffers, _batch()
        )
        for one, other in zip(
            jax.tree.leaves((expected, hidden)),
            jax.tree.leaves((gradients, hidden_now)),
            strict=True,
        ):
            assert np.linalg.norm(one - other) <= 2e-6 * np.linalg.norm(one)
        jax.tree.map(np.testing.assert_array_equal, seen, seen_now)


def test_in_bfloat16_the_model_is_as_far_from_the_plain_one_as_in_float32():
    """A last bit of bfloat16 can decide between two neighbours in float8, so the two differ by about as much as from the plain."""
    params, buffers = lm.init(PLAIN, jax.random.key(0)), lm.init_buffers(ARCH)
    plain = lm.forward(PLAIN, params, {}, _batch())[0]
    for compute in ("float32", "bfloat16"):
        (gradients, seen), hidden = _run(dataclasses.replace(ARCH, compute=compute))(
            params, buffers, _batch()
        )
        assert (
            hidden.dtype == compute
            and 0.1 < np.linalg.norm(hidden - plain) / np.linalg.norm(plain) < 0.3
        )
        assert {leaf.dtype.name for leaf in jax.tree.leaves((gradients, seen))} == {"float32"}


def test_what_is_seen_is_each_places_own_maximum(params, buffers):
    """In units of the scale: where that alone is 64 times as large, the maximum is 64 times smaller, and nothing before it changes."""
    before = _run(ARCH)(params, buffers, _batch())[0][1]["stack"]["0"]
    assert all(float(leaf.min()) > 0 for leaf in jax.tree.leaves(before))
    larger = jax.tree.map(lambda leaf: leaf, buffers)
    site = larger["stack"]["0"]["1"]["channel"]["in"]
    site["input"] = site["input"].at[1].multiply(64.0)
    after = _run(ARCH)(params, larger, _batch())[0][1]["stack"]["0"]
    one, other = (of["1"]["channel"]["in"]["input"] for of in (before, after))
    assert (
        float(other[0]) == float(one[0])
        and float(one[1]) / 70 < float(other[1]) < float(one[1]) / 58
    )
    for place in ("mixer", "channel"):
        np.testing.assert_array_equal(
            before["0"][place]["in"]["input"], after["0"][place]["in"]["input"]
        )


def test_without_buffers_or_with_a_cache_products_are_the_plain_ones(params, buffers):
    batch = _batch()
    plain = lm.forward(PLAIN, params, {}, batch)[0]
    assert bool(jnp.all(lm.forward(ARCH, params, {}, batch)[0] == plain))
    cached = [
        lm.forward(arch, params, of, batch, cache=lm.init_cache(arch, B, T))[0]
        for arch, of in ((PLAIN, {}), (ARCH, buffers))
    ]
    assert bool(jnp.all(cached[0] == cached[1]))
    assert float(jnp.abs(lm.forward(ARCH, params, buffers, batch)[0] - plain).max()) > 1e-2
