"""Sketches of documents on disk: raw columns in a folder, written once and read in parts."""

import zlib
from typing import Any

import numpy as np
from etils import epath

from slmjax.curate.minhash import Scheme, sketch
from slmjax.text.records import Document

PIECE = 1 << 22  # bytes that are read at once to copy or check a file
CHUNK = 4_000_000  # characters that are collected before they are sketched
# Columns and their types. A document has one value in each, except for "shingles" (as many as its
# "counts" says) and "bands" (one for each band).
COLUMNS = {
    "keys": "<u8",
    "lines": "<i8",
    "bytes": "<i8",
    "counts": "<i8",
    "shingles": "<u4",
    "bands": "<u8",
}


class SketchWriter:
    """Writes the sketches of documents, in their order, to one file per column in a folder.

    A context manager: the files are complete once its block ends without an exception. It holds
    at most CHUNK characters, and one document.
    """

    def __init__(self, folder: epath.Path, scheme: Scheme):
        # Files that a stopped run left there do not belong to this run.
        if folder.exists():
            folder.rmtree()
        folder.mkdir(parents=True)
        self._scheme = scheme
        # The documents that wait to be sketched: characters, texts, and columns that are known.
        self._size = 0
        self._texts: list[str] = []
        self._waiting: dict[str, list[int]] = {"keys": [], "lines": [], "bytes": []}
        self._files = {name: ChecksummedFile((folder / name).open("wb")) for name in COLUMNS}

    def add(self, document: Document) -> None:
        """Collect a document; its sketch is written with the next full chunk."""
        self._texts.append(document.text)
        self._waiting["keys"].append(document.key)
        self._waiting["lines"].append(document.line)
        self._waiting["bytes"].append(document.bytes)
        self._size += len(document.text)
        # Many documents are sketched at once, as the kernels are fast with large arrays.
        if self._size >= CHUNK:
            self._flush()

    @property
    def checksums(self) -> dict[str, int]:
        """CRC-32 of each column as it was written."""
        return {name: file.crc32 for name, file in self._files.items()}

    def __enter__(self) -> "SketchWriter":
        return self

    def __exit__(self, error_type: type | None, *rest: object) -> None:
        try:
            if error_type is None:
                self._flush()
        finally:
            for file in self._files.values():
                file.close()

    def _flush(self) -> None:
        if not self._texts:
            return
        sketches = sketch(self._texts, self._scheme)
        columns = {
            **self._waiting,
            "counts": sketches.counts,
            "shingles": sketches.shingles,
            "bands": sketches.bands,
        }
        for name, dtype in COLUMNS.items():
            values = np.asarray(columns[name], np.dtype(dtype))
            self._files[name].write(values.tobytes())
        self._texts.clear()
        self._size = 0
        for values in self._waiting.values():
            values.clear()


class ChecksummedFile:
    """A file that is being written, with the CRC-32 of its content so far. A context manager."""

    def __init__(self, file: Any):
        self._file, self.crc32 = file, 0

    def write(self, data: bytes) -> None:
        """Append to the file."""
        self.crc32 = zlib.crc32(data, self.crc32)
        self._file.write(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "ChecksummedFile":
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()


def count_sketches(folder: epath.Path) -> int:
    """Return how many documents a SketchWriter has written to a folder."""
    return (folder / "keys").stat().length // np.dtype(COLUMNS["keys"]).itemsize


def read_column(file: epath.Path, dtype: str, start: int, count: int) -> np.ndarray:
    """Return `count` values of a raw array, from value `start` on; fewer if the file ends first."""
    size = np.dtype(dtype).itemsize
    with file.open("rb") as stream:
        stream.seek(start * size)
        return np.frombuffer(stream.read(count * size), dtype)


def checksum_of(file: epath.Path) -> int:
    """Return the CRC-32 of a whole file."""
    checksum = 0
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum
