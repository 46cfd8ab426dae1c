"""A prepared folder as a run reads it, and a table that summarizes it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from slmjax.data.manifest import read_manifest
from slmjax.data.preparation_plan import PreparationPlan, PreparedPart
from slmjax.data.shard_files import Shard
from slmjax.data.shards import ShardSet
from slmjax.text.chat_template import chat_ids
from slmjax.text.records import TEXT
from slmjax.text.tokenizer import Tokenizer, load_tokenizer

# Headings of the summary.
COLUMNS = ("source", "documents", "tokens", "bytes/token", "bad", "held out", "removed")


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, ready to be read.

    train, heldout: {source: its documents}, those for training and those held out.
    fingerprint: hash of the tokenizer and all documents.
    """

    folder: Path
    manifest: dict
    tokenizer: Tokenizer
    train: dict[str, ShardSet]
    heldout: dict[str, ShardSet]
    fingerprint: str


def open_prepared(plan: PreparationPlan) -> Prepared:
    """Open the folder of a plan once it is prepared.

    Raises: UserError where the manifest or the tokenizer cannot be read.
    """
    manifest = read_manifest(plan.folder)
    tokenizer = load_tokenizer(plan.folder / "tokenizer.json")
    train = {}
    heldout = {}
    fingerprints: list[Any] = [tokenizer.sha256]
    for source in plan.sources:
        name = source.name
        # A source that was prepared before has its shards in other folders.
        parts = plan.prepared_parts.get(name) or [(plan.folder, manifest, (name,))]
        train[name] = _shard_set(parts, "shards", tokenizer, source.kind)
        heldout[name] = _shard_set(parts, "heldout_shards", tokenizer, source.kind)
        fingerprints.append((name, train[name].fingerprint, heldout[name].fingerprint))
    fingerprint = hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()
    return Prepared(plan.folder, manifest, tokenizer, train, heldout, fingerprint)


def preparation_summary(prepared: Prepared) -> str:
    """Return a table with a line for each source and one for all together.

    Columns are the training documents, their tokens, UTF-8 bytes per token, bad records, held-out
    documents, and held-out documents that were removed because training has seen them.
    """
    table = [COLUMNS]
    counts = []
    for name, entry in prepared.manifest["sources"].items():
        source_counts = _counts(prepared, name)
        counts.append(source_counts)
        share = entry["removed"]["bytes_share"]
        removed = f"{source_counts.removed} ({share:.1%})"
        table.append(_cells(name, source_counts, removed=removed))
    # The sum of each field over the sources.
    total = _Counts(*map(sum, zip(*counts)))
    table.append(_cells("all", total, removed=str(total.removed)))
    # Names are flush left, numbers flush right.
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = []
    for first, *others in table:
        cells = [first.ljust(widths[0])]
        for cell, width in zip(others, widths[1:]):
            cells.append(cell.rjust(width))
        lines.append("  ".join(cells))
    vocab_size = prepared.tokenizer.vocab_size
    elsewhere = heldout_elsewhere(prepared)
    if elsewhere:
        lines.append(f"held out: {elsewhere}")
    lines.append(f"tokenizer: {vocab_size:,} tokens; in {prepared.folder}")
    return "\n".join(lines)


def heldout_elsewhere(prepared: Prepared) -> str:
    """Return in words how many conversations are not trained on as others hold out their question.

    "" where there are none.
    """
    counts = []
    for name, entry in prepared.manifest["sources"].items():
        count = entry.get("heldout_elsewhere", 0)
        if count:
            counts.append(f"{count:,} of {name}")
    if not counts:
        return ""
    return f"{', '.join(counts)} not trained on: another source or a held-out file has the question"


class _Counts(NamedTuple):
    """The numbers of a line of the summary, see `preparation_summary`."""

    documents: int
    tokens: int
    bytes: int
    bad: int
    held_out: int
    removed: int


def _counts(prepared: Prepared, name: str) -> _Counts:
    entry = prepared.manifest["sources"][name]
    train = prepared.train[name]
    return _Counts(
        documents=len(train),
        tokens=train.tokens,
        bytes=int(train.bytes.sum()),
        bad=sum(entry["faults"].values()),
        held_out=len(prepared.heldout[name]),
        removed=entry["removed"]["documents"],
    )


def _cells(name: str, counts: _Counts, *, removed: str) -> tuple[str, ...]:
    return (
        name,
        f"{counts.documents:,}",
        f"{counts.tokens:,}",
        f"{counts.bytes / max(1, counts.tokens):.2f}",
        f"{counts.bad}",
        f"{counts.held_out:,}",
        removed,
    )


def _shard_set(parts: list[PreparedPart], field: str, tokenizer: Tokenizer, kind: str) -> ShardSet:
    """Return the documents of a source: those of all its parts, in order.

    Args:
      field: of a source's entry in the manifest: "shards" (for training) or "heldout_shards".
    """
    shards = []
    folders = []
    # The order of the shards numbers the documents, so it is part of a run's data order.
    for folder, manifest, names in parts:
        for name in names:
            for entry in manifest["sources"][name][field]:
                shards.append(Shard(**entry))
                folders.append(str(folder))
    chat = None
    if kind != TEXT:
        chat = chat_ids(tokenizer)
    return ShardSet(
        shards,
        folders,
        vocab_size=tokenizer.vocab_size,
        salt=tokenizer.sha256,
        kind=kind,
        chat=chat,
    )
