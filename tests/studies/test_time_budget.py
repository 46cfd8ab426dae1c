"""The best size for a time, and the ladder's batches: closed forms and refusals."""

import itertools

import numpy as np
import pytest
from scipy import optimize

from slmjax.errors import UserError
from slmjax.studies import ladder_batches, time_budget
from slmjax.studies.scaling_law import CHINCHILLA, ScalingLaw
from tests.studies.ladders import MILLION

# One H200.
H200 = {10 * MILLION: 2.3e6, 30 * MILLION: 1.4e6, 100 * MILLION: 0.55e6, 300 * MILLION: 0.2e6}


def test_the_best_size_is_the_closed_form_where_speed_is_one_over_size_and_text_is_fresh():
    flops, seconds = 6e14, 3600.0
    throughput = {size: flops / size for size in (MILLION, 1000 * MILLION)}
    budget = time_budget.best_size(seconds, throughput, 1e15)
    # Hoffmann et al. 2022, equation 4, with N D = flops x seconds (millions x billions).
    law = CHINCHILLA
    a, b = law.size_exponent, law.data_exponent
    ratio = (a * law.size_factor / (b * law.data_factor)) ** (1 / (a + b))
    expected = ratio * (flops * seconds / 1e15) ** (b / (a + b)) * MILLION
    # Neighbouring sizes differ by 0.5 %.
    assert budget.best.parameters == pytest.approx(expected, rel=0.006)
    assert budget.best.tokens * budget.best.parameters == pytest.approx(flops * seconds, rel=1e-6)
    assert budget.end == ""


@pytest.mark.parametrize("seconds", [60, 600])
def test_the_best_size_is_where_a_search_of_the_same_loss_ends(seconds):
    unique = 72e6
    budget = time_budget.best_size(seconds, H200, unique)
    x, y = np.log(sorted(H200.items())).T

    def loss(log_size):
        tokens = seconds * np.exp(np.interp(log_size, x, y))
        repeats = max(tokens / unique - 1, 0)
        effective = min(tokens, unique) + unique * 15.4 * (1 - np.exp(-repeats / 15.4))
        return CHINCHILLA.loss(np.exp(log_size), effective)

    best = min(
        (
            optimize.minimize_scalar(loss, bounds=ends, method="bounded")
            for ends in itertools.pairwise(x)
        ),
        key=lambda solution: solution.fun,
    )
    assert budget.best.loss == pytest.approx(best.fun, rel=1e-5)
    assert budget.best.parameters == pytest.approx(np.exp(best.x), rel=0.03)
    assert budget.best.loss < min(budget.half.loss, budget.twice.loss)


def test_the_alternatives_are_half_and_twice_as_large_at_the_same_time():
    rows = time_budget.best_size(60, H200, 72e6).rows()
    assert rows[0].parameters * 2 == pytest.approx(rows[1].parameters, abs=1)
    assert rows[1].parameters * 2 == pytest.approx(rows[2].parameters, abs=1)
    for row in rows:
        assert row.tokens == pytest.approx(60 * row.tokens_per_second, abs=1)
        assert row.epochs == pytest.approx(row.tokens / 72e6, rel=1e-6)


def test_less_text_makes_the_best_model_larger():
    # Tokens that repeat are worth less, so that parameters are worth more.
    scarce = time_budget.best_size(600, H200, 20e6).best
    plenty = time_budget.best_size(600, H200, 1e12).best
    assert scarce.parameters > plenty.parameters


def test_a_best_size_at_the_end_of_the_measured_ones_is_marked():
    assert time_budget.best_size(2, H200, 72e6).end == "smallest"
    assert time_budget.best_size(1e6, H200, 72e9).end == "largest"
    # Beyond the measured sizes, speed goes on as the nearest power.
    twice = time_budget.best_size(1e6, H200, 72e9).twice
    slope = np.log(0.2 / 0.55) / np.log(3)
    assert twice.tokens_per_second == pytest.approx(0.2e6 * 2**slope)


def test_repeated_tokens_are_worth_what_muennighoff_et_al_say():
    unique = 1e8
    tokens = np.array([0.3, 1.0, 4.0, 1e6]) * unique
    worth = time_budget.effective_tokens(tokens, unique) / unique
    # Fresh ones count whole; four epochs are nearly fresh; in the limit 1 + R*.
    assert worth[:2] == pytest.approx([0.3, 1.0])
    assert worth[2] == pytest.approx(1 + 15.4 * (1 - np.exp(-3 / 15.4)))
    assert 3.7 < worth[2] < 4
    assert worth[3] == pytest.approx(16.4)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seconds": 0.0}, "expected positive numbers"),
        ({"unique_tokens": float("nan")}, "expected positive numbers"),
        ({"throughput": {10 * MILLION: 1e6}}, "of two sizes"),
        ({"throughput": {10 * MILLION: 1e6, MILLION: -1.0}}, "expected positive numbers"),
        ({"law": ScalingLaw(0.78, 0.55, 0.38)}, "no part for tokens"),
    ],
)
def test_a_budget_without_a_sensible_answer_is_refused(changed, words):
    settings = {"seconds": 60.0, "throughput": H200, "unique_tokens": 72e6}
    with pytest.raises(UserError, match=words):
        time_budget.best_size(**(settings | changed))


def test_the_ladders_batch_is_that_of_olmo_core_where_the_two_rules_meet():
    # 108M parameters, 20 tokens each: 160 rows of 2048, and as many tokens of warmup as parameters.
    batch = ladder_batches.ladder_batch(20 * 108e6, 2048)
    assert batch.rows == 160
    assert batch.warmup * batch.rows * 2048 == pytest.approx(108e6, rel=2e-3)
    # Eight times the tokens: four times the batch.
    assert ladder_batches.ladder_batch(8 * 20 * 108e6, 2048).rows == 640


@pytest.mark.parametrize("tokens", [1e6, 1e8, 1e9])
@pytest.mark.parametrize("multiple", [1, 8])
def test_a_ladders_run_has_its_tokens_up_to_half_a_batch(tokens, multiple):
    batch = ladder_batches.ladder_batch(tokens, 512, multiple=multiple)
    assert batch.rows % multiple == 0
    assert abs(batch.tokens(512) - tokens) <= batch.rows * 512 / 2
    assert 1 <= batch.warmup < batch.steps / 10


def test_a_ladders_run_of_less_than_a_batch_is_refused():
    with pytest.raises(UserError, match="100 tokens are less than one batch of 8 rows"):
        ladder_batches.ladder_batch(100, 512, multiple=8)
    with pytest.raises(UserError, match="less than one batch"):
        ladder_batches.ladder_batch(0, 512)
    with pytest.raises(UserError, match="multiple=0"):
        ladder_batches.ladder_batch(1e6, 512, multiple=0)
