"""Learning-rate schedules at the points that the papers fix."""

import dataclasses

import numpy as np
import pytest

from slmjax.config import TrainConfig
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
