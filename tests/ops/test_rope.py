"""Rotation against complex numbers and against what rotation promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.ops.rope import rope, rope_frequencies, yarn_frequencies


def test_rope_is_multiplication_by_unit_complex_numbers():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 1, 500, 2]])
    pairs = x[..., :4] + 1j * x[..., 4:]
    angle = positions[:, :, None, None] * 10000.0 ** (-np.arange(4) / 4)
    turned = pairs * np.exp(1j * angle)
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    # Positions are multiplied in float32: an angle of 500 is off by up to 500 * 2^-24.
    np.testing.assert_allclose(
        rope(jnp.array(x), jnp.array(positions), rope_frequencies(x.shape[-1], 10000.0)),
        expected,
        atol=2e-4,
    )


@jax.jit
def _score(query_position, key_position):
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))
    return jnp.vdot(
        rope(query, query_position[None, None], rope_frequencies(16, 10000.0)),
        rope(key, key_position[None, None], rope_frequencies(16, 10000.0)),
    )


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 100))
def test_scores_depend_only_on_the_distance_of_positions(position, shift, distance):
    pairs = [(jnp.int32(p + distance), jnp.int32(p)) for p in (position, position + shift)]
    assert float(_score(*pairs[0])) == pytest.approx(float(_score(*pairs[1])), abs=1e-2)


def test_position_zero_changes_nothing_and_the_type_stays():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 4), jnp.bfloat16)
    turned = rope(x, jnp.zeros((1, 3), jnp.int32), rope_frequencies(x.shape[-1], 10000.0))
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, x)


def test_a_factor_of_one_changes_nothing_and_fast_pairs_stay():
    plain = rope_frequencies(64, 10000.0)
    same, scale = yarn_frequencies(64, 10000.0, 1, 1024)
    np.testing.assert_array_equal(same, plain)
    assert scale == 1
    stretched, scale = yarn_frequencies(64, 10000.0, 4, 1024)
    # Pair 0 turns 163 times in 1,024 tokens; the slowest one does not turn once.
    assert float(stretched[0]) == float(plain[0])
    assert float(stretched[-1]) == pytest.approx(float(plain[-1]) / 4, rel=1e-6)
    assert scale == pytest.approx(1 + 0.1 * np.log(4))


@pytest.mark.parity
@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0, 16.0])
@pytest.mark.parametrize(("theta", "trained", "head_dim"), [(1e4, 1024, 64), (5e5, 2048, 32)])
def test_yarn_is_that_of_transformers(factor, theta, trained, head_dim):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=int(factor * trained),
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": trained,
        },
    )
    theirs, their_scale = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    ours, scale = yarn_frequencies(head_dim, theta, factor, trained)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)
    assert scale == pytest.approx(their_scale, rel=1e-6)
