"""The files of a shard: ArrayRecord blocks of tokens, and a table of the documents in them."""

import bisect
import functools
import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

# Tokens in a block, which is one uncompressed record. A row of 1,024 tokens reads one or two.
# Reading a block takes 8 us (15 us compressed, for a quarter less disk). Blocks of 8,192 tokens
# would take 11 us (26 us compressed).
BLOCK = 2048
# Bytes: a larger table of documents is memory-mapped, which keeps its file open.
IN_MEMORY = 1 << 16
# A row of the table describes a document: its first token and number of tokens in the shard, bytes
# of its text in UTF-8, hash of its text, and line in the input file.
DOCUMENT = np.dtype(
    [("start", "<i8"), ("length", "<i8"), ("bytes", "<i8"), ("key", "<u8"), ("line", "<i8")]
)
# A row of the table of a source that has data.sources.NAME.score.
SCORED = np.dtype([*DOCUMENT.descr, ("score", "<f8")])


@dataclass(frozen=True)
class Shard:
    """A shard as the manifest describes it.

    path: of the token file, under the prepared folder.
    file: name of the input file, the first of several.
    documents, tokens, bytes: counts; bytes of text.
    size: bytes of the token file.
    sha256: hash of the table.
    parts: (name, documents, hash) of each input file in order, for a shard of several; else empty.
      The hash is that of the file's table if it had a shard of its own: fingerprints must not
      depend on which files share a shard.
    """

    path: str
    file: str
    documents: int
    tokens: int
    bytes: int
    size: int
    sha256: str
    parts: Sequence[Sequence] = ()

    @property
    def prints(self) -> list[str]:
        """The hash of each input file's table, in order."""
        if not self.parts:
            return [self.sha256]
        return [digest for *_, digest in self.parts]

    def file_of(self, document: int) -> str:
        """Return the input file of a document, which is numbered within the shard."""
        if not self.parts:
            return self.file
        name, *_ = self.parts[bisect.bisect_right(self._part_ends, document)]
        return name

    @functools.cached_property
    def _part_ends(self) -> list[int]:
        """Number of the document behind the last one of each part."""
        return list(itertools.accumulate(documents for _, documents, _ in self.parts))

    def fault(self, folder: str | Path) -> str:
        """Return the path of the token file or the table if it is missing or damaged, else "".

        The table is compared with its hash. Of the token file only the size is compared: its blocks
        have checksums that are checked when they are read.
        """
        path = os.path.join(folder, self.path)
        try:
            if os.path.getsize(path) != self.size:
                return path
            table = read_table(path)
        except OSError:
            return path
        except ValueError:
            return table_path(path)
        if self._describes(table):
            return ""
        return table_path(path)

    def _describes(self, table: np.ndarray) -> bool:
        """Whether a table has this shard's counts and hashes."""
        counts = len(table), int(table["length"].sum()), int(table["bytes"].sum())
        # The hash covers the table, but not the counts in the manifest.
        if counts != (self.documents, self.tokens, self.bytes):
            return False
        if table_digest(table) != self.sha256:
            return False
        if not self.parts:
            return True
        parts = np.split(table, self._part_ends[:-1])
        digests = [part_digest(part) for part in parts]
        return self._part_ends[-1] == len(table) and self.prints == digests


def shard_entry(shard: Shard) -> dict:
    """Return a shard as the manifest stores it; Shard(**entry) reads it again."""
    entry = asdict(shard)
    # Left out where there are none, so that manifests without parts stay as they were.
    if not shard.parts:
        del entry["parts"]
    return entry


def read_table(path: str) -> np.ndarray:
    """Return the table of a shard's documents, memory-mapped where it is large.

    Raises: OSError, or ValueError where the file is not a table of documents.
    """
    file = table_path(path)
    mmap_mode = "r" if os.path.getsize(file) > IN_MEMORY else None
    try:
        # As a plain array, which is faster to index than np.memmap.
        table = np.asarray(np.load(file, mmap_mode=mmap_mode, allow_pickle=False))
    except OSError:
        raise
    except Exception as error:
        # numpy parses the header as Python code, so damage there may raise almost anything.
        raise ValueError(f"{file} is no table of documents") from error
    if table.dtype not in (DOCUMENT, SCORED) or table.ndim != 1:
        raise ValueError(f"{file} is no table of documents")
    return table


def table_path(path: str | Path) -> str:
    """Return the path of the table that belongs to a shard's token file."""
    return str(path).removesuffix(".arrayrecord") + ".documents.npy"


def table_digest(table: np.ndarray) -> str:
    """Return the SHA-256 of a table's content."""
    return hashlib.sha256(table.tobytes()).hexdigest()


def part_digest(part: np.ndarray) -> str:
    """Return the digest of a part of a table, as if its documents had a shard of their own."""
    own_table = part.copy()
    # In a shard of its own, the part's first document begins at token 0.
    own_table["start"] -= own_table["start"][:1]
    return table_digest(own_table)


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type of stored tokens: uint16 where it holds every id, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
