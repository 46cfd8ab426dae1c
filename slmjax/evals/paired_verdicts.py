"""Whether one set of verdicts is better than another on the same items, in words."""

from math import comb
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

SIGNIFICANT = 0.05


class PairedVerdicts(NamedTuple):
    """Two solvers on the same items.

    Attributes:
      first, second: shares of the items that each solves.
      first_only, second_only: items that only one of them solves.
      p: two-sided, of McNemar's exact test.
      sentence: what the statistics support.
    """

    first: float
    second: float
    first_only: int
    second_only: int
    p: float
    sentence: str


def compare_verdicts(
    first: Bool[np.ndarray, " items"],
    second: Bool[np.ndarray, " _items"],
    first_name: str = "the model",
    second_name: str = "the vote of the nearest problems",
) -> PairedVerdicts:
    """Compare two solvers by the items that only one of them solves.

    Raises: ValueError without items, or for different numbers of them.
    Source: McNemar 1947; exact, by the binomial distribution.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} verdicts cannot be paired")
    wins = int((first & ~second).sum())
    losses = int((second & ~first).sum())
    p = mcnemar_exact(wins, losses)
    shares = f"{100 * first.mean():.1f} % of {len(first):,} items, {second_name} {_percent(second)}"
    alone = f"{wins} are solved by {first_name} alone, {losses} by {second_name} alone"
    verdict = f"which of them is better cannot be told (exact McNemar p = {p:.2g})"
    if p < SIGNIFICANT:
        better = first_name if wins > losses else second_name
        verdict = f"{better} is better (exact McNemar p = {p:.2g})"
    sentence = f"{first_name} solves {shares}; {alone}: {verdict}."
    sentence = sentence[0].upper() + sentence[1:]
    return PairedVerdicts(float(first.mean()), float(second.mean()), wins, losses, p, sentence)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Return the two-sided p of McNemar's exact test; 1 where no item tells the two apart."""
    n = wins + losses
    tail = sum(comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)


def _percent(verdicts: Bool[np.ndarray, " items"]) -> str:
    return f"{100 * verdicts.mean():.1f} %"
