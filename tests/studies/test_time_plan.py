"""The choice of size, batch and steps is a function of what was measured."""

import dataclasses

import numpy as np
import pytest

from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.models import choose_shape, sizes
from slmjax.models.pattern import from_config
from slmjax.parallel.mesh import DeviceKind
from slmjax.studies import time_plan
from slmjax.studies.ladder_batches import ladder_batch
from slmjax.studies.scaling_law import CHINCHILLA
from slmjax.studies.time_budget import effective_tokens
from slmjax.studies.time_plan import TimedStep

CPU = DeviceKind("cpu", "cpu", None, None, 1)
GPU = DeviceKind("gpu", "NVIDIA H200", 9.0, 140e9, 1)
MODEL = configs.freeze(configs.base()).model
FLOPS = 5e10  # of the machine, a second
GUESSED = {size: FLOPS / (6 * size) for size in (10**5, 10**6, 10**7, 10**8)}


def timed(parameters, left=600.0, again=20.0, slower=1.0):
    """A measurement on a machine whose speed is one over the size."""
    return TimedStep(parameters, 2048 * 6 * parameters / FLOPS * slower, 2048, left, again)


def best_by_search(seconds, unique, slower=1.0):
    """The size with the lowest loss, by trying all."""
    size = np.geomspace(1e5, 1e8, 20_000)
    tokens = FLOPS / slower * seconds / (6 * size)
    losses = CHINCHILLA.loss(size, effective_tokens(tokens, unique))
    return size[np.argmin(losses)]


def test_a_size_that_is_nearly_the_best_is_kept():
    best = best_by_search(600.0, 1e12)
    budget, is_other = time_plan.decide_size([timed(round(best * 1.2))], GUESSED, 1e12)
    assert not is_other
    assert budget.best.parameters == round(best * 1.2)


@pytest.mark.parametrize("factor", [0.1, 10])
@pytest.mark.parametrize("unique", [1e5, 1e12])
@pytest.mark.parametrize("slower", [1, 3])
def test_a_size_that_is_far_off_gives_way_to_the_best_of_the_time_that_remains(
    factor, unique, slower
):
    size = round(factor * best_by_search(600.0, unique, slower))
    measured = [timed(size, slower=slower)]
    budget, is_other = time_plan.decide_size(measured, GUESSED, unique)
    assert is_other
    expected = best_by_search(600.0 - 20.0, unique, slower)
    assert budget.best.parameters == pytest.approx(expected, rel=0.01)
    # It is measured once more at most, and stays where the user has set it.
    budget, is_other = time_plan.decide_size(measured, GUESSED, unique, may_change=False)
    assert not is_other and budget.best.parameters == size


def test_a_size_that_is_far_off_is_kept_where_another_compilation_takes_too_long():
    size = round(10 * best_by_search(60.0, 1e12))
    measured = [timed(size, left=60.0, again=59.0)]
    assert not time_plan.decide_size(measured, GUESSED, 1e12)[1]


def test_speeds_are_those_that_were_measured_where_they_were():
    measured = [timed(300_000, slower=2.0), timed(3_000_000, slower=4.0)]
    speeds = time_plan.measured_speeds(GUESSED, measured)
    # A power of the size between the two, and constant factors beyond.
    between = 2 ** (1 + np.log10(1e6 / 3e5))
    factors = {10**5: 2, 10**6: between, 10**7: 4, 10**8: 4}
    for size, factor in factors.items():
        assert speeds[size] == pytest.approx(GUESSED[size] / factor, rel=1e-9)


@pytest.mark.parametrize("vocab_size, smallest", [(512, 1e5), (16384, 1.5e6)])
def test_every_size_has_a_wide_shape_within_fifteen_percent(vocab_size, smallest):
    for size in np.geomspace(smallest, 1e9, 20):
        shape = time_plan.near_shape(size, MODEL, vocab_size)
        arch = from_config(dataclasses.replace(MODEL, **shape), vocab_size)
        total = choose_shape.decoder_parameters(arch, shape["layers"])
        assert total == pytest.approx(size, rel=0.15)
        assert shape["width"] % (64 if size >= 6e6 else 16) == 0
        layers = max(4, shape["width"] / 64)
        assert layers / 1.5 <= shape["layers"] <= layers * 1.5


def test_the_familys_flops_are_those_of_its_models():
    flops = time_plan.family_flops(MODEL, 512, 256, memory=1e9)
    # 0.3 of the memory holds 19M parameters with their optimizer.
    assert min(flops) < 1.2e5 and 6e6 < max(flops) < 19e6
    for size, value in flops.items():
        assert 6 * size < value < 12 * size


def test_the_batch_follows_the_tokens_and_keeps_accelerators_busy():
    for tokens in (1e6, 1e8, 1e10):
        assert time_plan.batch_rows_for(tokens, 256, "cpu", 2) == (
            ladder_batch(tokens, 256, multiple=2).rows
        )
    assert time_plan.batch_rows_for(1e6, 1024, "gpu", 8) == 8 * 32
    assert time_plan.batch_rows_for(1e11, 1024, "gpu", 8) == (
        ladder_batch(1e11, 1024, multiple=8).rows
    )


def base_config(**train):
    c = configs.load_recipe("configs/minutes.py:10")
    c.train.update(train)
    frozen = configs.freeze(c)
    data = dataclasses.replace(frozen.data, vocab_size=512, seq_len=256)
    return dataclasses.replace(frozen, data=data)


def test_a_batch_that_does_not_fit_is_cut_into_microbatches():
    small = GPU._replace(memory=2e9)
    whole, cut = [
        time_plan.sized(base_config(), 2e7, 1e10, vocab_size=512, device=device, ways=2)
        for device in (GPU, small)
    ]
    assert whole.train.microbatches == 1
    assert cut.train.microbatches > 1
    assert cut.train.batch % (2 * cut.train.microbatches) == 0
    assert whole.train.batch <= cut.train.batch < 1.2 * whole.train.batch
    rows = cut.train.batch // (2 * cut.train.microbatches)
    assert rows * 256 * cut.model.layers * cut.model.width * 36 <= 0.5 * 2e9


def test_what_the_user_sets_stays():
    config = base_config(batch=7, warmup=3)
    config = time_plan.sized(config, 2e5, 1e6, vocab_size=512, device=CPU, ways=1)
    config = time_plan.with_steps(config, 100)
    assert (config.train.batch, config.train.warmup, config.train.steps) == (7, 3, 100)
    with pytest.raises(UserError, match="warmup is 90, but"):
        time_plan.with_steps(base_config(warmup=90), 100)


def test_rates_are_those_that_params_gives_the_recipe():
    c = configs.load_recipe("configs/minutes.py:10")
    config = time_plan.sized(base_config(), 1.05e6, 1e6, vocab_size=512, device=CPU, ways=1)
    assert config.model.transfer[0].startswith("transfer from width 128 and 5 layers to")
    assert config.train.decay_lr == c.train.lr == 5e-3
    assert sizes.parameters(from_config(config.model, 512)).total == pytest.approx(1.05e6, rel=0.03)


@pytest.mark.parametrize("left", [-5.0, 3.0])
def test_minutes_that_are_too_few_are_refused_with_a_number_that_suffices(left):
    step = TimedStep(10**5, 1.0, 2048, left, 20.0)
    with pytest.raises(UserError, match="too short for this machine") as refused:
        time_plan.steps_in(step, 1.0)
    least = float(str(refused.value).split("try ")[1].split()[0])
    enough = step._replace(left=left + 60 * (least - 1.0))
    assert time_plan.steps_in(enough, least) >= time_plan.FEWEST_STEPS


@pytest.mark.parametrize("minutes, platform, own, expected", [
    (1, "cpu", True, (512, 256)),
    (10, "gpu", True, (16384, 1024)),
    (10, "gpu", False, (512, 256)),
    (60, "cpu", True, (2048, 256)),
])  # fmt: skip
def test_the_vocabulary_suits_budget_and_device(minutes, platform, own, expected):
    assert time_plan.text_settings(minutes, platform, own_text=own) == expected
