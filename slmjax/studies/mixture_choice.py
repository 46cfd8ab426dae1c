"""Choose a mixture from proxies: the optimum within limits, and how sure it is (bootstrap)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.errors import UserError, nearest
from slmjax.studies.mixture_fit import MixtureFit, Proxies, check_proxies, fit_mixture_losses
from slmjax.studies.mixture_limits import (
    Limits,
    check_limits,
    dirichlet_mixtures,
    natural_shares,
    within_limits,
)
from slmjax.studies.mixture_regressors import studies_library

BOOTSTRAPS = 200
INTERVAL = (2.5, 97.5)  # percentiles
CANDIDATES = 1024  # random mixtures among which the search begins
STARTS = 3  # of the candidates, the best ones
STEP = 1e-5  # of a derivative, in square roots of weights

Objective = Callable[[np.ndarray], np.ndarray]  # mixtures [m, domains] -> [m], lower is better


class MixtureChoice(NamedTuple):
    """A mixture and how it was chosen.

    verdict: "optimum" of the predicted losses, or "comparison": the best mixture that was tried.
    sentence: what the choice rests on, for a report.
    low, high: the 95 % interval of each weight; None for a comparison.
    better: probability that the mixture has a lower loss than the natural one; None for a
      comparison.
    optima: [bootstraps, domains]; none for a comparison.
    scores: see `MixtureFit`.
    settings: the arguments importance, penalty, bootstraps and seed.
    left_out: loss of each proxy as the others predict it.
    predicted, predicted_natural: losses of the mixture, and of the natural one within the limits.
    """

    mixture: Float[np.ndarray, " domains"]
    verdict: str
    sentence: str
    low: np.ndarray | None
    high: np.ndarray | None
    better: float | None
    optima: Float[np.ndarray, "bootstraps domains"]
    scores: list[dict[str, Any]]
    settings: dict[str, Any]
    left_out: Float[np.ndarray, " proxies"]
    predicted: float
    predicted_natural: float


def choose_mixture(
    proxies: Proxies,
    limits: Limits,
    natural: Sequence[float] | np.ndarray,
    *,
    importance: Mapping[str, float] | None = None,
    penalty: float = 0.0,
    bootstraps: int = BOOTSTRAPS,
    seed: int = 0,
) -> MixtureChoice:
    """Return the mixture with the lowest predicted loss, with an interval for each weight.

    With fewer than domains + 2 proxies the weights cannot be told apart. Then the choice is the
    proxy with the lowest loss among those that keep the limits.

    Args:
      natural: tokens of the domains, or their shares. The choice is compared with this mixture;
        where it breaks the limits, with the nearest one that keeps them.
      importance: {target: weight in the loss that is minimised}; None: all equal.
      penalty: added to the loss times KL(mixture || natural).
      bootstraps: how often the proxies are drawn anew, with replacement.
    Raises: UserError for what `fit_mixture_losses` refuses, other invalid arguments, limits that no
      mixture keeps, and too few proxies of which none keeps the limits.
    """
    check_proxies(proxies)
    check_limits(limits, len(proxies.domains))
    shares = target_shares(proxies.targets, importance)
    settings = {
        "importance": dict(zip(proxies.targets, shares.tolist(), strict=True)),
        "penalty": penalty,
        "bootstraps": bootstraps,
        "seed": seed,
    }
    natural = natural_shares(natural)
    if len(natural) != len(proxies.domains) or not penalty >= 0 or bootstraps < 2:
        raise UserError(
            f"expected {len(proxies.domains)} natural shares, a penalty of 0 or more and two "
            f"bootstraps or more; found {len(natural)}, {penalty:g} and {bootstraps}."
        )
    fit = fit_mixture_losses(proxies)
    natural = within_limits(limits, natural[None])[0]
    different = len(np.unique(proxies.weights, axis=0))
    if different < _needed(proxies):
        return _best_proxy(proxies, limits, natural, shares, fit, settings)
    random = np.random.default_rng(seed)
    pool = dirichlet_mixtures(natural, CANDIDATES, random)
    pool = np.concatenate([natural[None], within_limits(limits, pool)])
    surface = _loss_surface(fit, shares, natural, penalty)
    mixture = optimal_mixture(surface, limits, pool)
    refits = list(bootstrap_fits(proxies, fit, bootstraps, random))
    optima = []
    for refit in refits:
        surface = _loss_surface(refit, shares, natural, penalty)
        optima.append(optimal_mixture(surface, limits, np.concatenate([mixture[None], pool])))
    optima = np.stack(optima)
    low, high = np.percentile(optima, INTERVAL, axis=0)
    better = probability_better(refits, optima, natural, shares)
    sentence = (
        f"optimum of the losses that {len(proxies.weights)} proxies predict; its loss is lower "
        f"than the natural mixture's with probability {better:.2f} ({bootstraps} bootstraps)"
    )
    predicted = _predictions(fit, shares, mixture, natural)
    return MixtureChoice(
        mixture, "optimum", sentence, low, high, better, optima, fit.scores, settings, *predicted
    )


def _best_proxy(
    proxies: Proxies,
    limits: Limits,
    natural: np.ndarray,
    importance: np.ndarray,
    fit: MixtureFit,
    settings: dict[str, Any],
) -> MixtureChoice:
    """Return the proxy with the lowest loss among those that keep the limits."""
    inside = (proxies.weights >= limits.lower - 1e-9) & (proxies.weights <= limits.upper + 1e-9)
    allowed = np.flatnonzero(inside.all(1))
    if not len(allowed):
        raise UserError(
            f"an optimum over {len(proxies.domains)} domains needs {_needed(proxies)} proxies, and "
            f"none of these {len(proxies.weights)} keeps the limits."
        )
    losses = proxies.losses[allowed] @ importance
    best = allowed[losses.argmin()]
    sentence = (
        f"a comparison, not an optimum: {len(proxies.weights)} proxies over "
        f"{len(proxies.domains)} domains, where an optimum needs {_needed(proxies)}; proxy {best} "
        f"has the lowest loss of the {len(allowed)} that keep the limits"
    )
    mixture = within_limits(limits, proxies.weights[best][None])[0]
    none = np.empty((0, len(mixture)))
    predicted = _predictions(fit, importance, mixture, natural)
    return MixtureChoice(
        mixture, "comparison", sentence, None, None, None, none, fit.scores, settings, *predicted
    )


def _predictions(
    fit: MixtureFit, importance: np.ndarray, mixture: np.ndarray, natural: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Return (loss of each proxy as the others predict it, of the mixture, of the natural one)."""
    chosen, of_natural = fit.predict(np.stack([mixture, natural])) @ importance
    return fit.left_out() @ importance, float(chosen), float(of_natural)


def _needed(proxies: Proxies) -> int:
    """Return how many different mixtures an optimum needs."""
    return len(proxies.domains) + 2


def target_shares(targets: Sequence[str], importance: Mapping[str, float] | None) -> np.ndarray:
    """Return the weight of each target in the loss [targets]; they sum to 1.

    Raises: UserError for an unknown target, and weights that are negative or all 0.
    """
    if importance is None:
        return np.full(len(targets), 1 / len(targets))
    for name in importance:
        if name not in targets:
            raise UserError(f"importance of '{name}': no such target.{nearest(name, targets)}")
    given = np.array([float(importance.get(name, 0)) for name in targets])
    if not np.isfinite(given).all() or (given < 0).any() or not given.sum():
        raise UserError(f"importance {dict(importance)}: expected numbers of 0 or more, not all 0.")
    return given / given.sum()


def bootstrap_fits(
    proxies: Proxies, fit: MixtureFit, count: int, random: np.random.Generator
) -> Iterator[MixtureFit]:
    """Yield `count` refits, each to as many proxies, drawn from them with replacement.

    A draw with fewer than three different proxies is drawn again.
    """
    for _ in range(count):
        rows = np.zeros(1, int)
        while len(np.unique(rows)) < 3:
            rows = random.integers(len(proxies.weights), size=len(proxies.weights))
        drawn = proxies._replace(weights=proxies.weights[rows], losses=proxies.losses[rows])
        yield fit.refit(drawn)


def probability_better(
    refits: Sequence[MixtureFit],
    optima: Float[np.ndarray, "bootstraps domains"],
    natural: Float[np.ndarray, " domains"],
    importance: Float[np.ndarray, " targets"],
) -> float:
    """Return the probability that an optimum has a lower loss than the natural mixture.

    The optimum of each bootstrap is judged by all the other bootstraps, not by itself: an optimum
    looks best to the proxies that chose it. A tie counts half. The bootstraps show the noise of
    the proxies, but no error of form that all regressors share: for that, train both mixtures.
    """
    mixtures = np.concatenate([natural[None], optima])
    losses = np.stack([refit.predict(mixtures) @ importance for refit in refits])
    gains = losses[:, :1] - losses[:, 1:]  # [judges, optima]
    wins = (gains > 0) + 0.5 * (gains == 0)
    others = ~np.eye(len(refits), dtype=bool)
    return float(wins[others].mean())


def _loss_surface(
    fit: MixtureFit, importance: np.ndarray, natural: np.ndarray, penalty: float
) -> Objective:
    """Return the predicted loss of the basket plus penalty * KL(mixture || natural)."""

    def surface(mixtures: np.ndarray) -> np.ndarray:
        loss = fit.predict(mixtures) @ importance
        if penalty:
            # A weight of 0 counts 0, also where the natural one is 0.
            ratio = np.maximum(mixtures, 1e-12) / np.maximum(natural, 1e-12)
            loss = loss + penalty * (mixtures * np.log(ratio)).sum(1)
        return loss

    return surface


def optimal_mixture(
    surface: Objective, limits: Limits, pool: Float[np.ndarray, "m domains"]
) -> Float[np.ndarray, " domains"]:
    """Return the mixture within the limits at which the surface is lowest.

    Args:
      pool: mixtures within the limits; the search (SLSQP) goes on from the best of them.
    """
    optimize = studies_library("scipy.optimize")
    free = limits.upper > limits.lower
    values = surface(pool)
    order = values.argsort()
    best, best_value = pool[order[0]], values[order[0]]
    if not free.any():
        return best
    scale = max(float(np.ptp(values)), 1e-12)
    left = 1 - limits.lower[~free].sum()
    bounds = np.sqrt(np.stack([limits.lower[free], limits.upper[free]], 1))
    # The search moves square roots of weights: in these the surfaces are smooth, also near 0.
    steps = STEP * np.eye(free.sum())

    def value_and_slope(roots: np.ndarray) -> tuple[float, np.ndarray]:
        around = np.concatenate([roots[None], roots + steps, roots - steps])
        mixtures = np.tile(limits.lower, (len(around), 1))
        mixtures[:, free] = around**2
        found = surface(mixtures) / scale
        ahead, behind = np.split(found[1:], 2)
        return found[0], (ahead - behind) / (2 * STEP)

    whole = {
        "type": "eq",
        "fun": lambda roots: roots @ roots - left,
        "jac": lambda roots: 2 * roots,
    }
    for start in pool[order[:STARTS]]:
        result = optimize.minimize(
            value_and_slope,
            np.sqrt(start[free]),
            jac=True,
            method="SLSQP",
            bounds=bounds,
            constraints=whole,
            options={"ftol": 1e-10, "maxiter": 200},
        )
        mixture = limits.lower.copy()
        mixture[free] = result.x**2
        # The search keeps the limits only nearly.
        mixture = within_limits(limits, mixture[None])[0]
        value = surface(mixture[None])[0]
        if value < best_value:
            best, best_value = mixture, value
    return best
