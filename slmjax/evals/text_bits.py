"""Bits per byte of texts that were not prepared, cut into rows as held-out text is."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from slmjax.data.heldout_rows import heldout_batches
from slmjax.evals.intervals import Figure, resampled
from slmjax.evals.perplexity import DocumentLosses, document_losses, scorer
from slmjax.models.lm import Model
from slmjax.text.records import TEXT
from slmjax.text.tokenizer import Tokenizer

BATCH_TOKENS = 1 << 13


class TextDocuments:
    """Texts in memory with what `heldout_batches` asks of a ShardSet."""

    kind = TEXT
    chat = None

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]):
        # Each document begins with end-of-text, and the one behind it is its last target.
        self._ids = []
        for ids in tokenizer.encode_batch(texts):
            self._ids.append(np.array([tokenizer.eot, *ids, tokenizer.eot], np.int32))
        self.lengths = np.array([len(ids) - 1 for ids in self._ids])
        self.bytes = np.array([len(text.encode()) for text in texts])

    def read(self, doc: int, offset: int, count: int) -> np.ndarray:
        """See ShardSet.read."""
        return self._ids[doc][offset : offset + count + 1]


def text_losses(
    model: Model,
    params: dict,
    buffers: dict,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    seq_len: int,
) -> DocumentLosses:
    """Return the losses of texts, which are cut every `seq_len` tokens as held-out text is.

    Args:
      model: its attention must not need the number of packed documents beforehand.
    """
    documents = TextDocuments(tokenizer, texts)
    batches = heldout_batches(documents, seq_len=seq_len, batch=max(1, BATCH_TOKENS // seq_len))
    score = jax.jit(scorer(model))
    return document_losses(
        functools.partial(_score_batch, score, params, buffers), batches, documents.bytes
    )


def text_figures(losses: DocumentLosses) -> dict[str, Figure]:
    """Return bits per byte of all texts together, with an interval over texts."""
    rows = np.column_stack([losses.nats / np.log(2), losses.bytes])

    def ratio(rows: Float[np.ndarray, "documents 2"]) -> float:
        bits, size = rows.sum(0)
        return float(bits / size)

    return {"bits_per_byte": resampled(rows, ratio)}


def _score_batch(score: Any, params: dict, buffers: dict, batch: dict) -> Float[Array, "B T"]:
    return score(params, buffers, batch)
