"""The data types of text: sources, their files, documents, records and faults."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Reasons of faults that several readers give, in the same words, since faults are counted by them.
DAMAGED = "damaged file"
TOO_LONG = "too long"

# Kinds of sources: running text, dialogues, or prompts with a chosen and a rejected answer.
TEXT, CHAT, PAIRS = "text", "chat", "pairs"
KINDS = (TEXT, CHAT, PAIRS)

SEQIO = "seqio://"  # how the path of a SeqIO task or mixture begins


@dataclass(frozen=True)
class Source:
    """One named part of the training text.

    Attributes:
      weight: share of training tokens; None: by its size; 0: only its held-out part is used.
      field: field or column that holds the text.
      revision: branch, tag or commit of a Hub repository.
      heldout: files of which every document is held out.
      max_epochs: how often it may be read at most; None: without bound.
      fraction: part of its training documents that is read, always the same ones.
      score: a field that holds a number: each epoch visits documents from low to high, or from
        high to low as "-field".
      reader: "module:function" of your own for files of any other kind. It gets a file as a stream
        of bytes (.gz, .xz and .zst are decompressed) and yields a Record for each document and a
        Fault for each one that is broken.
      kind: "text", "chat" (dialogues, see text/conversations.py) or "pairs" (preference pairs).
      heldout_share: share of its bytes that is held out; None: data.heldout. In a config it is
        written as a number for `heldout`.
    """

    name: str
    path: tuple[str, ...]
    weight: float | None = None
    field: str = "text"
    revision: str = ""
    heldout: tuple[str, ...] = ()
    max_epochs: float | None = None
    fraction: float = 1.0
    score: str = ""
    reader: str = ""
    kind: str = TEXT
    heldout_share: float | None = None

    @property
    def where(self) -> str:
        """The config field that errors name."""
        # Another field than data.sources names this source, such as config.curate.evals.NAME.
        if self.name.startswith("config."):
            return self.name
        return f"data.sources.{self.name}"

    @property
    def score_field(self) -> str:
        """`score` without its direction, which does not matter to preparation."""
        return self.score.removeprefix("-")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source. A SeqIO task counts as a remote file.

    Attributes:
      name: path relative to the fixed part of the source's path.
      size: bytes as stored, compressed or not.
      version: changes when the content does (local: mtime; remote: content id).
    """

    path: str
    name: str
    size: int
    version: str

    @property
    def remote(self) -> bool:
        return "://" in self.path


@dataclass(frozen=True)
class Document:
    """One text of a source.

    Attributes:
      group: documents of one group are held out together.
      line: 1-based line of a text file, row of a parquet file.
      bytes: length in UTF-8; of dialogues and pairs that of their answers.
      key: 64-bit hash of the content, see `content_key`.
      matched: False where the grouping's pattern did not match.
      score: 0 where the source has no score.
      record: all fields that stood next to the text.
      parts: the texts and special tokens of a dialogue or a pair; None for running text.
    """

    text: str
    group: str
    line: int
    bytes: int
    key: int
    matched: bool = True
    score: float = 0.0
    record: Mapping[str, Any] | None = None
    parts: tuple | None = None


@dataclass(frozen=True)
class Record:
    """A JSON object and its 1-based line."""

    fields: dict[str, Any]
    line: int


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used.

    Attributes:
      line: as in Document.
      reason: one of a few kinds, which are counted.
      detail: what is wrong with this record.
    """

    line: int
    reason: str
    detail: str = ""


def content_key(data: bytes) -> int:
    """Return the 64-bit hash of a text's bytes that a Document has as its key."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
