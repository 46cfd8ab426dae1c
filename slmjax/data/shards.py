"""Token shards: random access to the documents of many of them."""

import bisect
import functools
import hashlib
import itertools
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt64

from slmjax.data import shard_files
from slmjax.data.shard_files import SCORED, Shard, read_table, table_path, token_dtype
from slmjax.data.shard_writer import ShardWriter
from slmjax.errors import UserError

__all__ = ["Shard", "ShardSet", "ShardWriter"]

# Decoded blocks that a ShardSet keeps (4 to 8 MB).
CACHED_BLOCKS = 1024
# Files that this process keeps open for all its shards: systems often allow 1,024, and JAX, workers
# and logs need some too.
OPEN_TABLES = 128
OPEN_READERS = 256

Integer = int | np.integer


class Columns(NamedTuple):
    """The table of a shard's documents, and two of its columns."""

    starts: np.ndarray
    lengths: np.ndarray
    table: np.ndarray


class ShardSet:
    """Random access to the documents of several shards, numbered 0, 1, 2, ... in shard order.

    It pickles as its paths. Tables are memory-mapped and readers opened when first used, so each
    worker process opens its own. Threads may share it.

    Args:
      shards: their descriptions.
      folders: folders[i] is the prepared folder of shards[i].
      vocab_size: of the tokenizer; it decides the type of the tokens.
      salt: part of the fingerprint, the tokenizer's hash.
    """

    def __init__(
        self, shards: Sequence[Shard], folders: Sequence[str], *, vocab_size: int, salt: str = ""
    ):
        self._shards = tuple(shards)
        self._folders = tuple(map(str, folders))
        self._vocab_size = vocab_size
        self._salt = salt
        # Number of the first document of each shard, and of all documents.
        self._ends = [0, *itertools.accumulate(shard.documents for shard in self._shards)]
        # Tables that are small enough to be kept in memory, by shard.
        self._small: dict[int, Columns] = {}
        # Part of the cache key of open files: files that are made again under the same names are
        # not those that are open.
        self._key = uuid.uuid4().hex
        self._block = functools.lru_cache(CACHED_BLOCKS)(self._read_block)

    def __reduce__(self) -> tuple:
        make = functools.partial(ShardSet, vocab_size=self._vocab_size, salt=self._salt)
        return make, (self._shards, self._folders)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def tokens(self) -> int:
        """All tokens, one end-of-text for each document included."""
        return sum(shard.tokens for shard in self._shards)

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " docs"]:
        """Tokens of each document, its leading end-of-text included."""
        return self._column("length")

    @functools.cached_property
    def bytes(self) -> Int64[np.ndarray, " docs"]:
        """UTF-8 bytes of each document's text."""
        return self._column("bytes")

    @functools.cached_property
    def keys(self) -> UInt64[np.ndarray, " docs"]:
        """Content hash of each document's text.

        The same document has the same key in every prepared folder.
        """
        return self._column("key")

    @functools.cached_property
    def scores(self) -> Float64[np.ndarray, " docs"]:
        """The score of each document, where it was prepared with one."""
        return self._column("score")

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest that changes when any document, its tokens or the order changes."""
        digests = [self._salt]
        for shard in self._shards:
            digests += shard.prints
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def read(self, doc: Integer, offset: Integer, count: Integer) -> Int32[np.ndarray, "{count}+1"]:
        """Return `count` tokens of a document from `offset`, and the token after them.

        The token after a document's last one is end-of-text.
        Raises: IndexError if they are not all in the document.
        """
        shard, local = self._locate(doc)
        starts, lengths, _ = self._table(shard)
        if offset < 0 or count < 0 or offset + count > lengths[local]:
            raise IndexError(
                f"tokens {offset} to {offset + count} of document {doc}, which has {lengths[local]}"
            )
        begin = int(starts[local]) + int(offset)
        block, inside = divmod(begin, shard_files.BLOCK)
        end = inside + count + 1
        # Most spans are shorter than a block, and lie in one or two.
        if end <= shard_files.BLOCK:
            return self._block(shard, block)[inside:end].astype(np.int32)
        block_count = -(-end // shard_files.BLOCK)
        blocks = [self._block(shard, block + i) for i in range(block_count)]
        return np.concatenate(blocks)[inside:end].astype(np.int32)

    def name(self, doc: Integer) -> str:
        """Return where a document came from, for a person: "books-000.jsonl.xz line 17"."""
        shard, local = self._locate(doc)
        line = self._table(shard).table[local]["line"]
        return f"{self._shards[shard].file_of(local)} line {line}"

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the token ids of each document, without end-of-text."""
        for doc, length in enumerate(self.lengths):
            yield self.read(doc, 0, int(length) - 1)[1:]

    def _locate(self, doc: Integer) -> tuple[int, int]:
        """Return the shard of a document and its number there."""
        if not 0 <= doc < self._ends[-1]:
            raise IndexError(f"document {doc} of {len(self)}")
        shard = bisect.bisect_right(self._ends, doc) - 1
        return shard, int(doc) - self._ends[shard]

    def _table(self, shard: int) -> Columns:
        """Return a shard's table; plain arrays as views, since np.memmap is slow to index."""
        if shard not in self._small:
            place = self._place(shard)
            columns = _table(place, self._key)
            # The folder may have been prepared anew since the manifest was read.
            if len(columns.table) != self._shards[shard].documents:
                raise _damaged(table_path(place), "it has another number of documents")
            if columns.table.nbytes > shard_files.IN_MEMORY:
                return columns
            self._small[shard] = columns
        return self._small[shard]

    def _column(self, name: str) -> np.ndarray:
        columns = [np.zeros(0, SCORED[name])]
        for shard in range(len(self._shards)):
            # A copy: a view would keep the file of a memory-mapped table open.
            columns.append(self._table(shard).table[name].copy())
        return np.concatenate(columns)

    def _place(self, shard: int) -> str:
        return os.path.join(self._folders[shard], self._shards[shard].path)

    def _read_block(self, shard: int, block: int) -> np.ndarray:
        place = self._place(shard)
        try:
            data = _reader(place, self._key).read([block])[0]
        except (RuntimeError, IndexError) as error:
            raise _damaged(place, error) from error
        return np.frombuffer(data, token_dtype(self._vocab_size))


@functools.lru_cache(OPEN_TABLES)
def _table(place: str, key: str) -> Columns:
    try:
        table = read_table(place)
    except (OSError, ValueError) as error:
        raise _damaged(table_path(place), error) from error
    return Columns(table["start"], table["length"], table)


@functools.lru_cache(OPEN_READERS)
def _reader(place: str, key: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(place, "readahead_buffer_size:0,max_parallelism:0")


def _damaged(path: str, error: object) -> UserError:
    folder = os.path.dirname(os.path.dirname(path))
    # Only the first line of a library's error is for people.
    reason = str(error).partition("\n")[0][:200]
    return UserError(
        f"{path} cannot be read or is damaged ({reason}); "
        f"delete {folder} and prepare its text again."
    )
