"""The three passes over text: scan it, collect its held-out documents, tokenize the rest.

One call works on one unit, which is a file or several small ones: every unit costs a shard and
several intermediate files. Documents are counted, sampled and held out as if each file were a unit.
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

from slmjax.data.encode import encode_documents
from slmjax.data.heldout import GROUP, GroupCounter, group_id
from slmjax.data.jobs import Job
from slmjax.data.shard_files import shard_entry
from slmjax.data.shard_writer import ShardWriter
from slmjax.data.text_sample import TextSample
from slmjax.errors import UserError
from slmjax.text.chat_documents import parts_to_json
from slmjax.text.files import read_part, write_atomic, write_part
from slmjax.text.hashing import Matcher, shingle_parts
from slmjax.text.readers import read_documents, unreadable
from slmjax.text.records import DAMAGED, Document, Fault, Source, SourceFile
from slmjax.text.tokenizer import EOT, Tokenizer
from slmjax.text.units import go_on
from slmjax.text.walk import WORK

# Characters that are encoded at once.
CHUNK = 1_000_000
# Documents that are read between two checks whether another unit has failed.
CHECK_EVERY = 4096


class FileScan(NamedTuple):
    """What the scan of a file found.

    report: counts and faults, see `added_reports`.
    groups: table of its groups, dtype GROUP.
    sample: pieces of its text as (id of the group, text).
    """

    report: dict[str, Any]
    groups: np.ndarray
    sample: list[tuple[int, str]]


def scan_files(job: Job) -> None:
    """Write the unit's counts of documents and faults, its groups and a sample of its text."""
    # Each file is scanned by itself: the result must not depend on how files share units.
    scans = []
    for file, sample_size in zip(job.unit.files, job.samples, strict=True):
        scans.append(_scan(job, file, sample_size))
    groups = np.concatenate([scan.groups for scan in scans])
    sample_lines = []
    for scan in scans:
        for piece in scan.sample:
            sample_lines.append(json.dumps(piece) + "\n")
    write_part(job.path("groups", ".bin"), groups.tobytes())
    write_part(job.path("sample", ".jsonl"), "".join(sample_lines))
    # The report comes last: a unit that has a report has been scanned.
    report = scans[0].report
    if len(scans) > 1:
        report = {"files": [scan.report for scan in scans]}
    write_part(job.path("scan", ".json"), report)


def heldout_file_numbers(job: Job, heldout_groups: np.ndarray) -> list[int]:
    """Return the numbers of the unit's files that may have held-out documents.

    Args:
      heldout_groups: ids of the source's held-out groups.
    """
    if job.unit.split == "heldout":
        return list(range(len(job.unit.files)))
    reports = job.scan_reports()
    groups = job.table("groups", GROUP)
    is_held_out = np.isin(groups["id"], heldout_groups)
    # The table has the groups of the first file, then those of the second, ...
    group_counts = [report["groups"] for report in reports]
    ends = np.cumsum(group_counts[:-1], dtype=int)
    parts = np.split(is_held_out, ends)
    numbers = []
    for number, (report, part) in enumerate(zip(reports, parts, strict=True)):
        # Groups are missing from an incomplete table, so the file may have held-out ones.
        if part.any() or not report["complete"]:
            numbers.append(number)
    return numbers


def collect(job: Job, heldout_groups: np.ndarray, own_groups: np.ndarray) -> None:
    """Write the unit's held-out documents: those of held-out groups, or all of a held-out unit.

    Args:
      heldout_groups: ids of the source's held-out groups.
      own_groups: those of them that the source itself has chosen. A conversation of any other is
        marked: another source, or a held-out file, holds out its question.
    """
    # Looking up each document in a set is much faster than in an array.
    heldout_ids = set(heldout_groups.tolist())
    own_ids = set(own_groups.tolist())
    takes_all = job.unit.split == "heldout"
    lines = []
    for number in heldout_file_numbers(job, heldout_groups):
        for item in _read(job, job.unit.files[number]):
            if not isinstance(item, Document):
                continue
            group = group_id(item.group, job.seed)
            if takes_all or group in heldout_ids:
                entry = {
                    "line": item.line,
                    "bytes": item.bytes,
                    "key": item.key,
                    "text": item.text,
                }
                # Left out for running text.
                if item.parts is not None:
                    entry["parts"] = parts_to_json(item.parts)
                    if not takes_all and group not in own_ids:
                        entry["elsewhere"] = True
                # Left out for the first file: units of one file never had this field.
                if number:
                    entry["file"] = number
                lines.append(json.dumps(entry) + "\n")
    write_part(job.path("heldout", ".jsonl"), "".join(lines))


def tokenize(job: Job, heldout_groups: np.ndarray) -> None:
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
        for chunk in _chunks(job, heldout_groups):
            go_on()
            texts = [document.text for _, document in chunk]
            parts = [document.parts for _, document in chunk]
            encoded = encode_documents(tokenizer, texts, parts)
            for (file, document), ids in zip(chunk, encoded, strict=True):
                # A file gets its name into the shard with its first training document.
                if file is not current_file:
                    writer.next_file(file.name)
                    current_file = file
                writer.add(ids, document.bytes, document.key, document.line, document.score)
                if shingle_count:
                    # In parts, so that a long document needs little memory.
                    for hashes in shingle_parts(document.text):
                        seen[matcher.find(hashes)] = True
    seen_indices = np.flatnonzero(seen).astype("<i8")
    write_part(job.path("seen", ".bin"), seen_indices.tobytes())
    # The report comes last: a unit that has one is tokenized.
    entries = [shard_entry(shard) for shard in writer.shards]
    write_part(job.path("train", ".json"), {"shards": entries})


def content_hash(files: Sequence[SourceFile], source: Source, entry: Path) -> None:
    """Write the SHA-256 of each local file's content to the file `entry`, one a line.

    Raises: UserError for a file that cannot be read, or that changes meanwhile.
    """
    digests = []
    for file in files:
        try:
            with open(file.path, "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256")
        except OSError as error:
            raise unreadable(file, source, error) from error
        digests.append(digest.hexdigest())
        # While somebody writes the file, its hash would be that of a mixture of two versions.
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
        # All groups are counted. Held-out ones are chosen once the groups of all files are known.
        group = group_id(item.group, job.seed)
        groups.add(group, item.bytes)
        sample.add(item, group)
    table = groups.table()
    report = {
        "lines": lines,
        "faults": faults,
        "first_faults": first_faults,
        # Nobody knows how much of a damaged file is missing, so all its bytes count.
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


def _chunks(job: Job, heldout_groups: np.ndarray) -> Iterator[list[tuple[SourceFile, Document]]]:
    """Yield lists of the unit's training documents with their files.

    A list has CHUNK characters or a little more, the last one fewer. It is emptied when the next
    one is asked for, so that only one chunk is in memory.
    """
    heldout_ids = set(heldout_groups.tolist())
    chunk = []
    size = 0
    for file in job.unit.files:
        for item in _read(job, file):
            # The scan has counted the faults.
            if isinstance(item, Fault):
                continue
            if group_id(item.group, job.seed) in heldout_ids:
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
        if number % CHECK_EVERY == 0:
            go_on()
        yield item
    _check_unchanged(file)


def _check_unchanged(file: SourceFile) -> None:
    if file.remote:
        return
    # `file` has the size and mtime of the time when the files were listed.
    status = os.stat(file.path)
    version = str(status.st_mtime_ns)
    if (status.st_size, version) != (file.size, file.version):
        raise UserError(f"{file.path} changed while it was being prepared; run again.")


# Both functions keep their result, because the next unit of the same folder needs it too.
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
