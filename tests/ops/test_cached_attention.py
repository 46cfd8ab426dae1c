"""Attention of new tokens over a cache, against the dense reference of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.ops import softmax_attention as ops
from slmjax.ops.cached_attention import cached_attention

# A row's last query stands at the end of the first of two segments, inside the second, at the first slot, and in padding.
SEGMENTS = jnp.array([[1] * 9 + [3] * 3, [1] * 4 + [2] * 8, [1] + [7] * 11, [1] * 12], jnp.int32)
QUERY_SEGMENTS, INDEX = (
    jnp.array([[1, 1], [1, 2], [0, 1], [1, 0]]),
    jnp.array([[2, 8], [3, 9], [5, 0], [11, 5]]),
)


@pytest.mark.parametrize("T", [1, 2])
@pytest.mark.parametrize("N, K", [(4, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize(
    "dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
def test_tokens_over_a_cache_are_the_reference(T, N, K, dtype, tolerance):
    """Sums of order one; the weights are rounded before their product, as in the reference: a few roundings of 2^-24 and 2^-8."""
    random, (B, S), H = np.random.default_rng(0), SEGMENTS.shape, 8
    query, key, value = (
        jnp.asarray(random.normal(size=shape), dtype)
        for shape in ((B, T, N, H), (B, K, S, H), (B, K, S, H))
    )
    where = {
        "query_segments": QUERY_SEGMENTS[:, -T:],
        "key_segments": SEGMENTS,
        "query_index": INDEX[:, -T:],
    }
    found = np.float32(jax.jit(cached_attention)(query, key, value, **where))
    expected = ops.reference(query, key.swapaxes(1, 2), value.swapaxes(1, 2), *where.values())
    assert expected.dtype == dtype
    np.testing.assert_allclose(found, np.float32(expected), atol=tolerance)
    padding = np.asarray(where["query_segments"]) == 0
    assert np.all(found[padding] == 0) and np.all(np.abs(found[~padding]).max((1, 2)) > 0.1)


def test_what_stands_in_slots_that_are_not_seen_does_not_matter():
    random, (B, S), H = np.random.default_rng(0), SEGMENTS.shape, 8
    query, key, value = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((B, 1, 2, H), (B, 1, S, H), (B, 1, S, H))
    )
    where = {
        "query_segments": QUERY_SEGMENTS[:, -1:],
        "key_segments": SEGMENTS,
        "query_index": INDEX[:, -1:],
    }
    seen = (where["query_segments"] == SEGMENTS) & (jnp.arange(S)[None] <= where["query_index"])
    other_key, other_value = (jnp.where(seen[:, None, :, None], a, 1e9) for a in (key, value))
    np.testing.assert_array_equal(
        cached_attention(query, key, value, **where),
        cached_attention(query, other_key, other_value, **where),
    )


def test_keys_of_given_numbers_in_any_order_and_a_window_are_those_of_the_row():
    """What a ring of slots needs: the keys turned by five, and of a window of four none that is older."""
    random, (B, S), H = np.random.default_rng(0), SEGMENTS.shape, 8
    query, key, value = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((B, 2, 4, H), (B, 2, S, H), (B, 2, S, H))
    )
    where = {"query_segments": QUERY_SEGMENTS, "query_index": INDEX}
    turned = [jnp.roll(a, 5, axis=2) for a in (key, value)]
    number = jnp.tile(jnp.roll(jnp.arange(S), 5)[None], (B, 1))
    found = cached_attention(
        query,
        *turned,
        **where,
        key_segments=jnp.roll(SEGMENTS, 5, axis=1),
        key_index=number,
        window=4,
    )
    expected = ops.reference(
        query, key.swapaxes(1, 2), value.swapaxes(1, 2), QUERY_SEGMENTS, SEGMENTS, INDEX, 4
    )
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert (
        np.abs(found - cached_attention(query, key, value, **where, key_segments=SEGMENTS)).max()
        > 0.1
    )
