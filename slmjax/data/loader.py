"""From plan to arrays: the global batch of every step as a list of rows, and the arrays of those rows that this process holds."""

import functools
import hashlib
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from slmjax.data import packing as packings
from slmjax.data.mixing import Mixture
from slmjax.data.packing import DocumentSpan, RowPlan
from slmjax.data.rows import Arrays, Fields, Rows, text_fields

SCANNED_ROWS = 32_768  # less than a second of planning
FORMAT = 2  # of the fingerprint: raised when the same settings give other batches than before


class BatchPlan:
    """The global batch of every step, as a pure function of the step.

    Args:
      train: {name: ShardSet}.
      seq_len, batch: tokens of a row and rows of a global batch.
      steps: of the run; it only places the boundaries of `phases`, which fall on whole steps.
      seed: of the order of documents and sources.
      packing: "best_fit" or "concat", see `RowPlan`.
      phases, weights: see `Mixture`.
      max_epochs: how often a source may be read at most; a name left out, or None: without bound. What happens then: see `Mixture`.
      scores: for a source whose documents are visited in the order of their scores (see `RowPlan`) "NAME", from high to low "-NAME".
      max_segments: most documents of a row; None: for each source as many as its text needs (see `RowPlan`).
      cuts: (microbatches, devices that a microbatch's rows are split over), where an attention kernel wants to know how many documents
        a device holds (see `text_fields`); None elsewhere.
    Attributes: max_segments, which no row of any step exceeds. It follows from the text, seq_len, packing and seed, and does not change
      with `steps`, phases or weights.
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
        phases: Any = (),
        weights: Mapping[str, float | None] | None = None,
        max_epochs: Mapping[str, float | None] | None = None,
        scores: Mapping[str, str] | None = None,
        max_segments: int | None = None,
        cuts: tuple[int, int] | None = None,
    ):
        self.cuts = cuts
        self.scores = {name: score for name, score in (scores or {}).items() if score}
        self.train, self.batch, self.seq_len, self.total_rows = (
            dict(train),
            batch,
            seq_len,
            steps * batch,
        )
        self.row_settings = {
            "seq_len": seq_len,
            "seed": seed,
            "packing": packing,
            "max_segments": max_segments,
        }
        self.row_plans = self._row_plans(dict.fromkeys(train, max_segments))
        self.max_segments = max(plan.max_segments for plan in self.row_plans)
        tokens = [plan.tokens for plan in self.row_plans]
        self.max_epochs = {
            name: bound for name, bound in (max_epochs or {}).items() if bound is not None
        }
        rows = {name: plan.rows_per_epoch for name, plan in zip(self.train, self.row_plans)}
        # What is a whole number of rows but for the last bit of the product, is one.
        caps = {
            name: math.floor(bound * rows[name] + 1e-6) for name, bound in self.max_epochs.items()
        }
        self.mixture = Mixture(
            tuple(self.train),
            tokens,
            phases,
            steps * batch,
            seed,
            weights=weights,
            align=batch,
            caps=caps,
            row_tokens=seq_len,
        )

    def rows(self, step: int) -> list[tuple[int, int]]:
        """(index of the source, row of that source) of every row of the global batch, in order."""
        return [self.mixture.pick(g) for g in range(step * self.batch, (step + 1) * self.batch)]

    def crowd(self, step: int, parts: int = 1, ways: int = 1) -> int:
        """Most documents that a device holds at once of a step's batch, see `crowd`; known without reading any text."""
        counts = [max(1, len(self.row_plans[source].row(row))) for source, row in self.rows(step)]
        return crowd(np.array(counts), parts, ways)

    @functools.cached_property
    def usual_places(self) -> int:
        """Documents that a device holds at most in the steps of the run's first 32,768 rows, as a whole number for each row."""
        rows, steps = (
            self.batch // math.prod(self.cuts),
            range(max(1, min(self.total_rows, SCANNED_ROWS) // self.batch)),
        )
        if self.max_segments == 1:
            return rows
        return math.ceil(max(self.crowd(step, *self.cuts) for step in steps) / rows) * rows

    def places(self, step: int) -> int | None:
        """Documents that a device keeps places for: the usual number, or that times a power of two."""
        if self.cuts is None:
            return None
        places, crowd = self.usual_places, self.crowd(step, *self.cuts)
        while places < crowd:
            places *= 2
        return places

    def shapes(self, step: int) -> Fields:
        """See Rows."""
        return text_fields(self.batch, self.seq_len, self.places(step))

    def read(self, step: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """See Rows: what `fold` holds of some rows."""
        shards = list(self.train.values())
        picked = (self.mixture.pick(step * self.batch + row) for row in rows)
        return fold(
            [(shards[source], self.row_plans[source].row(row)) for source, row in picked],
            self.seq_len,
        )

    def unpack(self, compact: Mapping[str, np.ndarray]) -> Arrays:
        """See Rows: tokens, targets, segments, positions int32 and weights float32, each [rows, T]."""
        return unfold(compact)

    def documents(self, step: int) -> list[str]:
        """The documents that the global batch of a step holds, in order, each once: "books: novels.jsonl line 17"."""
        names = list(self.train)
        spans = (
            (source, span)
            for source, row in self.rows(step)
            for span in self.row_plans[source].row(row)
        )
        return list(
            dict.fromkeys(
                f"{names[source]}: {self.train[names[source]].name(span.doc)}"
                for source, span in spans
            )
        )

    def epochs(self, step: int | None = None) -> dict[str, float]:
        """How often each source has been read when `step` begins (None: at the end of the run): rows taken over rows of an epoch."""
        rows = self.mixture.rows_before(self.total_rows if step is None else step * self.batch)
        return {
            name: int(n) / plan.rows_per_epoch
            for name, n, plan in zip(self.train, rows, self.row_plans)
        }

    def shares(self, points: int = 40) -> dict[str, Any]:
        """Shares of the run's rows, for a figure: as planned, exactly, and as the rows fall in `points` parts of whole steps.

        Returns: {"planned": {"tokens": where shares bend or jump, "shares": {source: its shares there, with lines between}},
          "realised": {"steps": where each part ends, "tokens": the middle of each, "shares": {source: its share of each}}}.
        """
        steps = self.total_rows // self.batch
        ends = np.unique(np.linspace(0, steps, points + 1).round().astype(int)) * self.batch
        taken = (
            np.diff([self.mixture.rows_before(int(g)) for g in ends], axis=0)
            / np.diff(ends)[:, None]
        )
        rows, weights = zip(*self.mixture.weights())
        planned, realised = (
            dict(zip(self.train, np.transpose(shares).tolist())) for shares in (weights, taken)
        )
        middle = ((ends[1:] + ends[:-1]) * self.seq_len // 2).tolist()
        return {
            "planned": {"tokens": [row * self.seq_len for row in rows], "shares": planned},
            "realised": {
                "steps": (ends[1:] // self.batch).tolist(),
                "tokens": middle,
                "shares": realised,
            },
        }

    def fingerprint(self, step: int) -> str:
        """Digest of everything that decides the batches before `step`.

        Equal for two plans whose earlier batches agree although `steps`, later phases or unused sources differ; different
        where any earlier batch could differ.
        """
        begun = self.mixture.begun(step * self.batch)
        names = {
            name for _, weights, *ramp in begun for units in (weights, *ramp[1:]) for name in units
        }
        used = {name: self.train[name].fingerprint for name in names}
        scores = {name: self.scores[name] for name in used if name in self.scores}
        decides = {
            "format": FORMAT,
            "batch": self.batch,
            "settings": self.row_settings,
            "phases": begun,
            "sources": used,
        }
        decides |= {"scores": scores} if scores else {}
        return hashlib.sha256(
            json.dumps(decides if step else {}, sort_keys=True).encode()
        ).hexdigest()

    def __getstate__(self) -> dict:
        """A worker makes its own row plans, whose tables are large, and is told the bounds, which take time to find."""
        return self.__dict__ | {
            "row_plans": {name: plan.max_segments for name, plan in zip(self.train, self.row_plans)}
        }

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, row_plans=[])
        self.row_plans = self._row_plans(state["row_plans"])

    def _row_plans(self, bounds: Mapping[str, int | None]) -> list[RowPlan]:
        def scores(name: str) -> np.ndarray | None:
            if name not in self.scores:
                return None
            return (
                -self.train[name].scores
                if self.scores[name].startswith("-")
                else self.train[name].scores
            )

        return [
            RowPlan(
                shards.lengths,
                name=name,
                scores=scores(name),
                **self.row_settings | {"max_segments": bounds[name]},
            )
            for name, shards in self.train.items()
        ]


def crowd(documents: Int[np.ndarray, "B"], parts: int = 1, ways: int = 1) -> int:
    """Most documents that a device holds at once of a batch with so many in each row.

    Args:
      parts: microbatches; row i is in microbatch i % parts.
      ways: devices over which each microbatch is cut.
    """
    return int(documents.reshape(-1, parts).T.reshape(parts, ways, -1).sum(-1).max())


def batch_rows(rows: Rows, step: int, local_rows: Sequence[int]) -> Arrays:
    """Some rows of a global batch, read here and now."""
    return rows.unpack(rows.read(step, local_rows))


def fold(rows: Sequence[tuple[Any, Sequence[DocumentSpan]]], seq_len: int) -> dict[str, np.ndarray]:
    """Read rows, given as (ShardSet, spans), into what the five arrays of a batch follow from, a fifth of their size.

    Returns: tokens int32 [len(rows), T], spans end to end and zeros behind them; spans int32 [len(rows)], how many each row has;
    and of every span in order its lengths and its last target, int32 [spans together].
    """
    tokens = np.zeros((len(rows), seq_len), np.int32)
    lengths, last = [], []
    for line, (shards, spans) in zip(tokens, rows):
        start = 0
        for doc, offset, length in spans:
            text = shards.read(doc, offset, length)
            line[start : start + length] = text[:-1]
            lengths.append(length)
            last.append(text[-1])
            start += length
    counts = [len(spans) for _, spans in rows]
    return {
        "tokens": tokens,
        "spans": np.array(counts, np.int32),
        "lengths": np.array(lengths, np.int32),
        "last": np.array(last, np.int32),
    }


def unfold(folded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch that `fold` read: its spans end to end, then padding (zeros, segment 0, weight 0)."""
    tokens, counts = folded["tokens"], folded["spans"]
    rows, seq_len = tokens.shape
    # Every row gets one span of padding more, which may be empty: then spans cover all places.
    behind = np.cumsum(counts)
    used = np.bincount(np.repeat(np.arange(rows), counts), folded["lengths"], rows).astype(np.int64)
    lengths = np.insert(folded["lengths"], behind, seq_len - used)
    text = np.insert(np.ones(len(folded["lengths"]), bool), behind, False)
    stops = np.cumsum(lengths)
    number = np.arange(1, len(lengths) + 1) - np.repeat(
        behind - counts + np.arange(rows), counts + 1
    )
    segments = np.repeat(np.where(text, number, 0).astype(np.int32), lengths).reshape(rows, seq_len)
    positions = np.arange(tokens.size, dtype=np.int32) - np.repeat(
        (stops - lengths).astype(np.int32), lengths
    )
    weights = (segments > 0).astype(np.float32)
    if used.sum() < tokens.size:
        positions *= segments.reshape(-1) > 0
    targets = np.zeros_like(tokens)
    targets[:, :-1] = tokens[:, 1:]
    targets.reshape(-1)[stops[text] - 1] = folded["last"]
    return {
        "tokens": tokens,
        "targets": targets,
        "segments": segments,
        "positions": positions.reshape(rows, seq_len),
        "weights": weights,
    }


def local_batches(
    rows: Rows, *, start_step: int, stop_step: int, local_rows: Sequence[int], workers: int = 0
) -> "Batches":
    """This process's share of the global batches of steps [start_step, stop_step), in order, read ahead.

    The arrays are those of `batch_rows`, whatever the number of workers.

    Args:
      local_rows: which rows of the global batch this process holds.
      workers: processes that read ahead; 0 reads ahead in one thread. Workers are spawned, therefore a script that
        uses them needs `if __name__ == "__main__":`.
    Returns: an iterator and context manager; close it or leave its `with`. Reading starts at once, so that it overlaps with compilation.
    """
    return Batches(rows, start_step, stop_step, local_rows, workers)


class Batches(Iterator[dict[str, np.ndarray]]):
    """What `local_batches` returns."""

    def __init__(
        self, rows: Rows, start_step: int, stop_step: int, local_rows: Sequence[int], workers: int
    ):
        import grain  # a second of imports, most of it jax: paid by who reads, not by who plans
        from absl import flags

        # Grain asks absl for its flags when it starts workers, which fails in a program that is not run through absl's app.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        workers = min(workers, max(0, stop_step - start_step))
        data = grain.MapDataset.source(_Steps(rows, start_step, stop_step, local_rows))
        if not workers:
            # An element is a whole batch: one thread reads far enough ahead, and more would fight for the interpreter's lock with the loop.
            data = data.map(rows.unpack).to_iter_dataset(
                grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
            )
        else:
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            # Batches come through pipes, folded: fast enough, and unlike shared memory (64 MB in many containers) nothing can be left
            # behind.
            piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            data = data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
            data = grain.experimental.WithOptionsIterDataset(data, piped)
            data = data.mp_prefetch(options, worker_init_fn=_start_worker).map(rows.unpack)
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
    max_segments: int = 16,
    max_tokens: int | None = None,
    local_rows: Sequence[int] | None = None,
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
      max_segments: most documents of a row.
    """
    ends = np.cumsum(shards.lengths)
    documents = (
        len(ends) if max_tokens is None else max(1, int(np.searchsorted(ends, max_tokens, "right")))
    )
    rows = packings.first_fit(shards.lengths[:documents], seq_len, max_segments)
    return HeldoutBatches(
        shards, rows, seq_len, batch, range(batch) if local_rows is None else local_rows
    )


class HeldoutBatches:
    """What `heldout_batches` returns."""

    def __init__(
        self,
        shards: Any,
        rows: list[tuple[DocumentSpan, ...]],
        seq_len: int,
        batch: int,
        local_rows: Sequence[int],
    ):
        self._shards, self._rows, self._seq_len, self._batch, self._local_rows = (
            shards,
            rows,
            seq_len,
            batch,
            local_rows,
        )

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, len(self._rows), self._batch):
            rows = [
                self._rows[first + i] if first + i < len(self._rows) else ()
                for i in self._local_rows
            ]
            batch = unfold(fold([(self._shards, spans) for spans in rows], self._seq_len))
            documents = np.full(batch["tokens"].shape, -1, np.int32)
            for row, spans in enumerate(rows):
                of_row = np.repeat(
                    np.array([span.doc for span in spans], np.int32),
                    [span.length for span in spans],
                )
                documents[row, : len(of_row)] = of_row
            yield batch | {"documents": documents}


def row_hashes(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """A digest of each row over all arrays of a batch, the same on every machine."""
    columns = [
        (name, np.ascontiguousarray(array, array.dtype.newbyteorder("<")))
        for name, array in sorted(arrays.items())
    ]
    rows = len(columns[0][1])
    return [
        hashlib.sha256(
            b"".join(
                f"{name} {a.dtype.str} {a[i].shape} ".encode() + a[i].tobytes()
                for name, a in columns
            )
        ).hexdigest()
        for i in range(rows)
    ]


def combine_hashes(hashes: Iterable[str]) -> str:
    """The digest of a global batch from its rows' digests in global order, whichever processes held them."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def batch_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """The digest of a batch that one process holds whole."""
    return combine_hashes(row_hashes(arrays))


class _Steps:
    """The batches of steps [start, stop) as a Grain data source."""

    def __init__(self, rows: Rows, start_step: int, stop_step: int, local_rows: Sequence[int]):
        self._rows, self._start, self._local_rows = (
            rows,
            start_step,
            [int(row) for row in local_rows],
        )
        self._steps = max(0, stop_step - start_step)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, i: int) -> Any:
        return self._rows.read(self._start + i, self._local_rows)


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
