"""Score a near-duplicate search against the exact similarity of all pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Integer


def scores(
    keeper: Integer[np.ndarray, " documents"],
    exact: Float32[np.ndarray, "documents documents"],
    threshold: float,
) -> dict[str, Any]:
    """Return precision and recall of the removed documents.

    Args:
      keeper: for each document, the one that is kept for it; itself if it is kept.
      exact: Jaccard similarities of all pairs.
    Returns:
      pairs: how many are at least as similar as the threshold.
      removed: documents that the search removes.
      exact: documents that the greedy rule removes that knows all pairs.
      precision: share of removed documents that are so similar to a kept one.
      recall: share of what the greedy rule removes that the search removes too.
      left: documents that are kept although a kept one before them is so similar.
    """
    documents = len(keeper)
    near = np.tril(exact >= threshold, -1)  # [document, earlier document]
    kept = keeper == np.arange(documents)
    # The greedy rule keeps a document if no kept one before it is near.
    greedy = np.ones(documents, bool)
    for document in range(documents):
        greedy[document] = not (near[document] & greedy).any()
    removed = np.flatnonzero(~kept)
    # Similar to any kept document, also to one behind it.
    right = np.ones(0, bool)
    if len(removed):
        nearest_kept = exact[removed][:, kept].max(1, initial=0)
        right = nearest_kept >= threshold
    twins = near & kept[:, None] & kept[None]
    greedy_removed = (~greedy).sum()
    both_removed = (~kept & ~greedy).sum()
    return {
        "pairs": int(near.sum()),
        "removed": len(removed),
        "exact": int(greedy_removed),
        "precision": float(right.mean()),
        "recall": float(both_removed / greedy_removed),
        "left": int(twins.any(1).sum()),
    }


def similarities(sets: Sequence[set[str]]) -> Float32[np.ndarray, "documents documents"]:
    """Return the exact Jaccard similarity of all pairs of sets of shingles."""
    holders: dict[str, list[int]] = {}
    for document, shingles in enumerate(sets):
        for shingle in shingles:
            holders.setdefault(shingle, []).append(document)
    # Each shingle adds one to all pairs that hold it: few do, so this beats comparing pairs.
    common = np.zeros((len(sets), len(sets)), np.int32)
    for documents in holders.values():
        common[np.ix_(documents, documents)] += 1
    sizes = np.array([len(shingles) for shingles in sets])
    union = sizes[:, None] + sizes[None] - common
    return (common / union).astype(np.float32)
