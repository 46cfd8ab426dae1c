"""Accuracies of multiple choice, against values that were computed by hand."""

import math

import numpy as np
import pytest

from slmjax.evals.choice_scores import calibration_error, choice_figures, split_by_item
from slmjax.evals.evaluation_items import ChoiceItem


def item(choices, gold, context="q", group=""):
    pairs = tuple((context, f" {choice}") for choice in choices)
    return ChoiceItem(pairs, tuple(choices), gold, group)


ITEMS = [
    item(("ab", "abcdefgh"), 0),  # -4 and -6: 0 by sum, 1 by length (-2 and -0.75)
    item(("ab", "abcdefgh"), 1),
    item(("é" * 4, "abcde"), 0),  # -8 and -9: 0 by sum; -2 and -1.8: 1; bytes -1 and -1.8: 0
    item(("ab", "ab"), 0),  # equal: the first one
]
LOG_P = [np.array([-4.0, -6.0]), np.array([-4.0, -6.0]), np.array([-8.0, -9.0]), -np.ones(2)]


def test_acc_divides_by_nothing_and_acc_norm_by_the_characters_or_bytes_of_the_choice():
    figures = choice_figures(ITEMS, LOG_P)
    assert figures["acc"].value == 3 / 4
    assert figures["acc_norm"].value == 2 / 4
    assert figures["acc_bytes"].value == 3 / 4
    assert figures["acc"].chance == 1 / 2
    wrong = 1 / (1 + math.exp(2))
    brier = [2 * wrong**2, 2 * (1 - wrong) ** 2, 2 / (1 + math.exp(1)) ** 2, 0.5]
    assert figures["brier"].value == pytest.approx(np.mean(brier))


def test_groups_have_figures_of_their_own_and_sentences_have_no_acc_norm():
    items = [item(("a", "b"), 0, "", group) for group in ("x", "y", "y")]
    figures = choice_figures(items, [np.array([-1.0, value]) for value in (-2.0, -2.0, 0.0)])
    assert figures["acc, x"].value == 1 and figures["acc, y"].value == 1 / 2
    assert figures["acc, y"].count == 2 and "acc_norm" not in figures


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy_in_each_bin():
    confident_and_wrong = np.array([[0.9, 0.0]] * 30)
    assert calibration_error(confident_and_wrong) == pytest.approx(0.9)
    # Half right at confidence one half, in every bin of two.
    calibrated = np.array([[0.5, 0.0], [0.5, 1.0]] * 15)
    assert calibration_error(calibrated) == pytest.approx(0.0)


def test_values_go_back_to_their_items():
    items = [item(("a", "b", "c"), 0), item(("a", "b"), 0)]
    parts = split_by_item(np.arange(5.0), items)
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4]]
