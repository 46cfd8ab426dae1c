"""The pictures of a mixture study: they show the numbers of its tables, and nothing is left out."""

import re

import numpy as np
import pytest

from slmjax.record.figures import standalone
from slmjax.record.paired import bits_per_byte
from slmjax.studies.mixture_choice import choose_mixture
from slmjax.studies.mixture_comparison import compare_mixtures, comparison_table
from slmjax.studies.mixture_figure import comparison_figure, search_figure
from slmjax.studies.mixture_fit import fit_mixture_losses
from slmjax.studies.mixture_plan import MixturePlan
from tests.studies.test_mixture_study import DOMAINS, FREE, NATURAL, law, proxies_of

WORSE = {"natural": 0.0, "a alone": 0.3, "even": 0.002}


def scores_of(rates):
    """Scores of two sources in two seeds of each mixture, at so many bits per byte."""
    chance = np.random.default_rng(0)
    documents = {}
    for source in ("a", "b"):
        keys = chance.integers(2**63, size=80).astype(np.uint64)
        documents[source] = keys, chance.integers(500, 2000, 80), chance.normal(1, 0.1, 80)
    scores = {}
    for mixture, rate in rates.items():
        for seed in range(2):
            scores[f"{mixture}-{seed}"] = {
                source: {
                    "keys": keys,
                    "bytes": sizes,
                    "nats": sizes * (bits + rate + 0.002 * chance.normal(size=80)) * np.log(2),
                }
                for source, (keys, sizes, bits) in documents.items()
            }
    return scores


def drawn_points(svg):
    """Horizontal places of the dots of an SVG, for each kind of dot in the order of drawing."""
    places = []
    for group in re.findall(r"<g clip-path[^>]*>\s*((?:<use [^>]*>\s*)+)</g>", svg):
        places.append([float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"', group)])
    return places


def test_the_figure_of_a_comparison_draws_every_difference_of_its_tables():
    # Which mixtures they are does not matter here.
    mixtures = dict.fromkeys(WORSE, NATURAL)
    plan = MixturePlan(DOMAINS, NATURAL, 1, FREE, mixtures, ("a", "b"))
    comparison = compare_mixtures(plan, scores_of(WORSE), seeds=2)
    for source in plan.basket:
        bits = bits_per_byte(comparison.paired, source)
        for number, difference in enumerate(comparison.sources[source]):
            expected = bits[2 * number : 2 * number + 2].mean() - bits[:2].mean()
            assert difference.value == pytest.approx(expected)
    rows = {row[0]: row for row in comparison_table(comparison).rows}
    assert rows["a alone"][3] == "worse" and rows["even"][3] != ""
    svg = comparison_figure(comparison)
    for text in ("mean over sources", ">a<", ">b<", ">a alone<", ">even<", "difference to natural"):
        assert text in svg
    drawn = drawn_points(svg)
    values = []
    for mixture in (1, 2):
        rows = (comparison.mean, *comparison.sources.values())
        values.append([of_source[mixture].value for of_source in rows])
    # The axis is linear: places are the values, scaled and moved.
    slope, start = np.polyfit(np.ravel(values), np.ravel(drawn), 1)
    np.testing.assert_allclose(slope * np.array(values) + start, drawn, atol=0.01)
    assert slope > 0
    light, dark = standalone(svg), standalone(svg, dark=True)
    assert "var(" not in light + dark and light != dark
    assert svg == comparison_figure(comparison)


def test_the_figure_of_a_search_draws_what_the_other_proxies_predict_of_each():
    proxies = proxies_of(law, 6, 0.02)
    choice = choose_mixture(proxies, FREE, NATURAL, bootstraps=2)
    fit = fit_mixture_losses(proxies)
    for number in (0, 5):
        others = np.arange(6) != number
        weights, losses = proxies.weights[others], proxies.losses[others]
        refit = fit.refit(proxies._replace(weights=weights, losses=losses))
        predicted = refit.predict(proxies.weights[number][None]).mean()
        assert choice.left_out[number] == pytest.approx(predicted)
    assert choice.predicted < choice.predicted_natural
    measured = proxies.losses.mean(1)
    svg = search_figure(choice, measured)
    assert f"chosen mixture, predicted {choice.predicted:.4f}" in svg
    assert f"natural mixture, predicted {choice.predicted_natural:.4f}" in svg
    error = np.sqrt(np.mean((choice.left_out - measured) ** 2))
    assert f"error {error:.4f}, rank correlation 0." in svg
    (points,) = (places for places in drawn_points(svg) if len(places) == 6)
    slope, start = np.polyfit(choice.left_out, points, 1)
    np.testing.assert_allclose(slope * choice.left_out + start, points, atol=0.01)
