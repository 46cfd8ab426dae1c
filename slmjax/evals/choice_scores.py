"""Multiple choice: accuracies and calibration from the log-likelihoods of the choices."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from slmjax.evals.evaluation_items import ChoiceItem
from slmjax.evals.intervals import Figure, mean_of, resampled, share_of

BINS = 15  # of equal mass, for the calibration error


def choice_figures(
    items: Sequence[ChoiceItem], log_p: Sequence[Float[np.ndarray, " choices"]]
) -> dict[str, Figure]:
    """Return the figures of a set.

    acc: the gold choice has the highest log-likelihood.
    acc_norm: the same with log-likelihoods divided by the characters of the choices.
    acc_bytes: the same with UTF-8 bytes.
    brier: squared distance between the softmax of the log-likelihoods and the gold choice, summed
      over choices.
    calibration_error: mean distance between confidence and accuracy in BINS bins.
    acc, and a name of a group: of each group.

    acc_norm is left out where the contexts differ, or the sentences: the choices are then no
    answers whose lengths differ by chance.
    Args:
      log_p: of each item's choices, in nats.
    Source: EleutherAI's lm-evaluation-harness 0.4.13, multiple_choice; Naeini et al. 2015
      (calibration error), with bins of equal mass.
    """
    chance = float(np.mean([1 / len(item.choices) for item in items]))
    hits = choice_hits(items, log_p)
    figures = {"acc": share_of(hits["acc"], chance)}
    # One context, several continuations.
    if all(len({context for context, _ in item.pairs}) == 1 and item.pairs[0][0] for item in items):
        for name in ("acc_norm", "acc_bytes"):
            figures[name] = share_of(hits[name], chance)
    probabilities = [_softmax(values) for values in log_p]
    squares = []
    for item, shares in zip(items, probabilities, strict=True):
        gold = np.arange(len(shares)) == item.gold
        squares.append(float(((shares - gold) ** 2).sum()))
    figures["brier"] = mean_of(np.array(squares))
    confidences = np.array([shares.max() for shares in probabilities])
    rows = np.column_stack([confidences, hits["acc"]])
    figures["calibration_error"] = resampled(rows, calibration_error)
    groups = np.array([item.group for item in items])
    for group in sorted(set(groups) - {""}):
        figures[f"acc, {group}"] = share_of(hits["acc"][groups == group], chance)
    return figures


def choice_hits(
    items: Sequence[ChoiceItem], log_p: Sequence[Float[np.ndarray, " choices"]]
) -> dict[str, Bool[np.ndarray, " items"]]:
    """Return, for acc, acc_norm and acc_bytes, whether each item is answered rightly.

    Of equally likely choices the first one is taken.
    """
    hits = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for item, values in zip(items, log_p, strict=True):
        characters = np.array([len(choice) for choice in item.choices])
        sizes = np.array([len(choice.encode()) for choice in item.choices])
        hits["acc"].append(np.argmax(values) == item.gold)
        hits["acc_norm"].append(np.argmax(values / characters) == item.gold)
        hits["acc_bytes"].append(np.argmax(values / sizes) == item.gold)
    return {name: np.array(values) for name, values in hits.items()}


def calibration_error(rows: Float[np.ndarray, "n 2"]) -> float:
    """Return the mean distance between confidence and accuracy over bins of equal mass.

    Args:
      rows: confidence, and 1 where the answer is right.
    """
    ordered = rows[np.argsort(rows[:, 0], kind="stable")]
    total = 0.0
    for part in np.array_split(ordered, min(BINS, len(rows))):
        confidence, accuracy = part.mean(0)
        total += len(part) * abs(confidence - accuracy)
    return total / len(rows)


def split_by_item(
    values: Float[np.ndarray, " pairs"], items: Sequence[ChoiceItem]
) -> list[np.ndarray]:
    """Return the values of each item's choices, from those of all items one after the other."""
    ends: Int[np.ndarray, " items"] = np.cumsum([len(item.choices) for item in items])
    return np.split(values, ends[:-1])


def _softmax(values: Float[np.ndarray, " choices"]) -> Float[np.ndarray, " choices"]:
    shares = np.exp(values - values.max())
    return shares / shares.sum()
