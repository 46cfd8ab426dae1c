"""From plan to arrays: the global batch of every step as a list of rows, and the arrays of those rows that this process holds."""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from slmjax.data import packing as packings
from slmjax.data.mixture import Mixture, Phases
from slmjax.data.packing import RowPlan, Span

FORMAT = 1  # of the fingerprint: raised when the same settings give other batches than before


class BatchPlan:
    """The global batch of every step, as a pure function of the step.

    Args:
      train: {name: ShardSet}.
      seq_len, batch: tokens of a row and rows of a global batch.
      steps: of the run; it only places the boundaries of `phases`, which fall on whole steps.
      seed: of the order of documents and sources.
      packing: "best_fit" or "concat", see `RowPlan`.
      phases, weights: see `Mixture`.
      max_segments: most documents of a row; None: `packing.max_segments(seq_len)`.
    Raises: UserError for a source shorter than one row and for what `Mixture` refuses.
    """

    def __init__(
        self,
        train: Mapping[str, Any],
        *,
        seq_len: int,
        batch: int,
        steps: int,
        seed: int,
        packing: str = "best_fit",
        phases: Phases = (),
        weights: Mapping[str, float | None] | None = None,
        max_segments: int | None = None,
    ):
        self.train, self.batch, self.seq_len = dict(train), batch, seq_len
        self.max_segments = max_segments or packings.max_segments(seq_len)
        self.row_settings = {"seq_len": seq_len, "seed": seed, "packing": packing, "max_segments": self.max_segments}
        self.row_plans = [RowPlan(shards.lengths, name=name, **self.row_settings) for name, shards in self.train.items()]
        tokens = [plan.tokens for plan in self.row_plans]
        self.mixture = Mixture(tuple(self.train), tokens, phases, steps * batch, seed, weights=weights, align=batch)

    def rows(self, step: int) -> list[tuple[int, int]]:
        """(index of the source, row of that source) of every row of the global batch, in order."""
        return [self.mixture.pick(g) for g in range(step * self.batch, (step + 1) * self.batch)]

    def documents(self, step: int) -> list[str]:
        """The documents that the global batch of a step holds, in order, each once: "books: novels.jsonl line 17"."""
        names = list(self.train)
        spans = ((source, span) for source, row in self.rows(step) for span in self.row_plans[source].row(row))
        return list(dict.fromkeys(f"{names[source]}: {self.train[names[source]].name(span.doc)}" for source, span in spans))

    def epochs(self, step: int) -> dict[str, float]:
        """How often each source has been read when `step` begins: rows taken over rows of an epoch."""
        rows = self.mixture.rows_before(step * self.batch)
        return {name: int(n) / plan.rows_per_epoch for name, n, plan in zip(self.train, rows, self.row_plans)}

    def fingerprint(self, step: int) -> str:
        """Digest of everything that decides the batches before `step`.

        Equal for two plans whose earlier batches agree although `steps`, later phases or unused sources differ; different
        where any earlier batch could differ.
        """
        begun = self.mixture.begun(step * self.batch)
        used = {name: self.train[name].fingerprint for _, weights in begun for name in weights}
        decides = {"format": FORMAT, "batch": self.batch, "settings": self.row_settings, "phases": begun, "sources": used}
        return hashlib.sha256(json.dumps(decides if step else {}, sort_keys=True).encode()).hexdigest()


def batch_rows(plan: BatchPlan, step: int, local_rows: Sequence[int]) -> dict[str, np.ndarray]:
    """Some rows of a global batch, read here and now.

    Returns: tokens, targets, segments, positions int32 and weights float32, each [len(local_rows), T].
    """
    rows, shards = plan.rows(step), list(plan.train.values())
    picked = [rows[i] for i in local_rows]
    return _stack([row_arrays(shards[source], plan.row_plans[source].row(row), plan.seq_len) for source, row in picked])


def row_arrays(shards: Any, spans: Iterable[Span], seq_len: int) -> dict[str, np.ndarray]:
    """One row, each array [T]: its spans end to end, then padding (zeros, segment 0, weight 0)."""
    tokens, targets, segments, positions = np.zeros((4, seq_len), np.int32)
    start = 0
    for segment, (doc, offset, length) in enumerate(spans, start=1):
        stop = start + length
        text = shards.read(doc, offset, length)
        tokens[start:stop] = text[:-1]
        targets[start:stop] = text[1:]
        segments[start:stop] = segment
        positions[start:stop] = np.arange(length, dtype=np.int32)
        start = stop
    weights = (segments > 0).astype(np.float32)
    return {"tokens": tokens, "targets": targets, "segments": segments, "positions": positions, "weights": weights}


def local_batches(plan: BatchPlan, *, start_step: int, stop_step: int, local_rows: Sequence[int], workers: int = 0) -> "Batches":
    """This process's share of the global batches of steps [start_step, stop_step), in order, read ahead.

    The arrays are those of `batch_rows`, whatever the number of workers.

    Args:
      local_rows: which rows of the global batch this process holds.
      workers: processes that read ahead; 0 reads ahead in one thread. Workers are spawned, therefore a script that
        uses them needs `if __name__ == "__main__":`.
    Returns: an iterator and context manager; close it or leave its `with`. Reading starts at once, so that it overlaps with compilation.
    """
    return Batches(plan, start_step, stop_step, local_rows, workers)


class Batches(Iterator[dict[str, np.ndarray]]):
    """What `local_batches` returns."""

    def __init__(self, plan: BatchPlan, start_step: int, stop_step: int, local_rows: Sequence[int], workers: int):
        import grain  # a second of imports, most of it jax: paid by who reads, not by who plans
        from absl import flags

        # Grain asks absl for its flags when it starts workers, which fails in a program that is not run through absl's app.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        sources = [
            grain.MapDataset.source(_Rows(name, shards, row_plan, plan.row_settings))
            for (name, shards), row_plan in zip(plan.train.items(), plan.row_plans)
        ]
        selection = _Selection(plan.mixture, plan.batch, start_step, stop_step, local_rows)
        workers = min(workers, max(0, stop_step - start_step))
        # An element is a whole batch: one thread reads far enough ahead, and more would fight for the interpreter's lock with the loop.
        reading = grain.ReadOptions(num_threads=0 if workers else 1, prefetch_buffer_size=0 if workers else 2)
        data = grain.MapDataset.select_from_datasets(sources, selection).batch(len(local_rows), batch_fn=_stack).to_iter_dataset(reading)
        if workers:
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            # Batches come through pipes: fast enough, and unlike shared memory (64 MB in many containers) nothing can be left behind.
            piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            data = grain.experimental.WithOptionsIterDataset(data, piped).mp_prefetch(options, worker_init_fn=_start_worker)
        iterator = iter(data)
        if workers:
            iterator.get_state()  # makes the interleaved iterators, without which start_prefetch has nothing to start
        iterator.start_prefetch()
        # Closed and let go also where the program ends without closing: Grain's own clean-up comes when the modules it needs are gone.
        self._held = [iterator]
        self._close = weakref.finalize(self, _close, self._held)

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._held:
            raise StopIteration
        return next(self._held[0])

    def close(self) -> None:
        """Stop reading ahead and end the workers."""
        self._close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def heldout_batches(
    shards: Any,
    *,
    seq_len: int,
    batch: int,
    max_tokens: int | None = None,
    local_rows: Sequence[int] | None = None,
    max_segments: int | None = None,
) -> "HeldoutBatches":
    """Held-out documents in their order as fixed-shape batches; may be iterated again and again, and has a length.

    Pieces of documents (cut every `seq_len` tokens) go first-fit into rows; the last batch ends in empty rows. Which row
    holds what does not depend on the number of processes. Batches are as in training, with `documents` int32
    [len(local_rows), T] beside: the index into the ShardSet, -1 in padding.

    Args:
      shards: a ShardSet.
      seq_len, batch: shape of every batch.
      max_tokens: whole documents are taken from the first on while they fit into this many tokens, at least one; None: all.
      local_rows: which rows of each batch to read; None: all.
      max_segments: as in `BatchPlan`.
    """
    ends = np.cumsum(shards.lengths)
    documents = len(ends) if max_tokens is None else max(1, int(np.searchsorted(ends, max_tokens, "right")))
    rows = packings.first_fit(shards.lengths[:documents], seq_len, max_segments or packings.max_segments(seq_len))
    return HeldoutBatches(shards, rows, seq_len, batch, range(batch) if local_rows is None else local_rows)


class HeldoutBatches:
    """What `heldout_batches` returns."""

    def __init__(self, shards: Any, rows: list[tuple[Span, ...]], seq_len: int, batch: int, local_rows: Sequence[int]):
        self._shards, self._rows, self._seq_len, self._batch, self._local_rows = shards, rows, seq_len, batch, local_rows

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, len(self._rows), self._batch):
            rows = [self._rows[first + i] if first + i < len(self._rows) else () for i in self._local_rows]
            batch = _stack([row_arrays(self._shards, spans, self._seq_len) for spans in rows])
            documents = np.full(batch["tokens"].shape, -1, np.int32)
            for row, spans in enumerate(rows):
                of_row = np.repeat(np.array([span.doc for span in spans], np.int32), [span.length for span in spans])
                documents[row, : len(of_row)] = of_row
            yield batch | {"documents": documents}


def row_hashes(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """A digest of each row over all arrays of a batch, the same on every machine."""
    columns = [(name, np.ascontiguousarray(array, array.dtype.newbyteorder("<"))) for name, array in sorted(arrays.items())]
    rows = len(columns[0][1])
    return [
        hashlib.sha256(b"".join(f"{name} {a.dtype.str} {a[i].shape} ".encode() + a[i].tobytes() for name, a in columns)).hexdigest()
        for i in range(rows)
    ]


def combine_hashes(hashes: Iterable[str]) -> str:
    """The digest of a global batch from its rows' digests in global order, whichever processes held them."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def batch_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """The digest of a batch that one process holds whole."""
    return combine_hashes(row_hashes(arrays))


class _Rows:
    """The rows of one source as a Grain data source; a worker gets the shards and makes its own plan."""

    def __init__(self, name: str, shards: Any, plan: RowPlan | None, settings: Mapping[str, Any]):
        self._name, self._shards, self._settings = name, shards, settings
        self._plan = plan or RowPlan(shards.lengths, name=name, **settings)

    def __len__(self) -> int:
        return sys.maxsize  # rows never run out; Grain takes indices modulo this length

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return row_arrays(self._shards, self._plan.row(row), self._settings["seq_len"])

    def __reduce__(self):
        return _Rows, (self._name, self._shards, None, self._settings)


class _Selection:
    """Grain's DatasetSelectionMap (by duck typing, to import no Grain): element i -> (source, row)."""

    def __init__(self, mixture: Mixture, batch: int, start_step: int, stop_step: int, local_rows: Sequence[int]):
        self._mixture, self._batch, self._local_rows = mixture, batch, [int(row) for row in local_rows]
        self._start, self._steps = start_step, max(0, stop_step - start_step)

    def __len__(self) -> int:
        return self._steps * len(self._local_rows)

    def __getitem__(self, i: int) -> tuple[int, int]:
        step, row = divmod(i, len(self._local_rows))
        return self._mixture.pick((self._start + step) * self._batch + self._local_rows[row])


def _stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _close(held: list[Any]) -> None:
    held.pop().close()


def _start_worker(index: int, count: int) -> None:
    """A worker leaves stopping to its parent, which saves first, but does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
