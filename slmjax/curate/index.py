"""The index of near-duplicates: sketches of all batches of documents so far, in a folder."""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int64, UInt32

from slmjax.curate.clusters import Clusters, Pairs, candidates, cluster, exact_similarity
from slmjax.curate.minhash import Scheme
from slmjax.curate.sketch_files import COLUMNS, PIECE, read_column
from slmjax.errors import UserError
from slmjax.text.claims import LOCK
from slmjax.text.files import seal_is_broken, sealed, write_atomic

FORMAT = 2  # format 1 had another rule for what a word is
KEPT = ("keys", "lines", "counts", "shingles", "bands")  # columns that an index holds
NamedSizes = Sequence[tuple[str, int]]  # name of each file, how many documents it has
MOST = 1 << 48  # no batch has so many documents or shingles


class Index:
    """Sketches of documents, which are numbered in the order in which they were added.

    The folder holds a file for each column in KEPT, and index.json, which names the batches and
    their files.

    Args:
      folder: made if it is not there.
      scheme: of the sketches.
    Raises: UserError where the folder holds sketches of another scheme or format, is damaged, or
      holds something else.
    """

    def __init__(self, folder: Path, scheme: Scheme):
        self.folder, self.scheme = folder, scheme
        # A batch is {"name", "units", "crc32": {column: checksum}}; its "units" are files, each
        # {"name", "documents", "shingles"}.
        empty_manifest = {"format": FORMAT, "scheme": asdict(scheme), "batches": []}
        self._manifest = empty_manifest
        file = folder / "index.json"
        if file.exists():
            manifest = _read_manifest(file)
            for name in ("format", "scheme"):
                self._refuse_other(name, manifest[name], empty_manifest[name])
            self._manifest = manifest
            self._verify()
        elif folder.exists() and not _is_empty(folder):
            raise UserError(
                f"{folder} is no index of near-duplicates; name an empty folder for a new one."
            )
        else:
            self._save()

    def _refuse_other(self, name: str, value: Any, expected: Any) -> None:
        """Raise a UserError if the format or scheme of index.json is not the expected one."""
        if value == expected:
            return
        advice = f"Use another index, or its {name}."
        if name == "format":
            advice = "Another version of slmjax wrote it: name another index."
        raise UserError(
            f"{self.folder} holds sketches of {name} {value}; this run asks for {expected}. "
            f"{advice}"
        )

    def __len__(self) -> int:
        """How many documents the index holds."""
        return _total(self.files(), "documents")

    def __contains__(self, batch: str) -> bool:
        """Whether a batch of this name was added."""
        names = [entry["name"] for entry in self._manifest["batches"]]
        return batch in names

    def span(self, batch: str) -> tuple[int, Int64[np.ndarray, " files"]]:
        """Return the number of a batch's first document, and how many documents each file has.

        The batch must be in the index.
        """
        first = 0
        for entry in self._manifest["batches"]:
            sizes = [file["documents"] for file in entry["units"]]
            if entry["name"] == batch:
                break
            first += sum(sizes)
        return first, np.array(sizes, np.int64)

    def files(self) -> Iterator[dict]:
        """Yield {"name", "documents", "shingles"} of every file in the index, in order."""
        for batch in self._manifest["batches"]:
            yield from batch["units"]

    def add(self, batch: str, units: Sequence[tuple[NamedSizes, epath.Path]]) -> None:
        """Add the sketches of a batch of files, unless a batch of this name is there already.

        Args:
          units: for each unit its files (name, number of documents), and the folder to which a
            SketchWriter has written the sketches of them all.
        Raises: UserError for damaged sketches.
        """
        if batch in self:
            return
        entries = []
        for files, folder in units:
            entries += self._file_entries(files, folder)
        sizes = self._column_sizes(list(self.files()))
        folders = [folder for _, folder in units]
        checksums = {}
        for column, size in sizes.items():
            checksums[column] = _append(self.folder / column, size, folders)
        # Saving the manifest adds the batch: until then the columns only have bytes after the last
        # batch, which nothing reads.
        entry = {"name": batch, "units": entries, "crc32": checksums}
        self._manifest["batches"].append(entry)
        self._save()

    def forget(self, batch: str) -> None:
        """Take out the batch that was added last, if it has this name."""
        batches = self._manifest["batches"]
        if batches and batches[-1]["name"] == batch:
            # Its columns stay as bytes after the last batch; `add` cuts them off.
            batches.pop()
            self._save()

    def clusters(self, threshold: float, pairs: Pairs | None = None) -> Clusters:
        """Return the clusters of all documents, see `clusters.cluster`.

        Args:
          pairs: candidates of all documents; None: they are found here.
        """
        size = len(self)
        keys = self._column("keys", size)
        if pairs is None:
            bands = self._column("bands", size * self.scheme.bands)
            pairs = candidates(bands.reshape(size, self.scheme.bands), keys)
        counts = self._column("counts", size)
        shingles = self._column("shingles", _total(self.files(), "shingles"))
        similarity = exact_similarity(shingles, counts)
        return cluster(pairs, keys, similarity, threshold)

    def shingles(
        self, start: int, stop: int
    ) -> tuple[UInt32[np.ndarray, " shingles"], Int64[np.ndarray, " documents"]]:
        """Return the shingles of documents start to stop end to end, and how many each has."""
        counts = self._column("counts", len(self))
        own_counts = np.array(counts[start:stop])
        first = int(counts[:start].sum())
        last = first + int(own_counts.sum())
        up_to_last = self._column("shingles", last)
        return np.array(up_to_last[first:]), own_counts

    def places(self, documents: Int64[np.ndarray, " some"]) -> Iterator[tuple[str, int]]:
        """Yield (name of the file, line) of each of the documents, given by their numbers."""
        files = list(self.files())
        ends = np.cumsum([file["documents"] for file in files])
        file_of = np.searchsorted(ends, documents, "right")
        lines = self._column("lines", len(self))
        for file, line in zip(file_of, lines[documents].tolist()):
            yield files[file]["name"], line

    def _column(self, name: str, size: int) -> np.ndarray:
        """Return the first `size` values of a column, mapped into memory."""
        dtype = COLUMNS[name]
        if not size:  # an empty file cannot be mapped
            return np.zeros(0, dtype)
        return np.memmap(self.folder / name, dtype, "r", shape=(size,))

    def _save(self) -> None:
        text = json.dumps(sealed(self._manifest), indent=1)
        write_atomic(self.folder / "index.json", text)

    def _file_entries(self, files: NamedSizes, folder: epath.Path) -> list[dict[str, Any]]:
        """Return the entries in the manifest of files whose sketches are in a folder.

        Raises: UserError for damaged sketches.
        """
        sizes = [size for _, size in files]
        documents = sum(sizes)
        lengths = {column: (folder / column).stat().length for column in KEPT}
        shingles = lengths["shingles"] // _width("shingles")
        expected = self._column_sizes([{"documents": documents, "shingles": shingles}])
        # Any length of this column will do here: the counts say how many shingles there are.
        expected["shingles"] = lengths["shingles"]
        counts = read_column(folder / "counts", COLUMNS["counts"], 0, documents)
        if lengths != expected or not _adds_up(counts, shingles):
            raise UserError(f"{folder} is damaged; delete {folder.parent} and start again.")
        entries = []
        ends = np.cumsum(sizes)
        counts_of_files = np.split(counts, ends[:-1])
        for (name, size), own_counts in zip(files, counts_of_files):
            shingles = int(own_counts.sum())
            entries.append({"name": name, "documents": size, "shingles": shingles})
        return entries

    def _column_sizes(self, files: Sequence[dict]) -> dict[str, int]:
        """Return how many bytes of each column the documents of these files take."""
        documents = _total(files, "documents")
        sizes = {column: documents * _width(column) for column in KEPT}
        sizes["bands"] *= self.scheme.bands
        sizes["shingles"] = _total(files, "shingles") * _width("shingles")
        return sizes

    def _verify(self) -> None:
        """Compare the columns with their checksums; bytes after the last batch do not matter.

        Raises: UserError where a column is not what was written.
        """
        starts = dict.fromkeys(KEPT, 0)
        for batch in self._manifest["batches"]:
            for column, size in self._column_sizes(batch["units"]).items():
                file = self.folder / column
                checksum = _checksum_of_part(file, starts[column], size)
                if checksum is None:
                    raise _damaged(file, f"it ends before batch {batch['name']} does")
                # Older indices have no checksums: nothing is compared there.
                expected = batch.get("crc32", {}).get(column, checksum)
                if checksum != expected:
                    raise _damaged(file, f"batch {batch['name']} is not what was written")
                starts[column] += size
        shingles = starts["shingles"] // _width("shingles")
        if not _adds_up(self._column("counts", len(self)), shingles):
            raise _damaged(self.folder / "counts", f"it does not add up to {shingles} shingles")


def _is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing but, maybe, the lock of this run."""
    if not folder.is_dir():
        return False
    return set(os.listdir(folder)) <= {LOCK}


def _total(files: Iterable[dict], field: str) -> int:
    """Return how many "documents" or "shingles" files have together."""
    return sum(file[field] for file in files)


def _width(column: str) -> int:
    """Return the bytes of one value of a column."""
    return np.dtype(COLUMNS[column]).itemsize


def _append(file: Path, size: int, folders: Sequence[epath.Path]) -> int:
    """Append the columns of the same name in `folders` to a file; return their CRC-32.

    Args:
      size: bytes of the file that stay. What comes after them is of a killed run or of a batch that
        was taken out, and is cut off.
    """
    checksum = 0
    with open(file, "ab") as column:
        column.truncate(size)
        for folder in folders:
            with (folder / file.name).open("rb") as source:
                while piece := source.read(PIECE):
                    column.write(piece)
                    checksum = zlib.crc32(piece, checksum)
    return checksum


def _read_manifest(file: Path) -> dict[str, Any]:
    """Return index.json. Raises: UserError where it is not as `Index.add` writes it."""
    try:
        # Names of files may hold bytes that are no UTF-8.
        text = file.read_bytes().decode("utf-8", "surrogateescape")
        manifest = json.loads(text)
        for batch in manifest["batches"]:
            _check_batch(batch)
        if not {"format", "scheme"} <= {*manifest}:
            raise ValueError("format or scheme is missing")
        if seal_is_broken(manifest):
            raise ValueError("it is not what was written")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    manifest.pop("seal", None)
    return manifest


def _check_batch(batch: dict[str, Any]) -> None:
    """Raise an error where a batch in index.json is not as `Index.add` writes it."""
    names = [batch["name"]]
    for file in batch["units"]:
        names.append(file["name"])
        for count in (file["documents"], file["shingles"]):
            # Not isinstance: true and false are no counts.
            if type(count) is not int or not 0 <= count < MOST:
                raise ValueError(f"{count!r} is not a count")
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is not a name")
    for column in dict(batch.get("crc32", {})):
        if column not in KEPT:
            raise ValueError(f"{column!r} is not a column")


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file} is damaged ({reason}); name another folder as config.curate.index, or curate the "
        "batches of this one again."
    )


def _checksum_of_part(file: Path, start: int, size: int) -> int | None:
    """Return the CRC-32 of `size` bytes of a file; None where the file ends before they do."""
    checksum = 0
    if not size:
        return checksum
    if not file.is_file():
        return None
    with open(file, "rb") as stream:
        stream.seek(start)
        while size:
            piece = stream.read(min(size, PIECE))
            if not piece:
                return None
            checksum = zlib.crc32(piece, checksum)
            size -= len(piece)
    return checksum


def _adds_up(counts: np.ndarray, shingles: int) -> bool:
    """Return whether every document has shingles, and all together have this many."""
    if not len(counts):
        return shingles == 0
    # The sum alone may be right by an overflow.
    is_in_range = counts.min() >= 1 and counts.max() <= shingles
    return bool(is_in_range and counts.sum() == shingles)
