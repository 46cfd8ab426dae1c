"""Preference accuracy: how often a model gives the chosen answer more probability a token."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 2000  # of the prompts, for an interval
# Quantiles at the ends of the interval: it is the middle 95 %.
INTERVAL = (0.025, 0.975)


class AnswerPairs(NamedTuple):
    """Scored pairs. Column 0 is the chosen answer, column 1 the rejected one.

    Attributes:
      nats: of each answer, summed over its tokens.
      tokens: of each answer, its end included.
      prompts: the same number for pairs of the same prompt.
    """

    nats: Float[np.ndarray, "pairs 2"]
    tokens: Int[np.ndarray, "pairs 2"]
    prompts: Int[np.ndarray, " pairs"]


class PreferenceScore(NamedTuple):
    """Scores of a set of pairs.

    Attributes:
      accuracy: share of pairs whose chosen answer has fewer nats a token; a tie is half a hit.
      low, high: its 95 % interval over prompts.
      margin: mean difference of the answers' log-odds.
      longer: share of pairs whose chosen answer is the longer one, which is what the rule "longer
        wins" scores; "shorter wins" scores 1 - longer.
      chosen_tokens, rejected_tokens: mean lengths.
      pairs, prompts: how many.
    """

    accuracy: float
    low: float
    high: float
    margin: float
    longer: float
    chosen_tokens: float
    rejected_tokens: float
    pairs: int
    prompts: int


def preference_score(scored: AnswerPairs) -> PreferenceScore:
    """Return the scores of pairs.

    Pairs of one prompt are resampled together, since they share its difficulty. Source: Efron &
    Tibshirani 1993, chapter 8.
    """
    hits = preference_hits(scored)
    log_odds = _log_odds(scored.nats / scored.tokens)
    low, high = cluster_interval(hits, scored.prompts)
    chosen_tokens, rejected_tokens = scored.tokens.mean(0)
    return PreferenceScore(
        accuracy=float(hits.mean()),
        low=low,
        high=high,
        margin=float((log_odds[:, 0] - log_odds[:, 1]).mean()),
        longer=float(length_hits(scored).mean()),
        chosen_tokens=float(chosen_tokens),
        rejected_tokens=float(rejected_tokens),
        pairs=len(hits),
        prompts=len(np.unique(scored.prompts)),
    )


def preference_hits(scored: AnswerPairs) -> Float[np.ndarray, " pairs"]:
    """Return 1 for each pair whose chosen answer has fewer nats a token, 0.5 for ties, else 0."""
    means = scored.nats / scored.tokens
    return _wins(means[:, 1], means[:, 0])


def length_hits(scored: AnswerPairs) -> Float[np.ndarray, " pairs"]:
    """Return 1 for each pair whose chosen answer is the longer one, 0.5 for ties, else 0."""
    return _wins(scored.tokens[:, 0], scored.tokens[:, 1])


def cluster_interval(
    values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]
) -> tuple[float, float]:
    """Return (low, high) of the 95 % interval of the mean, with whole clusters resampled.

    Args:
      clusters: the same number for values of the same cluster.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    sums = np.bincount(cluster, values)
    counts = np.bincount(cluster)
    # The same draws every time, so that two runs on the same pairs have comparable intervals.
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(sums), len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.quantile(means, INTERVAL)
    return float(low), float(high)


def _wins(values: np.ndarray, others: np.ndarray) -> Float[np.ndarray, " n"]:
    """Return 1 where a value is larger than the other, 0.5 where they are equal, else 0."""
    return (values > others) + 0.5 * (values == others)


def _log_odds(nats: Float[np.ndarray, "pairs 2"]) -> Float[np.ndarray, "pairs 2"]:
    """Return log(p / (1 - p)) of p = exp(-nats), in float64; finite also at 0 nats."""
    return -np.log(np.expm1(np.maximum(nats, 1e-300)))
