"""The three passes over text: scan it, collect its held-out documents, tokenize the rest.

One call is one unit of work: a file, or small files together, as every unit costs several files and a
shard. What is counted, sampled, held out and hashed is that of each file, as if it were alone.
"""

import functools
import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.data.heldout import GROUP, GroupCounter, group_id
from slmjax.data.shards import ShardWriter, shard_entry
from slmjax.errors import UserError
from slmjax.text.files import read_part, write_atomic, write_part
from slmjax.text.hashing import Matcher, shingle_parts
from slmjax.text.readers import read_documents, unreadable
from slmjax.text.records import DAMAGED, Document, Fault, Source, SourceFile
from slmjax.text.source_files import bundles
from slmjax.text.tokenizer import EOT, Tokenizer
from slmjax.text.units import go_on
from slmjax.text.walk import WORK

PIECE = 32_768  # characters of a tokenizer sample's piece, so that one long book cannot be the whole sample
CHUNK = 1_000_000  # characters that are encoded at once


@dataclass(frozen=True)
class PreparationUnit:
    """A file of a source, or several of them in order, see `bundles`.

    `kind` is "train", or "heldout" for a source's own held-out files; `index` is the first file's
    number among the source's files of this kind.
    """

    source: Source
    files: tuple[SourceFile, ...]
    kind: str
    index: int

    @property
    def name(self) -> str:
        last = f"-{self.index + len(self.files) - 1:05d}" if len(self.files) > 1 else ""
        return f"{self.source.name}-{self.kind}-{self.index:05d}{last}"

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def units_of(source: Source, files: Sequence[SourceFile], kind: str) -> list[PreparationUnit]:
    """The units of a source's files."""
    return [PreparationUnit(source, together, kind, index) for index, together in bundles(files)]


@dataclass(frozen=True)
class Job:
    """What every pass over a unit needs.

    `samples` are the bytes of text that each of its files gives to the tokenizer's training.
    """

    folder: str
    unit: PreparationUnit
    seed: int
    group_by: str
    samples: tuple[int, ...]

    def path(self, step: str, ending: str) -> Path:
        """A file of intermediate results."""
        return Path(self.folder) / WORK / f"{self.unit.name}.{step}{ending}"

    def table(self, step: str, dtype: Any) -> np.ndarray:
        """An intermediate result that is an array."""
        return np.frombuffer(read_part(self.path(step, ".bin")), dtype)

    def report(self, step: str) -> dict[str, Any]:
        """An intermediate result that is an object."""
        return json.loads(read_part(self.path(step, ".json")))

    def scanned(self) -> list[dict[str, Any]]:
        """What `scan` reports of each file."""
        report = self.report("scan")
        return report.get("files", [report])

    def lines(self, step: str) -> list[Any]:
        """An intermediate result that is a list."""
        return [json.loads(line) for line in read_part(self.path(step, ".jsonl")).splitlines()]


def scan_files(job: Job) -> None:
    """Count documents, bytes and faults; write the groups and a sample of text for the tokenizer."""
    found = [_scan(job, *of) for of in zip(job.unit.files, job.samples, strict=True)]
    reports, tables, samples = zip(*found)
    lines = (json.dumps(entry) + "\n" for sample in samples for entry in sample)
    write_part(job.path("groups", ".bin"), np.concatenate(tables).tobytes())
    write_part(job.path("sample", ".jsonl"), "".join(lines))
    write_part(job.path("scan", ".json"), {"files": reports} if len(reports) > 1 else reports[0])


def _scan(job: Job, file: SourceFile, size: int) -> tuple[dict[str, Any], np.ndarray, list]:
    """(report, groups, sample of about `size` bytes) of a file."""
    groups, sample = GroupCounter(), _Sample(size, job.seed)
    counts, faults, first, lines = Counter(), Counter(), [], 0
    for item in _read(job, file):
        lines += 1
        if isinstance(item, Fault):
            if item.reason not in faults:
                detail = f" ({item.detail})" if item.detail else ""
                first.append(f"{file.name} line {item.line}: {item.reason}{detail}")
            faults[item.reason] += 1
            continue
        counts["documents"] += 1
        counts["bytes"] += item.bytes
        counts["matched"] += item.matched
        counts["marks"] += item.text.count(EOT)
        group = group_id(item.group, job.seed)
        groups.add(group, item.bytes)
        sample.add(item, group)
    damaged, table = file.size if faults[DAMAGED] else 0, groups.table()
    report = {
        "lines": lines,
        "faults": faults,
        "first_faults": first,
        "damaged": damaged,
        "complete": groups.complete,
        **counts,
    }
    return report | {"groups": len(table)}, table, sample.pieces()


def holding(job: Job, chosen: np.ndarray) -> list[int]:
    """Numbers of the unit's files that may have documents of `chosen` groups; all of held-out files."""
    if job.unit.kind == "heldout":
        return [*range(len(job.unit.files))]
    reports, hits = job.scanned(), np.isin(job.table("groups", GROUP)["id"], chosen)
    of_each = np.split(hits, np.cumsum([report["groups"] for report in reports[:-1]], dtype=int))
    pairs = enumerate(zip(reports, of_each, strict=True))
    return [i for i, (report, own) in pairs if own.any() or not report["complete"]]


def collect(job: Job, chosen: np.ndarray) -> None:
    """Write the unit's held-out documents: those of `chosen` groups, or all of a held-out file."""
    chosen_ids, out = set(chosen.tolist()), []
    for number in holding(job, chosen):
        for item in _read(job, job.unit.files[number]):
            if isinstance(item, Document) and (
                job.unit.kind == "heldout" or group_id(item.group, job.seed) in chosen_ids
            ):
                entry = {"line": item.line, "bytes": item.bytes, "key": item.key, "text": item.text}
                out.append(json.dumps(entry | ({"file": number} if number else {})) + "\n")
    write_part(job.path("heldout", ".jsonl"), "".join(out))


def tokenize(job: Job, chosen: np.ndarray) -> None:
    """Write the unit's training documents as shards, and which held-out shingles they contain."""
    unit, folder = job.unit, Path(job.folder)
    tokenizer, matcher, total = _tokenizer(job.folder), *_matcher(job.folder)
    chosen_ids, seen = set(chosen.tolist()), np.zeros(total, bool)
    path = f"{unit.source.name}/train-{unit.index:05d}.arrayrecord"
    options = {
        "vocab_size": tokenizer.vocab_size,
        "eot": tokenizer.eot,
        "scored": bool(unit.source.score),
    }
    with ShardWriter(folder, path, unit.files[0].name, **options) as writer:
        batch: list[tuple[SourceFile, Document]] = []
        last = unit.files[0]

        def flush() -> None:
            nonlocal last
            go_on()
            for (file, document), ids in zip(
                batch, tokenizer.encode_arrays([d.text for _, d in batch]), strict=True
            ):
                if file is not last:
                    writer.next_file(file.name)
                    last = file
                writer.add(ids, document.bytes, document.key, document.line, document.score)
                for hashes in shingle_parts(document.text) if total else ():
                    seen[matcher.find(hashes)] = True
            batch.clear()

        size = 0
        for file in unit.files:
            for item in _read(job, file):
                if isinstance(item, Document) and group_id(item.group, job.seed) not in chosen_ids:
                    batch.append((file, item))
                    size += len(item.text)
                    if size >= CHUNK:
                        flush()
                        size = 0
        flush()
    write_part(job.path("seen", ".bin"), np.flatnonzero(seen).astype("<i8").tobytes())
    write_part(
        job.path("train", ".json"), {"shards": [shard_entry(shard) for shard in writer.shards]}
    )


def content_hash(files: Sequence[SourceFile], source: Source, entry: Path) -> None:
    """Write the SHA-256 of each local file's content to `entry`, one a line."""
    digests = []
    for file in files:
        try:
            with open(file.path, "rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise unreadable(file, source, error) from error
        _check_unchanged(file)
    write_atomic(entry, "\n".join(digests))


def _read(job: Job, file: SourceFile) -> Iterator[Document | Fault]:
    for number, item in enumerate(read_documents(file, job.unit.source, job.group_by)):
        if number % 4096 == 0:
            go_on()
        yield item
    _check_unchanged(file)


def _check_unchanged(file: SourceFile) -> None:
    if not file.remote:
        status = os.stat(file.path)
        if (status.st_size, str(status.st_mtime_ns)) != (file.size, file.version):
            raise UserError(f"{file.path} changed while it was being prepared; run again.")


class _Sample:
    """The pieces of text with the smallest hashes, up to a number of characters: a random sample, decided by content and seed alone."""

    def __init__(self, budget: int, seed: int):
        self._budget, self._seed, self._size, self._heap = (
            budget,
            seed.to_bytes(8, "little", signed=True),
            0,
            [],
        )

    def add(self, document: Document, group: int) -> None:
        if not self._budget:
            return
        for start in range(0, len(document.text), PIECE):
            tag = document.key.to_bytes(8, "little") + start.to_bytes(8, "little") + self._seed
            order = int.from_bytes(hashlib.blake2b(tag, digest_size=8).digest(), "little")
            if self._size >= self._budget and order >= -self._heap[0][0]:
                continue
            piece = document.text[start : start + PIECE]
            heapq.heappush(self._heap, (-order, document.line, start, group, piece))
            self._size += len(piece)
            while self._size - len(self._heap[0][-1]) >= self._budget:
                self._size -= len(heapq.heappop(self._heap)[-1])

    def pieces(self) -> list[tuple[int, str]]:
        """(group, text) in the order of their hashes."""
        return [(group, text) for *_, group, text in sorted(self._heap, reverse=True)]


@functools.lru_cache(2)
def _tokenizer(folder: str) -> Tokenizer:
    return Tokenizer(read_part(Path(folder) / WORK / "tokenizer.json").decode())


@functools.lru_cache(2)
def _matcher(folder: str) -> tuple[Any, int]:
    hashes = np.frombuffer(read_part(Path(folder) / WORK / "shingles.bin"), "<u8")
    return Matcher(hashes), len(hashes)
