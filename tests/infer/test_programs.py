"""The compiled programs of generation: what they must not do on every step."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.infer import programs as device
from slmjax.infer.sampling import sample, sampling_of
from slmjax.models import lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.pattern import parse_block

NOPE = parse_block("attention rope=False")
ARCH = Architecture(
    384, 32, 4, 2, 8, 48, (((Block(), NOPE), 2),), qk_norm=True, output_gate=True, tied=False
)
B, S = 3, 40


def shapes(arch):
    return jax.eval_shape(functools.partial(lm.init, arch), jax.random.key(0))


def test_the_loop_writes_into_the_cache_in_place_and_gives_its_memory_back():
    params = jax.eval_shape(functools.partial(device.ready_params, ARCH), shapes(ARCH))
    cache = jax.eval_shape(
        lambda: dataclasses.replace(lm.init_cache(device.unrolled(ARCH), B, S), empty=False)
    )
    request = device.Request(
        np.ones(B, bool),
        np.full(B, 20, np.int32),
        np.zeros(B, np.int32),
        sampling_of(B),
        np.zeros((32, 384), np.uint16),
        np.int32(8),
        np.zeros(384, bool),
        np.int32(384),
    )
    program = (
        device.programs("cpu")
        .decode.lower(device.unrolled(ARCH), 16, params, {}, cache, request)
        .compile()
    )
    of_cache = re.findall(rf"= f32\[{B},2,{S},8\]\S* ([\w-]+)\(", program.as_text())
    # Each layer writes its keys and its values once; the name of the operation depends on XLA's code generator.
    assert of_cache.count("scatter") + of_cache.count("dynamic-update-slice") == 2 * ARCH.layers
    assert "copy" not in of_cache and "transpose" not in of_cache
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert program.memory_analysis().alias_size_in_bytes == held


def test_a_step_without_temperature_draws_no_random_bits_and_one_without_top_k_and_top_p_sorts_nothing():
    jaxpr = jax.make_jaxpr(sample)(jnp.zeros((B, 8)), sampling_of(B), 0).jaxpr
    (branches,) = [
        equation.params["branches"] for equation in jaxpr.eqns if equation.primitive.name == "cond"
    ]
    outside = [str(equation) for equation in jaxpr.eqns if equation.primitive.name != "cond"]
    found = [(" sort[" in text, "random_bits" in text) for text in (*outside, *map(str, branches))]
    assert not any(sum(found[: len(outside)], ()))
    assert found[len(outside) :] == [(False, False), (False, True), (True, True)]


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_weights_that_were_cast_once_give_the_bits_of_weights_that_are_cast_in_every_step(compute):
    arch = dataclasses.replace(ARCH, compute=compute)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) * 0.2, leaf.dtype), shapes(arch)
    )
    ready = device.ready_params(arch, params)
    types = {path[-1].key: leaf.dtype.name for path, leaf in jax.tree.leaves_with_path(ready)}
    assert types.pop("scale") == "float32" and set(types.values()) == {compute}
    at = jnp.arange(6)[None]
    batch = {"tokens": at * 7, "segments": jnp.ones_like(at), "positions": at}
    forward = jax.jit(
        lambda arch, params: lm.logits(arch, params, lm.forward(arch, params, {}, batch)[0]),
        static_argnums=0,
    )
    np.testing.assert_array_equal(forward(device.unrolled(arch), ready), forward(arch, params))
