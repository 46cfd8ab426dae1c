"""The hand-written loss against log_softmax over full float32 logits, in value and gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.ops.cross_entropy import chunks_for, reference, token_log_probs, weighted_nats


def _inputs(dtype, B=2, T=8, D=16, V=40):
    random = np.random.default_rng(0)
    hidden, head = (
        jnp.asarray(random.normal(size=(B, T, D)), dtype),
        jnp.asarray(0.5 * random.normal(size=(D, V)), jnp.float32),
    )
    targets = jnp.asarray(random.integers(0, V, (B, T)), jnp.int32)
    cotangents = tuple(jnp.asarray(random.normal(size=(2, B, T)), jnp.float32))
    return hidden, head, targets, cotangents


def _value_and_gradients(run, hidden, head, cotangents):
    """run(hidden, head) and the pull-back of cotangents, compiled as one program."""

    def both(hidden, head):
        out, pull = jax.vjp(run, hidden, head)
        return out, pull(cotangents)

    return jax.jit(both)(hidden, head)


# float32: a few roundings. bfloat16: gradients with respect to logits, and logits that are kept, are rounded to 8 bits before a sum over V.
@pytest.mark.parametrize(
    "dtype, values, gradients",
    [(jnp.float32, 2e-6, 4e-6), (jnp.bfloat16, 2e-6, 5e-2)],
    ids=["float32", "bfloat16"],
)
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_value_and_gradients_are_the_plain_ones(chunks, dtype, values, gradients):
    hidden, head, targets, cotangents = _inputs(dtype)
    expected, plain_gradients = _value_and_gradients(
        lambda h, w: reference(h, w, targets), hidden, head, cotangents
    )
    found, found_gradients = _value_and_gradients(
        lambda h, w: token_log_probs(h, w, targets, chunks=chunks), hidden, head, cotangents
    )
    for one, other in zip(expected, found):
        assert other.dtype == jnp.float32
        np.testing.assert_allclose(other, one, rtol=values, atol=values)
    for one, other in zip(plain_gradients, found_gradients):
        assert other.dtype == one.dtype
        np.testing.assert_allclose(
            np.float32(other), np.float32(one), rtol=gradients, atol=gradients
        )


@pytest.mark.parametrize("chunks", [1, 4])
def test_each_output_has_its_own_gradient(chunks):
    hidden, head, targets, (one, other) = _inputs(jnp.float32)
    for cotangents in ((one, jnp.zeros_like(one)), (jnp.zeros_like(one), other)):
        _, plain = _value_and_gradients(
            lambda h, w: reference(h, w, targets), hidden, head, cotangents
        )
        _, found = _value_and_gradients(
            lambda h, w: token_log_probs(h, w, targets, chunks=chunks), hidden, head, cotangents
        )
        for expected, gradient in zip(plain, found):
            np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=4e-6)


def test_gradients_in_bfloat16_are_near_those_of_float32():
    """Not only equal to the plain loss in bfloat16: close to the truth, the same hidden states and head in float32."""
    hidden, head, targets, cotangents = _inputs(jnp.bfloat16, T=64)
    head = head.astype(jnp.bfloat16)
    wide = hidden.astype(jnp.float32), head.astype(jnp.float32)
    _, truth = _value_and_gradients(lambda h, w: reference(h, w, targets), *wide, cotangents)
    for chunks in (1, 8):
        _, found = _value_and_gradients(
            lambda h, w, chunks=chunks: token_log_probs(h, w, targets, chunks=chunks),
            hidden,
            head,
            cotangents,
        )
        for one, other in zip(truth, found):
            assert np.linalg.norm(one - np.float32(other)) < 2**-7 * np.linalg.norm(one)


@pytest.mark.parametrize("B, T, V, chunks", [(1, 1, 2, 1), (3, 9, 17, 3), (2, 5, 30, 5)])
def test_odd_shapes_give_log_probabilities(B, T, V, chunks):
    hidden, head, targets, _ = _inputs(jnp.float32, B=B, T=T, V=V)
    found, expected = (
        token_log_probs(hidden, head, targets, chunks=chunks),
        jax.jit(reference)(hidden, head, targets),
    )
    for one, other in zip(expected, found):
        np.testing.assert_allclose(other, one, atol=4e-6)


def test_chunks_that_do_not_divide_the_row_are_refused():
    hidden, head, targets, _ = _inputs(jnp.float32)
    with pytest.raises(ValueError, match="3 chunks do not divide 8 tokens"):
        token_log_probs(hidden, head, targets, chunks=3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_logits_of_a_whole_batch_never_exist_in_the_chunked_program(dtype):
    """No array of the compiled gradient has B x T x V elements, however XLA arranges them; with one chunk one has."""
    B, T, D, V, chunks = 2, 64, 16, 1000, 8
    hidden, head, targets, _ = _inputs(dtype, B=B, T=T, D=D, V=V)

    def largest(chunks):
        def loss(h, w):
            log_p, lse = token_log_probs(h, w, targets, chunks=chunks)
            return jnp.sum(log_p) + 1e-4 * jnp.sum(lse**2)

        text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head).compile().as_text()
        return max(
            np.prod([int(n) for n in dims.split(",")])
            for dims in re.findall(r"(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
        )

    assert largest(1) >= B * T * V
    assert largest(chunks) <= B * T * V // chunks


def test_the_head_gradient_adds_up_in_float32():
    """4096 equal small contributions, each below half a unit in the last place of their bfloat16 sum, are not lost."""
    T, V = 4096, 4
    hidden = jnp.full((1, T, 1), 1.0, jnp.bfloat16)
    head = jnp.zeros((1, V), jnp.bfloat16)
    targets = jnp.zeros((1, T), jnp.int32)
    gradient = jax.jit(
        jax.grad(lambda w: token_log_probs(hidden, w, targets, chunks=1024)[0].sum())
    )(head)
    np.testing.assert_allclose(
        np.float32(gradient)[0], [0.75 * T, -0.25 * T, -0.25 * T, -0.25 * T], rtol=2**-8
    )


@pytest.mark.parametrize(
    "batch, length, vocab, memory, chunks",
    [(8, 128, 1024, None, 1), (16, 2048, 16384, 80e9, 2), (64, 2048, 16384, 16e9, 32)],
)
def test_chunks_follow_the_memory_of_the_device(batch, length, vocab, memory, chunks):
    assert chunks_for(batch, length, vocab, memory) == chunks
    assert batch * length * vocab * 8 / chunks <= (memory or 16e9) / 28


def test_chunks_always_divide_the_row():
    for length in (1, 7, 96, 100, 2048):
        assert length % chunks_for(64, length, 100_000, 1e9) == 0


def _weighted(hidden, head, targets, weights, z_loss, chunks):
    """(loss, nats, squares) and the loss's gradients, as one program; chunks 0 is the plain computation in float32."""

    def of(hidden, head):
        if chunks:
            return weighted_nats(hidden, head, targets, weights, z_loss=z_loss, chunks=chunks)
        log_p, lse = reference(hidden, head, targets)
        nats, squares = -(log_p * weights).sum(), (jnp.square(lse) * weights).sum()
        return nats + z_loss * squares, nats, squares

    def loss(hidden, head):
        total, *rest = of(hidden, head)
        return 0.5 * total, (total, *rest)

    gradients, values = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)
    alone = jax.jit(of)(hidden, head)
    return values, gradients, alone


# bfloat16: logits are rounded to 8 bits before the softmax.
@pytest.mark.parametrize(
    "dtype, near", [(jnp.float32, 4e-6), (jnp.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("chunks", [1, 2, 8])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_weighted_sum_is_that_of_the_plain_loss(z_loss, chunks, dtype, near):
    hidden, head, targets, (weights, _) = _inputs(dtype, T=16)
    weights = jnp.where(
        weights > 0.5, 0.0, jnp.abs(weights)
    )  # masked tokens, and tokens of unequal weight
    expected = _weighted(hidden, head, targets, weights, z_loss, 0)
    found = _weighted(hidden, head, targets, weights, z_loss, chunks)
    for one, other in zip(
        jax.tree.leaves((expected[0], expected[2])),
        jax.tree.leaves((found[0], found[2])),
        strict=True,
    ):
        assert other.dtype == jnp.float32
        np.testing.assert_allclose(other, one, rtol=near / 4)
    for one, other in zip(expected[1], found[1]):
        assert other.dtype == one.dtype
        assert np.linalg.norm(np.float32(one) - np.float32(other)) < near * np.linalg.norm(
            np.float32(one)
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_training_makes_each_piece_of_logits_once(dtype):
    """Three products of T x D x V a step: logits, and the gradients of hidden and head; and no array of all logits."""
    B, T, D, V, chunks = 2, 64, 16, 1000, 8
    hidden, head, targets, (weights, _) = _inputs(dtype, B=B, T=T, D=D, V=V)
    step = jax.jit(
        jax.grad(
            lambda h, w: weighted_nats(h, w, targets, weights, z_loss=1e-4, chunks=chunks)[0],
            argnums=(0, 1),
        )
    )
    text = step.lower(hidden, head).as_text()
    assert len(re.findall(r"stablehlo\.dot_general", text)) == 3
    compiled = step.lower(hidden, head).compile().as_text()
    sizes = [
        np.prod([int(n) for n in dims.split(",")])
        for dims in re.findall(r"(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", compiled)
    ]
    assert max(sizes) <= B * T * V // chunks
