"""Predict the losses of mixtures from proxies: all regressors, weighted by leave-one-out.

Every regressor is tried at every number of proxies, and all of their leave-one-out errors are in
the result. Targets and held-out runs take no part in the choice.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.errors import UserError
from slmjax.studies.mixture_regressors import (
    REGRESSORS,
    FittedRegressor,
    Losses,
    Weights,
    studies_library,
)

FEWEST_PROXIES = 3  # different mixtures; with two, one alone would predict the other
SUM_ERROR = 1e-6  # how far the weights of a mixture may be from summing to 1


class Proxies(NamedTuple):
    """Runs on different mixtures.

    domains: names, in the order of the weights.
    weights: [n, domains]; rows sum to 1.
    targets: names, in the order of the losses.
    losses: [n, targets], such as bits per byte on a held-out set; above 0.
    """

    domains: Sequence[str]
    weights: Weights
    targets: Sequence[str]
    losses: Losses


class MixtureFit(NamedTuple):
    """What the proxies say about other mixtures.

    regressors: {name: fitted regressor}.
    shares: [regressors, targets], of each regressor in the prediction of a target; sum to 1.
    scores: a row for each regressor and target: its leave-one-out error (root mean square, in the
      losses' unit), rank correlation (Spearman; None where it predicts a constant) and share.
    """

    regressors: dict[str, FittedRegressor]
    shares: Float[np.ndarray, "regressors targets"]
    scores: list[dict[str, Any]]

    def predict(self, mixtures: Float[np.ndarray, "m domains"]) -> Float[np.ndarray, "m targets"]:
        """Return the predicted losses of mixtures: the mean of the regressors by their shares."""
        total = 0.0
        for share, regressor in zip(self.shares, self.regressors.values(), strict=True):
            total = total + share * regressor.predict(mixtures)
        return total

    def left_out(self) -> Float[np.ndarray, "n targets"]:
        """Return the losses of the proxies, each as the other proxies predict it."""
        total = 0.0
        for share, regressor in zip(self.shares, self.regressors.values(), strict=True):
            total = total + share * regressor.left_out
        return total

    def refit(self, proxies: Proxies) -> "MixtureFit":
        """Return the same regressors with the same settings and shares, fitted to other proxies."""
        regressors = {}
        for name, regressor in self.regressors.items():
            fit = REGRESSORS[name]
            regressors[name] = fit(proxies.weights, proxies.losses, regressor.settings)
        return self._replace(regressors=regressors)


def fit_mixture_losses(proxies: Proxies) -> MixtureFit:
    """Fit all regressors to proxies and weight them by their leave-one-out errors.

    A regressor's share is proportional to 1 / error^2. The error is the squared one, relative to
    the variance of the losses: the mean of the target's own and that of all targets, because with
    few proxies the own one is mostly noise.

    Raises: UserError for proxies that `check_proxies` refuses, and without scikit-learn and scipy.
    """
    check_proxies(proxies)
    losses = proxies.losses
    regressors = {}
    for name, fit in REGRESSORS.items():
        regressors[name] = fit(proxies.weights, losses)
    squares = []
    for regressor in regressors.values():
        squares.append(((regressor.left_out - losses) ** 2).mean(0))
    squares = np.stack(squares)  # [regressors, targets]
    relative = squares / losses.var(0)
    errors = (relative + relative.mean(1, keepdims=True)) / 2
    # Over the smallest: the squares of tiny errors would vanish.
    shares = (errors.min(0) / errors) ** 2
    shares = shares / shares.sum(0)
    scores = []
    for number, (name, regressor) in enumerate(regressors.items()):
        for target, target_name in enumerate(proxies.targets):
            score = {
                "regressor": name,
                "target": target_name,
                "error": float(np.sqrt(squares[number, target])),
                "rank": rank_correlation(regressor.left_out[:, target], losses[:, target]),
                "share": float(shares[number, target]),
            }
            scores.append(score)
    return MixtureFit(regressors, shares, scores)


def check_proxies(proxies: Proxies) -> None:
    """Refuse proxies from which nothing can be learned.

    Raises: UserError for one domain, shapes that do not fit the names, numbers that are not finite,
      negative weights, weights that do not sum to 1, losses of 0 or less, fewer than FEWEST_PROXIES
      different mixtures, and a target whose losses are all the same.
    """
    domains, weights, targets, losses = proxies
    if len(domains) < 2:
        raise UserError(f"a mixture needs two domains or more; found {len(domains)}.")
    if not len(targets):
        raise UserError("a mixture is chosen for one target or more; found none.")
    if weights.shape[1] != len(domains) or losses.shape != (len(weights), len(targets)):
        raise UserError(
            f"weights {weights.shape} and losses {losses.shape} do not fit {len(domains)} domains "
            f"and {len(targets)} targets."
        )
    for number, (mixture, values) in enumerate(zip(weights, losses, strict=True)):
        _check_proxy(number, mixture, values)
    different = len(np.unique(weights, axis=0))
    if different < FEWEST_PROXIES:
        raise UserError(
            f"the proxies have {different} different mixtures; expected {FEWEST_PROXIES} or more."
        )
    for name, values in zip(targets, losses.T, strict=True):
        if not np.ptp(values):
            raise UserError(f"target '{name}': all proxies have the loss {values[0]:g}.")


def _check_proxy(number: int, mixture: np.ndarray, values: np.ndarray) -> None:
    """Raises: UserError for invalid weights or losses of one proxy."""
    if not np.isfinite(mixture).all() or (mixture < 0).any():
        raise UserError(f"proxy {number}: expected weights of 0 or more, found {mixture}.")
    if abs(mixture.sum() - 1) > SUM_ERROR:
        raise UserError(f"proxy {number}: the weights sum to {mixture.sum():.6g}; expected 1.")
    if not np.isfinite(values).all() or (values <= 0).any():
        raise UserError(f"proxy {number}: expected losses above 0, found {values}.")


def rank_correlation(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]
) -> float | None:
    """Return Spearman's rank correlation, with ties; None where one of the two is constant."""
    if not np.ptp(first) or not np.ptp(second):
        return None
    return float(studies_library("scipy.stats").spearmanr(first, second).statistic)
