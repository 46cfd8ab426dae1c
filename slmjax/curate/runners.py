"""How a curation runs its passes: by processes of this machine, or by Apache Beam (extra `beam`).

`Local` and `Beam` have the same two methods: `each` calls a function for each unit of work, and
`pairs` finds the candidate pairs of documents.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from slmjax.curate.clusters import Pairs, bucket_pairs
from slmjax.curate.index import Index
from slmjax.curate.minhash import Scheme, sketch
from slmjax.curate.sketch_files import COLUMNS, count_sketches, read_column
from slmjax.errors import UserError
from slmjax.text.units import Progress, run_units

PIECE_DOCUMENTS = 100_000  # documents whose hashes are read at once

Folders = Sequence[epath.Path]
Tasks = Sequence[tuple[int, tuple]]  # (size, arguments of a call)
BandHash = tuple[int, int]  # number of a band, hash
Member = tuple[int, int]  # number of a document, key of its text
DocumentPair = tuple[int, int]  # high, low

# Consecutive documents whose columns lie in one folder: the folder, the first one's row in the
# columns, how many documents there are, and the first one's number in the index. A plain tuple, as
# Beam knows how to encode tuples.
Piece = tuple[str, int, int, int]


class Local:
    """Runs passes in processes of this machine; pairs are found by `clusters.candidates`."""

    def __init__(self, processes: int, progress: Progress):
        self._processes, self._progress = processes, progress
        # Compiles or loads the kernels once: processes that are forked have them, too.
        sketch([""], Scheme())

    def each(self, function: Callable[..., None], tasks: Tasks, stage: str) -> None:
        """Call function(*arguments) for each (size, arguments)."""
        run_units(function, tasks, self._processes, stage=stage, progress=self._progress, fork=True)

    def pairs(self, index: Index, batch: str, folders: Folders, work: epath.Path) -> Pairs | None:
        """Return None: the index finds pairs itself."""
        return None


class Beam:
    """Runs each pass as an Apache Beam pipeline; files and pairs are the same as with `Local`.

    Args:
      options: Beam's own, such as "--runner=DirectRunner" or "--runner=DataflowRunner --project=...
        --region=... --temp_location=gs://...". Beam's workers must be able to read and write the
        work directory: for Dataflow it must be gs://.
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
                f"config.curate.beam is '{options}'; expected Beam's options with a runner, for "
                "example --runner=DirectRunner."
            )
        self._options = PipelineOptions(options.split())

    def each(self, function: Callable[..., None], tasks: Tasks, stage: str) -> None:
        """Call function(*arguments) for each (size, arguments)."""
        import apache_beam as beam

        if not tasks:
            return
        every_arguments = [arguments for _, arguments in tasks]
        call = functools.partial(_call, function)
        with beam.Pipeline(options=self._options) as pipeline:
            # Reshuffle: otherwise Beam may do all calls in one worker.
            spread = pipeline | beam.Create(every_arguments) | beam.Reshuffle()
            _ = spread | stage >> beam.Map(call)  # `stage` names the step

    def pairs(self, index: Index, batch: str, folders: Folders, work: epath.Path) -> Pairs | None:
        """Return the candidate pairs of all documents, found by grouping band hashes.

        Args:
          folders: of the batch's sketches, which Beam can see. Those of other batches are read from
            the index.
          work: the pairs are written to text files in work/pairs.
        """
        import apache_beam as beam

        pairs_folder = work / "pairs"
        if pairs_folder.exists():
            pairs_folder.rmtree()
        pairs_folder.mkdir(parents=True)
        pieces = list(_pieces(index, batch, folders))
        with beam.Pipeline(options=self._options) as pipeline:
            spread = pipeline | beam.Create(pieces) | beam.Reshuffle()
            entries = spread | beam.FlatMap(_entries, index.scheme.bands)
            buckets = entries | beam.GroupByKey()
            pair_bands = buckets | beam.FlatMap(_pairs_of_bucket)
            first_bands = pair_bands | beam.CombinePerKey(min)
            lines = first_bands | beam.MapTuple(lambda pair, band: f"{pair[0]} {pair[1]} {band}")
            _ = lines | beam.io.WriteToText(str(pairs_folder / "part"))
        return _read_pairs(pairs_folder)


def _call(function: Callable[..., None], arguments: tuple) -> None:
    """Call a function with arguments in a tuple, as `beam.Map` passes one value only."""
    function(*arguments)


def _pieces(index: Index, batch: str, folders: Folders) -> Iterator[Piece]:
    """Yield all documents in pieces: a batch from its folders, other batches from the index."""
    first, sizes = index.span(batch)
    end = first + int(sizes.sum())
    # Pieces of any size: the batches before this one and after it, and each folder of this one.
    index_folder = str(index.folder)
    parts = [(index_folder, 0, first, 0)]
    parts.append((index_folder, end, len(index) - end, end))
    for folder in folders:
        rows = count_sketches(folder)
        parts.append((str(folder), 0, rows, first))
        first += rows
    # Cut into pieces of at most PIECE_DOCUMENTS.
    for folder, row, rows, number in parts:
        for start in range(0, rows, PIECE_DOCUMENTS):
            size = min(PIECE_DOCUMENTS, rows - start)
            yield folder, row + start, size, number + start


def _entries(piece: Piece, bands: int) -> Iterator[tuple[BandHash, Member]]:
    """Yield ((band, hash), (document, key of its text)) of the documents of a piece."""
    folder_name, start, rows, first = piece
    folder = epath.Path(folder_name)
    keys = read_column(folder / "keys", COLUMNS["keys"], start, rows)
    hashes = read_column(folder / "bands", COLUMNS["bands"], start * bands, rows * bands)
    # Beam encodes signed integers only.
    signed_keys = keys.view(np.int64)
    signed_hashes = hashes.view(np.int64)
    # Axes: [documents, bands].
    table = signed_hashes.reshape(rows, bands).tolist()
    for number, (key, row) in enumerate(zip(signed_keys.tolist(), table), first):
        for band, value in enumerate(row):
            yield (band, value), (number, key)


def _pairs_of_bucket(bucket: tuple[BandHash, Any]) -> Iterator[tuple[DocumentPair, int]]:
    """Yield ((high, low), band) of the pairs of a bucket: ((band, hash), members)."""
    (band, _), members = bucket
    # Beam gives members in any order.
    ordered = np.array(sorted(members), np.int64)
    documents, signed_keys = ordered.T
    keys = signed_keys.astype(np.uint64)
    low, high = bucket_pairs(documents, keys, band)
    for pair in zip(high.tolist(), low.tolist()):
        yield pair, band


def _read_pairs(folder: epath.Path) -> Pairs:
    """Return the pairs that the pipeline has written, sorted by (high, low)."""
    rows = []
    for file in sorted(folder.glob("part*")):
        rows += [line.split() for line in file.read_text().splitlines()]
    table = np.array(rows, np.int64)
    high, low, band = table.reshape(-1, 3).T
    order = np.lexsort((low, high))
    return Pairs(low[order], high[order], band[order].astype(np.uint8))
