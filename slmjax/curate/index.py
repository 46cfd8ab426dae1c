"""Sketches on disk: what a file of text leaves, and the index to which batches of such files are added."""

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
from slmjax.curate.minhash import Scheme, sketch
from slmjax.errors import UserError
from slmjax.text.files import LOCK, seal_is_broken, sealed, write_atomic
from slmjax.text.records import Document

FORMAT = 2  # 1: another rule for words
PIECE = 1 << 22  # bytes that are copied or checked at once
CHUNK = 4_000_000  # characters that are sketched at once
COLUMNS = {
    "keys": "<u8",
    "lines": "<i8",
    "bytes": "<i8",
    "counts": "<i8",
    "shingles": "<u4",
    "bands": "<u8",
}
KEPT = ("keys", "lines", "counts", "shingles", "bands")  # by an index


class Checked:
    """A file that is being written, with the CRC-32 of what was. A context manager."""

    def __init__(self, file: Any):
        self._file, self.crc32 = file, 0

    def write(self, data: bytes) -> None:
        """Append to the file."""
        self.crc32 = zlib.crc32(data, self.crc32)
        self._file.write(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Checked":
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()


class SketchWriter:
    """Sketches of documents, in their order, as raw arrays under `folder`, see COLUMNS; bands are [documents, bands].

    A context manager; what was written is whole once it is left without an exception. No more than CHUNK characters are held.
    """

    def __init__(self, folder: epath.Path, scheme: Scheme):
        if folder.exists():
            folder.rmtree()
        folder.mkdir(parents=True)
        self._scheme, self._texts, self._keys, self._size = scheme, [], [], 0
        self._files = {name: Checked((folder / name).open("wb")) for name in COLUMNS}

    def add(self, document: Document) -> None:
        """Take a document."""
        self._texts.append(document.text)
        self._keys.append((document.key, document.line, document.bytes))
        self._size += len(document.text)
        if self._size >= CHUNK:
            self._flush()

    @property
    def checksums(self) -> dict[str, int]:
        """CRC-32 of what was written of each column."""
        return {name: file.crc32 for name, file in self._files.items()}

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
        keys, lines, sizes = (
            np.array(column, np.dtype(COLUMNS[name]))
            for name, column in zip(COLUMNS, zip(*self._keys))
        )
        for name, column in zip(
            COLUMNS, (keys, lines, sizes, found.counts, found.shingles, found.bands), strict=True
        ):
            self._files[name].write(column.astype(COLUMNS[name], copy=False).tobytes())
        self._texts, self._keys, self._size = [], [], 0


class Index:
    """Sketches of all documents of all batches so far, in a folder; documents are numbered in the order in which they were added.

    Args:
      folder: made if it is not there.
      scheme: of the sketches.
    Raises: UserError where the folder holds sketches of another scheme, or where what it holds is
      not what was written.
    """

    def __init__(self, folder: Path, scheme: Scheme):
        self.folder, self.scheme = folder, scheme
        self._manifest = {"format": FORMAT, "scheme": asdict(scheme), "batches": []}
        file = folder / "index.json"
        if file.exists():
            found = _read_manifest(file)
            for name, value in self._manifest.items():
                if name != "batches" and found[name] != value:
                    advice = f"Use another index, or its {name}."
                    if name == "format":
                        advice = "Another version of slmjax wrote it: name another index."
                    raise UserError(
                        f"{folder} holds sketches of {name} {found[name]}; "
                        f"this run asks for {value}. {advice}"
                    )
            self._manifest = found
            self._verify()
        elif folder.exists() and (not folder.is_dir() or set(os.listdir(folder)) - {LOCK}):
            raise UserError(
                f"{folder} is no index of near-duplicates; name an empty folder for a new one."
            )
        else:
            self._save()

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

    def add(
        self, batch: str, units: Sequence[tuple[Sequence[tuple[str, int]], epath.Path]]
    ) -> None:
        """Add the sketches of a batch of files, unless a batch of this name is there already.

        `units` are (name and number of documents of each file, folder of the SketchWriter of them all).
        """
        if batch in self:
            return
        shingles = sum(unit["shingles"] for unit in self.units())
        sizes = dict.fromkeys(KEPT, len(self)) | {
            "shingles": shingles,
            "bands": len(self) * self.scheme.bands,
        }
        entries = [entry for files, folder in units for entry in self._measured(files, folder)]
        checksums = {}
        for column, size in sizes.items():
            with open(self.folder / column, "ab") as file:
                file.truncate(
                    size * np.dtype(COLUMNS[column]).itemsize
                )  # what a killed call had added is cut off
                checksum = 0
                for _, folder in units:
                    with (folder / column).open("rb") as source:
                        while piece := source.read(PIECE):
                            file.write(piece)
                            checksum = zlib.crc32(piece, checksum)
                checksums[column] = checksum
        self._manifest["batches"].append({"name": batch, "units": entries, "crc32": checksums})
        self._save()

    def forget(self, batch: str) -> None:
        """Take out the batch that was added last, if it has this name."""
        if self._manifest["batches"] and self._manifest["batches"][-1]["name"] == batch:
            self._manifest["batches"].pop()
            self._save()

    def _save(self) -> None:
        write_atomic(self.folder / "index.json", json.dumps(sealed(self._manifest), indent=1))

    def _measured(
        self, files: Sequence[tuple[str, int]], folder: epath.Path
    ) -> list[dict[str, Any]]:
        """The files' entries in the manifest.

        Raises: UserError where their sketches are not whole.
        """
        length = {column: (folder / column).stat().length for column in KEPT}
        sizes = [size for _, size in files]
        documents, shingles = sum(sizes), length["shingles"] // 4
        expected = {"keys": 8, "lines": 8, "counts": 8, "bands": 8 * self.scheme.bands}
        whole = all(length[column] == size * documents for column, size in expected.items())
        counts = read_column(folder / "counts", "<i8", 0, documents)
        if not whole or not _adds_up(counts, shingles):
            raise UserError(f"{folder} is damaged; delete {folder.parent} and start again.")
        of_each = np.split(counts, np.cumsum(sizes)[:-1])
        return [
            {"name": name, "documents": size, "shingles": int(own.sum())}
            for (name, size), own in zip(files, of_each)
        ]

    def _verify(self) -> None:
        """Raises: UserError where a column is not what was written; what is behind it does not matter."""
        starts, documents, shingles = dict.fromkeys(KEPT, 0), len(self), 0
        for batch in self._manifest["batches"]:
            units = batch["units"]
            sizes = dict.fromkeys(KEPT, 8 * sum(unit["documents"] for unit in units))
            sizes["bands"] *= self.scheme.bands
            sizes["shingles"] = 4 * sum(unit["shingles"] for unit in units)
            shingles += sizes["shingles"] // 4
            for column, size in sizes.items():
                file = self.folder / column
                checksum = _checksum(file, starts[column], size)
                if checksum is None:
                    raise _damaged(file, f"it ends before batch {batch['name']} does")
                if checksum != batch.get("crc32", {}).get(
                    column, checksum
                ):  # none in older indexes
                    raise _damaged(file, f"batch {batch['name']} is not what was written")
                starts[column] += size
        if not _adds_up(_array(self.folder / "counts", COLUMNS["counts"], documents), shingles):
            raise _damaged(self.folder / "counts", f"it does not add up to {shingles} shingles")

    def clusters(self, threshold: float, pairs: Pairs | None = None) -> Clusters:
        """Clusters of all documents, see `clusters.cluster`; `pairs` are their candidates where something else has found them."""
        documents, shingles = len(self), sum(unit["shingles"] for unit in self.units())
        keys, counts = (
            _array(self.folder / name, COLUMNS[name], documents) for name in ("keys", "counts")
        )
        if pairs is None:
            bands = _array(self.folder / "bands", COLUMNS["bands"], documents * self.scheme.bands)
            pairs = candidates(bands.reshape(documents, self.scheme.bands), keys)
        return cluster(
            pairs,
            keys,
            exact_similarity(_array(self.folder / "shingles", "<u4", shingles), counts),
            threshold,
        )

    def shingles(
        self, start: int, stop: int
    ) -> tuple[UInt32[np.ndarray, " shingles"], Int64[np.ndarray, " documents"]]:
        """Return the shingles of documents start to stop end to end, and how many each has."""
        counts = _array(self.folder / "counts", COLUMNS["counts"], len(self))
        first = int(counts[:start].sum())
        size = int(counts[start:stop].sum())
        every = _array(self.folder / "shingles", COLUMNS["shingles"], first + size)
        return np.array(every[first:]), np.array(counts[start:stop])

    def places(self, documents: Int64[np.ndarray, " some"]) -> Iterable[tuple[str, int]]:
        """(name of the file, line) of documents."""
        names = [unit["name"] for unit in self.units()]
        ends = np.cumsum([unit["documents"] for unit in self.units()])
        lines = _array(self.folder / "lines", "<i8", len(self))
        return zip(
            (names[i] for i in np.searchsorted(ends, documents, "right")), lines[documents].tolist()
        )


def sketched(folder: epath.Path) -> int:
    """How many documents a SketchWriter has left in a folder."""
    return (folder / "keys").stat().length // 8


def _read_manifest(file: Path) -> dict[str, Any]:
    """index.json. Raises: UserError where it is not as `Index.add` writes it."""
    try:
        found = json.loads(file.read_bytes().decode("utf-8", "surrogateescape"))
        batches = found["batches"]
        for batch in batches:
            units, checksums = batch["units"], batch.get("crc32", {}).items()
            counts = [unit[name] for unit in units for name in ("documents", "shingles")]
            names = [batch["name"], *(unit["name"] for unit in units)]
            if not all(type(count) is int and 0 <= count < 1 << 48 for count in counts):
                raise ValueError("a count is none")
            if not all(isinstance(name, str) for name in names) or any(
                c not in KEPT for c, _ in checksums
            ):
                raise ValueError("a name is none")
        if not {"format", "scheme"} <= {*found}:
            raise ValueError("format or scheme is missing")
        if seal_is_broken(found):
            raise ValueError("it is not what was written")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    return {name: value for name, value in found.items() if name != "seal"}


def _damaged(file: Path, what: str) -> UserError:
    return UserError(
        f"{file} is damaged ({what}); name another folder as config.curate.index, or curate the batches of this one again."
    )


def checksum_of(file: epath.Path) -> int:
    """CRC-32 of a whole file."""
    checksum = 0
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _checksum(file: Path, start: int, size: int) -> int | None:
    """CRC-32 of a part of a file; None where the file ends before it does."""
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
            checksum, size = zlib.crc32(piece, checksum), size - len(piece)
    return checksum


def _adds_up(counts: np.ndarray, shingles: int) -> bool:
    """Whether every document has shingles and all of them together so many."""
    if not len(counts):
        return shingles == 0
    return bool(counts.min() >= 1 and counts.max() <= shingles and counts.sum() == shingles)


def read_column(file: epath.Path, dtype: str, start: int, count: int) -> np.ndarray:
    """`count` values of a raw array from number `start` on."""
    with file.open("rb") as stream:
        stream.seek(start * np.dtype(dtype).itemsize)
        return np.frombuffer(stream.read(count * np.dtype(dtype).itemsize), dtype)


def _array(file: Path, dtype: str, size: int) -> np.ndarray:
    return np.memmap(file, dtype, "r", shape=(size,)) if size else np.zeros(0, dtype)
