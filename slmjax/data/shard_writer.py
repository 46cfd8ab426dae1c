"""Writing token shards: documents are added one by one, and files get their names once complete."""

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
# Blocks of tokens that are collected before they are written.
BUFFERED_BLOCKS = 64
# System errors whose words may be quoted in a RuntimeError of array_record.
SYSTEM_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.ENOENT,
)


class InputFile(NamedTuple):
    """An input file with documents in the open shard.

    first_row, first_token: where these begin, in the shard's table and in its tokens.
    """

    name: str
    first_row: int
    first_token: int


class ShardWriter:
    """Writes documents into shards of at most MAX_SHARD_TOKENS.

    The tokens of a shard are `eot document eot document ... eot`, cut into records of BLOCK tokens
    (uint16 or uint32, little endian). Use the writer as a context manager; after its block without
    an exception, `shards` describes the shards that were written. Small input files may share a
    shard, see `next_file`. A file that needs several shards is cut as if it were the only file.

    Args:
      folder: the prepared folder.
      path: of the first shard in this folder; the names of later ones get a number.
      file: name of the first input file, for people.
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
        self._row_dtype = SCORED if scored else DOCUMENT
        self._folder = Path(folder)
        self._path = path
        self._file = file
        self._dtype = token_dtype(vocab_size)
        self._eot = eot
        self._max = max_tokens
        # ArrayRecord's writer of the open shard; None between shards.
        self._writer: Any = None
        self._temporary = temporary(self._folder)
        # Whether the next document is the first of its input file in its shard.
        self._file_begins = True
        self.shards: list[Shard] = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, error_type: Any, error: Any, trace: Any) -> None:
        try:
            if error_type is None:
                self._close()
        finally:
            self._writer = None
            for leftover in (self._temporary, table_path(self._temporary)):
                Path(leftover).unlink(missing_ok=True)

    def next_file(self, file: str) -> None:
        """Set the name of the input file of the documents that are added from now on."""
        # The shard is closed here if it is full: between two files, so that no small file is cut.
        if self._writer is not None and self._count >= self._max:
            self._close()
        self._file = file
        self._file_begins = True

    def add(
        self, ids: Sequence[int] | np.ndarray, size: int, key: int, line: int, score: float = 0.0
    ) -> None:
        """Append one document.

        Args:
          ids: its tokens, without end-of-text.
          size: of its text, in UTF-8 bytes.
          key: hash of its text.
          line: of the input file.
          score: of the document; only for a writer with `scored`.
        """
        if self._writer is None:
            self._open()
        if self._file_begins:
            self._files.append(InputFile(self._file, len(self._rows), self._count))
            self._file_begins = False
        length = len(ids) + 1  # with the end-of-text token that leads it
        row = (self._count, length, size, key, line, score)
        # The score is the last column, which a table without scores does not have.
        self._rows.append(row[: len(self._row_dtype)])
        self._buffer += [np.array([self._eot], self._dtype), np.asarray(ids, self._dtype)]
        self._count += length
        self._buffered += length
        if self._buffered >= BUFFERED_BLOCKS * shard_files.BLOCK:
            self._write(with_rest=False)
        # Only the tokens of the current file count: it is cut as if it were the only file.
        if self._count - self._files[-1].first_token >= self._max:
            self._close()

    def _open(self) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        (self._folder / self._path).parent.mkdir(parents=True, exist_ok=True)
        with _system_errors(self._temporary):
            self._writer = ArrayRecordWriter(str(self._temporary), "group_size:1,uncompressed")
        self._rows: list[tuple] = []  # of the table
        self._files: list[InputFile] = []
        self._file_begins = True
        self._buffer: list[np.ndarray] = []  # tokens that are not written yet
        self._count = 0  # tokens of the shard
        self._buffered = 0  # tokens of `_buffer`

    def _write(self, with_rest: bool) -> None:
        """Write the buffered tokens in blocks, and the rest that fills no block if `with_rest`."""
        tokens = np.concatenate(self._buffer)
        block = shard_files.BLOCK
        end = len(tokens)
        if not with_rest:
            end -= end % block
        with _system_errors(self._temporary):
            for start in range(0, end, block):
                self._writer.write(tokens[start : min(end, start + block)].tobytes())
        self._buffer = [tokens[end:]]
        self._buffered = len(tokens) - end

    def _close(self) -> None:
        """Finish the open shard and give its files their names."""
        if self._writer is None:
            return
        # The tokens end with end-of-text, the target of the last document's last token.
        self._buffer.append(np.array([self._eot], self._dtype))
        self._write(with_rest=True)
        with _system_errors(self._temporary):
            self._writer.close()
        self._writer = None
        table = np.array(self._rows, self._row_dtype)
        with open(table_path(self._temporary), "wb") as stream:
            np.save(stream, table, allow_pickle=False)
        shard = self._describe(table)
        # The table gets its name first, so that every token file with its final name has a table.
        os.replace(table_path(self._temporary), table_path(self._folder / shard.path))
        os.replace(self._temporary, self._folder / shard.path)
        self.shards.append(shard)

    def _describe(self, table: np.ndarray) -> Shard:
        """Return the description of the shard whose temporary files are written."""
        path = self._path
        if self.shards:
            path = path.replace(".arrayrecord", f"-{len(self.shards):03d}.arrayrecord")
        # Only a shard of several input files has parts.
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
