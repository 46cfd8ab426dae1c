"""The last step of preparation: held-out shards that training has not seen, and the manifest."""

import shutil
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from slmjax.data.encode import encode_documents
from slmjax.data.heldout import HeldoutChoice, seen_in_training
from slmjax.data.jobs import Job
from slmjax.data.manifest import FORMAT, manifest_seal, prepared_fingerprint
from slmjax.data.preparation_plan import PreparationPlan, Unusable
from slmjax.data.scan_reports import Report
from slmjax.data.shard_files import shard_entry
from slmjax.data.shard_writer import ShardWriter
from slmjax.text.chat_documents import parts_from_json
from slmjax.text.chat_template import Part
from slmjax.text.files import read_part, write_atomic
from slmjax.text.hashing import Matcher
from slmjax.text.records import TEXT, Source
from slmjax.text.tokenizer import EOT, HOSTILE, Tokenizer
from slmjax.text.walk import WORK

# A source that has at least one end-of-text mark for this many documents gets a warning.
DOCUMENTS_PER_MARK = 10


class HeldoutTest(NamedTuple):
    """What decides whether a held-out document stays.

    matcher: finds the shingles of all held-out documents.
    seen: for each of those shingles, whether training text has it.
    may_change: whether the tokenizer was given by the user, so that decoding may change some texts.
    """

    tokenizer: Tokenizer
    matcher: Matcher
    seen: np.ndarray
    may_change: bool


def finish_folder(
    plan: PreparationPlan,
    reports: dict[str, Report],
    choice: HeldoutChoice,
    seconds: dict[str, float],
) -> None:
    """Write the held-out shards without documents that training has seen, and then the manifest.

    Args:
      reports: of the scan, for each source.
      seconds: that each step has taken.
    Raises: Unusable where a source has nothing left to train on, or where training has seen every
      document of a held-out file.
    """
    # Held-out units leave no such report: their documents were collected two steps earlier.
    reports_of_units = plan.result_files("train", ".json", split="train")
    plan.wait(reports_of_units, "tokenize their files")
    jobs = plan.jobs(all_hosts=True)
    test = _heldout_test(plan, jobs)
    tokenizer = test.tokenizer
    warnings = [*_mark_warnings(reports), *choice.warnings]
    warnings += _tokenizer_warnings(plan, tokenizer)
    sources = {}
    for source in plan.sources:
        # Empty for a source that is a prepared folder: its shards stay where they are.
        source_jobs = [job for job in jobs if job.unit.source.name == source.name]
        entry = _source_entry(plan, source, source_jobs, reports[source.name], test)
        if source_jobs and not entry["shards"]:
            raise Unusable(
                f"data.sources.{source.name}: nothing is left to train on after holding out; "
                "add text or lower data.heldout."
            )
        warnings += _source_warnings(source.name, entry, is_text=bool(source_jobs))
        sources[source.name] = entry
    # The settings of each source are in its entry already.
    settings = {name: value for name, value in plan.settings.items() if name != "sources"}
    manifest = {
        "format": FORMAT,
        "fingerprint": prepared_fingerprint(plan.settings, tokenizer.sha256, sources),
        "settings": settings,
        "tokenizer": {
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
        },
        "sources": sources,
        "warnings": warnings,
        "seconds": seconds,
    }
    manifest["seal"] = manifest_seal(manifest)
    tokenizer.save(plan.folder / "tokenizer.json")
    # The manifest comes last: a folder that has one is complete.
    write_atomic(plan.folder / "manifest.json", manifest)
    shutil.rmtree(plan.folder / WORK, ignore_errors=True)


def _heldout_test(plan: PreparationPlan, jobs: list[Job]) -> HeldoutTest:
    """Read the tokenizer and the shingles from the intermediate results of earlier steps."""
    work = plan.folder / WORK
    tokenizer = Tokenizer(read_part(work / "tokenizer.json").decode())
    hashes = np.frombuffer(read_part(work / "shingles.bin"), "<u8")
    seen = np.zeros(len(hashes), bool)
    for job in jobs:
        if job.unit.split == "train":
            seen[job.table("seen", "<i8")] = True
    # A tokenizer that was trained here is byte-level: it keeps every text.
    is_given = plan.tokenizer is not None
    return HeldoutTest(tokenizer, Matcher(hashes), seen, may_change=is_given)


def _source_entry(
    plan: PreparationPlan,
    source: Source,
    jobs: list[Job],
    report: Report,
    test: HeldoutTest,
) -> dict[str, Any]:
    """Write a source's held-out shards and return its entry in the manifest."""
    settings = plan.settings["sources"][source.name]
    files = []
    for split in ("train", "heldout"):
        for row in settings[split]:
            files.append([split, *row])
    shards = []
    for job in jobs:
        if job.unit.split == "train":
            shards += job.report("train")["shards"]
    # Left out for running text, so that manifests without conversations stay as they were.
    kind = {}
    if source.kind != TEXT:
        kind["kind"] = source.kind
    return {
        **kind,
        "path": source.path,
        "field": source.field,
        "revision": source.revision,
        "heldout": source.heldout,
        "score": source.score_field,
        "files": files,
        **report,
        **_write_heldout(plan, jobs, test),
        "shards": shards,
    }


def _write_heldout(
    plan: PreparationPlan,
    jobs: list[Job],
    test: HeldoutTest,
) -> dict[str, Any]:
    """Write the held-out shards of a source, one for each unit that has some.

    Returns: the fields of the source's entry in the manifest that say how much was kept, how much
      was removed, in which shards the kept documents are, and how many conversations are not
      trained on because another source or a held-out file has their question.
    """
    # Shards are numbered by files: first the source's training files, then its held-out files.
    train_files = 0
    for job in jobs:
        if job.unit.split == "train":
            train_files += len(job.unit.files)
    shards = []
    tally = Counter()
    for job in jobs:
        shard_number = job.unit.index
        if job.unit.split == "heldout":
            shard_number += train_files
        shards += _write_unit(plan, job, shard_number, test, tally)
    removed = {"documents": tally["removed documents"], "bytes": tally["removed bytes"]}
    for field in ("documents", "bytes"):
        total = removed[field] + tally[f"kept {field}"]
        removed[f"{field}_share"] = removed[field] / max(1, total)
    # Left out for running text, which has no questions.
    elsewhere = {}
    if any(job.unit.source.kind != TEXT for job in jobs):
        elsewhere["heldout_elsewhere"] = tally["elsewhere"]
    return {
        **elsewhere,
        "heldout_documents": tally["kept documents"],
        "heldout_bytes": tally["kept bytes"],
        "removed": removed,
        "changed": tally["changed"],
        "heldout_shards": shards,
    }


def _write_unit(
    plan: PreparationPlan,
    job: Job,
    shard_number: int,
    test: HeldoutTest,
    tally: Counter,
) -> list[dict]:
    """Write a unit's held-out shards and count its documents in `tally`.

    Returns: the shards' entries in the manifest.
    """
    unit = job.unit
    tokenizer = test.tokenizer
    # {number of a file in the unit: its documents}, all of them and those that were written.
    documents = Counter()
    written = Counter()
    with ShardWriter(
        plan.folder,
        f"{unit.source.name}/heldout-{shard_number:05d}.arrayrecord",
        unit.files[0].name,
        vocab_size=tokenizer.vocab_size,
        eot=tokenizer.eot,
    ) as writer:
        for document in job.lines("heldout"):
            # The number is left out for the unit's first file.
            file_number = document.get("file", 0)
            if file_number and not documents[file_number]:
                writer.next_file(unit.files[file_number].name)
            documents[file_number] += 1
            tally["elsewhere"] += document.get("elsewhere", False)
            text = document["text"]
            parts = None
            if "parts" in document:
                parts = parts_from_json(document["parts"])
            (ids,) = encode_documents(tokenizer, [text], [parts])
            # Bits per byte of a changed text would be those of another text.
            if test.may_change and not _keeps(tokenizer, text, parts, ids):
                tally["changed"] += 1
                continue
            is_seen = seen_in_training(text, test.matcher, test.seen)
            # Both are counted, so that a report can say which share of the text was removed.
            outcome = "removed" if is_seen else "kept"
            tally[f"{outcome} documents"] += 1
            tally[f"{outcome} bytes"] += document["bytes"]
            if not is_seen:
                written[file_number] += 1
                writer.add(ids, document["bytes"], document["key"], document["line"])
    # A user who names a file of held-out text expects an evaluation of it.
    for file_number, count in documents.items():
        if unit.split == "heldout" and not written[file_number]:
            raise Unusable(
                f"data.sources.{unit.source.name}.heldout: every document of "
                f"{unit.files[file_number].name} occurs in training too ({count:,}); "
                "name a file of other text."
            )
    return [shard_entry(shard) for shard in writer.shards]


def _keeps(tokenizer: Tokenizer, text: str, parts: list[Part] | None, ids: np.ndarray) -> bool:
    """Return whether the ids of a document hold its text, or all texts among its parts."""
    if parts is None:
        return tokenizer.keeps(text, ids)
    for part in parts:
        if isinstance(part, str) and not tokenizer.keeps(part, tokenizer.encode(part)):
            return False
    return True


def _mark_warnings(reports: dict) -> list[str]:
    """Return a warning for each source whose text holds end-of-text marks.

    A mark in the text is plain text to the tokenizer and does not end a document.
    """
    warnings = []
    for name, report in reports.items():
        documents = report["documents"]
        marks = report["marks"]
        # A text about tokenizers may hold a few marks; many mean that documents were joined.
        if marks and DOCUMENTS_PER_MARK * marks >= documents:
            document_count = f"{documents:,} documents"
            if documents == 1:
                document_count = "1 document"
            warnings.append(
                f"source '{name}' is {document_count} with {marks:,} marks {EOT} in the text, "
                "which end no document; cut it there: one document a line in a .jsonl, or a .txt "
                "for each"
            )
    return warnings


def _tokenizer_warnings(plan: PreparationPlan, tokenizer: Tokenizer) -> list[str]:
    wanted = plan.data.vocab_size
    if plan.tokenizer is None:
        # The tokenizer was trained here; it is smaller where the text has no more pairs to merge.
        if tokenizer.vocab_size < wanted:
            return [
                f"the text has pairs for {tokenizer.vocab_size} tokens only, "
                f"not data.vocab_size={wanted}"
            ]
        return []
    if not tokenizer.keeps(HOSTILE, tokenizer.encode(HOSTILE)):
        return [
            "data.tokenizer changes some characters or blanks of a text before it is cut into "
            "tokens; held-out documents that it changes are left out of bits per byte"
        ]
    return []


def _source_warnings(
    name: str,
    entry: dict[str, Any],
    *,
    is_text: bool,
) -> list[str]:
    """Return warnings about the held-out text of a source.

    Args:
      entry: in the manifest.
      is_text: False for a source that was prepared before.
    """
    warnings = []
    if entry["changed"]:
        warnings.append(
            f"data.tokenizer does not give back {entry['changed']} held-out documents of source "
            f"'{name}' as they are; they are left out of bits per byte"
        )
    all_removed = entry["removed"]["documents"] and not entry["heldout_shards"]
    if is_text and all_removed:
        warnings.append(
            f"all held-out text of source '{name}' occurs in training too, so all of it was removed"
        )
    return warnings
