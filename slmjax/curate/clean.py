"""The first pass over text: normalise, quality rules, decontamination.

What is left is written with its sketches.
"""

import collections
import functools
import heapq
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from slmjax.curate.decontaminate import EvalIndex
from slmjax.curate.minhash import Scheme
from slmjax.curate.normalise import normalise
from slmjax.curate.quality import Rule, first_reason
from slmjax.curate.sketch_files import Checked, SketchWriter, checksum_of
from slmjax.text.files import go_on, seal_is_broken, sealed, write_atomic
from slmjax.text.records import Document, Fault, Source, SourceFile, content_key
from slmjax.text.sources import read_documents
from slmjax.text.walk import SKETCHES

EXCERPT = 600  # characters of a dropped document in the report


@dataclass(frozen=True)
class CurationUnit:
    """A file of a source, or several, see `bundles`, and what to do with them.

    All files of the pass lie under `folder`.
    """

    source: Source
    files: tuple[SourceFile, ...]
    number: int  # of the first file
    folder: str
    rules: tuple[str | Rule, ...]
    scheme: Scheme
    evals: str  # file of the EvalIndex; empty: no decontamination
    samples: int  # of dropped documents for each reason

    @property
    def names(self) -> list[str]:
        """What each file is called."""
        return [f"{self.source.name}/{file.name}" for file in self.files]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def part(self) -> str:
        """What the files are called that the passes leave."""
        last = f"-{self.number + len(self.files) - 1:05d}" if len(self.files) > 1 else ""
        return f"{self.source.name}-{self.number:05d}{last}"

    def path(self, ending: str) -> epath.Path:
        return epath.Path(self.folder) / f"{self.part}{ending}"


class DropCounts:
    """Documents and bytes by what became of them, with the samples of each reason that have the smallest keys: decided by content alone."""

    def __init__(self, samples: int):
        self._samples, self.documents, self.bytes, self.faults = (
            samples,
            Counter(),
            Counter(),
            Counter(),
        )
        self._examples: dict[str, str] = {}  # the first fault of each reason
        self._shown: dict[str, list[tuple[int, int, dict]]] = {}
        self._offered = 0

    def count(self, what: str, document: Document) -> None:
        """`what` is "read", "kept" or a reason."""
        self.documents[what] += 1
        self.bytes[what] += document.bytes

    def fault(self, fault: Fault, file: str) -> None:
        """Count a record that cannot be used."""
        self.faults[fault.reason] += 1
        detail = f": {fault.detail.rstrip('.')}" if fault.detail else ""
        self._examples.setdefault(fault.reason, f"{file} line {fault.line}: {fault.reason}{detail}")

    def show(self, reason: str, key: int, entry: Mapping[str, Any]) -> None:
        """Offer a dropped document as a sample."""
        shown = self._shown.setdefault(reason, [])
        self._offered += 1  # of equal documents the first ones stay
        heapq.heappush(shown, (-key, -self._offered, entry))
        if len(shown) > self._samples:
            heapq.heappop(shown)

    def report(self) -> dict[str, Any]:
        """As JSON."""
        shown = {
            reason: [entry for *_, entry in sorted(found, reverse=True)]
            for reason, found in sorted(self._shown.items())
        }
        return {
            "documents": dict(self.documents),
            "bytes": dict(self.bytes),
            "faults": dict(self.faults),
            "examples": self._examples,
            "samples": shown,
        }


def clean(unit: CurationUnit) -> None:
    """Write what is left of a unit's documents (.jsonl) with its sketches, what was dropped and why
    (.dropped.jsonl), and the counts of each file (.json).
    """
    reports = []
    with (
        SketchWriter(unit.path(SKETCHES), unit.scheme) as sketches,
        Checked(unit.path(".jsonl").open("wb")) as kept,
        Checked(unit.path(".dropped.jsonl").open("wb")) as dropped,
    ):
        for file, name in zip(unit.files, unit.names):
            tally = DropCounts(unit.samples)
            for number, item in enumerate(read_documents(file, unit.source)):
                if number % 256 == 0:
                    go_on()
                if isinstance(item, Fault):
                    tally.fault(item, name)
                    continue
                tally.count("read", item)
                text, reason, detail = judge_document(item.text, unit.rules, unit.evals)
                if reason:
                    tally.count(reason, item)
                    tally.show(
                        reason,
                        item.key,
                        {
                            "file": name,
                            "line": item.line,
                            "detail": detail,
                            "text": item.text[:EXCERPT],
                        },
                    )
                    dropped.write(
                        _line(
                            {
                                "file": name,
                                "line": item.line,
                                "reason": reason,
                                **({"detail": detail} if detail else {}),
                            }
                        )
                    )
                    continue
                record = {**(item.record or {}), "text": text, "from": f"{name} line {item.line}"}
                if unit.source.field != "text":
                    record.pop(unit.source.field, None)
                kept.write(_line(record))
                sketches.add(_cleaned(text, item.line))
            reports.append(tally.report())
    checksums = {".jsonl": kept.crc32, ".dropped.jsonl": dropped.crc32}
    checksums |= {f".sketches/{name}": checksum for name, checksum in sketches.checksums.items()}
    found = {"files": reports} if len(reports) > 1 else reports[0]
    write_atomic(unit.path(".json"), json.dumps(sealed(found | {"crc32": checksums})))


def is_done(unit: CurationUnit) -> bool:
    """Whether all that `clean` writes is there, as it was written."""
    try:
        report = json.loads(unit.path(".json").read_bytes())
        whole = "seal" in report and not seal_is_broken(report)
        return whole and all(
            checksum_of(unit.path(ending)) == value for ending, value in report["crc32"].items()
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def reports_of(unit: CurationUnit) -> list[dict[str, Any]]:
    """What `clean` counted of each file.

    Raises: ValueError or AttributeError where that is damaged.
    """
    report = json.loads(unit.path(".json").read_bytes())
    return report.get("files", [report])


def left_of(report: Mapping[str, Any]) -> int:
    """How many documents of a file are kept: those that were read and not dropped."""
    return 2 * report["documents"].get("read", 0) - sum(report["documents"].values())


def judge_document(text: str, rules: Sequence[str | Rule], evals: str) -> tuple[str, str, str]:
    """(text as it is kept, why it is dropped or "", which evaluation item it holds or "").

    Evaluation items are looked for first: a document that holds one counts as contaminated also
    where a rule would drop it.
    """
    whole = normalise(text)
    if not whole.strip():
        return whole, "empty after normalising", ""
    if found := _contaminated(whole, evals):
        return whole, *found
    text, reason = first_reason(whole, rules)
    if not reason and not text.strip():
        reason = "nothing left by the rules"
    # Rules take lines out, which may bring the pieces of an item together.
    if not reason and text != whole and (found := _contaminated(text, evals)):
        return text, *found
    return text, reason or "", ""


def _contaminated(text: str, evals: str) -> tuple[str, str] | None:
    """(reason, detail) where the text holds an item of the index `evals` ("": no index)."""
    hit = _index(evals).find(text) if evals else None
    if hit is None:
        return None
    place = text[hit.start : hit.end]
    return f"contaminated: {hit.set}", f"item {hit.item}: {hit.coverage:.0%} of it, in “{place}”"


def _cleaned(text: str, line: int) -> Document:
    data = text.encode()
    return Document(text, "", line, len(data), content_key(data))


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair in another field, or in the name of the file
        return (json.dumps(record) + "\n").encode()


@functools.lru_cache(2)
def _index(file: str) -> EvalIndex:
    return EvalIndex.load(file)


def publish(unit: CurationUnit, sizes: Sequence[int], removed: np.ndarray, folder: str) -> None:
    """Write what is left of each file of a unit to a file of its own in `folder`.

    Args:
      sizes: documents of each file that `clean` has kept.
      removed: which of the unit's documents are duplicates; a file that is left with none is not written.
    """
    import zstandard

    place = epath.Path(folder)
    with unit.path(".jsonl").open("rb") as lines:
        for number, gone in enumerate(np.split(removed, np.cumsum(sizes)[:-1]), unit.number):
            own = itertools.islice(lines, len(gone))
            if gone.all():
                collections.deque(own, maxlen=0)
                continue
            place.mkdir(parents=True, exist_ok=True)
            file = place / f"{number:05d}.jsonl.zst"
            with (
                file.open("wb") as out,
                zstandard.ZstdCompressor().stream_writer(out) as compressed,
            ):
                for line, is_gone in zip(own, gone, strict=True):
                    if not is_gone:
                        compressed.write(line)
