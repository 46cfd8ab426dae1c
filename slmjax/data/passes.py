"""The three passes over text: scan it, collect its held-out documents, tokenize the rest.

One call is one unit of work: a file, or small files together, as every unit costs several files and
a shard. What is counted, sampled, held out and hashed is that of each file, as if it were alone.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slmjax.data.heldout import GROUP, GroupCounter, group_id
from slmjax.data.jobs import Job
from slmjax.data.shard_files import shard_entry
from slmjax.data.shard_writer import ShardWriter
from slmjax.data.text_sample import TextSample
from slmjax.errors import UserError
from slmjax.text.files import read_part, write_atomic, write_part
from slmjax.text.hashing import Matcher, shingle_parts
from slmjax.text.readers import read_documents, unreadable
from slmjax.text.records import DAMAGED, Document, Fault, Source, SourceFile
from slmjax.text.tokenizer import EOT, Tokenizer
from slmjax.text.units import go_on
from slmjax.text.walk import WORK

# Characters that are encoded at once.
CHUNK = 1_000_000
# Documents that are read between two looks at whether another unit has failed.
LOOK_EVERY = 4096


class FileScan(NamedTuple):
    """The scan of a file: its report, its groups (dtype GROUP) and a sample as (group, text)."""

    report: dict[str, Any]
    groups: np.ndarray
    sample: list[tuple[int, str]]


def scan_files(job: Job) -> None:
    """Count a unit's documents, bytes and faults; write its groups and a sample of its text."""
    # Each file by itself: what comes out must not depend on how files are bundled.
    scans = []
    for file, sample_size in zip(job.unit.files, job.samples, strict=True):
        scans.append(_scan(job, file, sample_size))
    groups = np.concatenate([scan.groups for scan in scans])
    lines = []
    for scan in scans:
        for entry in scan.sample:
            lines.append(json.dumps(entry) + "\n")
    write_part(job.path("groups", ".bin"), groups.tobytes())
    write_part(job.path("sample", ".jsonl"), "".join(lines))
    # The report comes last: a unit that has one is scanned.
    report = scans[0].report
    if len(scans) > 1:
        report = {"files": [scan.report for scan in scans]}
    write_part(job.path("scan", ".json"), report)


def holding(job: Job, chosen: np.ndarray) -> list[int]:
    """Return the numbers of the unit's files that may have documents of `chosen` groups.

    All files of a held-out unit are among them.
    """
    if job.unit.kind == "heldout":
        return list(range(len(job.unit.files)))
    reports = job.scanned()
    groups = job.table("groups", GROUP)
    is_chosen = np.isin(groups["id"], chosen)
    # The tables of the files follow each other: cut them apart.
    group_counts = [report["groups"] for report in reports]
    ends = np.cumsum(group_counts[:-1], dtype=int)
    of_each_file = np.split(is_chosen, ends)
    numbers = []
    for number, (report, own) in enumerate(zip(reports, of_each_file, strict=True)):
        # An incomplete table has forgotten groups that the file may hold all the same.
        if own.any() or not report["complete"]:
            numbers.append(number)
    return numbers


def collect(job: Job, chosen: np.ndarray) -> None:
    """Write the unit's held-out documents: those of `chosen` groups, or all of a held-out file."""
    # A set: its look-up is much faster than a search in the array for each document.
    chosen_ids = set(chosen.tolist())
    takes_all = job.unit.kind == "heldout"
    lines = []
    for number in holding(job, chosen):
        for item in _read(job, job.unit.files[number]):
            if not isinstance(item, Document):
                continue
            if takes_all or group_id(item.group, job.seed) in chosen_ids:
                entry = {
                    "line": item.line,
                    "bytes": item.bytes,
                    "key": item.key,
                    "text": item.text,
                }
                # Left out for the first file, so that units of one file look as they always did.
                if number:
                    entry["file"] = number
                lines.append(json.dumps(entry) + "\n")
    write_part(job.path("heldout", ".jsonl"), "".join(lines))


def tokenize(job: Job, chosen: np.ndarray) -> None:
    """Write the unit's training documents as shards, and which held-out shingles they contain."""
    unit = job.unit
    tokenizer = _tokenizer(job.folder)
    matcher, shingle_count = _matcher(job.folder)
    seen = np.zeros(shingle_count, bool)
    current_file = unit.files[0]
    with ShardWriter(
        Path(job.folder),
        f"{unit.source.name}/train-{unit.index:05d}.arrayrecord",
        current_file.name,
        vocab_size=tokenizer.vocab_size,
        eot=tokenizer.eot,
        scored=bool(unit.source.score),
    ) as writer:
        for chunk in _chunks(job, chosen):
            go_on()
            texts = [document.text for _, document in chunk]
            encoded = tokenizer.encode_arrays(texts)
            for (file, document), ids in zip(chunk, encoded, strict=True):
                # A file without training documents is not named in the shard.
                if file is not current_file:
                    writer.next_file(file.name)
                    current_file = file
                writer.add(ids, document.bytes, document.key, document.line, document.score)
                if shingle_count:
                    # In parts: a long document needs little memory.
                    for hashes in shingle_parts(document.text):
                        seen[matcher.find(hashes)] = True
    places = np.flatnonzero(seen).astype("<i8")
    write_part(job.path("seen", ".bin"), places.tobytes())
    entries = [shard_entry(shard) for shard in writer.shards]
    write_part(job.path("train", ".json"), {"shards": entries})


def content_hash(files: Sequence[SourceFile], source: Source, entry: Path) -> None:
    """Write the SHA-256 of each local file's content to `entry`, one a line."""
    digests = []
    for file in files:
        try:
            with open(file.path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256")
        except OSError as error:
            raise unreadable(file, source, error) from error
        digests.append(digest.hexdigest())
        # A file that somebody is still writing would get the hash of no version of it.
        _check_unchanged(file)
    write_atomic(entry, "\n".join(digests))


def _scan(job: Job, file: SourceFile, sample_size: int) -> FileScan:
    """Return the scan of a file, with a sample of about `sample_size` characters."""
    groups = GroupCounter()
    sample = TextSample(sample_size, job.seed)
    counts = Counter()
    faults = Counter()
    first_faults = []  # one sentence for each reason
    lines = 0
    for item in _read(job, file):
        lines += 1
        if isinstance(item, Fault):
            if item.reason not in faults:
                first_faults.append(_fault_sentence(file, item))
            faults[item.reason] += 1
            continue
        counts["documents"] += 1
        counts["bytes"] += item.bytes
        counts["matched"] += item.matched
        counts["marks"] += item.text.count(EOT)
        # Which groups are held out is chosen later, when those of all files are known.
        group = group_id(item.group, job.seed)
        groups.add(group, item.bytes)
        sample.add(item, group)
    table = groups.table()
    report = {
        "lines": lines,
        "faults": faults,
        "first_faults": first_faults,
        # Of a file that is cut short nobody knows how much is missing: all of it counts.
        "damaged": file.size if faults[DAMAGED] else 0,
        "complete": groups.complete,
        **counts,
        "groups": len(table),
    }
    return FileScan(report, table, sample.pieces())


def _fault_sentence(file: SourceFile, fault: Fault) -> str:
    sentence = f"{file.name} line {fault.line}: {fault.reason}"
    if fault.detail:
        sentence += f" ({fault.detail})"
    return sentence


def _chunks(job: Job, chosen: np.ndarray) -> Iterator[list[tuple[SourceFile, Document]]]:
    """Yield the unit's training documents with their files, CHUNK characters or more at once.

    The list is emptied when the next one is asked for, so that one chunk is in memory.
    """
    chosen_ids = set(chosen.tolist())
    chunk = []
    size = 0
    for file in job.unit.files:
        for item in _read(job, file):
            # The scan has counted the faults.
            if isinstance(item, Fault):
                continue
            if group_id(item.group, job.seed) in chosen_ids:
                continue
            chunk.append((file, item))
            size += len(item.text)
            if size >= CHUNK:
                yield chunk
                chunk.clear()
                size = 0
    yield chunk


def _read(job: Job, file: SourceFile) -> Iterator[Document | Fault]:
    """Yield the documents and faults of a file.

    Raises: UserError where the file changes meanwhile; Stopped once another unit has failed.
    """
    documents = read_documents(file, job.unit.source, job.group_by)
    for number, item in enumerate(documents):
        if number % LOOK_EVERY == 0:
            go_on()
        yield item
    _check_unchanged(file)


def _check_unchanged(file: SourceFile) -> None:
    if file.remote:
        return
    # Compared with what the file was when it was listed.
    status = os.stat(file.path)
    version = str(status.st_mtime_ns)
    if (status.st_size, version) != (file.size, file.version):
        raise UserError(f"{file.path} changed while it was being prepared; run again.")


# Both caches keep what the next unit of the same folder needs too.
@functools.lru_cache(2)
def _tokenizer(folder: str) -> Tokenizer:
    content = read_part(Path(folder) / WORK / "tokenizer.json")
    return Tokenizer(content.decode())


@functools.lru_cache(2)
def _matcher(folder: str) -> tuple[Matcher, int]:
    """Return the matcher of all held-out shingles, and their number."""
    content = read_part(Path(folder) / WORK / "shingles.bin")
    hashes = np.frombuffer(content, "<u8")
    return Matcher(hashes), len(hashes)
