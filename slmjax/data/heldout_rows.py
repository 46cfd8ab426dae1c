"""Held-out documents as batches of a fixed shape, for evaluation."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from slmjax.data import packing
from slmjax.data.folding import fold, unfold
from slmjax.data.spans import DocumentSpan
from slmjax.data.whole_rows import SEGMENTS_OF_KIND
from slmjax.text.records import PAIRS, TEXT


def heldout_batches(
    shards: Any,
    *,
    seq_len: int,
    batch: int,
    max_segments: int = 16,
    max_tokens: int | None = None,
    local_rows: Sequence[int] | None = None,
) -> "HeldoutBatches":
    """Return held-out documents in their order as fixed-shape batches.

    The result has a length and may be iterated any number of times. Documents are cut every
    `seq_len` tokens and their pieces go first-fit into rows; the last batch may end in empty rows.
    Which row holds what does not depend on the number of processes. Batches have the arrays of
    training batches and one more: `documents` int32 [len(local_rows), T], the index of each token's
    document in the ShardSet, -1 in padding.

    Dialogues and pairs are read whole or not at all, and only where an answer's token is predicted
    there is a document. The answers of pair i count as two: 2i is the chosen one, 2i + 1 the
    rejected one.

    Args:
      shards: a ShardSet.
      seq_len, batch: shape of every batch.
      max_segments: most documents of a row.
      max_tokens: only the first documents are taken, as many whole ones as fit into this many
        tokens, but at least one; None: all.
      local_rows: which rows of each batch to read; None: all.
    """
    lengths = shards.lengths
    if shards.kind != TEXT:
        # Dialogues are not cut: longer ones are left out.
        lengths = np.where(lengths <= seq_len, lengths, 0)
        # From here on the bound counts documents.
        max_segments //= SEGMENTS_OF_KIND[shards.kind]
    document_count = len(lengths)
    if max_tokens is not None:
        ends = np.cumsum(lengths)
        fitting = int(np.searchsorted(ends, max_tokens, "right"))
        # Documents that are left out have length 0.
        first = int((lengths > 0).argmax()) + 1
        document_count = max(first, fitting)
    rows = packing.first_fit(lengths[:document_count], seq_len, max_segments)
    if local_rows is None:
        local_rows = range(batch)
    return HeldoutBatches(shards, rows, seq_len, batch, local_rows)


class HeldoutBatches:
    """Batches of held-out rows, see `heldout_batches`."""

    def __init__(
        self,
        shards: Any,
        rows: list[tuple[DocumentSpan, ...]],
        seq_len: int,
        batch: int,
        local_rows: Sequence[int],
    ):
        self._shards = shards
        self._rows = rows
        self._seq_len = seq_len
        self._batch = batch
        self._local_rows = local_rows

    def __len__(self) -> int:
        # Rounded up: the last batch is filled with empty rows.
        return -(-len(self._rows) // self._batch)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, len(self._rows), self._batch):
            rows = [self._row(first + i) for i in self._local_rows]
            # `fold` reads the text; `unfold` makes the arrays of a training batch from it.
            folded = fold([(self._shards, spans) for spans in rows], self._seq_len)
            batch = unfold(folded, self._shards.chat)
            documents = self._documents(rows)
            if self._shards.kind != TEXT:
                documents = self._answers(batch, documents)
            batch["documents"] = documents
            yield batch

    def _row(self, number: int) -> tuple[DocumentSpan, ...]:
        """Return the spans of a row; an empty tuple for a number behind the last row."""
        if number < len(self._rows):
            return self._rows[number]
        return ()

    def _answers(
        self, batch: dict[str, np.ndarray], documents: Int32[np.ndarray, "rows T"]
    ) -> Int32[np.ndarray, "rows T"]:
        """Return `documents` only where the target belongs to an answer, -1 elsewhere.

        The answers of a pair are numbered 2 * document (chosen) and 2 * document + 1 (rejected).
        """
        if self._shards.kind == PAIRS:
            # Segments count from 1, so the chosen dialogues are the odd ones.
            is_rejected = batch["segments"] % 2 == 0
            documents = 2 * documents + is_rejected
        return np.where(batch["weights"] > 0, documents, -1).astype(np.int32)

    def _documents(self, rows: list[tuple[DocumentSpan, ...]]) -> Int32[np.ndarray, "rows T"]:
        """Return the index of each token's document, -1 in padding."""
        shape = (len(rows), self._seq_len)
        documents = np.full(shape, -1, np.int32)
        for row, spans in enumerate(rows):
            # Spans follow each other without gaps, as in `fold`.
            start = 0
            for span in spans:
                documents[row, start : start + span.length] = span.doc
                start += span.length
        return documents
