"""Intervals of figures: Wilson's closed form, and how often they hold the truth."""

import numpy as np
import pytest

from slmjax.evals.intervals import mean_of, resampled, share_of


def test_wilsons_interval_is_that_of_the_textbooks():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        figure = share_of([True] * hits + [False] * (n - hits))
        assert (figure.low, figure.high) == pytest.approx((low, high), abs=5e-5)
        assert figure.count == n and figure.value == pytest.approx(hits / n)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution_where_items_are_many():
    values = np.random.default_rng(1).normal(2.0, 1.0, 4000)
    figure = mean_of(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert figure.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_figures_of_no_items_are_refused():
    with pytest.raises(ValueError, match="no items"):
        share_of([])
    with pytest.raises(ValueError, match="no items"):
        resampled(np.zeros((0, 1)), lambda rows: 0.0)
