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

# Tokens in a record. Reading one, not compressed, takes 8 us, one of 8,192 tokens 11, compressed
# 15 and 26 (and a quarter less disk); a row of 1,024 tokens reads one or two.
BLOCK = 2048
# Bytes: a larger table of documents is memory-mapped, which keeps its file open.
IN_MEMORY = 1 << 16
# A row of the table: first token and number of tokens, UTF-8 bytes, content hash, line in the file.
DOCUMENT = np.dtype(
    [("start", "<i8"), ("length", "<i8"), ("bytes", "<i8"), ("key", "<u8"), ("line", "<i8")]
)
# The table where data.sources.NAME.score asks for one.
SCORED = np.dtype([*DOCUMENT.descr, ("score", "<f8")])


@dataclass(frozen=True)
class Shard:
    """A shard as the manifest describes it.

    path: under the prepared folder. file: the input file. documents, tokens, bytes: counts.
    size: bytes of the token file. sha256: hash of the table.
    parts: for a shard of several input files (name, documents, hash) of each, in order. The hash is
      that of the table which its documents would have alone: fingerprints do not depend on which
      files share a shard.
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
        """The hash of each input file's documents, in order."""
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
        return list(itertools.accumulate(documents for _, documents, _ in self.parts))

    def fault(self, folder: str | Path) -> str:
        """Return the path of the file of the two that is missing or damaged; "" for neither.

        The table is read and compared with its hash. Of the tokens only the size is compared, as
        their blocks have checksums of their own.
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
        # The counts of the manifest are in no hash, so they are compared as well.
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
    """Return a shard as the manifest holds it; Shard(**entry) is the way back."""
    entry = asdict(shard)
    # Left out where there are none, so that manifests without parts stay as they were.
    if not shard.parts:
        del entry["parts"]
    return entry


def read_table(path: str) -> np.ndarray:
    """Return the table of a shard's documents, memory-mapped where it is large.

    Raises: OSError, or ValueError where the file is not a table of documents.
    """
    place = table_path(path)
    mode = "r" if os.path.getsize(place) > IN_MEMORY else None
    try:
        table = np.asarray(np.load(place, mmap_mode=mode, allow_pickle=False))
    except OSError:
        raise
    except Exception as error:
        # numpy parses the header as Python: damage there raises whatever parsing does.
        raise ValueError(f"{place} is no table of documents") from error
    if table.dtype not in (DOCUMENT, SCORED) or table.ndim != 1:
        raise ValueError(f"{place} is no table of documents")
    return table


def table_path(path: str | Path) -> str:
    """Return the path of the table that belongs to a shard's token file."""
    return str(path).removesuffix(".arrayrecord") + ".documents.npy"


def table_digest(table: np.ndarray) -> str:
    """Return the SHA-256 of a table's content."""
    return hashlib.sha256(table.tobytes()).hexdigest()


def part_digest(part: np.ndarray) -> str:
    """Return the digest of a part of a table, as if it were that of a shard by itself."""
    # Alone, its first document would begin at token 0.
    alone = part.copy()
    alone["start"] -= alone["start"][:1]
    return table_digest(alone)


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
