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

    A pair is near if its similarity is at least the threshold. The reference is the greedy rule
    with knowledge of all pairs: it keeps a document unless an earlier kept document is near.

    Args:
      keeper: for each document, the number of the document that is kept in its place; its own
        number if it is kept.
      exact: Jaccard similarities of all pairs.
    Returns: a dict with these keys.
      pairs: number of near pairs.
      removed: documents that the search removes.
      exact: documents that the greedy rule removes.
      precision: share of removed documents that are near a kept document; NaN if none is removed.
      recall: share of what the greedy rule removes that the search removes too.
      left: documents that the search keeps although an earlier kept document is near.
    """
    documents = len(keeper)
    near = np.tril(exact >= threshold, -1)  # [document, earlier document]
    kept = keeper == np.arange(documents)
    greedy_kept = np.ones(documents, bool)
    for document in range(documents):
        # `near` has earlier documents only, so those that are not decided yet do not count.
        greedy_kept[document] = not (near[document] & greedy_kept).any()
    removed = np.flatnonzero(~kept)
    # Near any kept document, an earlier or a later one.
    correct = np.ones(0, bool)
    if len(removed):
        nearest_kept = exact[removed][:, kept].max(1, initial=0)
        correct = nearest_kept >= threshold
    kept_near_kept = near & kept[:, None] & kept[None]
    greedy_removed = (~greedy_kept).sum()
    both_removed = (~kept & ~greedy_kept).sum()
    return {
        "pairs": int(near.sum()),
        "removed": len(removed),
        "exact": int(greedy_removed),
        "precision": float(correct.mean()),
        "recall": float(both_removed / greedy_removed),
        "left": int(kept_near_kept.any(1).sum()),
    }


def similarities(sets: Sequence[set[str]]) -> Float32[np.ndarray, "documents documents"]:
    """Return the exact Jaccard similarity of all pairs of sets of shingles."""
    holders: dict[str, list[int]] = {}
    for document, shingles in enumerate(sets):
        for shingle in shingles:
            holders.setdefault(shingle, []).append(document)
    # Each shingle adds one to every pair of documents that hold it. Most shingles are in few
    # documents, so this is faster than comparing all pairs.
    common = np.zeros((len(sets), len(sets)), np.int32)
    for documents in holders.values():
        common[np.ix_(documents, documents)] += 1
    sizes = np.array([len(shingles) for shingles in sets])
    union = sizes[:, None] + sizes[None] - common
    return (common / union).astype(np.float32)
