"""The Triton kernels of recurrent mixers on a GPU against plain XLA: `JAX_PLATFORMS=cuda python -m pytest tests/gpu`. Skipped elsewhere."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.ops.recurrence import Memory, recurrence
from slmjax.ops.short_conv import activated

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "gpu" or float(jax.devices()[0].compute_capability) < 8.0,
    reason="needs a GPU of capability 8.0 or newer",
)


KINDS = itertools.product(("number", "channels"), (None, "number", "channels"))


@pytest.mark.parametrize(
    ("kind", "sizes"),
    zip(KINDS, itertools.cycle([(2, 4, 64, 32), (4, 4, 128, 128), (1, 4, 128, 64)])),
    ids=str,
)
def test_triton_walks_as_the_scan_forward_and_backward(kind, sizes):
    """Documents, padding and a memory that comes in; in float32 the scan is far nearer the truth than bfloat16 can be."""
    (decays, erases), (G, H, K, V), (B, T) = kind, sizes, (3, 300)
    random = np.random.default_rng(0)
    segments = np.cumsum(random.random((B, T)) < 0.03, axis=1) + 1
    segments = jnp.asarray(np.where(random.random((B, T)) < 0.05, 0, segments), jnp.int32)
    gate = lambda of: random.normal(size=(B, T, H) if of == "number" else (B, T, H, K))
    query, key, value, cotangent = (
        random.normal(size=(B, T, *axes)) for axes in ((G, K), (G, K), (H, V), (H, V))
    )
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    short = tuple(jnp.asarray(x, jnp.bfloat16) for x in (query, key, value))
    decay = jnp.asarray(-np.exp(2 * gate(decays) - 3), jnp.float32)
    erase = None if erases is None else jnp.asarray(1 / (1 + np.exp(-gate(erases))), jnp.float32)
    state = jnp.asarray(random.normal(size=(B, H, K, V)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(kernel, dtype):
        def call(query, key, value, decay, erase, state):
            memory = Memory(state, segments[:, 0])
            out, after = recurrence(
                query,
                key,
                value,
                decay,
                erase=erase,
                segments=segments,
                memory=memory,
                kernel=kernel,
            )
            return out, after.state

        out, pull = jax.vjp(call, *(x.astype(dtype) for x in short), decay, erase, state)
        return out, pull((jnp.asarray(cotangent, dtype), state))

    expected = run("scan", jnp.float32)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)):
        for one, other in zip(
            jax.tree.leaves(expected), jax.tree.leaves(run("triton", dtype)), strict=True
        ):
            one, other = np.float32(one), np.float32(other)
            assert np.linalg.norm(other - one) < tolerance * np.linalg.norm(one)


@pytest.mark.parametrize("unit", [False, True], ids=["", "unit"])
@pytest.mark.parametrize(("H", "c"), [(3, 64), (1, 128), (4, 256)])
def test_the_short_convolution_forward_and_backward(H, c, unit):
    """Documents and padding, a length that is no multiple of a tile, biases with the units only."""
    random = np.random.default_rng(0)
    segments = np.cumsum(random.random((3, 300)) < 0.03, axis=1) + 1
    segments[1, 280:] = 0
    shapes = (3, 300, H, c), (4, H, c), *([(H, c)] if unit else []), (3, 300, H, c)
    *short, cotangent = (jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in shapes)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(kernel, dtype):
        def call(x, weight, bias=None):
            return activated(
                x, weight, bias, jnp.asarray(segments, jnp.int32), unit=unit, kernel=kernel
            )

        out, pull = jax.vjp(call, *(x.astype(dtype) for x in short))
        return out, pull(cotangent.astype(dtype))

    expected = run("scan", jnp.float32)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)):
        for one, other in zip(
            jax.tree.leaves(expected), jax.tree.leaves(run("triton", dtype)), strict=True
        ):
            one, other = np.float32(one), np.float32(other)
            assert np.linalg.norm(other - one) < tolerance * np.linalg.norm(one)
