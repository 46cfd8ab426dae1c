"""Sketches on disk: what a file of text leaves, and the index to which batches of such files are added."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Int64

from slmjax.curate.clusters import Clusters, Pairs, candidates, cluster, exact_similarity
from slmjax.curate.minhash import Scheme, sketch
from slmjax.data.sources import Document
from slmjax.data.work import write_atomic
from slmjax.errors import UserError

FORMAT = 1
CHUNK = 4_000_000  # characters that are sketched at once
COLUMNS = {"keys": "<u8", "lines": "<i8", "bytes": "<i8", "counts": "<i8", "shingles": "<u4", "bands": "<u8"}
KEPT = ("keys", "lines", "counts", "shingles", "bands")  # by an index


class SketchWriter:
    """Sketches of documents, in their order, as raw arrays under `folder`, see COLUMNS; bands are [documents, bands].

    A context manager; what was written is whole once it is left without an exception. No more than CHUNK characters are held.
    """

    def __init__(self, folder: epath.Path, scheme: Scheme):
        if folder.exists():
            folder.rmtree()
        folder.mkdir(parents=True)
        self._scheme, self._texts, self._keys, self._size = scheme, [], [], 0
        self._files = {name: (folder / name).open("wb") for name in COLUMNS}

    def add(self, document: Document) -> None:
        """Take a document."""
        self._texts.append(document.text)
        self._keys.append((document.key, document.line, document.bytes))
        self._size += len(document.text)
        if self._size >= CHUNK:
            self._flush()

    def __enter__(self) -> "SketchWriter":
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if kind is None:
            self._flush()
        for file in self._files.values():
            file.close()

    def _flush(self) -> None:
        if not self._texts:
            return
        found = sketch(self._texts, self._scheme)
        keys, lines, sizes = (np.array(column, np.dtype(COLUMNS[name])) for name, column in zip(COLUMNS, zip(*self._keys)))
        for name, column in zip(COLUMNS, (keys, lines, sizes, found.counts, found.shingles, found.bands), strict=True):
            self._files[name].write(column.astype(COLUMNS[name], copy=False).tobytes())
        self._texts, self._keys, self._size = [], [], 0


class Index:
    """Sketches of all documents of all batches so far, in a folder; documents are numbered in the order in which they were added.

    Args:
      folder: made if it is not there.
      scheme: of the sketches.
    Raises: UserError where the folder holds sketches of another scheme.
    """

    def __init__(self, folder: Path, scheme: Scheme):
        self.folder, self.scheme = folder, scheme
        self._manifest = {"format": FORMAT, "scheme": asdict(scheme), "batches": []}
        file = folder / "index.json"
        if file.exists():
            found = json.loads(file.read_text())
            for name, value in self._manifest.items():
                if name != "batches" and found[name] != value:
                    raise UserError(
                        f"{folder} holds sketches of {name} {found[name]}; this run asks for {value}. Use another index, or its {name}."
                    )
            self._manifest = found
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is no index of near-duplicates; name an empty folder for a new one.")
        else:
            write_atomic(file, self._manifest)

    def __len__(self) -> int:
        return sum(unit["documents"] for unit in self.units())

    def __contains__(self, batch: str) -> bool:
        return any(known["name"] == batch for known in self._manifest["batches"])

    def span(self, batch: str) -> tuple[int, Int64[np.ndarray, " units"]]:
        """The number of a batch's first document, and how many documents each of its files has."""
        first = 0
        for known in self._manifest["batches"]:
            sizes = np.array([unit["documents"] for unit in known["units"]], np.int64)
            if known["name"] == batch:
                break
            first += int(sizes.sum())
        return first, sizes

    def units(self) -> Iterator[dict]:
        """{name, documents, shingles} of every file, in order."""
        return (unit for batch in self._manifest["batches"] for unit in batch["units"])

    def add(self, batch: str, units: Sequence[tuple[str, epath.Path]]) -> None:
        """Add the sketches of a batch of files, given as (name, folder of a SketchWriter), unless a batch of this name is there already."""
        if batch in self:
            return
        shingles = sum(unit["shingles"] for unit in self.units())
        sizes = dict.fromkeys(KEPT, len(self)) | {"shingles": shingles, "bands": len(self) * self.scheme.bands}
        for column, size in sizes.items():
            with open(self.folder / column, "ab") as file:
                file.truncate(size * np.dtype(COLUMNS[column]).itemsize)  # what a killed call had added is cut off
                for _, folder in units:
                    with (folder / column).open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 22)
        lengths = [((folder / "keys").stat().length // 8, (folder / "shingles").stat().length // 4) for _, folder in units]
        entries = [{"name": name, "documents": n, "shingles": own} for (name, _), (n, own) in zip(units, lengths)]
        self._manifest["batches"].append({"name": batch, "units": entries})
        write_atomic(self.folder / "index.json", self._manifest)

    def forget(self, batch: str) -> None:
        """Take out the batch that was added last, if it has this name."""
        if self._manifest["batches"] and self._manifest["batches"][-1]["name"] == batch:
            self._manifest["batches"].pop()
            write_atomic(self.folder / "index.json", self._manifest)

    def clusters(self, threshold: float, pairs: Pairs | None = None) -> Clusters:
        """Clusters of all documents, see `clusters.cluster`; `pairs` are their candidates where something else has found them."""
        documents, shingles = len(self), sum(unit["shingles"] for unit in self.units())
        keys, counts = (_array(self.folder / name, COLUMNS[name], documents) for name in ("keys", "counts"))
        if pairs is None:
            bands = _array(self.folder / "bands", COLUMNS["bands"], documents * self.scheme.bands)
            pairs = candidates(bands.reshape(documents, self.scheme.bands), keys)
        return cluster(pairs, keys, exact_similarity(_array(self.folder / "shingles", "<u4", shingles), counts), threshold)

    def places(self, documents: Int64[np.ndarray, " some"]) -> Iterable[tuple[str, int]]:
        """(name of the file, line) of documents."""
        names = [unit["name"] for unit in self.units()]
        ends = np.cumsum([unit["documents"] for unit in self.units()])
        lines = _array(self.folder / "lines", "<i8", len(self))
        return zip((names[i] for i in np.searchsorted(ends, documents, "right")), lines[documents].tolist())


def read_column(file: epath.Path, dtype: str, start: int, count: int) -> np.ndarray:
    """`count` values of a raw array from number `start` on."""
    with file.open("rb") as stream:
        stream.seek(start * np.dtype(dtype).itemsize)
        return np.frombuffer(stream.read(count * np.dtype(dtype).itemsize), dtype)


def _array(file: Path, dtype: str, size: int) -> np.ndarray:
    return np.memmap(file, dtype, "r", shape=(size,)) if size else np.zeros(0, dtype)
