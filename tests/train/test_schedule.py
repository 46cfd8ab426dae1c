"""Learning-rate schedules at the points that the papers fix."""

import dataclasses

import numpy as np
import pytest

from slmjax.config import Config, DataConfig, TrainConfig
from slmjax.config.run_phases import run_phases
from slmjax.train import schedule


def test_wsd_warms_up_holds_and_reaches_zero():
    factor = np.asarray(schedule.wsd(np.arange(101), warmup=10, total=100, decay=0.2))
    np.testing.assert_allclose(factor[:10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(factor[10:81], 1.0)
    np.testing.assert_allclose(factor[85], 1 - np.sqrt(0.25), rtol=1e-6)
    assert factor[100] == 0.0 and np.all(np.diff(factor[80:]) < 0)


def test_cosine_passes_its_half_way_point_and_ends_at_its_floor():
    factor = np.asarray(schedule.cosine(np.array([0, 9, 10, 55, 100]), warmup=10, total=100))
    np.testing.assert_allclose(factor, [0.1, 1.0, 1.0, 0.55, 0.1], atol=1e-6)


def test_a_longer_run_shares_every_step_up_to_the_trunk():
    train = TrainConfig(steps=100, warmup=5, decay=0.2)
    longer = dataclasses.replace(train, steps=300)
    trunk = schedule.trunk(train)
    steps = np.arange(trunk)
    np.testing.assert_array_equal(schedule.factor(train, steps), schedule.factor(longer, steps))
    assert trunk == 80


def test_a_cosine_has_no_trunk():
    assert schedule.trunk(TrainConfig(schedule="cosine")) is None


def test_warmup_and_decay_longer_than_the_run_are_refused():
    with pytest.raises(ValueError, match="exceed a run of 10"):
        schedule.wsd(0, warmup=9, total=10, decay=0.5)


def of_phases(*phases, **train):
    """(config.train, phases in steps) of (until, rate) pairs."""
    given = tuple({"until": until, "rate": rate} for until, rate in phases)
    config = TrainConfig(schedule="phases", **train)
    return config, run_phases(DataConfig(phases=given), config)


def test_phases_at_the_peak_and_then_to_zero_are_wsd_to_the_last_bit():
    train, phases = of_phases((0.75, (1, 1)), (1.0, (1, 0)), steps=400, warmup=10)
    wsd = TrainConfig(steps=400, warmup=10, decay=0.25)
    steps = np.arange(400)
    np.testing.assert_array_equal(
        schedule.factor(train, steps, phases), schedule.factor(wsd, steps)
    )
    assert schedule.trunk(train, phases) == schedule.trunk(wsd) == 300


def test_rates_of_phases_rise_linearly_and_fall_as_one_minus_sqrt():
    rates = ((0.4, (0.5, 0.5)), (0.6, (0.5, 1.5)), (1.0, (1.5, 0.3)))
    train, phases = of_phases(*rates, steps=100, warmup=4)
    factors = np.asarray(schedule.factor(train, np.arange(101), phases))
    np.testing.assert_allclose(factors[:4], 0.5 * np.arange(1, 5) / 4, rtol=1e-6)
    np.testing.assert_allclose(factors[4:40], 0.5)
    np.testing.assert_allclose(factors[40:60], 0.5 + np.arange(20) / 20, rtol=1e-6)
    falling = 0.3 + 1.2 * (1 - np.sqrt(np.arange(41) / 40))
    np.testing.assert_allclose(factors[60:], falling, rtol=1e-6)
    assert schedule.trunk(train, phases) == 60
    with pytest.raises(ValueError, match="needs the phases"):
        schedule.factor(train, 3)


def test_runs_share_the_steps_in_which_their_factors_are_equal():
    def config(**train):
        return dataclasses.replace(Config(), train=TrainConfig(**train))

    wsd = config(steps=100, warmup=5, decay=0.2)
    # The first step of a decay still has the peak rate.
    assert schedule.shared_steps(wsd, config(steps=300, warmup=5, decay=0.2)) == 81
    assert schedule.shared_steps(wsd, config(steps=100, warmup=6, decay=0.2)) == 0
    assert schedule.shared_steps(wsd, wsd) == 100
    given = ({"until": 0.5, "rate": (1, 1)}, {"until": 1.0, "rate": (1, 0.5)})
    phased = dataclasses.replace(
        Config(),
        train=TrainConfig(steps=100, warmup=5, schedule="phases"),
        data=DataConfig(phases=given),
    )
    assert schedule.shared_steps(wsd, phased) == 51
