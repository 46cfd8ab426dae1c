"""Token shards: ArrayRecord files of token blocks with a table of their documents, and random access over many of them."""

import bisect
import errno
import functools
import hashlib
import itertools
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt64

from slmjax.errors import UserError
from slmjax.text.files import temporary

# Tokens in a record. Reading one, not compressed, takes 8 us, one of 8,192 tokens 11, compressed 15 and 26 (and a quarter less disk);
# a row of 1,024 tokens reads one or two.
BLOCK = 2048
MAX_SHARD_TOKENS = 1 << 27
CACHED_BLOCKS = 1024  # decoded blocks that a ShardSet keeps (4 to 8 MB)
IN_MEMORY = (
    1 << 16
)  # bytes; a larger table of documents is memory-mapped, which keeps its file open
# Files that this process keeps open for all its shards: systems often allow 1,024, and JAX, workers and logs need some too.
OPEN_TABLES = 128
OPEN_READERS = 256
DOCUMENT = np.dtype(
    [("start", "<i8"), ("length", "<i8"), ("bytes", "<i8"), ("key", "<u8"), ("line", "<i8")]
)
SCORED = np.dtype(
    [*DOCUMENT.descr, ("score", "<f8")]
)  # the table where data.sources.NAME.score asks for one

Integer = int | np.integer


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard: its path under the prepared folder, its input file, counts and the hash of its table.

    Of a shard of several input files `parts` has (name, documents, hash) of each, in order. The hash is
    that of the table which its documents would have alone: fingerprints do not depend on which files
    share a shard.
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
        return [digest for *_, digest in self.parts] or [self.sha256]

    def file_of(self, document: int) -> str:
        """The input file of the shard's document of this number."""
        return self.parts[bisect.bisect_right(self._ends, document)][0] if self.parts else self.file

    @functools.cached_property
    def _ends(self) -> list[int]:
        return [*itertools.accumulate(documents for _, documents, _ in self.parts)]

    def fault(self, folder: str | Path) -> str:
        """The path of whichever of its two files is missing or damaged; "" where both are as they were written.

        The table is read and compared with its hash; of the tokens only the size, as their blocks have checksums of their own.
        """
        path = os.path.join(folder, self.path)
        try:
            if os.path.getsize(path) != self.size:
                return path
            table = read_table(path)
        except OSError:
            return path
        except ValueError:
            return _table_path(path)
        counts = len(table), int(table["length"].sum()), int(table["bytes"].sum())
        same = counts == (self.documents, self.tokens, self.bytes) and _digest(table) == self.sha256
        if same and self.parts:
            parts = np.split(table, self._ends[:-1])
            same = self._ends[-1] == len(table) and self.prints == [_print(part) for part in parts]
        return "" if same else _table_path(path)


def read_table(path: str) -> np.ndarray:
    """The documents of a shard, memory-mapped where there are many. Raises: OSError, or ValueError where it is no such table."""
    place = _table_path(path)
    mapped = os.path.getsize(place) > IN_MEMORY
    try:
        table = np.asarray(np.load(place, mmap_mode="r" if mapped else None, allow_pickle=False))
    except OSError:
        raise
    except (
        Exception
    ) as error:  # numpy parses the header as Python: damage there raises whatever parsing does
        raise ValueError(f"{place} is no table of documents") from error
    if table.dtype not in (DOCUMENT, SCORED) or table.ndim != 1:
        raise ValueError(f"{place} is no table of documents")
    return table


class ShardWriter:
    """Writes documents into shards of at most MAX_SHARD_TOKENS; files get their names only when they are complete.

    The stream of a shard is `eot document eot document ... eot`, cut into records of BLOCK tokens (uint16 or uint32, little endian).
    Use as a context manager; `shards` lists what was written. With `scored` every document has a score in the table.
    Small files may share a shard, see `next_file`; a file is cut where it would be cut alone.
    """

    def __init__(
        self,
        folder: str | Path,
        path: str,
        file: str,
        *,
        vocab_size: int,
        eot: int,
        max_tokens: int = MAX_SHARD_TOKENS,
        scored: bool = False,
    ):
        self._columns = SCORED if scored else DOCUMENT
        self._folder, self._path, self._file = Path(folder), path, file
        self._dtype, self._eot, self._max = token_dtype(vocab_size), eot, max_tokens
        self._writer: Any = None
        self._temporary = temporary(self._folder)
        self._begins = True  # the next document is the first of its file in its shard
        self.shards: list[Shard] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            self._writer = None
            for leftover in (self._temporary, _table_path(self._temporary)):
                Path(leftover).unlink(missing_ok=True)

    def next_file(self, file: str) -> None:
        """Documents that are added from now on are of this input file."""
        if self._writer is not None and self._count >= self._max:
            self._close()
        self._file, self._begins = file, True

    def add(
        self, ids: Sequence[int] | np.ndarray, size: int, key: int, line: int, score: float = 0.0
    ) -> None:
        """Append one document of `size` UTF-8 bytes."""
        if self._writer is None:
            self._open()
        if self._begins:
            self._files.append((self._file, len(self._rows), self._count))
            self._begins = False
        self._rows.append((self._count, len(ids) + 1, size, key, line, score)[: len(self._columns)])
        self._parts += [np.array([self._eot], self._dtype), np.asarray(ids, self._dtype)]
        self._count += len(ids) + 1
        self._buffered += len(ids) + 1
        if self._buffered >= 64 * BLOCK:
            self._write(whole=False)
        if self._count - self._files[-1][2] >= self._max:
            self._close()

    def _open(self) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        (self._folder / self._path).parent.mkdir(parents=True, exist_ok=True)
        with _as_os_error(self._temporary):
            self._writer = ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        self._rows: list[tuple] = []
        self._files: list[
            tuple[str, int, int]
        ] = []  # (name, first row, first token) of each input file
        self._begins = True
        self._parts: list[np.ndarray] = []
        self._count = self._buffered = 0

    def _write(self, whole: bool) -> None:
        tokens = np.concatenate(self._parts)
        end = len(tokens) if whole else len(tokens) // BLOCK * BLOCK
        with _as_os_error(self._temporary):
            for start in range(0, end, BLOCK):
                self._writer.write(tokens[start : min(end, start + BLOCK)].tobytes())
        self._parts, self._buffered = [tokens[end:]], len(tokens) - end

    def _close(self) -> None:
        if self._writer is None:
            return
        self._parts.append(np.array([self._eot], self._dtype))
        self._write(whole=True)
        with _as_os_error(self._temporary):
            self._writer.close()
        self._writer = None
        table = np.array(self._rows, self._columns)
        with open(_table_path(self._temporary), "wb") as stream:
            np.save(stream, table, allow_pickle=False)
        path = (
            self._path
            if not self.shards
            else self._path.replace(".arrayrecord", f"-{len(self.shards):03d}.arrayrecord")
        )
        size, (file, *_) = os.path.getsize(self._temporary), self._files[0]
        pieces = (
            np.split(table, [row for _, row, _ in self._files[1:]]) if len(self._files) > 1 else []
        )
        parts = [
            (name, len(piece), _print(piece)) for (name, *_), piece in zip(self._files, pieces)
        ]
        os.replace(_table_path(self._temporary), _table_path(self._folder / path))
        os.replace(self._temporary, self._folder / path)
        self.shards.append(
            Shard(
                path,
                file,
                len(table),
                self._count,
                int(table["bytes"].sum()),
                size,
                _digest(table),
                parts,
            )
        )


class ShardSet:
    """Random access to the documents of several shards, numbered 0, 1, 2, ... in shard order.

    It pickles as its paths; tables are memory-mapped and readers opened when first used, so each worker process opens its own.
    Threads may share it.
    """

    def __init__(
        self, shards: Sequence[Shard], folders: Sequence[str], *, vocab_size: int, salt: str = ""
    ):
        """`folders[i]` is the prepared folder of `shards[i]`; `salt` (the tokenizer's hash) is part of the fingerprint."""
        self._shards, self._folders, self._vocab_size, self._salt = (
            tuple(shards),
            tuple(map(str, folders)),
            vocab_size,
            salt,
        )
        self._ends = [0, *itertools.accumulate(shard.documents for shard in self._shards)]
        self._small: dict[int, tuple] = {}
        self._key = (
            uuid.uuid4().hex
        )  # files that are made again under the same names are not those that are open
        self._block = functools.lru_cache(CACHED_BLOCKS)(self._read_block)

    def __reduce__(self) -> tuple:
        return functools.partial(ShardSet, vocab_size=self._vocab_size, salt=self._salt), (
            self._shards,
            self._folders,
        )

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
        """Content hash of each document's text: the same document has the same key in every prepared folder."""
        return self._column("key")

    @functools.cached_property
    def scores(self) -> Float64[np.ndarray, " docs"]:
        """The score of each document, where it was prepared with one."""
        return self._column("score")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when any document, its tokens or the order changes."""
        parts = [self._salt, *(digest for shard in self._shards for digest in shard.prints)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def read(self, doc: Integer, offset: Integer, count: Integer) -> Int32[np.ndarray, "{count}+1"]:
        """`count` tokens of a document from `offset`, and the token after them (of the last one: end-of-text).

        Raises: IndexError if they are not all in the document.
        """
        shard, local = self._locate(doc)
        starts, lengths = self._table(shard)[:2]
        if offset < 0 or count < 0 or offset + count > lengths[local]:
            raise IndexError(
                f"tokens {offset} to {offset + count} of document {doc}, which has {lengths[local]}"
            )
        begin = int(starts[local]) + int(offset)
        block, inside = divmod(begin, BLOCK)
        need = inside + count + 1
        if need <= BLOCK:
            return self._block(shard, block)[inside:need].astype(np.int32)
        blocks = [self._block(shard, b) for b in range(block, block + -(-need // BLOCK))]
        return np.concatenate(blocks)[inside:need].astype(np.int32)

    def name(self, doc: Integer) -> str:
        """Where a document came from, for a person: "books-000.jsonl.xz line 17"."""
        shard, local = self._locate(doc)
        return f"{self._shards[shard].file_of(local)} line {self._table(shard)[2][local]['line']}"

    def __iter__(self) -> Iterator[np.ndarray]:
        """The token ids of each document, without end-of-text."""
        return (self.read(doc, 0, int(length) - 1)[1:] for doc, length in enumerate(self.lengths))

    def _locate(self, doc: Integer) -> tuple[int, int]:
        if not 0 <= doc < self._ends[-1]:
            raise IndexError(f"document {doc} of {len(self)}")
        shard = bisect.bisect_right(self._ends, doc) - 1
        return shard, int(doc) - self._ends[shard]

    def _table(self, shard: int) -> tuple:
        """(starts, lengths, all columns) as memory-mapped views; plain arrays, since np.memmap is slow to index."""
        if shard not in self._small:
            place = self._place(shard)
            columns = _table(place, self._key)
            if len(columns[2]) != self._shards[shard].documents:
                raise _damaged(_table_path(place), "it has another number of documents")
            if columns[2].nbytes > IN_MEMORY:
                return columns
            self._small[shard] = columns
        return self._small[shard]

    def _column(self, name: str) -> np.ndarray:
        # Copies: a view would keep the file of a memory-mapped table open.
        columns = [self._table(shard)[2][name].copy() for shard in range(len(self._shards))]
        return np.concatenate([np.zeros(0, SCORED[name]), *columns])

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
def _table(place: str, key: str) -> tuple:
    try:
        table = read_table(place)
    except (OSError, ValueError) as error:
        raise _damaged(_table_path(place), error) from error
    return table["start"], table["length"], table


@functools.lru_cache(OPEN_READERS)
def _reader(place: str, key: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(place, "readahead_buffer_size:0,max_parallelism:0")


def _damaged(path: str, error: object) -> UserError:
    folder, reason = os.path.dirname(os.path.dirname(path)), str(error).partition("\n")[0][:200]
    return UserError(
        f"{path} cannot be read or is damaged ({reason}); delete {folder} and prepare its text again."
    )


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def shard_entry(shard: Shard) -> dict:
    """A shard as the manifest holds it; Shard(**entry) is the way back."""
    entry = asdict(shard)
    if not shard.parts:
        del entry["parts"]
    return entry


def _digest(table: np.ndarray) -> str:
    return hashlib.sha256(table.tobytes()).hexdigest()


def _print(part: np.ndarray) -> str:
    """The hash of a part of a table, as if it were that of a shard by itself."""
    alone = part.copy()
    alone["start"] -= alone["start"][:1]
    return _digest(alone)


def _table_path(path: str | Path) -> str:
    return str(path).removesuffix(".arrayrecord") + ".documents.npy"


class _as_os_error:
    """array_record tells a full disk as RuntimeError with the system's words in it."""

    def __init__(self, path: str | Path):
        self._path = str(path)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, RuntimeError):
            codes = (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EFBIG,
                errno.EROFS,
                errno.EACCES,
                errno.ENOENT,
            )
            code = next((code for code in codes if os.strerror(code) in str(error)), errno.EIO)
            raise OSError(code, os.strerror(code), self._path) from error
