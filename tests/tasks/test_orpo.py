"""The loss of ORPO: its gradient against float64, its denominators, and packed against alone."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.block import Out
from slmjax.models.layers import Term
from slmjax.models.lm import Model
from slmjax.models.pattern import parse_block
from slmjax.ops.log_odds import log_odds, segment_sums
from slmjax.tasks.language_modeling import LanguageModeling
from slmjax.tasks.orpo import Orpo

D, V, LENGTH = 32, 512, 16
ODDS_WEIGHT = 0.1
KEY = jax.random.key(0)


ARCH = Architecture(
    vocab_size=64,
    width=32,
    stack=(((parse_block("attention"),), 2),),
    heads=2,
    kv_heads=1,
    head_dim=16,
    ff_width=48,
)


class HiddenModel(Model):
    """A model whose parameters are its hidden states and its head."""

    def __init__(self, chunks=1):
        object.__setattr__(self, "chunks", chunks)
        object.__setattr__(self, "arch", ARCH)

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
    """Return (hidden, head, batch) of one pair; its answers' tokens have about these log p's.

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


def exact(hidden, head, batch):
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
            return chosen + ODDS_WEIGHT * jnp.logaddexp(-margin, 0)

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
    assert np.max(errors) <= most  # NaN fails too


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


def small_model():
    return Model(ARCH), lm.init(ARCH, KEY)


def pair_batch(rows, length, seed=0):
    """Return a batch whose rows hold the given pairs: [(tokens of chosen, of rejected), ...]."""
    draw = np.random.default_rng(seed)
    most = max(map(len, rows))
    shape = (len(rows), length)
    names = ("tokens", "targets", "segments", "positions")
    batch = {name: np.zeros(shape, np.int32) for name in names}
    batch |= {name: np.zeros(shape, np.float32) for name in ("weights", "answers")}
    batch["pairs"] = np.zeros((len(rows), most), np.float32)
    for row, sizes in enumerate(rows):
        start = 0
        for number, size in enumerate([size for pair in sizes for size in pair]):
            place = (row, slice(start, start + size))
            ids = draw.integers(1, 64, size + 1)
            batch["tokens"][place], batch["targets"][place] = ids[:-1], ids[1:]
            batch["segments"][place] = number + 1
            batch["positions"][place] = np.arange(size)
            answer = np.arange(size) >= size // 2
            batch["answers"][place] = answer
            batch["weights"][place] = answer * (number % 2 == 0)
            start += size
        batch["pairs"][row, : len(sizes)] = 1
    return batch


def mean_loss(params, model, batch, parts=1):
    """Return (mean loss, terms) of a batch in `parts` microbatches, as the train step takes it."""
    task = Orpo(NoRows(), odds_weight=0.3, z_loss=1e-3)
    totals = task.totals(batch)
    total, terms = 0.0, {}
    for part in range(parts):
        rows = {name: array[part::parts] for name, array in batch.items()}
        loss = task.loss(model, params, {}, rows, totals, key=KEY, step=jnp.int32(0))
        total += loss.sum / totals["main"]
        for name, (value, weight) in loss.terms.items():
            before = terms.get(name, (0.0, 0.0))
            terms[name] = before[0] + value, before[1] + weight
    return total, terms


def near(one, other, most):
    """Check that two results, each ((loss, terms), gradients), differ by `most` at most.

    Terms get an absolute tolerance: they are sums of numbers of both signs.
    """
    (loss, terms), gradients = one
    (other_loss, other_terms), other_gradients = other
    np.testing.assert_allclose(loss, other_loss, rtol=most)
    assert terms.keys() == other_terms.keys() == {"loss", "z", "odds", "preferred", "margin"}
    for name, term in terms.items():
        np.testing.assert_allclose(term, other_terms[name], rtol=most, atol=most)
    flat, _ = jax.flatten_util.ravel_pytree(gradients)
    other_flat, _ = jax.flatten_util.ravel_pytree(other_gradients)
    assert np.linalg.norm(flat - other_flat) <= most * np.linalg.norm(other_flat)


def test_four_unequal_microbatches_are_one():
    model, params = small_model()
    rows = [[(9, 12)], [(20, 7), (5, 6)], [(4, 4)] * 5, [(30, 10)]] * 2
    batch = {name: jnp.asarray(array) for name, array in pair_batch(rows, 48).items()}
    both = []
    for parts in (1, 4):
        step = jax.value_and_grad(lambda p, n=parts: mean_loss(p, model, batch, n), has_aux=True)
        both.append(jax.jit(step)(params))
    near(both[1], both[0], 1e-6)


def test_packed_pairs_are_each_pair_alone():
    model, params = small_model()
    sizes = [(9, 12), (20, 7), (5, 6), (4, 4)]
    packed = pair_batch([sizes[:2], sizes[2:]], 48)
    alone = pair_batch([[pair] for pair in sizes], 48)
    # The same tokens in other rows.
    place = 0
    for row, pairs_of_row in enumerate((sizes[:2], sizes[2:])):
        start = 0
        for pair in pairs_of_row:
            length = sum(pair)
            for name in ("tokens", "targets"):
                alone[name][place, :length] = packed[name][row, start : start + length]
            start += length
            place += 1
    results = []
    for batch in (packed, alone):
        batch = {name: jnp.asarray(array) for name, array in batch.items()}
        step = jax.jit(jax.value_and_grad(lambda p, b=batch: mean_loss(p, model, b), has_aux=True))
        results.append(step(params))
    near(results[0], results[1], 2e-6)


def test_without_odds_it_is_the_next_token_loss_of_the_chosen():
    model, params = small_model()
    batch = pair_batch([[(9, 12), (20, 7)], [(5, 6)]], 48)
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    losses = []
    for task in (Orpo(NoRows(), odds_weight=0.0), LanguageModeling(NoRows())):
        totals = task.totals(batch)
        loss = task.loss(model, params, {}, batch, totals, key=KEY, step=jnp.int32(0))
        losses.append(float(loss.sum / totals["main"]))
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_preferred_counts_pairs():
    model, params = small_model()
    batch = pair_batch([[(9, 12), (20, 7)], [(5, 6)]], 48)
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    _, terms = mean_loss(params, model, batch)
    preferred, pairs = terms["preferred"]
    assert pairs == 3 and 0 <= preferred <= 3


class TermModel(Model):
    """A model whose blocks add a term to the loss: 3 for each token and layer."""

    def forward(self, params, buffers, batch, *, cache=None):
        hidden, out = super().forward(params, buffers, batch)
        sums = jnp.full(2, 3.0 * self.arch.share_blocks) * (batch["segments"] > 0).sum()
        return hidden, out._replace(terms={"group": {"block": {"balance": Term(sums, 0.1)}}})


def test_terms_of_shared_blocks_are_those_of_next_token_prediction():
    arch = dataclasses.replace(ARCH, share_blocks=2)
    model, params = TermModel(arch), lm.init(arch, KEY)
    batch = pair_batch([[(9, 12), (20, 7)], [(5, 6)]], 48)
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    losses = []
    for task in (Orpo(NoRows(), odds_weight=0.0), LanguageModeling(NoRows())):
        totals = task.totals(batch)
        losses.append(task.loss(model, params, {}, batch, totals, key=KEY, step=jnp.int32(0)))
    for loss in losses:
        total, weight = loss.terms["balance"]
        assert total / weight == 3
    np.testing.assert_allclose(losses[0].sum, losses[1].sum, rtol=1e-6)
