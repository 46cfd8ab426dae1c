"""Grain's own packers as peers of our loader: they read and pack the same documents as a stream.

They run in one process and give fewer arrays (tokens, segments, positions; no targets, no weights).
They mix documents instead of rows, and their rows change with the number of reading processes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

OPEN_ROWS = 64  # unfinished rows into which first-fit tries to put a piece
READ_AHEAD = 64  # pieces (see Pieces) that Grain may read before they are needed


def packers(
    train: Mapping[str, Any], *, seq_len: int, batch: int
) -> dict[str, Callable[[int], Any]]:
    """Return Grain's packers by name; {} where Grain is missing or has no packers.

    A packer is a function from a seed to a context manager, whose value iterates over batches
    [batch, seq_len]. Documents are cut every `seq_len` tokens, and sources are mixed in proportion
    to the number of their pieces.

    Args:
      train: the ShardSet of each source.
    """
    try:
        import grain
        from grain.experimental import ConcatThenSplitIterDataset, FirstFitPackIterDataset
    except ImportError as missing:
        print(f"peers skipped: {missing}")
        return {}
    # One thread reads, as in our loader without workers.
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
    row_lengths = {"tokens": seq_len}

    def mixed_pieces(seed: int) -> Any:
        datasets = []
        weights = []
        for shards in train.values():
            pieces = Pieces(shards, seq_len)
            dataset = grain.MapDataset.source(pieces)
            datasets.append(dataset.shuffle(seed=seed).repeat())
            # Grain draws pieces, so the weights count pieces.
            weights.append(len(pieces))
        mixed = grain.MapDataset.mix(datasets, weights=weights)
        return mixed.to_iter_dataset(reading)

    def first_fit(seed: int) -> "_Closing":
        rows = FirstFitPackIterDataset(
            mixed_pieces(seed), length_struct=row_lengths, num_packing_bins=OPEN_ROWS
        )
        return _Closing(iter(rows.batch(batch)))

    def concat_then_split(seed: int) -> "_Closing":
        rows = ConcatThenSplitIterDataset(mixed_pieces(seed), length_struct=row_lengths)
        return _Closing(iter(rows.batch(batch)))

    return {
        "grain first-fit": first_fit,
        "grain concat-then-split": concat_then_split,
    }


class Pieces:
    """The documents of a ShardSet, cut every `seq_len` tokens, as a data source of Grain.

    An item is {"tokens": int32 [at most seq_len]}.
    """

    def __init__(self, shards: Any, seq_len: int):
        self._shards = shards
        lengths = np.asarray(shards.lengths)
        documents = np.arange(len(lengths))
        counts = -(-lengths // seq_len)  # pieces of each document, rounded up
        first_pieces = np.cumsum(counts) - counts  # number of the first piece of each document
        # From here on arrays have an entry for each piece: its document, its offset in the document
        # and its length.
        self._documents = np.repeat(documents, counts)
        first_of_document = np.repeat(first_pieces, counts)
        number_in_document = np.arange(len(first_of_document)) - first_of_document
        self._offsets = number_in_document * seq_len
        tokens_left = lengths[self._documents] - self._offsets
        self._lengths = np.minimum(tokens_left, seq_len)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        document = int(self._documents[index])
        offset = int(self._offsets[index])
        length = int(self._lengths[index])
        tokens = self._shards.read(document, offset, length)
        # `read` also returns the token after the piece, a target; these rows have no targets.
        return {"tokens": tokens[:-1]}


class _Closing:
    """Context manager over an iterator, whose reading ahead ends with the `with` block."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __enter__(self) -> Any:
        return self._iterator

    def __exit__(self, *exception: object) -> None:
        if hasattr(self._iterator, "close"):
            self._iterator.close()
