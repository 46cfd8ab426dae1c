"""The Triton kernels in Pallas' interpreter against plain XLA, and their way through the compiler's front end for a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.ops import chunk_walk, triton_walk
from slmjax.ops.decayed import decayed
from slmjax.ops.recurrence import recurrence
from slmjax.ops.short_conv import activated

N, P, C, K, V = 3, 2, 32, 16, 32


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("channels", [1, K])
@pytest.mark.parametrize(
    "given", ["written erased writing", "written writing", "written erased writing added", "added"]
)
def test_the_walk_is_the_scan(given, channels):
    """Forward and in reverse, with erasing and without."""
    shapes = {
        "written": (N, P, C, V),
        "erased": (N, P, C, K),
        "writing": (N, P, C, K),
        "added": (N, P, K, V),
    }
    arrays = [
        0.2 * numbers(*shapes[name]) if name in given.split() else None
        for name in ("written", "erased", "writing")
    ]
    added = numbers(*shapes["added"]) if "added" in given else None
    arrays += [jax.nn.sigmoid(numbers(N, P, channels)), added, numbers(P, K, V)]
    reverse = added is not None
    found = triton_walk.walk(*arrays, reverse=reverse, interpret=True)
    for one, other in zip(chunk_walk.scan_chunks(*arrays, reverse=reverse), found, strict=True):
        if one is not None:
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_forward_substitution_is_the_inverse():
    below = jnp.tril(numbers(4, C, C), -1)
    found = triton_walk.unit_inverse(0.3 * below, interpret=True)
    np.testing.assert_allclose(found, np.linalg.inv(np.eye(C) + 0.3 * np.float64(below)), atol=1e-4)


@pytest.mark.parametrize("kernel", ["scan", "interpret"])
def test_decayed_products_and_their_gradients_are_those_of_the_plain_sum(kernel):
    """Two lefts, of which one, with the key, is shared by two heads; decays that a chunk's sums cannot hold as factors of float32."""
    query, erasing, key = numbers(P, C, K), numbers(2 * P, C, K, seed=1), numbers(P, C, K, seed=2)
    total = jnp.cumsum(-jnp.exp(2 * numbers(2 * P, C, K, seed=3)), axis=1)
    weights = jnp.tril(numbers(2, 2 * P, C, C))
    double = lambda x: jnp.repeat(x, 2, axis=0)

    def plain(query, erasing, key, total):
        order = jnp.tri(C, dtype=bool)[..., None]
        decays = (
            jnp.exp(jnp.where(order, total[:, :, None] - total[:, None], 0.0))
            * double(key)[:, None]
        )
        return jnp.einsum("pik,pijk->pij", double(query), decays), jnp.einsum(
            "pik,pijk->pij", erasing, decays
        )

    def loss(f, *arrays):
        return sum(
            (jnp.where(jnp.tri(C, dtype=bool), x, 0.0) * w).sum()
            for x, w in zip(f(*arrays), weights)
        )

    def ours(query, erasing, key, total):
        return decayed(kernel, (query, erasing), key, total)

    arrays = query, erasing, key, total
    expected, found = (
        jax.jit(jax.value_and_grad(functools.partial(loss, f), argnums=(0, 1, 2, 3)))(*arrays)
        for f in (plain, ours)
    )
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5 * np.abs(one).max())


@pytest.mark.parametrize("channels", [(), (K,)], ids=["number", "channels"])
def test_the_recurrence_through_the_kernels_is_that_through_xla_with_gradients(channels):
    """Two documents and padding in 80 tokens, which are two chunks and a half; two value heads to a key."""
    query, key, value = (
        numbers(1, 80, 1, K),
        numbers(1, 80, 1, K, seed=1) / K**0.5,
        numbers(1, 80, 2, V),
    )
    decay, erase = -jnp.exp(numbers(1, 80, 2, *channels) - 2), jax.nn.sigmoid(numbers(1, 80, 2))
    segments = jnp.repeat(
        jnp.array([[1, 2, 0]]), jnp.array([37, 40, 3]), axis=1, total_repeat_length=80
    )

    def loss(kernel, *arrays):
        *arrays, erase = arrays
        out, after = recurrence(*arrays, erase=erase, segments=segments, chunk=C, kernel=kernel)
        return jnp.sin(out).sum() + jnp.cos(after.state).sum()

    arrays = query, key, value, decay, erase
    expected, found = (
        jax.jit(jax.value_and_grad(functools.partial(loss, kernel), argnums=(0, 1, 2, 3, 4)))(
            *arrays
        )
        for kernel in ("scan", "interpret")
    )
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(other, one, atol=2e-5 * np.abs(one).max())


@pytest.mark.parametrize(
    ("dtype", "near"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("unit", [False, True], ids=["", "unit"])
def test_the_short_convolution_with_what_follows_is_that_of_xla_with_gradients(unit, dtype, near):
    """300 tokens in tiles of 128, documents of about 20 tokens that cross their edges, padding; three heads, biases with the units only."""
    random = np.random.default_rng(0)
    segments = np.cumsum(random.random((2, 300)) < 0.05, axis=1) + 1
    segments[1, 270:] = 0
    arrays = numbers(2, 300, 3, 32), numbers(4, 3, 32), *([numbers(3, 32)] if unit else [])

    def run(kernel, dtype):
        def call(x, weight, bias=None):
            return activated(
                x, weight, bias, jnp.asarray(segments, jnp.int32), unit=unit, kernel=kernel
            )

        out, pull = jax.vjp(call, *(x.astype(dtype) for x in arrays))
        return out, *pull(numbers(2, 300, 3, 32, seed=1).astype(dtype))

    for one, other in zip(run("scan", jnp.float32), run("interpret", dtype), strict=True):
        assert other.dtype == dtype
        assert np.linalg.norm(np.float32(other) - one) < near * np.linalg.norm(one)


def test_the_short_convolutions_kernels_pass_the_front_end_of_a_gpu_for_several_models():
    def loss(x, weight, bias):
        out = activated(x, weight, bias, jnp.ones((2, 200), jnp.int32), unit=True, kernel="triton")
        return jnp.square(out.astype(jnp.float32)).sum()

    shapes = [(3, 2, 200, 3, 64), (3, 4, 3, 64), (3, 3, 64)]
    gradients = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2))))
    text = (
        gradients.trace(*(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes))
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    for name in ("_forward", "_backward", "_transposed"):
        assert f'name = "{name}"' in text, name


@pytest.mark.parametrize(
    "dtype, several", [(jnp.bfloat16, False), (jnp.float32, False), (jnp.float32, True)]
)
def test_kernels_pass_the_front_end_of_a_gpu_without_one(dtype, several):
    """Delta rule with decays by channel: all kernels, forward and backward, at a real model's sizes; also of several models at once."""
    shapes = [((2, 256, 4, 128), dtype)] * 3 + [
        ((2, 256, 4, 128), jnp.float32),
        ((2, 256, 4), jnp.float32),
    ]

    def loss(query, key, value, decay, erase):
        segments = jnp.ones((2, 256), jnp.int32)
        return (
            recurrence(query, key, value, decay, erase=erase, segments=segments, kernel="triton")[0]
            .astype(jnp.float32)
            .sum()
        )

    gradients = jax.grad(loss, argnums=(0, 1, 2, 3, 4))
    if several:
        gradients, shapes = jax.vmap(gradients), [((3, *shape), of) for shape, of in shapes]
    text = (
        jax.jit(gradients)
        .trace(*(jax.ShapeDtypeStruct(*of) for of in shapes))
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    for name in ("_walk", "_unit_inverse", "_forward_kernel", "_backward_kernel"):
        assert f'name = "{name}"' in text, name
