"""Sketches on disk: what a file of text leaves, and the index to which batches of such files are added."""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from slmjax.curate.clusters import Clusters, cluster, exact_similarity
from slmjax.curate.minhash import Scheme, sketch
from slmjax.data.sources import Document
from slmjax.data.work import write_atomic
from slmjax.errors import UserError

FORMAT = 1
CHUNK = 4_000_000  # characters that are sketched at once
COLUMNS = {"keys": "<u8", "lines": "<i8", "bytes": "<i8", "counts": "<i8", "shingles": "<u4", "bands": "<u8"}
KEPT = ("keys", "lines", "counts", "shingles")  # in an index as they are; bands are turned, and bytes serve reports only


class SketchWriter:
    """Sketches of documents, in their order, as raw arrays under `folder`, see COLUMNS; bands are [documents, bands].

    A context manager; what was written is whole once it is left without an exception. No more than CHUNK characters are held.
    """

    def __init__(self, folder: Path, scheme: Scheme):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._scheme, self._texts, self._keys, self._size = scheme, [], [], 0
        self._files = {name: open(folder / name, "wb") for name in COLUMNS}  # noqa: SIM115 (closed in __exit__)

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
        for name, column in zip(COLUMNS, (keys, lines, sizes, found.counts, found.shingles, found.bands.T), strict=True):
            column.astype(COLUMNS[name], copy=False).tofile(self._files[name])
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
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return sum(unit["documents"] for unit in self.units())

    def __contains__(self, batch: str) -> bool:
        return any(known["name"] == batch for known in self._manifest["batches"])

    def first(self, batch: str) -> int:
        """The number of a batch's first document."""
        before = itertools.takewhile(lambda known: known["name"] != batch, self._manifest["batches"])
        return sum(unit["documents"] for known in before for unit in known["units"])

    def units(self) -> Iterator[dict]:
        """{name, documents, shingles} of every file, in order."""
        return (unit for batch in self._manifest["batches"] for unit in batch["units"])

    def add(self, batch: str, units: Sequence[tuple[str, Path]]) -> None:
        """Add the sketches of a batch of files, given as (name, folder of a SketchWriter), unless a batch of this name is there already."""
        if batch in self:
            return
        sizes = dict.fromkeys(KEPT, len(self)) | {"shingles": sum(unit["shingles"] for unit in self.units())}
        sizes |= {f"bands-{band:03d}": len(self) for band in range(self.scheme.bands)}
        entries = []
        for name, size in sizes.items():  # what a killed call had added is cut off
            with open(self.folder / name, "ab") as file:
                file.truncate(size * np.dtype(COLUMNS[name.partition("-")[0]]).itemsize)
        for name, folder in units:
            for column in KEPT:
                with open(folder / column, "rb") as source, open(self.folder / column, "ab") as file:
                    shutil.copyfileobj(source, file, 1 << 22)
            documents, own = (folder / "keys").stat().st_size // 8, (folder / "shingles").stat().st_size // 4
            rows = _array(folder / "bands", "<u8", documents * self.scheme.bands).reshape(documents, self.scheme.bands)
            for band in range(self.scheme.bands):
                with open(self.folder / f"bands-{band:03d}", "ab") as file:
                    np.ascontiguousarray(rows[:, band]).tofile(file)
            entries.append({"name": name, "documents": documents, "shingles": own})
        self._manifest["batches"].append({"name": batch, "units": entries})
        write_atomic(self.folder / "index.json", self._manifest)

    def clusters(self, threshold: float) -> Clusters:
        """Clusters of all documents, see `clusters.cluster`."""
        documents, shingles = len(self), sum(unit["shingles"] for unit in self.units())
        bands = [_array(self.folder / f"bands-{band:03d}", "<u8", documents) for band in range(self.scheme.bands)]
        counts = _array(self.folder / "counts", "<i8", documents)
        similarity = exact_similarity(_array(self.folder / "shingles", "<u4", shingles), counts)
        return cluster(bands, _array(self.folder / "keys", "<u8", documents), similarity, threshold)

    def places(self, documents: Int64[np.ndarray, " some"]) -> Iterable[tuple[str, int]]:
        """(name of the file, line) of documents."""
        names = [unit["name"] for unit in self.units()]
        ends = np.cumsum([unit["documents"] for unit in self.units()])
        lines = _array(self.folder / "lines", "<i8", len(self))
        return zip((names[i] for i in np.searchsorted(ends, documents, "right")), lines[documents].tolist())


def _array(file: Path, dtype: str, size: int) -> np.ndarray:
    return np.memmap(file, dtype, "r", shape=(size,)) if size else np.zeros(0, dtype)
