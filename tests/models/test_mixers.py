"""Blocks of every kind together: sharing of keys, values and blocks, own mixers, windows; and that all ways of running them agree."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.layers import Context
from slmjax.models.mixers import mixer_of
from slmjax.models.pattern import from_config, parse_block, share_keys
from slmjax.ops.rope import rope, rope_frequencies
from slmjax.ops.softmax_attention import reference
from slmjax.testing import _batch, _random, _with_cache

ARCH = Architecture(64, 32, 4, 2, 8, 48, (((Block(),), 2),), qk_norm=True, attention="reference")
# Two mixers of the tests stand for all: one with a cache, one that lends. What each real mixer owes is in tests/test_testing.py.
MEAN, LENDS = "tests.models.own:Mean", "tests.models.own:Lends"
# Lenders of two kinds, borrowers right behind and further off, blocks without a channel mixer.
COMPOSED = (
    Block(LENDS),
    Block(MEAN, "none"),
    parse_block(f"{LENDS}+none kind=1"),
    parse_block(f"{LENDS} kind=1 borrows=True"),
    Block(MEAN),
    parse_block(f"{LENDS}+none borrows=True"),
)


# A prefix and a suffix around two repeats: nothing is lent from one part to the next, but for what crosses repeats.
ACROSS = "tests.contracts.own:Residual"
PARTS = (
    ((Block(MEAN, "none"), Block(ACROSS, "none")), 1),
    ((Block(LENDS, "none"), parse_block(f"{LENDS}+none borrows=True"), Block(MEAN, "none")), 2),
    ((Block(ACROSS, "none"), Block()), 1),
)


@functools.cache
def params_of(arch):
    return _random(jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0)))


@functools.cache
def program(arch):
    def loss(params, batch):
        hidden = lm.forward(arch, params, {}, batch)[0].astype(jnp.float32)
        return jnp.sum(jnp.sin(hidden) * (batch["segments"] != 0)[..., None])

    return jax.jit(jax.value_and_grad(loss))


def value_and_gradients(arch, params, batch):
    return program(arch)(params, batch)


def close(one, other, near):
    """Each leaf within `near` of the other, measured by its norm."""
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        off = np.linalg.norm(np.float32(a) - np.float32(b)) / np.linalg.norm(np.float32(a))
        assert off <= near, f"{jax.tree_util.keystr(path)}: {off:.2g}"


def test_a_block_applied_twice_is_two_blocks_of_equal_weights():
    """The gradient of the shared weights is the sum over both."""
    blocks = (Block(MEAN), Block(LENDS))
    shared = dataclasses.replace(ARCH, stack=((blocks, 1),), share_blocks=2)
    twice = dataclasses.replace(ARCH, stack=(((blocks[0],), 2), ((blocks[1],), 2)))
    params, batch = params_of(shared), _batch([(9, 15), (24,)])
    groups = {
        str(g): {
            "0": jax.tree.map(
                lambda leaf: jnp.repeat(leaf, 2, axis=0), params["stack"]["0"][str(g)]
            )
        }
        for g in (0, 1)
    }
    value, found = value_and_gradients(shared, params, batch)
    expected, gradients = value_and_gradients(twice, params | {"stack": groups}, batch)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for g in (0, 1):
        summed = jax.tree.map(
            lambda leaf: leaf.sum(0, keepdims=True), gradients["stack"][str(g)]["0"]
        )
        close(summed, found["stack"]["0"][str(g)], 1e-5)
    assert len(shared.applications) == 4 and shared.layers == 2


def test_a_block_that_borrows_attends_over_the_keys_and_values_of_the_one_before():
    """By hand: its own queries, the lender's normed and rotated keys and its values."""
    lender, borrower = Block(), parse_block("attention borrows=True")
    arch = dataclasses.replace(ARCH, stack=(((lender, borrower), 1),))
    layers = jax.tree.map(lambda leaf: leaf[0], params_of(arch)["stack"]["0"])
    batch = _batch([(9, 15), (20,)])
    ctx = Context(batch["segments"], batch["positions"])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 32)), jnp.float32)
    name = mixer_of(arch, lender).lends()
    first, lent, _ = lm.apply_block(
        arch, lender, {"params": layers["0"]}, x, ctx, wanted=frozenset(name)
    )
    found, left, _ = lm.apply_block(arch, borrower, {"params": layers["1"]}, first, ctx, lent)
    assert tuple(lent) == name and left == {}

    def norm(a, scale):
        return (
            a
            * jax.lax.rsqrt(jnp.mean(a**2, -1, keepdims=True) + 1e-6)
            * jnp.expand_dims(scale["scale"], range(a.ndim - 1))
        )

    def turned(a, mixer, name):
        return rope(
            norm(a, mixer[f"{name}_norm"]),
            ctx.positions,
            rope_frequencies(arch.head_dim, arch.rope_theta),
        )

    assert not {"key", "value", "key_norm"} & set(layers["1"]["mixer"])
    of_lender, of_borrower = (
        norm(x, layers["0"]["mixer_norm"]),
        norm(first, layers["1"]["mixer_norm"]),
    )
    mixer = layers["1"]["mixer"]
    query = turned(jnp.einsum("btd,dnh->btnh", of_borrower, mixer["query"]), mixer, "query")
    key = turned(
        jnp.einsum("btd,dnh->btnh", of_lender, layers["0"]["mixer"]["key"]),
        layers["0"]["mixer"],
        "key",
    )
    value = jnp.einsum("btd,dnh->btnh", of_lender, layers["0"]["mixer"]["value"])
    mixed = reference(query, key, value, ctx.segments, ctx.segments)
    x = first + jnp.einsum("btnh,nhd->btd", mixed, mixer["out"])
    y, channel = norm(x, layers["1"]["channel_norm"]), layers["1"]["channel"]
    x = x + (jax.nn.silu(y @ channel["gate"]) * (y @ channel["up"])) @ channel["down"]
    np.testing.assert_allclose(found, x, atol=2e-5)


@pytest.mark.parametrize("share_blocks", [1, 2])
def test_composed_blocks_decode_in_pieces_as_the_forward_pass(share_blocks):
    arch = dataclasses.replace(ARCH, stack=((COMPOSED, 2),), share_blocks=share_blocks)
    decode_in_pieces(arch)


def test_blocks_around_those_that_repeat_decode_in_pieces_as_the_forward_pass():
    decode_in_pieces(dataclasses.replace(ARCH, stack=PARTS))


def test_attention_over_windows_and_borrowed_keys_decodes_in_pieces_as_the_forward_pass():
    """Windows of 6 run full, and a piece is longer than a window; each block has a cache of its own size or none."""
    pattern = (
        "attention window=6",
        "attention",
        "attention window=6 borrows=True",
        "attention borrows=True",
    )
    arch = dataclasses.replace(ARCH, stack=((tuple(map(parse_block, pattern)), 1),))
    cache = decode_in_pieces(arch)
    assert [entry.key.shape[2] if entry else None for entry in cache.layers] == [6, 40, None, None]


def decode_in_pieces(arch):
    """Rows of 30, 17 and 1 tokens in pieces of 8 and of 1 against the forward pass; returns the cache."""
    params, lengths = params_of(arch), np.array([30, 17, 1])
    batch = _batch([(n,) for n in lengths.tolist()])
    whole = np.asarray(jax.jit(lambda batch: lm.forward(arch, params, {}, batch)[0])(batch))
    step = jax.jit(lambda batch, cache: _with_cache(arch, params, batch, cache))
    cache, done = lm.init_cache(arch, 3, 40), np.zeros(3, int)
    for piece in (8, 8, 1, 1, 8, 1, 1, 1, 1):
        count = np.minimum(piece, lengths - done)
        place = np.minimum(done[:, None] + np.arange(piece)[None], 29)
        taken = {
            name: np.take_along_axis(np.asarray(of), place, axis=1) for name, of in batch.items()
        }
        taken["segments"] = (np.arange(piece)[None] < count[:, None]).astype(np.int32)
        out, cache = step({name: jnp.asarray(of) for name, of in taken.items()}, cache)
        for row, n in enumerate(count):
            np.testing.assert_allclose(
                out[row, :n], whole[row, done[row] : done[row] + n], atol=1e-4
            )
        done += count
    np.testing.assert_array_equal(cache.length, lengths)
    return cache


def test_composed_blocks_are_the_same_scanned_unrolled_and_with_less_kept():
    """Two repeats of the pattern: a scan carries what the first lends no further than the first."""
    arch = dataclasses.replace(ARCH, stack=((COMPOSED, 2),), unroll=False)
    params, batch = params_of(arch), _batch([(9, 1, 14), (24,)])
    expected = value_and_gradients(arch, params, batch)
    for change in ({"unroll": True}, {"remat": "full"}, {"remat": "gate"}):
        found = value_and_gradients(dataclasses.replace(arch, **change), params, batch)
        assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
        close(expected[1], found[1], 2e-5)  # sums in another order


def test_blocks_around_those_that_repeat_are_the_same_scanned_and_unrolled():
    arch = dataclasses.replace(ARCH, stack=PARTS, unroll=False)
    params, batch = params_of(arch), _batch([(9, 1, 14), (24,)])
    (a, da), (b, db) = (
        value_and_gradients(dataclasses.replace(arch, unroll=unroll), params, batch)
        for unroll in (False, True)
    )
    assert float(a) == pytest.approx(float(b), rel=1e-6)
    close(da, db, 1e-5)


@pytest.mark.parametrize(
    "mixer", ["ssm", "gla", "gdn", pytest.param("kda", marks=pytest.mark.slow)]
)
def test_in_bfloat16_a_recurrent_block_is_near_and_its_gradients_are_finite(mixer):
    arch = dataclasses.replace(ARCH, stack=(((Block(mixer),), 1),))
    params, batch = params_of(arch), _batch([(9, 15), (24,)])
    # decays of exp(-16 * 20): nothing of a token is left at the next
    strong = jax.tree.map_with_path(
        lambda path, leaf: leaf + 20 if path[-1].key in ("decay_bias", "step_bias") else leaf,
        params,
    )
    for given, near in ((params, 3e-2), (strong, 3e-2)):
        expected, _ = value_and_gradients(arch, given, batch)
        value, gradients = value_and_gradients(
            dataclasses.replace(arch, compute="bfloat16"), given, batch
        )
        assert float(value) == pytest.approx(float(expected), rel=near, abs=1.0)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_fresh_decays_forget_slowly_and_gates_are_between():
    """A head's decay of exp(-A dt) with A from 1 to 16 and dt from 0.001 to 0.1 (Mamba-2); none is broken at the start."""
    arch = dataclasses.replace(
        ARCH,
        stack=((tuple(map(parse_block, ("ssm heads=512", "gdn heads=512", "kda heads=64"))), 1),),
    )
    for block in jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(0))["stack"]["0"].values():
        rate = np.exp(block["mixer"]["decay_log"])
        assert 1 <= rate.min() < 2 and 13 < rate.max() <= 16
        step = np.log1p(
            np.exp(block["mixer"]["step_bias" if "step_bias" in block["mixer"] else "decay_bias"])
        )
        assert step.min() > 0.999e-3 and step.max() < 0.1001
        assert np.median(step) == pytest.approx(1e-2, rel=0.3)


@pytest.mark.parametrize(
    "pattern, repeats, share, expected",
    [
        ("attention", 6, 2, ("A a", 3)),
        ("attention", 6, 3, ("A a a", 2)),
        ("gdn gdn attention", 4, 2, ("g g A g g a", 2)),
        ("attention attention", 3, 2, ("A a", 3)),
        ("attention attention attention", 2, 2, ("A a A a A a", 1)),
        ("gdn", 4, 2, ("g", 4)),
    ],
)
def test_layers_that_share_keys_and_values_lie_in_one_pattern(pattern, repeats, share, expected):
    blocks, found = share_keys(
        ARCH, tuple(Block(mixer) for mixer in pattern.split()), repeats, share
    )
    letters = "".join(
        b.mixer[0] if b.mixer != "attention" else "a" if b.options else "A" for b in blocks
    )
    assert (" ".join(letters), found) == expected


def test_layers_share_with_those_of_their_own_window_and_positions():
    near, far = parse_block("attention window=4"), parse_block("attention rope=False")
    blocks, repeats = share_keys(ARCH, (near, near, far), 4, 2)
    assert repeats == 2 and [("borrows", True) in b.options for b in blocks] == [
        False,
        True,
        False,
        False,
        True,
        True,
    ]


def test_layers_share_keys_and_values_within_their_part_of_the_pattern():
    config = configs.base()
    pattern = ("attention", "attention", "|", "gdn", "attention", "|", "gdn")
    config.model.update({"pattern": pattern, "layers": 7, "share_kv": 2})
    arch = from_config(configs.freeze(config).model, 256)
    letters = [
        [b.mixer[0] if b.mixer != "attention" else "a" if b.options else "A" for b in blocks]
        for blocks, _ in arch.stack
    ]
    assert ["".join(part) for part in letters] == ["Aa", "gAga", "g"] and [
        repeats for _, repeats in arch.stack
    ] == [1, 1, 1]


@pytest.mark.parametrize(
    "model, sentence",
    [
        (
            {"pattern": ("attention", "|", "attention"), "layers": 3, "share_kv": 2},
            "divide the 1 attention layers of one kind in one part",
        ),
        (
            {"pattern": ("attention", "|", "attention borrows=True")},
            "borrows=True needs one before it, in the same part of the pattern",
        ),
        (
            {"layers": 3, "share_kv": 2},
            "share_kv is 2, which does not divide the 3 attention layers",
        ),
        (
            {"pattern": ("gdn",), "share_kv": 2},
            "share_kv is 2, but no block of the pattern is attention",
        ),
        ({"pattern": ("attention borrows=True",)}, "a block with borrows=True needs one before it"),
        ({"pattern": ("attention", "attention window=3 borrows=True")}, "the same rope and window"),
        (
            {"pattern": ("attention", "attention borrows=True"), "share_kv": 2},
            "the pattern says borrows=True too",
        ),
        (
            {"pattern": ("gdn rope=False",)},
            "'rope=False'.*one of the options heads, key_dim, value_dim",
        ),
        ({"pattern": ("gdn heads=many",)}, "'heads=many'.*must be a whole number"),
    ],
)
def test_sharing_that_does_not_fit_is_refused(model, sentence):
    config = configs.base()
    config.model.update(model)
    with pytest.raises(UserError, match=sentence):
        from_config(configs.freeze(config).model, 256)
