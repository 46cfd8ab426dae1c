"""Units of preparation, and the intermediate results that each pass over a unit leaves."""

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
    """A file of a source, or several of them in order, see `bundles`.

    kind: "train", or "heldout" for a source's own held-out files.
    index: the first file's number among the source's files of this kind.
    """

    source: Source
    files: tuple[SourceFile, ...]
    kind: str
    index: int

    @property
    def name(self) -> str:
        """The name of the unit in its files: unique within a prepared folder."""
        # A unit of several files names its first and its last one: bundled otherwise, another name.
        name = f"{self.source.name}-{self.kind}-{self.index:05d}"
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
    kind: str,
) -> list[PreparationUnit]:
    """Return the units of a source's files."""
    # Small files are bundled where there are many.
    units = []
    for index, together in bundles(files):
        units.append(PreparationUnit(source, together, kind, index))
    return units


@dataclass(frozen=True)
class Job:
    """A unit with all that a pass over it needs; it is sent to worker processes.

    folder: the prepared folder, whose intermediate results are under `work~`.
    seed, group_by: see `prepare`.
    samples: characters of text that each of the unit's files gives to the tokenizer.
    """

    folder: str
    unit: PreparationUnit
    seed: int
    group_by: str
    samples: tuple[int, ...]

    def path(self, step: str, ending: str) -> Path:
        """Return the path of an intermediate result."""
        return Path(self.folder) / WORK / f"{self.unit.name}.{step}{ending}"

    def table(self, step: str, dtype: Any) -> np.ndarray:
        """Return an intermediate result that is an array."""
        content = read_part(self.path(step, ".bin"))
        return np.frombuffer(content, dtype)

    def report(self, step: str) -> dict[str, Any]:
        """Return an intermediate result that is an object."""
        content = read_part(self.path(step, ".json"))
        return json.loads(content)

    def lines(self, step: str) -> list[Any]:
        """Return an intermediate result that is a list."""
        content = read_part(self.path(step, ".jsonl"))
        return [json.loads(line) for line in content.splitlines()]

    def scanned(self) -> list[dict[str, Any]]:
        """Return the scan's report of each file."""
        report = self.report("scan")
        # A unit of a single file has its report alone.
        return report.get("files", [report])
