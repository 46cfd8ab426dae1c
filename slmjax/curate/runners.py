"""Who does the passes over files and finds the pairs: processes of this machine, or Apache Beam (extra `beam`) and what it runs on."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from slmjax.curate.clusters import Pairs, bucket_pairs
from slmjax.curate.index import Index
from slmjax.curate.minhash import Scheme, sketch
from slmjax.curate.sketch_files import COLUMNS, read_column, sketched
from slmjax.errors import UserError
from slmjax.text.files import Progress, run_units

PIECE = 100_000  # documents whose hashes are read at once


class Local:
    """Processes of this machine; pairs are found by sorting, see `clusters.candidates`."""

    def __init__(self, processes: int, progress: Progress):
        self._processes, self._progress = processes, progress
        sketch([""], Scheme())  # compiled or loaded once, for all processes

    def each(
        self, function: Callable[..., None], tasks: Sequence[tuple[int, tuple]], stage: str
    ) -> None:
        """Call function(*arguments) for each (size, arguments)."""
        run_units(function, tasks, self._processes, stage=stage, progress=self._progress, fork=True)

    def pairs(
        self, index: Index, batch: str, folders: Sequence[epath.Path], work: epath.Path
    ) -> Pairs | None:
        """None: the index finds them itself."""
        return None


class Beam:
    """An Apache Beam pipeline for each pass; functions, files and pairs are those of `Local`.

    Args:
      options: Beam's own, such as "--runner=DirectRunner" or "--runner=DataflowRunner --project=... --region=... --temp_location=gs://...".
        Whatever runs them must see the work directory: gs:// for Dataflow.
    Raises: UserError where apache-beam is not installed, and for options without a runner.
    """

    def __init__(self, options: str):
        try:
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise UserError(
                "config.curate.beam needs Apache Beam; install it with: pip install -e '.[beam]'."
            ) from error
        if "--runner=" not in options:
            raise UserError(
                f"config.curate.beam is '{options}'; expected Beam's options with a runner, for example --runner=DirectRunner."
            )
        self._options = PipelineOptions(options.split())

    def each(
        self, function: Callable[..., None], tasks: Sequence[tuple[int, tuple]], stage: str
    ) -> None:
        """Call function(*arguments) for each (size, arguments)."""
        import apache_beam as beam

        if not tasks:
            return
        with beam.Pipeline(options=self._options) as pipeline:
            calls = pipeline | beam.Create([arguments for _, arguments in tasks])
            _ = calls | beam.Reshuffle() | stage >> beam.Map(functools.partial(_call, function))

    def pairs(
        self, index: Index, batch: str, folders: Sequence[epath.Path], work: epath.Path
    ) -> Pairs | None:
        """Candidate pairs of all documents, by grouping band hashes; sketches of the batch are read from its `folders`."""
        import apache_beam as beam

        place = work / "pairs"
        if place.exists():
            place.rmtree()
        place.mkdir(parents=True)
        with beam.Pipeline(options=self._options) as pipeline:
            entries = (
                pipeline
                | beam.Create(list(_pieces(index, batch, folders)))
                | beam.Reshuffle()
                | beam.FlatMap(_entries, index.scheme.bands)
            )
            found = entries | beam.GroupByKey() | beam.FlatMap(_bucket)
            lines = (
                found
                | beam.CombinePerKey(min)
                | beam.MapTuple(lambda pair, band: f"{pair[0]} {pair[1]} {band}")
            )
            _ = lines | beam.io.WriteToText(str(place / "part"))
        rows = [
            line.split()
            for file in sorted(place.glob("part*"))
            for line in file.read_text().splitlines()
        ]
        high, low, band = np.array(rows, np.int64).reshape(-1, 3).T
        order = np.lexsort((low, high))
        return Pairs(low[order], high[order], band[order].astype(np.uint8))


def _call(function: Callable[..., None], arguments: tuple) -> None:
    function(*arguments)


def _pieces(
    index: Index, batch: str, folders: Sequence[epath.Path]
) -> Iterator[tuple[str, int, int, int]]:
    """(folder, first row, rows, number of the first document): a batch's folders, and of other batches what the index holds."""
    first, sizes = index.span(batch)
    end = first + int(sizes.sum())
    parts = [(str(index.folder), 0, first, 0), (str(index.folder), end, len(index) - end, end)]
    for folder in folders:
        rows = sketched(folder)
        parts.append((str(folder), 0, rows, first))
        first += rows
    for folder, row, rows, number in parts:
        for start in range(0, rows, PIECE):
            yield folder, row + start, min(PIECE, rows - start), number + start


def _entries(
    piece: tuple[str, int, int, int], bands: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """((band, hash), (document, key of its text)) of the documents of a piece."""
    folder, start, rows, first = piece
    keys = read_column(epath.Path(folder) / "keys", COLUMNS["keys"], start, rows)
    hashes = read_column(
        epath.Path(folder) / "bands", COLUMNS["bands"], start * bands, rows * bands
    ).reshape(rows, bands)
    signed = (
        of.view(np.int64).tolist() for of in (keys, hashes)
    )  # Beam's coder of integers takes no others
    for number, (key, row) in enumerate(zip(*signed), first):
        for band, value in enumerate(row):
            yield (band, value), (number, key)


def _bucket(group: tuple[tuple[int, int], Any]) -> Iterator[tuple[tuple[int, int], int]]:
    """((high, low), band) of a bucket."""
    (band, _), members = group
    ordered = sorted(members)
    docs, keys = (
        np.array([doc for doc, _ in ordered], np.int64),
        np.array([key for _, key in ordered], np.int64).view(np.uint64),
    )
    low, high = bucket_pairs(docs, keys, band)
    yield from zip(zip(high.tolist(), low.tolist()), [band] * len(low))
