"""A kernel that refuses its arguments ends in a sentence that names the config's field."""

import jax.numpy as jnp
import pytest

from slmjax.errors import UserError
from slmjax.models.attention_refusals import checked_attention
from slmjax.ops import cudnn_attention


def _call(T, **options):
    x, segments = jnp.zeros((2, T, 2, 8)), jnp.ones((2, T), jnp.int32)
    return checked_attention(x, x, x, query_segments=segments, key_segments=segments, **options)


def test_a_length_that_splash_does_not_take_names_seq_len():
    with pytest.raises(
        UserError, match=r"config.data.seq_len is 100; .* multiple of 128 .*blockwise"
    ):
        _call(100, kernel="splash")


def test_a_missing_interface_to_cudnn_names_the_kernel(monkeypatch):
    def refuse():
        raise cudnn_attention.NoFusedAttention("this version of JAX has no fused attention here")

    monkeypatch.setattr(cudnn_attention, "_private", refuse)
    with pytest.raises(
        UserError, match=r"config.model.attention=cudnn: .* no fused attention here"
    ):
        _call(16, kernel="cudnn", places=6)
