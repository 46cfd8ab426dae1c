"""Bits per byte on held-out documents, document by document."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from slmjax.models.lm import Model
from slmjax.ops.cross_entropy import token_log_probs


class DocumentLosses(NamedTuple):
    """Of each held-out document that was read: its number in the shards, nats (the end token's too), UTF-8 bytes, tokens."""

    document: np.ndarray
    nats: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats.sum() / (self.bytes.sum() * math.log(2)))


def scorer(model: Model) -> Callable:
    """score(params, buffers, batch) -> nats of each token, zero on padding."""

    def score(params: dict, buffers: dict, batch: dict) -> Float[Array, "B T"]:
        hidden, _ = model.forward(params, buffers, batch)
        log_p, _ = token_log_probs(
            hidden, model.head(params), batch["targets"], chunks=model.chunks
        )
        return -log_p * batch["weights"]

    return score


def document_losses(score: Callable, batches: Iterable[dict], sizes: np.ndarray) -> DocumentLosses:
    """Score batches and add the nats up by document.

    Args:
      score: numpy batch -> nats [B,T], whole on every process.
      batches: numpy batches with `documents` [B,T] (-1 is padding), the whole batch on every process.
      sizes: bytes of every document of the shards.
    """
    nats, tokens = np.zeros(len(sizes)), np.zeros(len(sizes), np.int64)
    pending: list[tuple[np.ndarray, jax.Array]] = []
    for batch in batches:  # one batch is read back while the next one runs
        pending.append(
            (batch["documents"], score({k: v for k, v in batch.items() if k != "documents"}))
        )
        if len(pending) > 1:
            _add(pending.pop(0), nats, tokens)
    for one in pending:
        _add(one, nats, tokens)
    seen = np.flatnonzero(tokens)
    return DocumentLosses(seen, nats[seen], np.asarray(sizes)[seen], tokens[seen])


def _add(scored: tuple[np.ndarray, jax.Array], nats: np.ndarray, tokens: np.ndarray) -> None:
    documents, values = scored
    real = documents >= 0
    nats += np.bincount(documents[real], np.asarray(values, np.float64)[real], len(nats))
    tokens += np.bincount(documents[real], minlength=len(tokens))
