"""Preference accuracy before, of ours and of the peer, next to rules of length."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.bench.pair_splits import TokenPairs
from slmjax.evals.preferences import AnswerPairs, cluster_interval, length_hits, preference_hits

Hits = Float[np.ndarray, " pairs"]


class Share(NamedTuple):
    """A share or a difference of shares, with its 95 % interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it in per cent: "61.3 (57.0 to 65.4)"."""
        return f"{100 * self.value:.1f} ({100 * self.low:.1f} to {100 * self.high:.1f})"


def hits_of(pairs: TokenPairs, nats: Float[np.ndarray, "pairs 2"]) -> Hits:
    """Return 1 for each pair that a model has right, 0.5 for ties, else 0."""
    return preference_hits(AnswerPairs(nats, pairs.answer_tokens(), pairs.prompts))


def subset_scores(
    pairs: TokenPairs, before: Hits, ours: Sequence[Hits], theirs: Sequence[Hits]
) -> dict[str, dict[str, Any]]:
    """Return the scores of each source, and of all pairs together as "all".

    Hits are averaged over seeds, then over pairs. Prompts are resampled, the same ones for both
    sides, so the interval of the difference is that of paired models.

    Args:
      ours, theirs: hits of each seed.
    Returns: {subset: {"before", "ours", "trl", "difference": a Share of each; "longer" and
      "shorter": what the rules score; "pairs" and "prompts": how many}}.
    """
    mean_ours = np.mean(ours, 0)
    mean_theirs = np.mean(theirs, 0)
    columns = {
        "before": before,
        "ours": mean_ours,
        "trl": mean_theirs,
        "difference": mean_ours - mean_theirs,
    }
    no_nats = np.zeros((len(before), 2))
    longer = length_hits(AnswerPairs(no_nats, pairs.answer_tokens(), pairs.prompts))
    subsets = {}
    for number, name in enumerate(pairs.names):
        subsets[name] = pairs.sources == number
    subsets["all"] = np.ones(len(before), bool)
    scores = {}
    for name, members in subsets.items():
        # All pairs of a source may be too long.
        if not members.any():
            continue
        prompts = pairs.prompts[members]
        score: dict[str, Any] = {}
        for column, values in columns.items():
            score[column] = _share(values[members], prompts)
        longer_share = float(longer[members].mean())
        score["longer"] = longer_share
        score["shorter"] = 1 - longer_share
        score["pairs"] = len(prompts)
        score["prompts"] = len(np.unique(prompts))
        scores[name] = score
    return scores


def score_rows(scores: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table's rows of `subset_scores`, in per cent."""
    rows = []
    for name, score in scores.items():
        rows.append(
            {
                "preferred, %": name,
                "pairs": score["pairs"],
                "prompts": score["prompts"],
                "before": str(score["before"]),
                "ours": str(score["ours"]),
                "TRL": str(score["trl"]),
                "ours minus TRL": str(score["difference"]),
                "longer wins": f"{100 * score['longer']:.1f}",
                "shorter wins": f"{100 * score['shorter']:.1f}",
            }
        )
    return rows


def _share(values: Hits, prompts: np.ndarray) -> Share:
    low, high = cluster_interval(values, prompts)
    return Share(float(values.mean()), low, high)
