"""When a step is skipped."""

import jax.numpy as jnp
import numpy as np

from slmjax.train.state import RECOVERY, WARM, WINDOW, judge_step, loss_scale, no_spikes


def run(losses, norms=None, sigma=6.0):
    spikes, kept = no_spikes(), []
    for seen in zip(losses, [1.0] * len(losses) if norms is None else norms, strict=True):
        keep, spikes = judge_step(spikes, jnp.array(seen), sigma)
        kept.append(bool(keep))
    return kept, spikes


def test_nothing_counts_as_a_spike_before_enough_steps_were_kept():
    kept, _ = run([1.0] * (WARM - 1) + [100.0])
    assert all(kept)


def test_a_loss_far_above_its_running_mean_is_skipped_and_a_usual_one_kept():
    usual = list(1.0 + 0.01 * np.sin(np.arange(WARM)))
    kept, spikes = run([*usual, 2.0, 1.01, 2.0, 2.0])
    assert kept[WARM:] == [False, True, False, False]
    assert int(spikes.skips) == 2


def test_steps_that_are_not_finite_leave_the_statistics_alone():
    usual = list(1.0 + 0.01 * np.sin(np.arange(WARM)))
    _, without = run(usual)
    _, with_them = run([*usual, np.inf, np.nan])
    for name in ("count", "mean", "variance"):
        np.testing.assert_array_equal(getattr(without, name), getattr(with_them, name))


def test_one_spike_however_large_hides_only_few_others():
    usual = list(1.0 + 0.01 * np.sin(np.arange(WINDOW)))
    kept, _ = run([*usual, 1e6, *usual[:20], 1.5])
    assert kept[WINDOW:] == [False] + [True] * 20 + [False]


def test_a_level_that_stays_is_accepted_before_a_run_would_end():
    """Gradient norms as a run of 30M parameters had them: 0.114, then between 0.3 and 1.2 at unmoved parameters, at a loss as before."""
    norms = [
        0.64,
        1.13,
        1.10,
        0.69,
        0.32,
        0.94,
        1.06,
        0.78,
        1.19,
        1.01,
        0.69,
        1.0,
        1.17,
        0.72,
        0.62,
        1.12,
        0.99,
        0.94,
        1.21,
        0.76,
    ]
    usual = list(0.114 + 0.006 * np.sin(np.arange(WINDOW)))
    kept, _ = run([1.74] * (WINDOW + len(norms)), [*usual, *norms])
    assert all(kept[:WINDOW])
    assert not kept[WINDOW] and any(kept[WINDOW : WINDOW + 10])


def test_without_a_limit_only_non_finite_values_are_skipped():
    kept, _ = run([1.0] * (WARM + 5) + [1e6, np.nan], sigma=0.0)
    assert kept == [True] * (WARM + 6) + [False]


def test_the_running_mean_and_variance_are_those_of_the_steps_while_they_fit_the_window():
    values = np.random.default_rng(0).normal(3.0, 0.5, WINDOW)
    _, spikes = run(values, sigma=0.0)
    np.testing.assert_allclose(
        [spikes.mean[0], spikes.variance[0]], [values.mean(), values.var()], rtol=1e-4
    )


def test_the_loss_scale_halves_with_each_step_that_is_not_finite_and_comes_back():
    _, spikes = run([1.0, np.inf, 1.0, np.nan])
    assert loss_scale(spikes) == 0.25
    _, spikes = run([np.inf] + [1.0] * (RECOVERY // 2))
    assert loss_scale(spikes) == 0.5
    for _ in range(RECOVERY):
        spikes = judge_step(spikes, jnp.ones(2), 0.0)[1]
    assert loss_scale(spikes) == 1
