"""The loss of ORPO: its gradient against float64, its denominators, and packed against alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.block import Out
from slmjax.models.lm import Model
from slmjax.ops.log_odds import log_odds, segment_sums
from slmjax.tasks.orpo import Orpo

D, V, LENGTH = 32, 512, 16
ODDS_WEIGHT = 0.1
KEY = jax.random.key(0)


class HiddenModel(Model):
    """A model whose parameters are its hidden states and its head."""

    def __init__(self, chunks=1):
        object.__setattr__(self, "chunks", chunks)

    def forward(self, params, buffers, batch, *, cache=None):
        return params["hidden"], Out(cache=None, terms={}, seen={})

    def head(self, params):
        return params["head"]


class NoRows:
    """Rows that nobody reads."""

    def refuse(self, *asked):
        raise NotImplementedError

    shapes = read = unpack = fingerprint = refuse


def pair(chosen, rejected, dtype, seed=0):
    """Return (hidden, head, batch) of one pair whose answers have about these mean log p's.

    The head is rounded to dtype. All tokens of a segment but its last 8 are prompt.
    """
    draw = np.random.default_rng(seed)
    head = draw.normal(size=(D, V))
    # Of length 1, so that a step towards one target raises its logit more than all others.
    head = np.array(jnp.asarray(head / np.linalg.norm(head, axis=0), dtype), np.float64)
    targets = draw.integers(0, V, 2 * LENGTH)
    start = draw.normal(size=(2 * LENGTH, D))
    towards = head[:, targets].T
    is_target = np.arange(V) == targets[:, None]
    wanted = np.repeat([chosen, rejected], LENGTH)
    # By bisection: how far to go so that log p, thus the gap to all other logits, is the wanted one.
    low, high = np.full(2 * LENGTH, -100.0), np.full(2 * LENGTH, 1000.0)
    for _ in range(60):
        middle = (low + high) / 2
        logits = (start + middle[:, None] * towards) @ head
        top = logits.max(1)
        others = np.exp(logits - top[:, None]).sum(1, where=~is_target)
        others = np.log(others) + top
        is_short = logits[is_target] - others < -np.log(np.expm1(-wanted))
        low, high = np.where(is_short, middle, low), np.where(is_short, high, middle)
    hidden = (start + middle[:, None] * towards)[None]
    targets = targets[None]
    segments = np.repeat([[1, 2]], LENGTH, axis=1)
    answers = np.tile(np.arange(LENGTH) >= LENGTH - 8, 2)[None]
    batch = {
        "targets": jnp.asarray(targets, jnp.int32),
        "segments": jnp.asarray(segments, jnp.int32),
        "answers": jnp.asarray(answers, jnp.float32),
        "weights": jnp.asarray(answers * (segments == 1), jnp.float32),
        "pairs": jnp.ones((1, 1), jnp.float32),
    }
    return jnp.asarray(hidden, dtype), jnp.asarray(head, dtype), batch


def gradient(hidden, head, batch, *, chunks=1, odds_weight=ODDS_WEIGHT, totals=None):
    """Return (loss, gradient of the hidden states) of the mean loss."""
    task = Orpo(NoRows(), odds_weight=odds_weight)
    totals = totals or task.totals(batch)

    def mean(hidden):
        params = {"hidden": hidden, "head": head}
        model = HiddenModel(chunks)
        loss = task.loss(model, params, {}, batch, totals, key=KEY, step=jnp.int32(0))
        return loss.sum / totals["main"]

    return jax.jit(jax.value_and_grad(mean))(hidden)


def exact(hidden, head, batch, odds_only=False):
    """Return `gradient` in float64, by -log p = log(1 + sum of exp(other logit - target's))."""
    targets, answers, segments = (np.asarray(batch[k]) for k in ("targets", "answers", "segments"))
    with jax.enable_x64(True):
        hidden, head = (jnp.asarray(np.asarray(x, np.float64)) for x in (hidden, head))

        def mean(hidden):
            logits = hidden @ head
            target = jnp.take_along_axis(logits, jnp.asarray(targets)[..., None], -1)
            others = jnp.where(jax.nn.one_hot(targets, V) > 0, 0.0, jnp.exp(logits - target))
            nats = jnp.log1p(others.sum(-1)) * answers
            chosen, rejected = ((nats * (segments == s)).sum() / 8 for s in (1, 2))
            margin = jnp.log(jnp.expm1(rejected)) - jnp.log(jnp.expm1(chosen))
            odds = ODDS_WEIGHT * jnp.logaddexp(-margin, 0)
            return odds if odds_only else chosen + odds

        loss, grad = jax.value_and_grad(mean)(hidden)
        return np.asarray(loss), np.asarray(grad)


MEANS = (-10.0, -2.5, -0.7, -0.69, -1.2e-2, -2.6e-5, -5.8e-8, -1.7e-10, -1e-12)


@pytest.mark.parametrize("dtype, most", [("float32", 1e-5), ("bfloat16", 5e-3)])
@pytest.mark.parametrize("chunks", [1, 2])
def test_the_gradient_is_exact_for_sure_and_unsure_answers(dtype, most, chunks):
    errors = []
    for number, chosen in enumerate(MEANS):
        for rejected in MEANS[::4]:
            inputs = pair(chosen, rejected, dtype, seed=number)
            loss, found = gradient(*inputs, chunks=chunks)
            true_loss, expected = exact(*inputs)
            np.testing.assert_allclose(loss, true_loss, rtol=1e-5)
            assert np.isfinite(true_loss)
            # Chosen and rejected apart: one of them may be tiny next to the other.
            for half in (slice(0, LENGTH), slice(LENGTH, None)):
                error = np.asarray(found, np.float64)[:, half] - expected[:, half]
                size = np.linalg.norm(expected[:, half])
                errors.append(np.linalg.norm(error) / size)
    print(dtype, chunks, max(errors))
    assert np.max(errors) <= most


def test_log_odds_at_both_ends_and_at_certainty():
    nats = jnp.asarray([1e-30, 1e-12, 0.1, 0.6931, 0.6932, 3.0, 80.0], jnp.float32)
    wide = np.asarray(nats, np.float64)
    np.testing.assert_allclose(log_odds(nats), -np.log(np.expm1(wide)), rtol=2e-6, atol=2e-7)
    slope = jax.vmap(jax.grad(log_odds))(nats)
    np.testing.assert_allclose(slope, 1 / np.expm1(-wide), rtol=1e-6)
    assert jax.grad(log_odds)(0.0) == 0 and np.isfinite(log_odds(jnp.float32(0)))


def test_sums_of_segments():
    values = jnp.asarray([[1.0, 2, 4, 8], [1, 2, 4, 8]])
    segments = jnp.asarray([[1, 1, 2, 0], [2, 3, 3, 3]])
    np.testing.assert_array_equal(segment_sums(values, segments, 3), [[3, 4, 0], [0, 1, 14]])
