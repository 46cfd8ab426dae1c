"""The first and the last pass over the text of a curation.

The first pass, `clean`, normalises each document, looks for evaluation items and applies quality
rules; it writes the documents that are kept, and their sketches. The last pass, `publish`, writes
those of them that are no duplicates. Dialogues and pairs are kept as they came, see
`whole_records`.
"""

import collections
import functools
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool

from slmjax.curate.decontaminate import EvalIndex
from slmjax.curate.minhash import Scheme
from slmjax.curate.normalise import normalise
from slmjax.curate.quality import Rule, apply_rules
from slmjax.curate.sketch_files import ChecksummedFile, SketchWriter, checksum_of
from slmjax.curate.whole_records import searched_texts, stand_in
from slmjax.text.files import seal_is_broken, sealed, write_atomic
from slmjax.text.readers import read_documents
from slmjax.text.records import TEXT, Document, Fault, Source, SourceFile, content_key
from slmjax.text.units import go_on
from slmjax.text.walk import SKETCHES

EXCERPT = 600  # characters of a dropped document in the report
STOP_CHECK_EVERY = 256  # documents between two looks at whether the run was stopped


@dataclass(frozen=True)
class CurationUnit:
    """A file of a source, or several small ones (see `bundles`), and what to do with them."""

    source: Source
    files: tuple[SourceFile, ...]
    number: int  # of the first file among the source's files
    folder: str  # to which the first pass writes
    rules: tuple[str | Rule, ...]  # see `apply_rules`
    scheme: Scheme  # of the sketches
    evals_file: str  # of the EvalIndex; empty: no decontamination
    samples: int  # how many dropped documents to show for each reason

    @property
    def names(self) -> list[str]:
        """The name of each file, with its source's before it."""
        return [f"{self.source.name}/{file.name}" for file in self.files]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def stem(self) -> str:
        """The name, without its ending, of the files that the first pass writes."""
        first, last = self.number, self.number + len(self.files) - 1
        if first == last:
            return f"{self.source.name}-{first:05d}"
        return f"{self.source.name}-{first:05d}-{last:05d}"

    def path(self, ending: str) -> epath.Path:
        """Return the path of the file of this ending that the first pass writes."""
        return epath.Path(self.folder) / f"{self.stem}{ending}"


class Verdict(NamedTuple):
    """What becomes of a document."""

    text: str  # what normalising and the rules have left of it
    reason: str  # to drop it; empty: it is kept
    detail: str  # which evaluation item it holds, or empty


class DropCounts:
    """Documents and bytes of a file by what became of them, with samples of those dropped.

    The samples of a reason are the documents with the smallest keys, so that content alone decides.
    """

    def __init__(self, samples: int):
        self._samples = samples  # how many to keep for each reason
        # By "read" and by the reasons for dropping.
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        # Faults by their reasons, and a line about the first fault of each reason.
        self.faults: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        # For each reason a heap of (-key, -number, sample): the largest key is on top, to be
        # thrown out first.
        self._heaps: dict[str, list[tuple[int, int, dict]]] = {}
        self._offered = 0

    def count(self, reason: str, document: Document) -> None:
        """Count a document as "read", or as dropped for a reason."""
        self.documents[reason] += 1
        self.bytes[reason] += document.bytes

    def count_fault(self, fault: Fault, file: str) -> None:
        """Count a record that cannot be used."""
        self.faults[fault.reason] += 1
        example = f"{file} line {fault.line}: {fault.reason}"
        if fault.detail:
            example += f": {fault.detail.rstrip('.')}"
        self._examples.setdefault(fault.reason, example)

    def offer_sample(self, reason: str, key: int, sample: Mapping[str, Any]) -> None:
        """Keep a dropped document as a sample if its key is among the smallest of its reason."""
        heap = self._heaps.setdefault(reason, [])
        # The number decides between equal keys: the document that came first stays.
        self._offered += 1
        heapq.heappush(heap, (-key, -self._offered, sample))
        if len(heap) > self._samples:
            heapq.heappop(heap)

    def report(self) -> dict[str, Any]:
        """Return all counts and samples, in types that JSON knows."""
        samples = {}
        for reason, heap in sorted(self._heaps.items()):
            samples[reason] = [sample for *_, sample in sorted(heap, reverse=True)]
        return {
            "documents": dict(self.documents),
            "bytes": dict(self.bytes),
            "faults": dict(self.faults),
            "examples": self._examples,
            "samples": samples,
        }


def clean(unit: CurationUnit) -> None:
    """Do the first pass over the files of a unit.

    It writes the documents that are kept (.jsonl) and their sketches, where each dropped document
    was and why it was dropped (.dropped.jsonl), and the counts of each file (.json).
    """
    reports = []
    with (
        SketchWriter(unit.path(SKETCHES), unit.scheme) as sketches,
        ChecksummedFile(unit.path(".jsonl").open("wb")) as kept,
        ChecksummedFile(unit.path(".dropped.jsonl").open("wb")) as dropped,
    ):
        for file, name in zip(unit.files, unit.names):
            counts = DropCounts(unit.samples)
            for number, document in enumerate(read_documents(file, unit.source)):
                if number % STOP_CHECK_EVERY == 0:
                    go_on()  # raises Stopped if another unit has failed
                if isinstance(document, Fault):
                    counts.count_fault(document, name)
                    continue
                counts.count("read", document)
                verdict = _judged(unit, document)
                if verdict.reason:
                    line = _drop(document, verdict, name, counts)
                    dropped.write(line)
                    continue
                record, sketched = _kept(unit, document, verdict.text, name)
                kept.write(_line(record))
                sketches.add(sketched)
            reports.append(counts.report())
    checksums = {".jsonl": kept.crc32, ".dropped.jsonl": dropped.crc32}
    for column, checksum in sketches.checksums.items():
        checksums[f".sketches/{column}"] = checksum
    report = reports[0]
    if len(reports) > 1:
        report = {"files": reports}
    # Written last: this file, with the checksums of the others, says that the pass is done.
    sealed_report = sealed(report | {"crc32": checksums})
    write_atomic(unit.path(".json"), json.dumps(sealed_report))


def _drop(document: Document, verdict: Verdict, file: str, counts: DropCounts) -> bytes:
    """Count a dropped document, offer it as a sample, and return its line for .dropped.jsonl."""
    counts.count(verdict.reason, document)
    place = {"file": file, "line": document.line}
    sample = {**place, "detail": verdict.detail, "text": document.text[:EXCERPT]}
    counts.offer_sample(verdict.reason, document.key, sample)
    entry = {**place, "reason": verdict.reason}
    if verdict.detail:
        entry["detail"] = verdict.detail
    return _line(entry)


def _judged(unit: CurationUnit, document: Document) -> Verdict:
    """Return whether a document, a dialogue or a pair is kept, and what is left of its text."""
    kind = unit.source.kind
    if kind == TEXT:
        return judge_document(document.text, unit.rules, unit.evals_file)
    for text in searched_texts(document, kind):
        # Normalised only to be searched, so that an item is found as it would be in running text.
        contamination = _contamination(normalise(text), unit.evals_file)
        if contamination:
            reason, detail = contamination
            return Verdict(document.text, reason, detail)
    return Verdict(document.text, "", "")


def _kept(
    unit: CurationUnit, document: Document, text: str, file: str
) -> tuple[Mapping[str, Any], Document]:
    """Return the record to write for a kept document, and the document to sketch.

    Args:
      text: what normalising and the rules have left of the document.
      file: name of its file.
    """
    kind = unit.source.kind
    if kind == TEXT:
        return _kept_record(unit, document, text, file), _kept_document(text, document.line)
    return document.record or {}, stand_in(document, kind, unit.scheme.ngram)


def _kept_record(unit: CurationUnit, document: Document, text: str, file: str) -> dict[str, Any]:
    """Return the record to write: the kept text, where it is from, and the document's own fields.

    The kept text is the field "text", whatever the source calls it.
    """
    record = dict(document.record or {})
    record["text"] = text
    record["from"] = f"{file} line {document.line}"
    if unit.source.field != "text":
        record.pop(unit.source.field, None)
    return record


def _kept_document(text: str, line: int) -> Document:
    """Return a kept text as a document with its own size and key, to be sketched."""
    data = text.encode()
    return Document(text, "", line, len(data), content_key(data))


def _line(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line of JSON, with characters beyond ASCII as they are if possible."""
    readable = json.dumps(record, ensure_ascii=False)
    try:
        return f"{readable}\n".encode()
    except UnicodeEncodeError:
        # A field or the name of the file holds half a surrogate pair, which UTF-8 cannot encode.
        escaped = json.dumps(record)
        return f"{escaped}\n".encode()


def judge_document(text: str, rules: Sequence[str | Rule], evals_file: str) -> Verdict:
    """Return what becomes of a document.

    Evaluation items are looked for first: a document that holds one counts as contaminated even if
    a rule would drop it, too.

    Args:
      rules: see `apply_rules`.
      evals_file: file of the EvalIndex; empty: no decontamination.
    """
    normalised = normalise(text)
    if not normalised.strip():
        return Verdict(normalised, "empty after normalising", "")
    if contamination := _contamination(normalised, evals_file):
        return Verdict(normalised, *contamination)
    kept, reason = apply_rules(normalised, rules)
    if not reason and not kept.strip():
        reason = "nothing left by the rules"
    if reason:
        return Verdict(kept, reason, "")
    # Rules take lines out, which may bring the pieces of an item together.
    if kept != normalised and (contamination := _contamination(kept, evals_file)):
        return Verdict(kept, *contamination)
    return Verdict(kept, "", "")


def _contamination(text: str, evals_file: str) -> tuple[str, str] | None:
    """Return (reason, detail) if the text holds an evaluation item, else None."""
    hit = _eval_index(evals_file).find(text) if evals_file else None
    if hit is None:
        return None
    passage = text[hit.start : hit.end]
    return f"contaminated: {hit.set}", f"item {hit.item}: {hit.coverage:.0%} of it, in “{passage}”"


@functools.lru_cache(2)  # each process loads an index once
def _eval_index(file: str) -> EvalIndex:
    return EvalIndex.load(file)


def is_done(unit: CurationUnit) -> bool:
    """Return whether all files that `clean` writes for a unit are there and undamaged."""
    try:
        report = json.loads(unit.path(".json").read_bytes())
        if "seal" not in report or seal_is_broken(report):
            return False
        for ending, checksum in report["crc32"].items():
            if checksum_of(unit.path(ending)) != checksum:
                return False
        return True
    # A missing file, and all that damaged JSON can raise.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def reports_of(unit: CurationUnit) -> list[dict[str, Any]]:
    """Return the counts that `clean` has written for each file of a unit.

    Raises: ValueError or AttributeError where they are damaged.
    """
    report = json.loads(unit.path(".json").read_bytes())
    # With one file the report is that file's, see `clean`.
    return report.get("files", [report])


def count_kept(report: Mapping[str, Any]) -> int:
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
    """Write the documents of a unit that are no duplicates to `folder`, a file for each file read.

    Where no document is left of a file, none is written.

    Args:
      sizes: how many documents of each file `clean` has kept.
      removed: which of the unit's kept documents are duplicates.
    """
    target = epath.Path(folder)
    removed_of_file = np.split(removed, np.cumsum(sizes)[:-1])
    with unit.path(".jsonl").open("rb") as lines:
        for number, is_removed in enumerate(removed_of_file, unit.number):
            own_lines = itertools.islice(lines, len(is_removed))
            if is_removed.all():
                collections.deque(own_lines, maxlen=0)  # read past the lines of this file
                continue
            target.mkdir(parents=True, exist_ok=True)
            kept = itertools.compress(own_lines, ~is_removed)
            _write_compressed(target / f"{number:05d}.jsonl.zst", kept)


def _write_compressed(file: epath.Path, lines: Iterable[bytes]) -> None:
    import zstandard

    compressor = zstandard.ZstdCompressor()
    with file.open("wb") as out, compressor.stream_writer(out) as compressed:
        for line in lines:
            compressed.write(line)
