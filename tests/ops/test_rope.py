"""Rotation against complex numbers and against what rotation promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.ops.rope import rope


def test_rope_is_multiplication_by_unit_complex_numbers():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 1, 500, 2]])
    pairs = x[..., :4] + 1j * x[..., 4:]
    angle = positions[:, :, None, None] * 10000.0 ** (-np.arange(4) / 4)
    turned = pairs * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    # Positions are multiplied in float32: an angle of 500 is off by up to 500 * 2^-24.
    np.testing.assert_allclose(
        rope(jnp.array(x), jnp.array(positions), 10000.0), expected, atol=2e-4
    )


@jax.jit
def _score(query_position, key_position):
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    return jnp.vdot(
        rope(query, query_position[None, None], 10000.0),
        rope(key, key_position[None, None], 10000.0),
    )


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 100))
def test_scores_depend_only_on_the_distance_of_positions(position, shift, distance):
    pairs = [(jnp.int32(p + distance), jnp.int32(p)) for p in (position, position + shift)]
    assert float(_score(*pairs[0])) == pytest.approx(float(_score(*pairs[1])), abs=1e-2)


def test_position_zero_changes_nothing_and_the_type_stays():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4), jnp.bfloat16)
    turned = rope(x, jnp.zeros((1, 3), jnp.int32), 10000.0)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, x)
