"""A long stream of bytes as files of bounded size, each with its SHA-256."""

import bisect
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from slmjax.errors import UserError
from slmjax.text.files import write_atomic

PIECE_NAME = re.compile(r"params-[0-9]{5}\.bin")
MOST_PIECES = 100_000  # as many as the names have digits for
# Units of sizes, in bytes.
BYTE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "tb": 1000**4,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
    "tib": 1024**4,
}


class DamagedPiece(ValueError):
    """A piece that is missing or not what was written; the text names it."""


def piece_name(number: int) -> str:
    """Return the file name of a piece, counted from 0."""
    return f"params-{number:05d}.bin"


def parse_bytes(text: str, option: str) -> int:
    """Return a number of bytes: "16MiB", "1GB", "1.5 GiB" or "4096".

    Args:
      option: that the text comes from, for the message.
    Raises: UserError for anything else, and for less than one byte.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([a-z]*)", text.strip().lower())
    count = 0
    if match and match[2] in BYTE_UNITS:
        count = int(float(match[1]) * BYTE_UNITS[match[2]])
    if count < 1:
        expected = "expected a size such as 16MiB, 1GB or 4096 (bytes)"
        raise UserError(f"{option}={text}: {expected}.")
    return count


class PieceWriter:
    """Writes a stream to a folder, as pieces of `limit` bytes; the last one may be shorter.

    A piece that the folder already holds byte for byte is left as it is.
    """

    def __init__(self, folder: Path | epath.Path, limit: int):
        self.folder, self.limit = folder, limit
        # {"file": name, "bytes": size, "sha256": hex} of each piece so far
        self.pieces: list[dict] = []
        self._open = bytearray()  # the beginning of the next piece

    def write(self, content: bytes | memoryview) -> None:
        """Append to the stream; full pieces go to their files."""
        view = memoryview(content)
        while len(view):
            taken = view[: self.limit - len(self._open)]
            self._open += taken
            view = view[len(taken) :]
            if len(self._open) == self.limit:
                self._flush()

    def close(self) -> list[dict]:
        """Write what is left and return all pieces."""
        if self._open:
            self._flush()
        return self.pieces

    def _flush(self) -> None:
        """Write what is open as the next piece."""
        name = piece_name(len(self.pieces))
        content = bytes(self._open)
        self._open.clear()
        digest = hashlib.sha256(content).hexdigest()
        piece = {"file": name, "bytes": len(content), "sha256": digest}
        if piece_fault(self.folder, piece):
            write_atomic(self.folder / name, content)
        self.pieces.append(piece)


class PieceReader:
    """Reads a stream from its pieces; no byte is used before its piece's hash has been checked.

    It holds one piece in memory: reading in the order of the stream reads each file once.

    Args:
      pieces: as `PieceWriter.close` returned them.
    """

    def __init__(self, folder: Path | epath.Path, pieces: Sequence[Mapping[str, Any]]):
        self.folder, self.pieces = folder, pieces
        sizes = (piece["bytes"] for piece in pieces)
        # Offset of each piece in the stream, and the stream's length.
        self.starts = list(itertools.accumulate(sizes, initial=0))
        # The piece in memory and its number; -1: none yet.
        self._number, self._content = -1, b""

    def read(self, offset: int, size: int) -> np.ndarray:
        """Return `size` bytes of the stream from `offset`, as uint8.

        Raises: DamagedPiece where a file with some of them is missing or damaged.
        """
        out = np.empty(size, np.uint8)
        filled = 0
        while filled < size:
            place = offset + filled
            number = bisect.bisect_right(self.starts, place) - 1
            begin = place - self.starts[number]
            part = self._piece(number)[begin : begin + size - filled]
            out[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
            del part  # or the piece would stay while the next one is read
        return out

    def _piece(self, number: int) -> memoryview:
        """Return a piece's bytes; the piece that was in memory leaves it. Raises: DamagedPiece."""
        if number != self._number:
            # Freed first, so that two pieces are never in memory at once.
            self._number, self._content = -1, b""
            self._content = self._checked(number)
            self._number = number
        return memoryview(self._content)

    def _checked(self, number: int) -> bytes:
        """Return a piece's bytes. Raises: DamagedPiece."""
        piece = self.pieces[number]
        content, fault = _read(self.folder, piece)
        if not fault:
            return content
        place = self.folder / piece["file"]
        # Files that changed places are not damaged; the message says which one it is.
        digest = hashlib.sha256(content).hexdigest()
        for other in self.pieces:
            if content and digest == other["sha256"]:
                fault = f"holds the bytes of {other['file']}"
                break
        raise DamagedPiece(f"the piece '{place}' {fault}")


def piece_fault(folder: Path | epath.Path, piece: Mapping[str, Any]) -> str:
    """Return what is wrong with a piece's file, without its name: "is missing"; "" for nothing."""
    return _read(folder, piece)[1]


def _read(folder: Path | epath.Path, piece: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return (content of a piece, its fault); a file of another size is not read."""
    file = epath.Path(folder) / piece["file"]
    try:
        size = file.stat().length
        if size != piece["bytes"]:
            return b"", f"has {size:,} bytes; it was written with {piece['bytes']:,}"
        content = file.read_bytes()
    except FileNotFoundError:
        return b"", "is missing"
    except OSError as error:
        return b"", f"cannot be read: {error.strerror or error}"
    if hashlib.sha256(content).hexdigest() != piece["sha256"]:
        return content, "is not what was written: its SHA-256 is another"
    return content, ""
