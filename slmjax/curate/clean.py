"""The first and the last pass over text.

The first normalises each document, applies quality rules and looks for evaluation items; it writes
what is left with its sketches. The last writes what deduplication has left.
"""

import collections
import functools
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool

from slmjax.curate.decontaminate import EvalIndex
from slmjax.curate.minhash import Scheme
from slmjax.curate.normalise import normalise
from slmjax.curate.quality import Rule, apply_rules
from slmjax.curate.sketch_files import Checked, SketchWriter, checksum_of
from slmjax.text.files import seal_is_broken, sealed, write_atomic
from slmjax.text.readers import read_documents
from slmjax.text.records import Document, Fault, Source, SourceFile, content_key
from slmjax.text.units import go_on
from slmjax.text.walk import SKETCHES

EXCERPT = 600  # characters of a dropped document in the report
ASK_AFTER = 256  # documents after which a process asks whether to go on


@dataclass(frozen=True)
class CurationUnit:
    """A file of a source, or several, see `bundles`, and what to do with them."""

    source: Source
    files: tuple[SourceFile, ...]
    number: int  # of the first file
    folder: str  # in which all files of the passes lie
    rules: tuple[str | Rule, ...]
    scheme: Scheme
    evals: str  # file of the EvalIndex; empty: no decontamination
    samples: int  # of dropped documents for each reason

    @property
    def names(self) -> list[str]:
        """The name of each file."""
        return [f"{self.source.name}/{file.name}" for file in self.files]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def part(self) -> str:
        """The name, without its ending, of the files that the passes leave."""
        first, last = self.number, self.number + len(self.files) - 1
        if first == last:
            return f"{self.source.name}-{first:05d}"
        return f"{self.source.name}-{first:05d}-{last:05d}"

    def path(self, ending: str) -> epath.Path:
        """Return the path of one of the files that the passes leave."""
        return epath.Path(self.folder) / f"{self.part}{ending}"


class Verdict(NamedTuple):
    """What becomes of a document."""

    text: str  # as it is kept
    reason: str  # to drop it; empty: it is kept
    detail: str  # which evaluation item it holds, or empty


class DropCounts:
    """Documents and bytes of a file by what became of them, with samples for each reason.

    The samples are those with the smallest keys, so that content alone decides.
    """

    def __init__(self, samples: int):
        self._samples = samples  # of each reason
        # By "read" and reasons.
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        # By reasons of faults, and the first fault of each.
        self.faults: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        # Heaps of (-key, -number, entry): the largest key is on top, and goes first.
        self._shown: dict[str, list[tuple[int, int, dict]]] = {}
        self._offered = 0

    def count(self, reason: str, document: Document) -> None:
        """Count a document as "read", or as dropped for a reason."""
        self.documents[reason] += 1
        self.bytes[reason] += document.bytes

    def fault(self, fault: Fault, file: str) -> None:
        """Count a record that cannot be used."""
        self.faults[fault.reason] += 1
        example = f"{file} line {fault.line}: {fault.reason}"
        if fault.detail:
            example += f": {fault.detail.rstrip('.')}"
        self._examples.setdefault(fault.reason, example)

    def show(self, reason: str, key: int, entry: Mapping[str, Any]) -> None:
        """Offer a dropped document as a sample."""
        shown = self._shown.setdefault(reason, [])
        self._offered += 1  # of equal documents the first ones stay
        heapq.heappush(shown, (-key, -self._offered, entry))
        if len(shown) > self._samples:
            heapq.heappop(shown)

    def report(self) -> dict[str, Any]:
        """Return all counts and samples as JSON."""
        samples = {}
        for reason, heap in sorted(self._shown.items()):
            samples[reason] = [entry for *_, entry in sorted(heap, reverse=True)]
        return {
            "documents": dict(self.documents),
            "bytes": dict(self.bytes),
            "faults": dict(self.faults),
            "examples": self._examples,
            "samples": samples,
        }


def clean(unit: CurationUnit) -> None:
    """Do the first pass over the files of a unit.

    Leaves the documents that are kept (.jsonl) with their sketches, the dropped ones and why
    (.dropped.jsonl), and the counts of each file (.json).
    """
    reports = []
    with (
        SketchWriter(unit.path(SKETCHES), unit.scheme) as sketches,
        Checked(unit.path(".jsonl").open("wb")) as kept,
        Checked(unit.path(".dropped.jsonl").open("wb")) as dropped,
    ):
        for file, name in zip(unit.files, unit.names):
            counts = DropCounts(unit.samples)
            for number, document in enumerate(read_documents(file, unit.source)):
                if number % ASK_AFTER == 0:
                    go_on()
                if isinstance(document, Fault):
                    counts.fault(document, name)
                    continue
                counts.count("read", document)
                verdict = judge_document(document.text, unit.rules, unit.evals)
                if verdict.reason:
                    line = _drop(document, verdict, name, counts)
                    dropped.write(line)
                    continue
                record = _kept_record(unit, document, verdict.text, name)
                kept.write(_line(record))
                sketches.add(_cleaned(verdict.text, document.line))
            reports.append(counts.report())
    checksums = {".jsonl": kept.crc32, ".dropped.jsonl": dropped.crc32}
    for column, checksum in sketches.checksums.items():
        checksums[f".sketches/{column}"] = checksum
    report = reports[0]
    if len(reports) > 1:
        report = {"files": reports}
    # Written last: with its checksums it says that the pass is done.
    whole = sealed(report | {"crc32": checksums})
    write_atomic(unit.path(".json"), json.dumps(whole))


def _drop(document: Document, verdict: Verdict, file: str, counts: DropCounts) -> bytes:
    """Count a dropped document, offer it as a sample, and return its line of .dropped.jsonl."""
    counts.count(verdict.reason, document)
    place = {"file": file, "line": document.line}
    sample = {**place, "detail": verdict.detail, "text": document.text[:EXCERPT]}
    counts.show(verdict.reason, document.key, sample)
    entry = {**place, "reason": verdict.reason}
    if verdict.detail:
        entry["detail"] = verdict.detail
    return _line(entry)


def _kept_record(unit: CurationUnit, document: Document, text: str, file: str) -> dict[str, Any]:
    """Return a kept document with its own other fields and where it is from."""
    record = dict(document.record or {})
    record["text"] = text
    record["from"] = f"{file} line {document.line}"
    if unit.source.field != "text":
        record.pop(unit.source.field, None)
    return record


def _cleaned(text: str, line: int) -> Document:
    data = text.encode()
    return Document(text, "", line, len(data), content_key(data))


def _line(record: Mapping[str, Any]) -> bytes:
    readable = json.dumps(record, ensure_ascii=False)
    try:
        return f"{readable}\n".encode()
    except UnicodeEncodeError:  # half a surrogate pair in another field, or in the name of the file
        escaped = json.dumps(record)
        return f"{escaped}\n".encode()


def judge_document(text: str, rules: Sequence[str | Rule], evals: str) -> Verdict:
    """Return what becomes of a document.

    Evaluation items are looked for first: a document that holds one counts as contaminated also
    where a rule would drop it.

    Args:
      evals: file of the EvalIndex; empty: no decontamination.
    """
    whole = normalise(text)
    if not whole.strip():
        return Verdict(whole, "empty after normalising", "")
    if contamination := _contamination(whole, evals):
        return Verdict(whole, *contamination)
    kept, reason = apply_rules(whole, rules)
    if not reason and not kept.strip():
        reason = "nothing left by the rules"
    if reason:
        return Verdict(kept, reason, "")
    # Rules take lines out, which may bring the pieces of an item together.
    if kept != whole and (contamination := _contamination(kept, evals)):
        return Verdict(kept, *contamination)
    return Verdict(kept, "", "")


def _contamination(text: str, evals: str) -> tuple[str, str] | None:
    """Return (reason, detail) where the text holds an item of the index `evals`."""
    hit = _eval_index(evals).find(text) if evals else None
    if hit is None:
        return None
    place = text[hit.start : hit.end]
    return f"contaminated: {hit.set}", f"item {hit.item}: {hit.coverage:.0%} of it, in “{place}”"


@functools.lru_cache(2)
def _eval_index(file: str) -> EvalIndex:
    return EvalIndex.load(file)


def is_done(unit: CurationUnit) -> bool:
    """Return whether all files of `clean` are there as they were written."""
    try:
        report = json.loads(unit.path(".json").read_bytes())
        if "seal" not in report or seal_is_broken(report):
            return False
        for ending, checksum in report["crc32"].items():
            if checksum_of(unit.path(ending)) != checksum:
                return False
        return True
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def reports_of(unit: CurationUnit) -> list[dict[str, Any]]:
    """Return the counts of `clean` for each file.

    Raises: ValueError or AttributeError where they are damaged.
    """
    report = json.loads(unit.path(".json").read_bytes())
    return report.get("files", [report])


def left_of(report: Mapping[str, Any]) -> int:
    """Return how many documents of a file are kept: those that were read and not dropped."""
    read = report["documents"].get("read", 0)
    dropped = sum(report["documents"].values()) - read
    return read - dropped


def publish(
    unit: CurationUnit,
    sizes: Sequence[int],
    removed: Bool[np.ndarray, " documents"],
    folder: str,
) -> None:
    """Write what is left of each file of a unit to a file of its own in `folder`.

    Args:
      sizes: documents of each file that `clean` has kept.
      removed: which of the unit's documents are duplicates. A file that is left with none is not
        written.
    """
    place = epath.Path(folder)
    removed_of_file = np.split(removed, np.cumsum(sizes)[:-1])
    with unit.path(".jsonl").open("rb") as lines:
        for number, is_gone in enumerate(removed_of_file, unit.number):
            own = itertools.islice(lines, len(is_gone))
            if is_gone.all():
                collections.deque(own, maxlen=0)  # go past them
                continue
            place.mkdir(parents=True, exist_ok=True)
            kept = itertools.compress(own, ~is_gone)
            _write_compressed(place / f"{number:05d}.jsonl.zst", kept)


def _write_compressed(file: epath.Path, lines: itertools.compress) -> None:
    import zstandard

    compressor = zstandard.ZstdCompressor()
    with file.open("wb") as out, compressor.stream_writer(out) as compressed:
        for line in lines:
            compressed.write(line)
