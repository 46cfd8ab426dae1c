"""Grain's own packers as peers of our loader: the same documents of the same sources, read and packed as a stream in one process.

They give fewer arrays (tokens, segments, positions; no targets, no weights), mix documents instead of rows, and their rows change with
the number of processes that read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

OPEN_ROWS = 64  # that first-fit tries


def packers(
    train: Mapping[str, Any], *, seq_len: int, batch: int
) -> dict[str, Callable[[int], Any]]:
    """{name: function from a seed to a context manager that iterates over batches [batch, seq_len]}; {} where Grain has no packers.

    Documents are cut every `seq_len` tokens, and sources mixed in proportion to their tokens.
    """
    try:
        import grain
        from grain.experimental import ConcatThenSplitIterDataset, FirstFitPackIterDataset
    except ImportError as missing:
        print(f"peers skipped: {missing}")
        return {}
    packing = {
        "grain first-fit": lambda data: FirstFitPackIterDataset(
            data, length_struct={"tokens": seq_len}, num_packing_bins=OPEN_ROWS
        ),
        "grain concat-then-split": lambda data: ConcatThenSplitIterDataset(
            data, length_struct={"tokens": seq_len}
        ),
    }
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=64)

    def make(pack: Callable) -> Callable[[int], Any]:
        def batches(seed: int) -> "_Closing":
            sources = [Pieces(shards, seq_len) for shards in train.values()]
            data = [
                grain.MapDataset.source(source).shuffle(seed=seed).repeat() for source in sources
            ]
            mixed = grain.MapDataset.mix(data, weights=[len(source) for source in sources])
            return _Closing(iter(pack(mixed.to_iter_dataset(reading)).batch(batch)))

        return batches

    return {name: make(pack) for name, pack in packing.items()}


class Pieces:
    """The documents of a ShardSet, cut every `seq_len` tokens, as a data source: {"tokens": int32 [at most seq_len]}."""

    def __init__(self, shards: Any, seq_len: int):
        lengths = np.asarray(shards.lengths)
        parts = -(-lengths // seq_len)
        self._shards = shards
        self._docs = np.repeat(np.arange(len(lengths)), parts)
        self._offsets = (
            np.arange(len(self._docs)) - np.repeat(np.cumsum(parts) - parts, parts)
        ) * seq_len
        self._lengths = np.minimum(lengths[self._docs] - self._offsets, seq_len)

    def __len__(self) -> int:
        return len(self._docs)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {
            "tokens": self._shards.read(
                int(self._docs[i]), int(self._offsets[i]), int(self._lengths[i])
            )[:-1]
        }


class _Closing:
    """An iterator whose read-ahead ends with the `with`."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __enter__(self) -> Any:
        return self._iterator

    def __exit__(self, *exception: object) -> None:
        if hasattr(self._iterator, "close"):
            self._iterator.close()
