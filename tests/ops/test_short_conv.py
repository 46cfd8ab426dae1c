"""The short convolution against numpy's, document by document, and in pieces."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.ops.short_conv import short_conv

B, T, C, W = 3, 21, 5, 4


def inputs(seed=0, padding=(0, 4, 21)):
    """Rows of documents of one token and more, with padding behind them: none, some, all."""
    random = np.random.default_rng(seed)
    segments = np.cumsum(random.random((B, T)) < 0.25, axis=1) + 1
    for row, count in enumerate(padding):
        segments[row, T - count :] = 0
    return random.normal(size=(B, T, C)), random.normal(size=(W, C)), segments.astype(np.int32)


def expected(x, weight, segments):
    """numpy's convolution of each document alone."""
    out = np.zeros_like(x)
    for row, channel in np.ndindex(B, C):
        for number in np.unique(segments[row][segments[row] > 0]):
            inside = segments[row] == number
            out[row, inside, channel] = np.convolve(x[row, inside, channel], weight[:, channel])[
                : inside.sum()
            ]
    return out


@pytest.mark.parametrize(
    ("dtype", "near"), [(jnp.float32, 1e-6), (jnp.bfloat16, 3e-2)], ids=["float32", "bfloat16"]
)
def test_it_is_numpys_convolution_of_each_document_with_gradients(dtype, near):
    x, weight, segments = inputs()
    y, _, _ = jax.jit(short_conv)(
        jnp.asarray(x, dtype), jnp.asarray(weight, dtype), jnp.asarray(segments)
    )
    assert y.dtype == dtype
    np.testing.assert_allclose(np.float64(y), expected(x, weight, segments), atol=near * 4)
    # It is linear in x and in the weights: a gradient is the sum over what it multiplies.
    cotangent = np.random.default_rng(1).normal(size=x.shape)
    _, pull = jax.vjp(
        lambda x, w: short_conv(x, w, jnp.asarray(segments))[0],
        jnp.asarray(x, dtype),
        jnp.asarray(weight, dtype),
    )
    d_x, d_weight = map(np.float64, pull(jnp.asarray(cotangent, dtype)))
    step = np.random.default_rng(2).normal(size=x.shape)
    assert (d_x * step).sum() == pytest.approx(
        (cotangent * expected(step, weight, segments)).sum(), rel=near, abs=near * 40
    )
    step = np.random.default_rng(3).normal(size=weight.shape)
    assert (d_weight * step).sum() == pytest.approx(
        (cotangent * expected(x, step, segments)).sum(), rel=near, abs=near * 40
    )


@pytest.mark.parametrize(
    "edges", [range(T + 1), (0, 1, 3, 4, 17, T)], ids=["token by token", "pieces"]
)
def test_pieces_with_the_tail_between_are_the_whole_also_with_padding_behind_each(edges):
    x, weight, segments = inputs(padding=(0, 0, 0))
    whole, tail, _ = short_conv(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(segments))
    outs, state = [], (None, None)
    for start, stop in itertools.pairwise(edges):
        pad = [(0, 0), (0, 2)]
        piece = jnp.pad(jnp.asarray(x[:, start:stop]), [*pad, (0, 0)], constant_values=9.0)
        ids = jnp.pad(jnp.asarray(segments[:, start:stop]), pad)
        y, *state = short_conv(
            piece, jnp.asarray(weight), ids, tail=state[0], tail_segments=state[1]
        )
        assert not y[:, stop - start :].any()
        outs.append(y[:, : stop - start])
    np.testing.assert_allclose(np.concatenate(outs, axis=1), whole, atol=1e-6)
    np.testing.assert_array_equal(state[0], tail)
