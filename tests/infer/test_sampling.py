"""Sampling, against a numpy reading of the papers and against frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slmjax.errors import UserError
from slmjax.infer.sampling import Sampling, sample, sampling_of, truncate

V = 12
logit = st.floats(-8, 8, width=32) | st.sampled_from([0.0, 1.0])  # ties included
run_truncate, run_sample = jax.jit(truncate), jax.jit(sample)


def kept_tokens(logits, top_k, top_p):
    """The tokens that may be drawn, in float64; None where rounding decides."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    order = order[:top_k] if top_k > 0 else order
    mass = np.exp(np.float64(logits[order]) - np.float64(logits.max()))
    before = np.concatenate([[0], np.cumsum(mass / mass.sum())])[:-1]
    if top_p < 1 and np.abs(before - top_p).min() < 1e-5:
        return None
    return {
        token for token, share in zip(order, before) if share < top_p or top_p >= 1 or share == 0
    }


@given(
    logits=hnp.arrays(np.float32, (1, V), elements=logit),
    top_k=st.integers(0, V + 3),
    top_p=st.floats(2**-7, 1.0, width=32),
)
def test_top_k_and_nucleus_keep_what_the_papers_say(logits, top_k, top_p):
    kept = kept_tokens(logits[0], top_k, top_p)
    out = np.asarray(
        run_truncate(jnp.array(logits), jnp.array([top_k]), jnp.array([top_p], jnp.float32))
    )[0]
    if kept is not None:
        assert set(np.flatnonzero(np.isfinite(out))) == kept
    assert np.isfinite(out).any()
    assert np.array_equal(out[np.isfinite(out)], logits[0][np.isfinite(out)])


@given(
    logits=hnp.arrays(np.float32, (3, V), elements=logit),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 9),
    vocab=st.integers(1, V),
)
def test_draws_are_never_of_masked_tokens_and_temperature_zero_and_top_1_are_greedy(
    logits, seed, step, vocab
):
    logits[:, vocab:] = -np.inf
    greedy = logits[:, :vocab].argmax(axis=1)
    for how in (
        {},
        {"top_p": 0.5},
        {"temperature": 2.0, "top_k": 1},
        {"temperature": 2.0, "top_p": 1e-6},
    ):
        assert np.array_equal(run_sample(logits, sampling_of(3, seed=seed, **how), step), greedy)
    assert (
        np.asarray(run_sample(logits, sampling_of(3, temperature=1e6, seed=seed), step)) < vocab
    ).all()
    tiny = np.asarray(run_sample(logits, sampling_of(3, temperature=1e-30, seed=seed), step))
    assert np.array_equal(
        np.take_along_axis(logits, tiny[:, None], 1)[:, 0], logits[:, :vocab].max(axis=1)
    )


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.7, 4, 1.0), (1.0, 0, 0.8), (0.8, 5, 0.9)],
)
def test_frequencies_of_draws_are_the_probabilities(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(size=V).astype(np.float32)
    kept = sorted(kept_tokens(logits / np.float32(temperature), top_k, top_p))
    p = np.zeros(V)
    p[kept] = np.exp(logits[kept] / temperature)
    p /= p.sum()
    n = 20_000
    how = sampling_of(n, temperature=temperature, top_k=top_k, top_p=top_p, seed=1)
    counts = np.bincount(run_sample(np.tile(logits, (n, 1)), how, 0), minlength=V)
    # chi squared of at most V - 1 degrees of freedom: above 40 with probability 4e-5, and the seed is fixed
    assert (counts[p == 0] == 0).all()
    assert ((counts - n * p)[p > 0] ** 2 / (n * p[p > 0])).sum() < 40


def test_draws_of_one_row_at_successive_steps_have_the_probabilities_too():
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]]))
    how, n = sampling_of(1, temperature=1.0, seed=3), 20_000
    draws = np.asarray(jax.lax.map(lambda step: sample(logits, how, step)[0], jnp.arange(n)))
    pairs = np.bincount(draws[:-1] * 4 + draws[1:], minlength=16)  # independent of the step before
    expected = (n - 1) * np.outer(np.exp(logits), np.exp(logits)).ravel()
    assert ((pairs - expected) ** 2 / expected).sum() < 50  # 15 degrees of freedom


@effort(max_examples=30)
@given(data=st.data())
def test_a_rows_draw_does_not_depend_on_the_rows_beside_it_or_their_settings(data):
    rows = 4
    logits = data.draw(hnp.arrays(np.float32, (rows, V), elements=logit))
    values = [
        st.sampled_from(some)
        for some in ([0.0, 0.7, 1.5], [0, 1, 3], [0.5, 1.0], range(9), range(9))
    ]
    types = [np.float32, np.int32, np.float32, np.uint32, np.int32]
    how = Sampling(
        *(
            np.array(data.draw(st.lists(v, min_size=rows, max_size=rows)), t)
            for v, t in zip(values, types)
        )
    )
    together = np.asarray(run_sample(logits, how, 5))
    for i in range(rows):
        alone = run_sample(logits[i : i + 1], Sampling(*(a[i : i + 1] for a in how)), 5)
        assert alone[0] == together[i]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"seed": [1, 2]},
    ],
)
def test_a_setting_that_makes_no_sense_is_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        sampling_of(3, **wrong)
