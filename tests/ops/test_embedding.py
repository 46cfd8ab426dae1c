"""The look-up's gradient against a sum in float64, where one token stands thousands of times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.ops.embedding import embed


@pytest.mark.parametrize(
    ("dtype", "near"), [(jnp.float32, 1e-5), (jnp.bfloat16, 4e-3)], ids=["float32", "bfloat16"]
)
def test_the_gradient_of_a_frequent_token_is_the_whole_sum(dtype, near):
    random = np.random.default_rng(0)
    tokens = np.where(random.random((4, 1024)) < 0.5, 3, random.integers(0, 20, (4, 1024)))
    table, g = (
        jnp.asarray(random.normal(size=(24, 8)), dtype),
        jnp.asarray(random.normal(1.0, 0.1, (4, 1024, 8)), dtype),
    )
    rows, pull = jax.vjp(lambda table: embed(table, jnp.asarray(tokens)), table)
    np.testing.assert_array_equal(rows, np.asarray(table)[tokens])
    expected = np.zeros((24, 8))
    np.add.at(expected, tokens.reshape(-1), np.float64(g).reshape(-1, 8))
    (found,) = jax.jit(pull)(g)
    assert found.dtype == dtype
    assert expected.max() > 2000
    np.testing.assert_allclose(np.float64(found), expected, rtol=near)
