"""The last step of preparation: held-out shards that training has not seen, and the manifest."""

import shutil
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from slmjax.data.heldout import HeldoutChoice, seen_in_training
from slmjax.data.jobs import Job
from slmjax.data.manifest import FORMAT, prepared_fingerprint
from slmjax.data.preparation_plan import PreparationPlan, Unusable
from slmjax.data.scan_reports import Report
from slmjax.data.shard_files import shard_entry
from slmjax.data.shard_writer import ShardWriter
from slmjax.text.files import read_part, write_atomic
from slmjax.text.hashing import Matcher
from slmjax.text.records import Source
from slmjax.text.tokenizer import EOT, HOSTILE, Tokenizer
from slmjax.text.walk import WORK

# A source is warned about with one end-of-text mark in so many documents.
DOCUMENTS_PER_MARK = 10


class HeldoutTest(NamedTuple):
    """The test that decides whether a held-out document stays.

    seen: which of the matcher's shingles training has.
    may_change: whether the tokenizer is a given one, which may not keep every text.
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
    """Write held-out shards without what training has seen, and the manifest.

    Args:
      reports: of the scan, for each source.
      seconds: that each step has taken.
    Raises: Unusable where a source has nothing left to train on, or a held-out file nothing that
      training has not seen.
    """
    # Only training units are tokenized; held-out documents are collected already.
    reports_of_units = plan.parts("train", ".json", kind="train")
    plan.wait(reports_of_units, "tokenize their files")
    jobs = plan.jobs(own=False)
    test = _heldout_test(plan, jobs)
    tokenizer = test.tokenizer
    warnings = [*_mark_warnings(reports), *choice.warnings]
    warnings += _tokenizer_warnings(plan, tokenizer)
    sources = {}
    for source in plan.sources:
        # None for a source that is a prepared folder: its shards stay where they are.
        own = [job for job in jobs if job.unit.source.name == source.name]
        entry = _source_entry(plan, source, own, reports[source.name], test)
        if own and not entry["shards"]:
            raise Unusable(
                f"data.sources.{source.name}: nothing is left to train on after holding out; "
                "add text or lower data.heldout."
            )
        warnings += _source_warnings(source.name, entry, is_text=bool(own))
        sources[source.name] = entry
    # What the settings say of the sources is in the sources' entries.
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
    tokenizer.save(plan.folder / "tokenizer.json")
    # The manifest comes last: a folder that has one is complete.
    write_atomic(plan.folder / "manifest.json", manifest)
    shutil.rmtree(plan.folder / WORK, ignore_errors=True)


def _heldout_test(plan: PreparationPlan, jobs: list[Job]) -> HeldoutTest:
    """Return the tokenizer and the shingles of all units as the steps before have left them."""
    work = plan.folder / WORK
    tokenizer = Tokenizer(read_part(work / "tokenizer.json").decode())
    hashes = np.frombuffer(read_part(work / "shingles.bin"), "<u8")
    seen = np.zeros(len(hashes), bool)
    for job in jobs:
        if job.unit.kind == "train":
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
    for kind in ("train", "heldout"):
        for row in settings[kind]:
            files.append([kind, *row])
    shards = []
    for job in jobs:
        if job.unit.kind == "train":
            shards += job.report("train")["shards"]
    return {
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

    Returns: the fields of its entry in the manifest that say what was kept and what removed.
    """
    # Files of a source's own held-out text are numbered behind those of its training text.
    train_files = 0
    for job in jobs:
        if job.unit.kind == "train":
            train_files += len(job.unit.files)
    shards = []
    tally = Counter()
    for job in jobs:
        first = job.unit.index
        if job.unit.kind == "heldout":
            first += train_files
        shards += _write_unit(plan, job, first, test, tally)
    removed = {"documents": tally["removed documents"], "bytes": tally["removed bytes"]}
    for field in ("documents", "bytes"):
        total = removed[field] + tally[f"kept {field}"]
        removed[f"{field}_share"] = removed[field] / max(1, total)
    return {
        "heldout_documents": tally["kept documents"],
        "heldout_bytes": tally["kept bytes"],
        "removed": removed,
        "changed": tally["changed"],
        "heldout_shards": shards,
    }


def _write_unit(
    plan: PreparationPlan,
    job: Job,
    first: int,
    test: HeldoutTest,
    tally: Counter,
) -> list[dict]:
    """Write a unit's held-out shards and count its documents in `tally`.

    Args:
      first: number of its first file, for the name.
    Returns: the shards' entries in the manifest.
    """
    unit = job.unit
    tokenizer = test.tokenizer
    # Documents of each of the unit's files, and those of them that were written.
    documents = Counter()
    written = Counter()
    with ShardWriter(
        plan.folder,
        f"{unit.source.name}/heldout-{first:05d}.arrayrecord",
        unit.files[0].name,
        vocab_size=tokenizer.vocab_size,
        eot=tokenizer.eot,
    ) as writer:
        for document in job.lines("heldout"):
            number = document.get("file", 0)
            if number and not documents[number]:
                writer.next_file(unit.files[number].name)
            documents[number] += 1
            text = document["text"]
            (ids,) = tokenizer.encode_arrays([text])
            # Bits per byte of a changed text would be those of another text.
            if test.may_change and not tokenizer.keeps(text, ids):
                tally["changed"] += 1
                continue
            is_seen = seen_in_training(text, test.matcher, test.seen)
            # Removed documents are counted, so that a report can say how much was known already.
            side = "removed" if is_seen else "kept"
            tally[f"{side} documents"] += 1
            tally[f"{side} bytes"] += document["bytes"]
            if not is_seen:
                written[number] += 1
                writer.add(ids, document["bytes"], document["key"], document["line"])
    # A user who names a file of held-out text means to have a number for it.
    for number, count in documents.items():
        if unit.kind == "heldout" and not written[number]:
            raise Unusable(
                f"data.sources.{unit.source.name}.heldout: every document of "
                f"{unit.files[number].name} occurs in training too ({count:,}); "
                "name a file of other text."
            )
    return [shard_entry(shard) for shard in writer.shards]


def _mark_warnings(reports: dict) -> list[str]:
    """Return a warning for each source whose text holds end-of-text marks.

    They are plain text there, which ends no document.
    """
    warnings = []
    for name, report in reports.items():
        documents = report["documents"]
        marks = report["marks"]
        # A text about tokenizers may hold a few marks; many mean that documents were joined.
        if marks and DOCUMENTS_PER_MARK * marks >= documents:
            held = f"{documents:,} documents with"
            if documents == 1:
                held = "1 document with"
            warnings.append(
                f"source '{name}' is {held} {marks:,} marks {EOT} in the text, which end no "
                "document; cut it there: one document a line in a .jsonl, or a .txt for each"
            )
    return warnings


def _tokenizer_warnings(plan: PreparationPlan, tokenizer: Tokenizer) -> list[str]:
    wanted = plan.data.vocab_size
    if plan.tokenizer is None:
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
    nothing_left = entry["removed"]["documents"] and not entry["heldout_shards"]
    if is_text and nothing_left:
        warnings.append(
            f"all held-out text of source '{name}' occurs in training too, so all of it was removed"
        )
    return warnings
