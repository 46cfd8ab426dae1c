"""The loader: this process's share of the batches, read ahead in a thread or in workers."""

import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from slmjax.data.batch_plan import BatchPlan, most_documents
from slmjax.data.folding import fold, unfold
from slmjax.data.heldout_rows import heldout_batches
from slmjax.data.rows import Arrays, Rows

# The other names are what the trainer and the benches need of the files behind the loader.
__all__ = [
    "BatchPlan",
    "Batches",
    "batch_rows",
    "fold",
    "heldout_batches",
    "local_batches",
    "most_documents",
    "unfold",
]

# Batches that are ready before they are asked for, of the thread or of each worker.
AHEAD = 2


def local_batches(
    rows: Rows, *, start_step: int, stop_step: int, local_rows: Sequence[int], workers: int = 0
) -> "Batches":
    """Return this process's share of the global batches of steps [start_step, stop_step), in order.

    The arrays are those of `batch_rows`, whatever the number of workers. Reading starts at once, so
    that it overlaps with compilation.

    Args:
      local_rows: which rows of the global batch this process holds.
      workers: processes that read ahead; 0 reads ahead in one thread. Workers are spawned,
        therefore a script that uses them needs `if __name__ == "__main__":`.
    Returns: an iterator and context manager; close it or leave its `with`.
    """
    return Batches(rows, start_step, stop_step, local_rows, workers)


def batch_rows(rows: Rows, step: int, local_rows: Sequence[int]) -> Arrays:
    """Return some rows of a global batch, read here and now."""
    return rows.unpack(rows.read(step, local_rows))


class Batches(Iterator[dict[str, np.ndarray]]):
    """Batches that are read ahead, see `local_batches`."""

    def __init__(
        self, rows: Rows, start_step: int, stop_step: int, local_rows: Sequence[int], workers: int
    ):
        steps = _Steps(rows, start_step, stop_step, local_rows)
        workers = min(workers, len(steps))
        if workers:
            iterator = _read_in_workers(steps, rows, workers)
        else:
            iterator = _read_in_thread(steps, rows)
        iterator.start_prefetch()
        # The iterator is closed and let go also where the program ends without closing: Grain's own
        # clean-up comes when the modules that it needs are gone.
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


class _Steps:
    """The batches of steps [start, stop), in their compact form, as a Grain data source."""

    def __init__(self, rows: Rows, start_step: int, stop_step: int, local_rows: Sequence[int]):
        self._rows = rows
        self._start = start_step
        self._steps = max(0, stop_step - start_step)
        self._local_rows = [int(row) for row in local_rows]

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, i: int) -> Any:
        return self._rows.read(self._start + i, self._local_rows)


def _read_in_thread(steps: _Steps, rows: Rows) -> Any:
    """Return Grain's iterator over batches that one thread of this process reads ahead."""
    grain = _grain()
    # An element is a whole batch: one thread reads far enough ahead, and more would fight for the
    # interpreter's lock with the training loop.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.source(steps).map(rows.unpack).to_iter_dataset(options))


def _read_in_workers(steps: _Steps, rows: Rows, workers: int) -> Any:
    """Return Grain's iterator over batches that worker processes read ahead."""
    grain = _grain()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
    # Compact batches come through pipes: fast enough, and unlike shared memory (64 MB in many
    # containers) nothing can be left behind.
    piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    # Workers read ahead, so the dataset inside them need not.
    unbuffered = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    data = grain.MapDataset.source(steps).to_iter_dataset(unbuffered)
    data = grain.experimental.WithOptionsIterDataset(data, piped)
    data = data.mp_prefetch(options, worker_init_fn=_start_worker).map(rows.unpack)
    iterator = iter(data)
    # This makes the interleaved iterators, without which start_prefetch has nothing to start.
    iterator.get_state()
    return iterator


def _grain() -> Any:
    """Import Grain: a second, most of it jax, paid by who reads and not by who plans."""
    import grain
    from absl import flags

    # Grain asks absl for its flags when it starts workers, which fails in a program that is not run
    # through absl's app.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain


def _close(held: list[Any]) -> None:
    held.pop().close()


def _start_worker(index: int, count: int) -> None:
    """Leave stopping to the parent, which saves first, but do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
