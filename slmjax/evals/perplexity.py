"""Bits per byte on held-out documents, document by document."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from slmjax.models.lm import Model
from slmjax.ops.cross_entropy import token_log_probs


class DocumentLosses(NamedTuple):
    """Losses of the held-out documents that were read, as arrays of one length.

    Attributes:
      document: number of the document in the shards.
      nats: summed over its tokens, the end token's included.
      bytes: UTF-8 bytes of its text.
      tokens: tokens that were scored.
    """

    document: np.ndarray
    nats: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray

    @property
    def bits_per_byte(self) -> float:
        """Bits of all documents over the bytes of their text."""
        nats, size = self.nats.sum(), self.bytes.sum()
        return float(nats / (size * math.log(2)))


def scorer(model: Model) -> Callable:
    """Return a function score(params, buffers, batch) -> nats of each token [B,T].

    Nats are -log p(target) times the batch's "weights", so zero on padding.
    """

    def score(params: dict, buffers: dict, batch: dict) -> Float[Array, "B T"]:
        # hidden [B,T,D]. Logits [B,T,V] never exist: the head is applied in chunks.
        hidden, _ = model.forward(params, buffers, batch)
        head = model.head(params)
        targets = batch["targets"]
        log_p, _ = token_log_probs(hidden, head, targets, chunks=model.chunks)
        return -log_p * batch["weights"]

    return score


def document_losses(
    score: Callable,
    batches: Iterable[dict],
    sizes: Int[np.ndarray, " documents"],
) -> DocumentLosses:
    """Score batches and add the nats up by document.

    Args:
      score: numpy batch -> nats [B,T]; each process gets those of the whole batch.
      batches: numpy batches, the same on every process, with `documents` [B,T]: the number of each
        token's document, -1 on padding.
      sizes: bytes of every document of the shards, by its number.
    """
    nats = np.zeros(len(sizes))
    tokens = np.zeros(len(sizes), np.int64)
    # One batch is read back while the device computes the next one.
    pending: list[tuple[np.ndarray, jax.Array]] = []
    for batch in batches:
        inputs = {name: array for name, array in batch.items() if name != "documents"}
        pending.append((batch["documents"], score(inputs)))
        if len(pending) > 1:
            documents, scores = pending.pop(0)
            _add_batch(documents, scores, nats, tokens)
    for documents, scores in pending:
        _add_batch(documents, scores, nats, tokens)
    # Documents that no batch held are left out.
    scored = np.flatnonzero(tokens)
    scored_sizes = np.asarray(sizes)[scored]
    return DocumentLosses(scored, nats[scored], scored_sizes, tokens[scored])


def _add_batch(
    documents: Int[np.ndarray, "B T"],
    scores: Float[Array, "B T"],
    nats: Float[np.ndarray, " documents"],
    tokens: Int[np.ndarray, " documents"],
) -> None:
    """Add a batch's nats and tokens to those of its documents, in place."""
    is_real = documents >= 0
    # float64, since a sum of many float32 values loses digits.
    values = np.asarray(scores, np.float64)[is_real]
    owners = documents[is_real]
    nats += np.bincount(owners, values, len(nats))
    tokens += np.bincount(owners, minlength=len(tokens))
