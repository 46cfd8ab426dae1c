"""The mixture study: its regressors against made surfaces and refits, its optimum against closed forms, what it says about its own sureness, and what it refuses."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.data.phases import parse_phases
from slmjax.errors import UserError
from slmjax.studies.mixture_choice import (
    bootstrap_fits,
    choose_mixture,
    optimal_mixture,
    probability_better,
    target_shares,
)
from slmjax.studies.mixture_file import read_weights, write_weights
from slmjax.studies.mixture_fit import MixtureFit, Proxies, fit_mixture_losses, rank_correlation
from slmjax.studies.mixture_limits import (
    FLOOR,
    Limits,
    check_limits,
    dirichlet_mixtures,
    mixture_limits,
    proxy_mixtures,
    within_limits,
)
from slmjax.studies.mixture_regressors import REGRESSORS, fit_law, fit_ridge, studies_library

DOMAINS = ("web", "books", "code", "math")
NATURAL = np.array([0.4, 0.3, 0.2, 0.1])
FREE = Limits(np.zeros(4), np.ones(4))
# Constants of laws: c, k and t, whose mean is 0.
LAWS = np.array([[2.0, 0.3, -1.5, 0.5, 1.5, -0.5], [1.5, 0.0, 0.5, 1.5, -2.5, 0.5]])


def law(mixtures):
    return LAWS[:, 0] + np.exp(LAWS[:, 1] + mixtures @ LAWS[:, 2:].T)


def roots_surface(mixtures):
    """Losses whose logarithm is linear in the roots of the weights: what the ridge assumes."""
    return np.exp(
        1.5 - np.sqrt(mixtures) @ np.array([[0.5, 0.4, 0.2, 0.1], [0.1, 0.2, 0.1, 0.6]]).T
    )


def proxies_of(surface, n, noise, seed=0):
    mixtures = proxy_mixtures(NATURAL, FREE, n, seed)
    losses = surface(mixtures)
    losses = losses + noise * np.random.default_rng(seed).standard_normal(losses.shape)
    return Proxies(DOMAINS, mixtures, ("one", "two"), losses)


def test_the_law_finds_the_constants_of_a_noisy_surface():
    proxies = proxies_of(law, 48, 0.005)
    fitted = fit_law(proxies.weights, proxies.losses, (0.001, None))
    np.testing.assert_allclose(fitted.parameters, LAWS, atol=0.2)


@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize("n", [4, 12])
def test_left_out_predictions_equal_those_of_fits_without_the_proxy(name, n):
    proxies = proxies_of(law, n, 0.02)
    fitted = REGRESSORS[name](proxies.weights, proxies.losses)
    for number in range(n):
        others = np.arange(n) != number
        refit = REGRESSORS[name](proxies.weights[others], proxies.losses[others], fitted.settings)
        # The same arithmetic for the law; a closed form against a refit for the other two.
        np.testing.assert_allclose(
            refit.predict(proxies.weights[number][None])[0], fitted.left_out[number], rtol=1e-7
        )


def test_the_regressor_of_the_true_form_gets_the_largest_share():
    for surface, name in ((law, "law"), (roots_surface, "ridge")):
        fit = fit_mixture_losses(proxies_of(surface, 16, 0.003))
        shares = dict(zip(fit.regressors, fit.shares, strict=True))
        assert (shares[name] > 0.5).all(), (name, shares)
        np.testing.assert_allclose(fit.shares.sum(0), 1)
        assert len(fit.scores) == 6  # all regressors and targets, whichever was preferred


def test_scores_are_errors_and_ranks_of_the_left_out_predictions():
    proxies = proxies_of(law, 10, 0.05)
    fit = fit_mixture_losses(proxies)
    left_out = fit.regressors["process"].left_out[:, 1]
    row = next(row for row in fit.scores if (row["regressor"], row["target"]) == ("process", "two"))
    assert row["error"] == pytest.approx(np.sqrt(np.mean((left_out - proxies.losses[:, 1]) ** 2)))
    ranks = [np.argsort(np.argsort(values)) for values in (left_out, proxies.losses[:, 1])]
    assert row["rank"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize("upper", [np.ones(4), np.array([0.35, 0.9, 0.5, 0.45])])
def test_the_choice_from_noisy_proxies_is_the_true_optimum_under_caps(upper):
    proxies = proxies_of(law, 24, 0.01)
    limits = Limits(np.zeros(4), upper)
    choice = choose_mixture(proxies, limits, NATURAL, importance={"one": 2}, bootstraps=5)
    # A law falls most where t is smallest: web is filled first, then math.
    expected = np.array([upper[0], 0, 0, 0])
    expected[3] = min(upper[3], 1 - expected.sum())
    expected[1] = 1 - expected.sum()
    np.testing.assert_allclose(choice.mixture, expected, atol=1e-3)
    assert choice.verdict == "optimum" and choice.better == 1
    assert (choice.low <= choice.mixture + 1e-9).all() and (
        choice.mixture <= choice.high + 1e-9
    ).all()


def test_an_interior_optimum_and_its_interval_are_found():
    proxies = proxies_of(roots_surface, 24, 0.004)
    choice = choose_mixture(proxies, FREE, NATURAL, importance={"one": 1}, bootstraps=8)
    # Lagrange: with loss exp(a - b . sqrt(w)) the best w is in proportion to b^2.
    best = np.array([0.5, 0.4, 0.2, 0.1]) ** 2
    best /= best.sum()
    assert abs(choice.mixture - best).max() < 0.05
    assert ((choice.low - 0.02 <= best) & (best <= choice.high + 0.02)).all()
    assert 0 < (choice.high - choice.low).max() < 0.3


def test_the_search_ends_at_closed_forms():
    pool = within_limits(FREE, dirichlet_mixtures(NATURAL, 64, np.random.default_rng(0)))
    slopes = np.array([0.3, -0.2, 0.1, -0.4])
    penalty = 0.25

    def pulled(mixtures):
        ratio = np.maximum(mixtures, 1e-12) / NATURAL
        return mixtures @ slopes + penalty * (mixtures * np.log(ratio)).sum(1)

    expected = NATURAL * np.exp(-slopes / penalty)
    np.testing.assert_allclose(
        optimal_mixture(pulled, FREE, pool), expected / expected.sum(), atol=1e-5
    )
    target = np.array([0.1, 0.2, 0.3, 0.4])
    limits = Limits(np.array([0, 0, 0.05, 0]), np.array([1, 1, 0.05, 1]))
    found = optimal_mixture(
        lambda mixtures: ((mixtures - target) ** 2).sum(1), limits, within_limits(limits, pool)
    )
    # The nearest point with the third weight fixed: the others share the rest equally.
    np.testing.assert_allclose(
        found, [0.1 + 0.25 / 3, 0.2 + 0.25 / 3, 0.05, 0.4 + 0.25 / 3], atol=1e-5
    )


def test_a_penalty_pulls_the_choice_to_the_natural_mixture():
    proxies = proxies_of(law, 8, 0.02)
    far, near, at = [
        choose_mixture(proxies, FREE, NATURAL, penalty=penalty, bootstraps=2).mixture
        for penalty in (0, 1, 1e4)
    ]
    assert abs(near - NATURAL).sum() < 0.8 * abs(far - NATURAL).sum()
    np.testing.assert_allclose(at, NATURAL, atol=1e-3)


@given(st.integers(0, 10**6))
def test_limits_hold_exactly_and_other_weights_keep_their_proportions(seed):
    random = np.random.default_rng(seed)
    size = random.integers(2, 8)
    lower = random.random(size) * (random.random(size) < 0.3) / size
    upper = np.maximum(lower, random.random(size) * random.choice([0.0, 0.5, 2.0], size))
    upper[random.integers(size)] = 1.0
    given_mixtures = random.dirichlet(np.ones(size), 5)
    kept = within_limits(Limits(lower, upper), given_mixtures)
    assert (kept >= lower).all() and (kept <= upper).all()
    np.testing.assert_allclose(kept.sum(1), 1, rtol=0, atol=1e-12)
    for mixture, before in zip(kept, given_mixtures, strict=True):
        ratio = mixture / before
        inside = (mixture > lower) & (mixture < upper)
        if inside.any():
            factor = ratio[inside][0]
            np.testing.assert_allclose(ratio[inside], factor, rtol=1e-6)
            assert (ratio[mixture == upper] <= factor * (1 + 1e-6)).all() or (lower == upper).any()


def test_epochs_at_the_targets_budget_and_fixed_shares_are_the_limits():
    limits = mixture_limits(DOMAINS, [50, 30, 10, 5], 100, epochs=2, fixed={"code": 0.125})
    np.testing.assert_array_equal(limits.upper, [1.0, 0.6, 0.125, 0.1])
    np.testing.assert_array_equal(limits.lower, [0, 0, 0.125, 0])
    choice = choose_mixture(proxies_of(law, 12, 0.02), limits, [50, 30, 10, 5], bootstraps=4)
    for mixture in (choice.mixture, *choice.optima):
        assert (
            mixture[2] == 0.125
            and (mixture <= limits.upper).all()
            and mixture.sum() == pytest.approx(1, abs=1e-12)
        )


def test_the_probability_to_beat_the_natural_mixture_is_as_often_right_as_it_says():
    """Noise is larger than the differences between mixtures. The ridge alone keeps it quick.

    What each refit says of the mixture that all proxies chose together is too sure."""
    random = np.random.default_rng(0)
    natural = np.full(4, 0.25)
    pool = dirichlet_mixtures(natural, 100, random)
    said, own_word, happened = [], [], []
    for _ in range(100):
        slopes = random.normal(0, 0.05, (4, 1))
        mixtures = dirichlet_mixtures(natural, 12, random)
        losses = np.exp(1 + np.sqrt(mixtures) @ slopes) + random.normal(0, 0.2, (12, 1))
        proxies = Proxies(DOMAINS, mixtures, ("one",), losses)
        fit = MixtureFit({"ridge": fit_ridge(mixtures, losses)}, np.ones((1, 1)), [])
        refits = list(bootstrap_fits(proxies, fit, 20, random))
        optima = np.stack([pool[refit.predict(pool)[:, 0].argmin()] for refit in refits])
        said.append(probability_better(refits, optima, natural, np.ones(1)))
        chosen = pool[fit.predict(pool)[:, 0].argmin()]
        pairs = np.stack([refit.predict(np.stack([chosen, natural]))[:, 0] for refit in refits])
        own_word.append(np.mean(pairs[:, 0] < pairs[:, 1]))
        happened.append(np.sqrt(chosen) @ slopes[:, 0] < np.sqrt(natural) @ slopes[:, 0])
    said, own_word, happened = map(np.array, (said, own_word, happened))
    error = happened.std() / np.sqrt(len(happened))
    assert abs(said.mean() - happened.mean()) < 2 * error
    assert own_word.mean() > said.mean()
    sure = said > 0.9
    assert abs(said[sure].mean() - happened[sure].mean()) < 0.1


def test_too_few_proxies_give_a_comparison_in_words():
    proxies = proxies_of(law, 5, 0.01)
    capped = Limits(np.zeros(4), np.sort(proxies.weights, 0)[-2])  # excludes four of them or fewer
    choice = choose_mixture(proxies, FREE, NATURAL)
    best = proxies.losses.mean(1).argmin()
    assert (
        choice.verdict == "comparison"
        and "a comparison, not an optimum: 5 proxies over 4 domains, where an optimum needs 6"
        in choice.sentence
    )
    np.testing.assert_allclose(choice.mixture, proxies.weights[best], atol=1e-9)
    assert choice.better is None and choice.low is None and not len(choice.optima)
    assert {row["regressor"] for row in choice.scores} == set(REGRESSORS)
    allowed = (proxies.weights <= capped.upper + 1e-9).all(1)
    if allowed.any():
        best = np.where(allowed, proxies.losses.mean(1), np.inf).argmin()
        np.testing.assert_allclose(
            choose_mixture(proxies, capped, NATURAL).mixture, proxies.weights[best], atol=1e-6
        )
    with pytest.raises(UserError, match="needs 6 proxies, and none of these 5 keeps the limits"):
        choose_mixture(proxies, Limits(np.full(4, 0.25), np.full(4, 0.25)), NATURAL)


def test_three_proxies_of_which_two_have_one_loss_can_be_compared():
    losses = np.array([[2.0, 3.0], [2.0, 2.5], [3.0, 2.5]])
    choice = choose_mixture(Proxies(DOMAINS, np.eye(4)[:3], ("one", "two"), losses), FREE, NATURAL)
    np.testing.assert_allclose(choice.mixture, np.eye(4)[1], atol=1e-6)
    assert all(np.isfinite(row["error"]) for row in choice.scores)


def test_the_choice_is_a_pure_function_of_its_arguments():
    proxies = proxies_of(law, 8, 0.05)
    first, again, other = [
        choose_mixture(proxies, FREE, NATURAL, bootstraps=3, seed=seed) for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(first.optima, again.optima)
    assert (first.optima != other.optima).any()


def test_importance_is_shares_of_the_targets():
    np.testing.assert_allclose(target_shares(("one", "two"), {"one": 3, "two": 1}), [0.75, 0.25])
    np.testing.assert_allclose(target_shares(("one", "two"), None), [0.5, 0.5])
    for importance, words in (
        ({"on": 1}, "no such target. Did you mean 'one'"),
        ({"one": -1}, "0 or more"),
        ({}, "not all 0"),
        ({"one": float("nan")}, "0 or more"),
    ):
        with pytest.raises(UserError, match=words):
            target_shares(("one", "two"), importance)


def broken(**changed):
    return proxies_of(law, 8, 0.01)._replace(**changed)


GOOD = proxies_of(law, 8, 0.01)
NAN = np.where(np.arange(8)[:, None] == 3, np.nan, GOOD.losses)


@pytest.mark.parametrize(
    ("proxies", "words"),
    [
        (broken(losses=NAN), "proxy 3: expected losses above 0"),
        (broken(losses=-GOOD.losses), "proxy 0: expected losses above 0"),
        (broken(weights=GOOD.weights * 0.999), "proxy 0: the weights sum to 0.999; expected 1"),
        (broken(weights=GOOD.weights * np.nan), "proxy 0: expected weights of 0 or more"),
        (broken(weights=1.5 * GOOD.weights - 0.125), "expected weights of 0 or more"),
        (broken(weights=GOOD.weights[:2], losses=GOOD.losses[:2]), "2 different mixtures; expected 3"),
        (broken(weights=GOOD.weights[[0] * 8]), "1 different mixtures; expected 3"),
        (broken(weights=GOOD.weights[:0], losses=GOOD.losses[:0]), "0 different mixtures"),
        (broken(weights=np.ones((8, 1)), domains=("web",)), "two domains or more; found 1"),
        (broken(losses=GOOD.losses[:, :0], targets=()), "one target or more; found none"),
        (broken(losses=GOOD.losses[:5]), "do not fit 4 domains and 2 targets"),
        (broken(losses=np.ones((8, 2))), "target 'one': all proxies have the loss 1"),
    ],
)  # fmt: skip
def test_proxies_without_a_lesson_are_refused(proxies, words):
    with pytest.raises(UserError, match=words):
        choose_mixture(proxies, FREE, NATURAL)


def test_limits_that_no_mixture_keeps_are_refused():
    for arguments, words in (
        ({"budget": 1000}, "the largest weights sum to 0.4; allow more epochs"),
        ({"fixed": {"cod": 0.1}}, "no such domain. Did you mean 'code'"),
        ({"fixed": {"math": 0.5}}, "fixed share of 'math': 0.5; expected 0 to 0.4"),
        (
            {"fixed": {"web": 0.1, "books": 0.1, "code": 0.1, "math": 0.1}},
            "the largest weights sum to 0.4",
        ),
        ({"fixed": {"web": 0.9, "books": 0.9}}, "the smallest weights sum to 1.8"),
        ({"tokens": [1, 2, 3, float("nan")]}, "expected tokens of 4 domains"),
        ({"budget": 0}, "a budget and epochs above 0"),
        ({"domains": ["web"], "tokens": [1]}, "two domains or more; found 1"),
    ):
        arguments = {"domains": DOMAINS, "tokens": [40, 30, 20, 10], "budget": 100} | arguments
        with pytest.raises(UserError, match=words):
            mixture_limits(**arguments)
    with pytest.raises(UserError, match="limits of 4 domains, found 3"):
        choose_mixture(GOOD, Limits(np.zeros(3), np.ones(3)), NATURAL)
    with pytest.raises(UserError, match="0 <= lower <= upper"):
        check_limits(Limits(np.ones(2), np.zeros(2)), 2)
    with pytest.raises(UserError, match="not all 0"):
        choose_mixture(GOOD, FREE, np.zeros(4))
    with pytest.raises(UserError, match="two bootstraps or more; found 4, 0 and 1"):
        choose_mixture(GOOD, FREE, NATURAL, bootstraps=1)


def test_proxy_mixtures_are_drawn_around_the_tempered_prior_within_limits():
    mixtures = proxy_mixtures(NATURAL, FREE, 4000, 0)
    np.testing.assert_array_equal(mixtures, proxy_mixtures(NATURAL, FREE, 4000, 0))
    assert (mixtures != proxy_mixtures(NATURAL, FREE, 4000, 1)).any()
    tempered = np.sqrt(NATURAL) / np.sqrt(NATURAL).sum()
    # Dropping equal mixtures, most of them of one domain, moves the mean a little.
    np.testing.assert_allclose(mixtures.mean(0), tempered, atol=0.03)
    np.testing.assert_allclose(mixtures.sum(1), 1)
    assert not ((mixtures > 0) & (mixtures < FLOOR)).any()
    assert len(np.unique(np.round(mixtures / FLOOR), axis=0)) == 4000
    limits = mixture_limits(DOMAINS, [40, 30, 20, 10], 100, epochs=2, fixed={"books": 0.3})
    capped = proxy_mixtures([40, 30, 20, 10], limits, 200, 0)
    assert (capped[:, 1] == 0.3).all() and (capped <= limits.upper + 1e-12).all()
    np.testing.assert_allclose(capped.sum(1), 1)


def test_proxy_mixtures_that_cannot_be_drawn_are_refused():
    tight = Limits(np.zeros(4), np.full(4, 0.2501))
    with pytest.raises(
        UserError, match=r"only \d+ of 3,000 random mixtures keep the limits; expected 3"
    ):
        proxy_mixtures(NATURAL, tight, 3, 0)
    with pytest.raises(UserError, match="two domains or more that have text"):
        proxy_mixtures(NATURAL, Limits(np.full(4, 0.25), np.full(4, 0.25)), 3, 0)
    with pytest.raises(UserError, match="not all 0"):
        proxy_mixtures(np.zeros(4), FREE, 3, 0)


def test_a_weights_file_gives_a_phase_its_weights_and_keeps_what_chose_them(tmp_path):
    proxies = proxies_of(law, 8, 0.02)
    choice = choose_mixture(proxies, FREE, NATURAL, bootstraps=3)
    path = tmp_path / "mixture.json"
    inputs_hash = write_weights(path, choice, proxies, FREE, NATURAL)
    (phase,) = parse_phases([{"until": 1.0, "weights": read_weights(path)}])
    np.testing.assert_array_equal(list(phase.weights.values()), choice.mixture)
    content = json.loads(path.read_text())
    assert (
        content["inputs_hash"] == inputs_hash
        and content["inputs"]["losses"] == proxies.losses.tolist()
    )
    assert content["inputs"]["settings"]["bootstraps"] == 3
    again = tmp_path / "again.json"
    assert write_weights(again, choice, proxies, FREE, NATURAL) == inputs_hash
    moved = proxies._replace(losses=proxies.losses + 1e-9)
    assert write_weights(again, choice, moved, FREE, NATURAL) != inputs_hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["mixture"].update(web=0.5), "was changed after it was written"),
        (lambda content: content["inputs"]["losses"][0].__setitem__(0, 9.0), "was changed"),
        (lambda content: content.update(format=2), "of format 1"),
        (lambda content: content.clear(), "of format 1"),
    ],
)
def test_a_changed_weights_file_is_refused(tmp_path, change, words):
    path = tmp_path / "mixture.json"
    choice = choose_mixture(proxies_of(law, 5, 0.02), FREE, NATURAL)
    write_weights(path, choice, proxies_of(law, 5, 0.02), FREE, NATURAL)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        read_weights(path)


def test_a_missing_or_cut_weights_file_is_refused(tmp_path):
    path = tmp_path / "mixture.json"
    with pytest.raises(UserError, match="expected a file of mixture weights"):
        read_weights(path)
    path.write_text('{"format": 1, "mixt')
    with pytest.raises(UserError, match="expected a file of mixture weights"):
        read_weights(path)


@pytest.mark.parametrize(
    ("module", "package"), [("sklearn.linear_model", "scikit-learn"), ("scipy.stats", "scipy")]
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError, match=rf"needs {package}; install it with: pip install -e '.\[studies\]'"
    ):
        studies_library(module)


def test_a_constant_prediction_has_no_rank():
    assert rank_correlation(np.ones(3), np.arange(3.0)) is None
    assert rank_correlation(np.array([1.0, 2, 2]), np.array([2.0, 4, 4])) == pytest.approx(1)
