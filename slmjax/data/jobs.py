"""Units of preparation, and the intermediate results that the passes over a unit write."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.text.files import read_part
from slmjax.text.records import Source, SourceFile
from slmjax.text.source_files import bundles
from slmjax.text.walk import WORK


@dataclass(frozen=True)
class PreparationUnit:
    """One or several files of a source that one call works through, see `bundles`.

    split: "heldout" for files that the source names as held-out text, "train" for all others (of
      which groups may be held out all the same).
    index: the first file's number among the source's files of this split.
    """

    source: Source
    files: tuple[SourceFile, ...]
    split: str
    index: int

    @property
    def name(self) -> str:
        """Name that begins the names of the unit's intermediate results.

        It is unique within a prepared folder, also where files are bundled in another way.
        """
        name = f"{self.source.name}-{self.split}-{self.index:05d}"
        if len(self.files) > 1:
            last = self.index + len(self.files) - 1
            name += f"-{last:05d}"
        return name

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)


def units_of(
    source: Source,
    files: Sequence[SourceFile],
    split: str,
) -> list[PreparationUnit]:
    """Return the units of a source's files of one split; many small files share a unit."""
    units = []
    for index, bundle in bundles(files):
        units.append(PreparationUnit(source, bundle, split, index))
    return units


@dataclass(frozen=True)
class Job:
    """A unit with all that a pass over it needs; it is sent to worker processes.

    The passes write these intermediate results under `work~` in the prepared folder:
      scan.json, groups.bin, sample.jsonl: counts, table of groups, sample of text (`scan_files`).
      heldout.jsonl: the held-out documents (`collect`).
      train.json, seen.bin: shards, and the held-out shingles in their text (`tokenize`).

    folder: the prepared folder.
    seed, group_by: see `prepare`.
    samples: characters of text that each of the unit's files gives to the tokenizer.
    """

    folder: str
    unit: PreparationUnit
    seed: int
    group_by: str
    samples: tuple[int, ...]

    def path(self, result: str, suffix: str) -> Path:
        """Return the path of an intermediate result, such as ("scan", ".json")."""
        return Path(self.folder) / WORK / f"{self.unit.name}.{result}{suffix}"

    def table(self, result: str, dtype: Any) -> np.ndarray:
        """Return an intermediate result that is an array (.bin)."""
        content = read_part(self.path(result, ".bin"))
        return np.frombuffer(content, dtype)

    def report(self, result: str) -> dict[str, Any]:
        """Return an intermediate result that is an object (.json)."""
        content = read_part(self.path(result, ".json"))
        return json.loads(content)

    def lines(self, result: str) -> list[Any]:
        """Return an intermediate result that is a list (.jsonl)."""
        content = read_part(self.path(result, ".jsonl"))
        return [json.loads(line) for line in content.splitlines()]

    def scan_reports(self) -> list[dict[str, Any]]:
        """Return the scan's report of each of the unit's files."""
        report = self.report("scan")
        # For a unit of a single file, the report of this file is not in a list.
        return report.get("files", [report])
