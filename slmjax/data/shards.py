"""Random access to the documents of many token shards."""

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
from slmjax.text.chat_template import ChatIds
from slmjax.text.records import TEXT

__all__ = ["Shard", "ShardSet", "ShardWriter"]

# Decoded blocks that a ShardSet keeps (4 to 8 MB).
CACHED_BLOCKS = 1024
# Files that this process keeps open for all its ShardSets. Systems often allow 1,024, and JAX,
# workers and logs need some too.
OPEN_TABLES = 128
OPEN_READERS = 256

Integer = int | np.integer


class Columns(NamedTuple):
    """The table of a shard's documents (DOCUMENT or SCORED), and two of its columns."""

    starts: np.ndarray
    lengths: np.ndarray
    table: np.ndarray


class ShardSet:
    """Random access to the documents of several shards, numbered 0, 1, 2, ... in shard order.

    Files are opened when they are first used, and a pickle has none of them: each worker process
    opens its own. Threads may share a ShardSet.

    Args:
      shards: descriptions of the shards.
      folders: folders[i] is the prepared folder of shards[i].
      vocab_size: of the tokenizer; it decides the type of the tokens.
      salt: the tokenizer's hash, which is part of the fingerprint.
      kind: of its documents, one of KINDS of text/records.py.
      chat: the ids that mark turns; None for running text.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        folders: Sequence[str],
        *,
        vocab_size: int,
        salt: str = "",
        kind: str = TEXT,
        chat: ChatIds | None = None,
    ):
        self.kind = kind
        self.chat = chat
        self._shards = tuple(shards)
        self._folders = tuple(map(str, folders))
        self._vocab_size = vocab_size
        self._salt = salt
        # Number of the first document of each shard, and a last entry: the number of documents.
        self._firsts = [0, *itertools.accumulate(shard.documents for shard in self._shards)]
        # {shard: its table}, for tables that are small enough to be kept in memory.
        self._small_tables: dict[int, Columns] = {}
        # Part of the cache key of open files. Each ShardSet opens its files itself: another one may
        # have opened files of the same names before they were written again.
        self._cache_key = uuid.uuid4().hex
        self._block = functools.lru_cache(CACHED_BLOCKS)(self._read_block)

    def __reduce__(self) -> tuple:
        make = functools.partial(
            ShardSet,
            vocab_size=self._vocab_size,
            salt=self._salt,
            kind=self.kind,
            chat=self.chat,
        )
        return make, (self._shards, self._folders)

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def tokens(self) -> int:
        """Number of all tokens, one end-of-text for each document included."""
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
        """Score of each document, for a source that was prepared with scores."""
        return self._column("score")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash that changes when any document, the tokenizer or the order changes."""
        digests = [self._salt]
        for shard in self._shards:
            digests += shard.prints
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def read(self, doc: Integer, offset: Integer, count: Integer) -> Int32[np.ndarray, "{count}+1"]:
        """Return `count` tokens of a document from `offset`, and the token after them.

        The token after a document's last one is end-of-text.
        Raises: IndexError if the `count` tokens are not all in the document.
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
        # The usual case: all tokens are in one block.
        if end <= shard_files.BLOCK:
            return self._block(shard, block)[inside:end].astype(np.int32)
        block_count = -(-end // shard_files.BLOCK)
        blocks = [self._block(shard, block + i) for i in range(block_count)]
        return np.concatenate(blocks)[inside:end].astype(np.int32)

    def name(self, doc: Integer) -> str:
        """Return where a document comes from, for a person: "books-000.jsonl.xz line 17"."""
        shard, local = self._locate(doc)
        line = self._table(shard).table[local]["line"]
        return f"{self._shards[shard].file_of(local)} line {line}"

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the token ids of each document, without end-of-text."""
        for doc, length in enumerate(self.lengths):
            yield self.read(doc, 0, int(length) - 1)[1:]

    def _locate(self, doc: Integer) -> tuple[int, int]:
        """Return the shard of a document and its number there."""
        if not 0 <= doc < len(self):
            raise IndexError(f"document {doc} of {len(self)}")
        shard = bisect.bisect_right(self._firsts, doc) - 1
        return shard, int(doc) - self._firsts[shard]

    def _table(self, shard: int) -> Columns:
        """Return the table of a shard.

        Raises: UserError where it is missing or damaged.
        """
        if shard in self._small_tables:
            return self._small_tables[shard]
        path = self._path(shard)
        columns = _table(path, self._cache_key)
        # The folder may have been prepared again since the manifest was read.
        if len(columns.table) != self._shards[shard].documents:
            raise _damaged(table_path(path), "it has another number of documents")
        # A larger table is memory-mapped: only `_table` keeps it, which bounds the open files.
        if columns.table.nbytes <= shard_files.IN_MEMORY:
            self._small_tables[shard] = columns
        return columns

    def _column(self, name: str) -> np.ndarray:
        """Return a column of the tables of all shards, one after the other: [docs]."""
        columns = [np.zeros(0, SCORED[name])]
        for shard in range(len(self._shards)):
            # A copy: a view would keep the file of a memory-mapped table open.
            columns.append(self._table(shard).table[name].copy())
        return np.concatenate(columns)

    def _path(self, shard: int) -> str:
        """Return the path of a shard's token file."""
        return os.path.join(self._folders[shard], self._shards[shard].path)

    def _read_block(self, shard: int, block: int) -> np.ndarray:
        path = self._path(shard)
        try:
            data = _reader(path, self._cache_key).read([block])[0]
        except (RuntimeError, IndexError) as error:
            raise _damaged(path, error) from error
        return np.frombuffer(data, token_dtype(self._vocab_size))


@functools.lru_cache(OPEN_TABLES)
def _table(path: str, cache_key: str) -> Columns:
    try:
        table = read_table(path)
    except (OSError, ValueError) as error:
        raise _damaged(table_path(path), error) from error
    return Columns(table["start"], table["length"], table)


@functools.lru_cache(OPEN_READERS)
def _reader(path: str, cache_key: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")


def _damaged(path: str, error: object) -> UserError:
    """Return the error for a token file or a table that cannot be read."""
    # A shard is in the folder of its source, which is in the prepared folder.
    folder = os.path.dirname(os.path.dirname(path))
    # The later lines of a library's error do not help a user.
    reason = str(error).partition("\n")[0][:200]
    return UserError(
        f"{path} cannot be read or is damaged ({reason}); "
        f"delete {folder} and prepare its text again."
    )
