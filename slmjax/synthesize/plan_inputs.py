"""Reads the plan's two inputs: a file of topics, and texts for seed passages."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from slmjax.errors import UserError
from slmjax.synthesize import subjects
from slmjax.text.readers import read_documents
from slmjax.text.records import Document, Fault, Source
from slmjax.text.source_files import list_files
from slmjax.text.sources import parse_sources

MOST_TEXTS = 10_000  # documents that are kept in memory for seed passages
KEPT_CHARACTERS = 20_000  # from the beginning of each of them


def read_topics(path: str) -> list[str]:
    """Return the topics of a file, each once; "" gives those of the subject tree.

    A line is a topic ("subject > area > topic" or any text); "#" begins a comment line.
    Raises: UserError for a file that is missing, not UTF-8 or has no topic.
    """
    if not path:
        return subjects.topics()
    topics = []
    for line in _read_text(path).split("\n"):
        topic = line.strip()
        if topic and not topic.startswith("#"):
            topics.append(topic)
    if not topics:
        raise UserError(
            f"config.synthesize.topics: '{path}' has no topic; expected one on each line."
        )
    return list(dict.fromkeys(topics))  # the first of each, in order


def read_seeds(value: str) -> list[str]:
    """Return texts for seed passages: the first MOST_TEXTS documents of the sources, shortened.

    Args:
      value: config.synthesize.passages: a file, folder or pattern, or several with names, as
        data.sources has them; "" for none.
    Raises: UserError for a source that cannot be read, has no record, or has more records that
      cannot be used than documents.
    """
    texts: list[str] = []
    for source in parse_sources(value):
        earlier = len(texts)
        faults = []
        for file_name, record in _read_source(source):
            if isinstance(record, Document):
                texts.append(record.text[:KEPT_CHARACTERS])
            else:
                faults.append(f"{file_name} line {record.line}: {record.reason}: {record.detail}")
            if len(texts) == MOST_TEXTS:
                return texts
        _check_usable(source.name, len(texts) - earlier, faults)
    return texts


def _read_text(path: str) -> str:
    """Return the text of the topics' file. Raises: UserError where it cannot be read."""
    try:
        # utf-8-sig: editors on Windows begin a file with a byte-order mark.
        return Path(os.path.expanduser(path)).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"config.synthesize.topics: '{path}' cannot be read: {reason}; expected a file with a "
            "topic on each line."
        ) from error


def _read_source(source: Source) -> Iterator[tuple[str, Document | Fault]]:
    """Yield (name of the file, document or fault) for every record of a source."""
    # Errors show the source's name, which here begins with the field of the config.
    source = replace(source, name=f"config.synthesize.passages.{source.name}")
    for file in list_files(source):
        for record in read_documents(file, source):
            yield file.name, record


def _check_usable(name: str, used: int, faults: list[str]) -> None:
    """Raise UserError for a source without a document, or with more faults than documents."""
    if used and len(faults) <= used:
        return
    if not used and not faults:
        raise UserError(f"config.synthesize.passages: the files of '{name}' hold no record.")
    raise UserError(
        f"config.synthesize.passages: {len(faults)} of {len(faults) + used} records of '{name}' "
        f"cannot be used ({faults[0].rstrip('. ')})."
    )
