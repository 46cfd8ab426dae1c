"""Mixture regression on RegMix's public runs, next to LightGBM: rank and regret.

python -m slmjax.bench regmix
python -m slmjax.bench regmix --proxies=8,32 --subsets=5 --heldout=1m

Fits on runs of 1M parameters and predicts the losses of held-out mixtures, trained with 60M
parameters (--heldout=1m: with 1M). The subsets of proxies are random and the same for all
regressors. LightGBM has RegMix's settings, but does not stop early on the held-out runs; with these
it predicts a constant from fewer than 40 proxies. "lightgbm-3" allows leaves of three proxies. Both
are left out where LightGBM is not installed.

Rank is Spearman's correlation of predicted and measured losses. Regret is the loss of the run that
is predicted to be the best one (the mean of all such runs), minus the lowest loss.

Reads regmix/*.csv in $SLMJAX_SHARED (../shared/data unless set).
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.bench import shell
from slmjax.bench.peers import regmix_lightgbm
from slmjax.errors import UserError
from slmjax.studies.mixture_fit import Proxies, check_proxies, fit_mixture_losses, rank_correlation

TARGET = "pile_cc"  # the loss of the goals
RESAMPLES = 400  # of the held-out runs, for an interval where all proxies are used at once
OURS = "slmjax"

Row = dict[str, Any]
Scores = dict[str, list[np.ndarray]]  # who -> rank and regret [2, losses] of each subset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench regmix`."""
    parser.add_argument(
        "--proxies",
        type=shell.numbers(3),
        default=[8, 32, 128, 512],
        help="numbers of proxies, with commas between them",
    )
    parser.add_argument("--subsets", type=int, default=20, help="random subsets of each number")
    parser.add_argument("--heldout", choices=("60m", "1m"), default="60m", help="held-out runs")
    parser.add_argument("--no-peers", action="store_true", help="measure slmjax alone")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return {"bench", "heldout", "rows", "sets"}.

    rows: for each number of proxies and regressor rank and regret on TARGET, means over subsets
      with their standard deviations, percentiles 2.5 and 97.5 of the rank, and means over all
      losses. Last are the paired differences to LightGBM. With all proxies there is one subset:
      standard deviations and percentiles are over bootstraps of the held-out runs.
    sets: mean rank and regret of each loss.

    Raises: UserError without RegMix's runs, for more proxies than there are, and one subset.
    """
    folder = Path(os.environ.get("SLMJAX_SHARED", "../shared/data")).expanduser() / "regmix"
    proxies = read_runs(folder, "train", "1m")
    heldout = read_runs(folder, "test", arguments.heldout)
    check_proxies(heldout)
    peers = []
    if regmix_lightgbm.has_lightgbm() and not arguments.no_peers:
        peers = list(regmix_lightgbm.PEERS)
    target = proxies.targets.index(TARGET)
    rows, losses = [], []
    if max(arguments.proxies) > len(proxies.weights):
        raise UserError(f"--proxies: there are {len(proxies.weights)}.")
    if arguments.subsets < 2:
        raise UserError(f"--subsets: expected 2 or more, found {arguments.subsets}.")
    for count in arguments.proxies:
        # There is one subset of all proxies.
        subsets = arguments.subsets if count < len(proxies.weights) else 1
        scores: Scores = {}
        for subset in range(subsets):
            chosen = np.random.default_rng([subset, count]).permutation(len(proxies.weights))
            some = proxies._replace(
                weights=proxies.weights[chosen[:count]], losses=proxies.losses[chosen[:count]]
            )
            predictions = _predictions(some, heldout, peers)
            for who, predicted in predictions.items():
                scores.setdefault(who, []).append(score(predicted, heldout.losses))
        resampled = scores
        if count == len(proxies.weights):
            resampled = _resampled(predictions, heldout.losses)
        for who in scores:
            row = _summary(count, who, scores, resampled, target)
            rows.append(row)
            shell.print_row(row)
        for who in peers:
            rows.append(_difference(count, who, scores, resampled, target))
            shell.print_row(rows[-1])
        losses += _per_loss(count, {who: scores[who] for who in (OURS, *peers)}, proxies.targets)
    return {"bench": "regmix", "heldout": arguments.heldout, "rows": rows, "sets": losses}


def read_runs(folder: Path, part: str, size: str) -> Proxies:
    """Return RegMix's runs of a part ("train", "test") and size ("1m", "60m").

    The weights, which RegMix rounds to thousandths, are divided by their sum.
    Raises: UserError where a file is missing or no table, or weights and losses are not of the same
      runs.
    """
    tables = []
    for kind in ("mixture", "pile_loss"):
        file = folder / f"{part}_{kind}_{size}.csv"
        if not file.is_file():
            raise UserError(f"{file} is missing; SLMJAX_SHARED names the folder with regmix/.")
        with file.open(encoding="utf-8") as lines:
            names = next(lines, "").strip().split(",")[1:]
            try:
                tables.append((names, np.loadtxt(lines, delimiter=",", ndmin=2)))
            except ValueError as error:
                raise UserError(f"{file}: expected a table of numbers: {error}.") from error
    (domains, weights), (targets, losses) = tables
    if not np.array_equal(weights[:, 0], losses[:, 0]):
        raise UserError(f"{folder}: mixtures and losses of {part} {size} are not of the same runs.")
    weights = weights[:, 1:] / weights[:, 1:].sum(1, keepdims=True)
    short_domains = [name.removeprefix("train_the_pile_") for name in domains]
    short_targets = []
    for name in targets:
        short_targets.append(name.removeprefix("metric/the_pile_").removesuffix("_val_loss"))
    return Proxies(short_domains, weights, short_targets, losses[:, 1:])


def score(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return rank and regret of each loss [2, losses] from losses [runs, losses].

    The rank of a constant prediction is 0.
    """
    values = []
    for guess, truth in zip(predicted.T, measured.T, strict=True):
        regret = truth[guess == guess.min()].mean() - truth.min()
        values.append((rank_correlation(guess, truth) or 0.0, regret))
    return np.array(values).T


def _predictions(proxies: Proxies, heldout: Proxies, peers: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the losses [runs, losses] that each regressor predicts for the held-out runs."""
    fit = fit_mixture_losses(proxies)
    predictions = {OURS: fit.predict(heldout.weights)}
    for name, regressor in fit.regressors.items():
        predictions[name] = regressor.predict(heldout.weights)
    for who in peers:
        peer = regmix_lightgbm.fit_lightgbm(proxies.weights, proxies.losses, who)
        predictions[who] = peer(heldout.weights)
    return predictions


def _resampled(predictions: dict[str, np.ndarray], measured: np.ndarray) -> Scores:
    """Return scores of held-out runs that are drawn with replacement, RESAMPLES times.

    The regret is against the best run of the draw. Draws are the same for all regressors.
    """
    random = np.random.default_rng(0)
    scores: Scores = {who: [] for who in predictions}
    for _ in range(RESAMPLES):
        draw = random.integers(len(measured), size=len(measured))
        for who, predicted in predictions.items():
            scores[who].append(score(predicted[draw], measured[draw]))
    return scores


def _summary(count: int, who: str, scores: Scores, resampled: Scores, target: int) -> Row:
    """Return a row of the table; see `run`."""
    return {
        "proxies": count,
        "who": who,
        **_columns(np.stack(scores[who]), np.stack(resampled[who]), target),
    }


def _difference(count: int, who: str, scores: Scores, resampled: Scores, target: int) -> Row:
    """Return the row of paired differences, ours minus a peer's."""
    difference = np.stack(scores[OURS]) - np.stack(scores[who])
    spread = np.stack(resampled[OURS]) - np.stack(resampled[who])
    columns = _columns(difference, spread, target)
    return {"proxies": count, "who": f"{OURS} - {who}", **columns}


def _columns(values: np.ndarray, spread: np.ndarray, target: int) -> Row:
    """Return means of `values` and standard deviations of `spread`, both [samples, 2, losses]."""
    mean, deviation = values.mean(0), spread.std(0, ddof=1)
    low, high = np.percentile(spread[:, 0, target], (2.5, 97.5))
    return {
        "rank": mean[0, target],
        "rank_sd": deviation[0, target],
        "rank_low": low,
        "rank_high": high,
        "regret": mean[1, target],
        "regret_sd": deviation[1, target],
        "rank_all": mean[0].mean(),
        "regret_all": mean[1].mean(),
    }


def _per_loss(count: int, scores: Scores, targets: Sequence[str]) -> list[Row]:
    """Return mean rank and regret of each loss, for each who in `scores`."""
    rows = []
    for number, name in enumerate(targets):
        row = {"loss": name, "proxies": count}
        for who, values in scores.items():
            rank, regret = np.stack(values)[:, :, number].mean(0)
            row |= {f"{who}_rank": rank, f"{who}_regret": regret}
        rows.append(row)
    return rows
