"""The cache: every way of filling it gives the same state and the same hidden states."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models import attention, lm
from slmjax.models.architecture import Architecture, Block
from slmjax.models.pattern import parse_block
from slmjax.parallel.mesh import make_mesh
from slmjax.testing import _with_cache

ARCH = Architecture(
    64, 32, 4, 2, 8, 48, (((Block(), parse_block("attention rope=False")), 1),), qk_norm=True
)


def _params(arch):
    def leaf(path, shape):
        draw = np.random.default_rng(len(path)).normal(size=shape.shape)
        return jnp.asarray(1 + 0.2 * draw if path[-1].key == "scale" else 0.2 * draw, jnp.float32)

    return jax.tree.map_with_path(
        leaf, jax.eval_shape(lambda key: lm.init(arch, key), jax.random.key(0))
    )


def _prompts(T, *lengths):
    """Rows of that many tokens, then padding."""
    at = np.tile(np.arange(T, dtype=np.int32), (len(lengths), 1))
    tokens = np.random.default_rng(1).integers(0, 64, at.shape).astype(np.int32)
    segments = (at < np.array(lengths)[:, None]).astype(np.int32)
    return {
        "tokens": jnp.array(tokens),
        "segments": jnp.array(segments),
        "positions": jnp.array(at),
    }


@pytest.mark.parametrize("compute, tolerance", [("float32", 2e-5), ("bfloat16", 0.1)])
@pytest.mark.parametrize("T, tile", [(24, 128), (24, 8)], ids=["plain", "fused kernel"])
def test_a_first_piece_sees_itself_as_if_through_the_cache(
    T, tile, compute, tolerance, monkeypatch
):
    """It takes the training kernel over its own keys and writes them side by side; a later piece attends over all slots by index."""
    monkeypatch.setattr(attention, "TILE", tile)
    arch = dataclasses.replace(ARCH, attention="reference", compute=compute)
    params, batch, lengths = _params(arch), _prompts(T, T, 13, 1), np.array([T, 13, 1])
    run = jax.jit(lambda cache: _with_cache(arch, params, batch, cache))
    empty = lm.init_cache(arch, 3, T + 8)
    (first, cache), (later, other) = run(empty), run(dataclasses.replace(empty, empty=False))
    seen = np.asarray(batch["segments"]) != 0
    # hidden states are of order one; in bfloat16 both round to 8 bits at every layer
    np.testing.assert_allclose(np.float32(first)[seen], np.float32(later)[seen], atol=tolerance)
    np.testing.assert_array_equal(cache.length, lengths)
    np.testing.assert_array_equal(cache.segments, other.segments)
    for one, two in zip(jax.tree.leaves(cache.layers), jax.tree.leaves(other.layers), strict=True):
        one, two = (
            np.where((np.arange(T + 8) < lengths[:, None])[:, None, :, None], np.float32(a), 0)
            for a in (one, two)
        )
        np.testing.assert_allclose(one, two, atol=tolerance)


def test_a_first_piece_takes_the_training_kernel_where_its_tiles_and_the_devices_divide_it(
    monkeypatch,
):
    chosen = []
    plain = attention.attention
    monkeypatch.setattr(
        attention,
        "attention",
        lambda *args, kernel, **more: chosen.append(kernel) or plain(*args, **more),
    )
    arch = dataclasses.replace(ARCH, attention="splash")
    params = _params(arch)

    def trace(T, rows):
        jax.eval_shape(
            lambda: lm.forward(
                arch, params, {}, _prompts(T, *[T] * rows), cache=lm.init_cache(arch, rows, T)
            )[0]
        )
        return {chosen.pop() for _ in range(arch.layers)}.pop()

    assert [trace(T, 3) for T in (128, 100, 256)] == ["splash", "blockwise", "splash"]
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])):
        assert [trace(128, rows) for rows in (3, 4)] == ["blockwise", "splash"]
