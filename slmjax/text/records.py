"""What is read: a source, its files, and the documents, records and faults in them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DAMAGED = "damaged file"


TOO_LONG = "too long"


@dataclass(frozen=True)
class Source:
    """One named part of the training text.

    `weight` is its share of training tokens (None: by its size), `max_epochs` how often it may be read at most (None: without bound), and
    `score` a field that holds a number: each epoch visits documents from low to high, or from high to low as "-field".
    `reader` is "module:function" of your own for files of any other kind: it gets a file as a stream of bytes, after
    decompression by the ending, and yields a Record for each document and a Fault for each one that is broken.
    """

    name: str
    path: tuple[str, ...]
    weight: float | None = None
    field: str = "text"
    revision: str = ""
    heldout: tuple[str, ...] = ()
    max_epochs: float | None = None
    score: str = ""
    reader: str = ""

    @property
    def where(self) -> str:
        """What errors call it: a field of the config."""
        return self.name if self.name.startswith("config.") else f"data.sources.{self.name}"

    @property
    def score_field(self) -> str:
        """`score` without its direction, which is no matter of preparation."""
        return self.score.removeprefix("-")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source: `name` is relative to the source, `version` changes when the content does (local: mtime; remote: content id).

    A SeqIO task is a remote file.
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
    """A text with its group, 1-based line (row of parquet), UTF-8 length, 64-bit hash of its content, and score where one is asked for.

    `record` is all that stood beside it in a .jsonl file.
    """

    text: str
    group: str
    line: int
    bytes: int
    key: int
    matched: bool = True
    score: float = 0.0
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Record:
    """A JSON object and its 1-based line."""

    fields: dict[str, Any]
    line: int


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used: `reason` is one of a few kinds (they are counted), `detail` says more."""

    line: int
    reason: str
    detail: str = ""


def content_key(data: bytes) -> int:
    """The 64-bit hash of a text's bytes that a Document has as its key."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
