"""The loader: this process's rows of every batch, read ahead in a thread or in workers."""

import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from slmjax.data.batch_plan import BatchPlan, most_documents
from slmjax.data.folding import fold, unfold
from slmjax.data.heldout_rows import heldout_batches
from slmjax.data.phased_plan import PhasedPlan
from slmjax.data.rows import Arrays, Rows

# Names from other files of the room are what the trainer and the benches need to read batches.
__all__ = [
    "BatchPlan",
    "Batches",
    "PhasedPlan",
    "batch_rows",
    "fold",
    "heldout_batches",
    "local_batches",
    "most_documents",
    "unfold",
]

# Batches that the thread, or each worker, reads before they are asked for.
AHEAD = 2

# Rows of a global batch by their numbers, the same at every step or as a function of the step.
LocalRows = Sequence[int] | Callable[[int], Sequence[int]]


def local_batches(
    rows: Rows, *, start_step: int, stop_step: int, local_rows: LocalRows, workers: int = 0
) -> "Batches":
    """Return this process's rows of the global batch of every step in [start_step, stop_step).

    The arrays are those of `batch_rows`, whatever the number of workers. Reading starts at once, so
    that it overlaps with compilation.

    Args:
      local_rows: which rows of the global batch this process holds; or a function from the step to
        them, which workers can unpickle.
      workers: processes that read ahead; 0 reads ahead in one thread. Workers are spawned,
        therefore a script that uses them needs `if __name__ == "__main__":`.
    Returns: an iterator over batches, which is a context manager; use it in a `with`, or close it.
    """
    return Batches(rows, start_step, stop_step, local_rows, workers)


def batch_rows(rows: Rows, step: int, local_rows: Sequence[int]) -> Arrays:
    """Return some rows of a step's global batch, read in this thread."""
    return rows.unpack(rows.read(step, local_rows))


class Batches(Iterator[dict[str, np.ndarray]]):
    """An iterator over batches that are read ahead, see `local_batches`."""

    def __init__(
        self, rows: Rows, start_step: int, stop_step: int, local_rows: LocalRows, workers: int
    ):
        steps = _Steps(rows, start_step, stop_step, local_rows)
        workers = min(workers, len(steps))
        if workers:
            iterator = _read_in_workers(steps, rows, workers)
        else:
            iterator = _read_in_thread(steps, rows)
        iterator.start_prefetch()
        # Grain's iterator until it is closed, then empty: a list that `finalize` can empty without
        # a reference to this object. It is closed even where the program ends without `close`:
        # Grain's own clean-up would run after the modules that it needs are gone.
        self._iterators = [iterator]
        self._finalizer = weakref.finalize(self, _close, self._iterators)

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._iterators:
            raise StopIteration
        return next(self._iterators[0])

    def close(self) -> None:
        """Stop reading ahead and end the workers."""
        self._finalizer()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Steps:
    """The batches of steps [start_step, stop_step), in compact form, as a Grain data source."""

    def __init__(self, rows: Rows, start_step: int, stop_step: int, local_rows: LocalRows):
        self._rows = rows
        self._start = start_step
        self._steps = max(0, stop_step - start_step)
        self._local_rows = local_rows

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, i: int) -> Any:
        step = self._start + i
        held = self._local_rows
        if callable(held):
            held = held(step)
        return self._rows.read(step, [int(row) for row in held])


def _read_in_thread(steps: _Steps, rows: Rows) -> Any:
    """Return Grain's iterator over batches that one thread of this process reads ahead."""
    grain = _grain()
    # An element of the dataset is a whole batch, so one thread reads far enough ahead. More of them
    # would compete with the training loop for the interpreter's lock.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    return iter(grain.MapDataset.source(steps).map(rows.unpack).to_iter_dataset(options))


def _read_in_workers(steps: _Steps, rows: Rows, workers: int) -> Any:
    """Return Grain's iterator over batches that worker processes read ahead."""
    grain = _grain()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
    # Never use shared memory, which is 64 MB in many containers and may outlive the process. Pipes
    # are fast enough for compact batches.
    piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    # Workers read ahead, so the dataset inside them need not.
    unbuffered = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    data = grain.MapDataset.source(steps).to_iter_dataset(unbuffered)
    data = grain.experimental.WithOptionsIterDataset(data, piped)
    data = data.mp_prefetch(options, worker_init_fn=_start_worker).map(rows.unpack)
    iterator = iter(data)
    # Grain makes the workers' iterators here; without them start_prefetch has nothing to start.
    iterator.get_state()
    return iterator


def _grain() -> Any:
    """Import Grain here: it takes a second (it imports jax), which a plan alone does not need."""
    import grain
    from absl import flags

    # Grain reads absl's flags when it starts workers. That fails where they are not parsed, as in
    # a program that absl's app does not run.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain


def _close(iterators: list[Any]) -> None:
    iterators.pop().close()


def _start_worker(index: int, count: int) -> None:
    """Make a worker ignore signals to stop, and exit when its parent does.

    The parent saves a checkpoint first, and needs batches until then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
