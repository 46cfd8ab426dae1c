"""When a step is skipped."""

import jax.numpy as jnp
import numpy as np

from slmjax.train.state import RECOVERY, WARM, WINDOW, judge, loss_scale, no_spikes


def run(values, sigma=6.0):
    spikes, kept = no_spikes(), []
    for value in values:
        keep, spikes = judge(spikes, jnp.array([value, 1.0]), sigma)
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


def test_skipped_steps_leave_the_statistics_alone():
    usual = list(1.0 + 0.01 * np.sin(np.arange(WARM)))
    _, without = run(usual)
    _, with_spikes = run([*usual, 50.0, np.inf, np.nan])
    for a, b in zip(without[:3] if isinstance(without, tuple) else (without.count, without.mean, without.variance),
                    (with_spikes.count, with_spikes.mean, with_spikes.variance)):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_without_a_limit_only_non_finite_values_are_skipped():
    kept, _ = run([1.0] * (WARM + 5) + [1e6, np.nan], sigma=0.0)
    assert kept == [True] * (WARM + 6) + [False]


def test_the_running_mean_and_variance_are_those_of_the_steps_while_they_fit_the_window():
    values = np.random.default_rng(0).normal(3.0, 0.5, WINDOW)
    _, spikes = run(values, sigma=0.0)
    np.testing.assert_allclose([spikes.mean[0], spikes.variance[0]], [values.mean(), values.var()], rtol=1e-4)


def test_the_loss_scale_halves_with_each_step_that_is_not_finite_and_comes_back():
    _, spikes = run([1.0, np.inf, 1.0, np.nan])
    assert loss_scale(spikes) == 0.25
    _, spikes = run([np.inf] + [1.0] * (RECOVERY // 2))
    assert loss_scale(spikes) == 0.5
    for _ in range(RECOVERY):
        spikes = judge(spikes, jnp.ones(2), 0.0)[1]
    assert loss_scale(spikes) == 1
