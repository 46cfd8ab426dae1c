"""Writing token shards: documents go in one by one, and files get their names once complete."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slmjax.data import shard_files
from slmjax.data.shard_files import (
    DOCUMENT,
    SCORED,
    Shard,
    part_digest,
    table_digest,
    table_path,
    token_dtype,
)
from slmjax.text.files import temporary

MAX_SHARD_TOKENS = 1 << 27
# Blocks of tokens that are gathered before they are written.
BUFFERED_BLOCKS = 64
# What array_record's RuntimeError can quote.
SYSTEM_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.ENOENT,
)


class InputFile(NamedTuple):
    """An input file in the shard that is being written, and where its documents begin there."""

    name: str
    first_row: int
    first_token: int


class ShardWriter:
    """Writes documents into shards of at most MAX_SHARD_TOKENS.

    The stream of a shard is `eot document eot document ... eot`, cut into records of BLOCK tokens
    (uint16 or uint32, little endian). Use the writer as a context manager; `shards` lists what was
    written. Small files may share a shard, see `next_file`; a file is cut where it would be cut
    alone.

    Args:
      folder: the prepared folder.
      path: of the first shard under it; the following ones get numbers.
      file: name of the input file, for people.
      vocab_size, eot: of the tokenizer; they decide the tokens' type and what leads a document.
      max_tokens: a shard is closed once the current input file has so many tokens in it.
      scored: whether the table has the score of every document.
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
        self._folder = Path(folder)
        self._path = path
        self._file = file
        self._dtype = token_dtype(vocab_size)
        self._eot = eot
        self._max = max_tokens
        # ArrayRecord's writer of the shard that is open; None between shards.
        self._writer: Any = None
        self._temporary = temporary(self._folder)
        # Whether the next document is the first of its file in its shard.
        self._begins = True
        self.shards: list[Shard] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            self._writer = None
            for leftover in (self._temporary, table_path(self._temporary)):
                Path(leftover).unlink(missing_ok=True)

    def next_file(self, file: str) -> None:
        """Name the input file of the documents that are added from now on."""
        # A shard of small files is full between two of them, so that none is cut.
        if self._writer is not None and self._count >= self._max:
            self._close()
        self._file = file
        self._begins = True

    def add(
        self, ids: Sequence[int] | np.ndarray, size: int, key: int, line: int, score: float = 0.0
    ) -> None:
        """Append one document of `size` UTF-8 bytes."""
        if self._writer is None:
            self._open()
        if self._begins:
            self._files.append(InputFile(self._file, len(self._rows), self._count))
            self._begins = False
        length = len(ids) + 1  # its leading end-of-text token included
        row = (self._count, length, size, key, line, score)
        self._rows.append(row[: len(self._columns)])
        self._parts += [np.array([self._eot], self._dtype), np.asarray(ids, self._dtype)]
        self._count += length
        self._buffered += length
        if self._buffered >= BUFFERED_BLOCKS * shard_files.BLOCK:
            self._write(whole=False)
        # Counted from the start of the current file, which is cut where it would be cut alone.
        if self._count - self._files[-1].first_token >= self._max:
            self._close()

    def _open(self) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        (self._folder / self._path).parent.mkdir(parents=True, exist_ok=True)
        with _system_errors(self._temporary):
            self._writer = ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        self._rows: list[tuple] = []  # of the table
        self._files: list[InputFile] = []
        self._begins = True
        self._parts: list[np.ndarray] = []  # tokens that are not written yet
        self._count = 0  # tokens of the shard
        self._buffered = 0  # tokens of `_parts`

    def _write(self, whole: bool) -> None:
        """Write the gathered tokens; those that fill no block stay, unless `whole`."""
        tokens = np.concatenate(self._parts)
        block = shard_files.BLOCK
        end = len(tokens)
        if not whole:
            end -= end % block
        with _system_errors(self._temporary):
            for start in range(0, end, block):
                self._writer.write(tokens[start : min(end, start + block)].tobytes())
        self._parts = [tokens[end:]]
        self._buffered = len(tokens) - end

    def _close(self) -> None:
        """Finish the open shard and give its files their names."""
        if self._writer is None:
            return
        # The stream ends with end-of-text: the target of the last document's last token.
        self._parts.append(np.array([self._eot], self._dtype))
        self._write(whole=True)
        with _system_errors(self._temporary):
            self._writer.close()
        self._writer = None
        table = np.array(self._rows, self._columns)
        with open(table_path(self._temporary), "wb") as stream:
            np.save(stream, table, allow_pickle=False)
        shard = self._describe(table)
        # The table first: a token file with its final name has a table.
        os.replace(table_path(self._temporary), table_path(self._folder / shard.path))
        os.replace(self._temporary, self._folder / shard.path)
        self.shards.append(shard)

    def _describe(self, table: np.ndarray) -> Shard:
        """Return the manifest's entry of the shard whose files are written."""
        path = self._path
        if self.shards:
            path = path.replace(".arrayrecord", f"-{len(self.shards):03d}.arrayrecord")
        # The common shard has one file, which needs no parts.
        parts = []
        if len(self._files) > 1:
            pieces = np.split(table, [file.first_row for file in self._files[1:]])
            for file, piece in zip(self._files, pieces):
                parts.append((file.name, len(piece), part_digest(piece)))
        return Shard(
            path,
            self._files[0].name,
            len(table),
            self._count,
            int(table["bytes"].sum()),
            os.path.getsize(self._temporary),
            table_digest(table),
            parts,
        )


@contextlib.contextmanager
def _system_errors(path: str | Path) -> Iterator[None]:
    """Raise an OSError where array_record reports one, such as a full disk, as a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        number = errno.EIO
        for candidate in SYSTEM_ERRORS:
            # The message quotes the system's words.
            if os.strerror(candidate) in str(error):
                number = candidate
                break
        raise OSError(number, os.strerror(number), str(path)) from error
