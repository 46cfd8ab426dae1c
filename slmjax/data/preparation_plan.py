"""The plan of a preparation: its units of work, and this host's share of them."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmjax.data.jobs import Job, PreparationUnit
from slmjax.errors import UserError
from slmjax.text.records import Source, SourceFile
from slmjax.text.source_files import text_bytes
from slmjax.text.tokenizer import Tokenizer
from slmjax.text.units import Progress, cores, run_units, wait_for

# Below this, starting processes (1 to 2 s) costs more than it saves.
IN_PROCESS_BYTES = 8_000_000
# Text that a tokenizer is trained on: merges up to 32k change little beyond it.
SAMPLE_BYTES = 20_000_000
# Characters of a source's text that a given tokenizer must give back.
TRIAL_CHARS = 500_000

# A prepared folder that a source names: (folder, manifest, names of the sources in it).
PreparedPart = tuple[Path, dict, tuple[str, ...]]


class Unusable(UserError):
    """Text that cannot be prepared with these settings.

    Nothing of the work is of use to another try.
    """


@dataclass(frozen=True)
class Crew:
    """The processes that share a preparation, and how they report. See `prepare`.

    processes: of this host; None: chosen by the size of the text.
    host, hosts: number of this host, and how many there are.
    """

    processes: int | None
    host: int
    hosts: int
    progress: Progress
    say: Callable[[str], None]
    timeout: float

    def sized(self, text_size: float) -> "Crew":
        """Return the crew with a number of processes for so many bytes of text."""
        if self.processes is not None:
            return self
        return replace(self, processes=1 if text_size < IN_PROCESS_BYTES else cores())


@dataclass(frozen=True)
class PreparationPlan:
    """The plan of a preparation: what is prepared and where; only content hashes are read for it.

    data, seed: see `prepare`.
    shards: the parts of each source that is prepared already.
    units: of the other sources, in the order in which hosts share them.
    settings: all that decides what the folder holds.
    tokenizer: the given one; None: one is trained, with the `special` tokens.
    """

    data: Any
    seed: int
    sources: tuple[Source, ...]
    shards: dict[str, list[PreparedPart]]
    units: tuple[PreparationUnit, ...]
    settings: dict
    folder: Path
    tokenizer: Tokenizer | None
    special: tuple[str, ...]
    crew: Crew

    def jobs(self, kind: str = "", own: bool = True) -> list[Job]:
        """Return the jobs of this host's units, or of all hosts'.

        Args:
          kind: "train" or "heldout"; "": both.
          own: only those of this host.
        """
        jobs = []
        # Units go to the hosts in turns, so every host knows who writes what.
        for number, unit in enumerate(self.units):
            is_elsewhere = number % self.crew.hosts != self.crew.host
            if kind not in ("", unit.kind) or (own and is_elsewhere):
                continue
            samples = tuple(self._sample_size(unit, file) for file in unit.files)
            job = Job(str(self.folder), unit, self.seed, self.data.group_by, samples)
            jobs.append(job)
        return jobs

    def run(self, stage: str, function: Callable, tasks: list[tuple[Job, tuple]]) -> None:
        """Call `function(job, *arguments)` for each task in the processes of this host."""
        # Sizes decide the order (largest first) and move the progress line.
        sized = [(job.unit.size, (job, *arguments)) for job, arguments in tasks]
        run_units(function, sized, self.crew.processes, stage=stage, progress=self.crew.progress)

    def parts(self, step: str, suffix: str, kind: str = "") -> dict[Path, int]:
        """Return the files that a step writes: {path: number of the host that writes it}.

        Args:
          kind: of units, "train" or "heldout"; "": both.
        """
        parts = {}
        for number, job in enumerate(self.jobs(own=False)):
            if kind in ("", job.unit.kind):
                parts[job.path(step, suffix)] = number % self.crew.hosts
        return parts

    def wait(self, paths: dict[Path, int], what: str) -> None:
        """Wait for the files of other hosts, see `wait_for`.

        Not where there are no others, or all has been finished (and cleaned up) meanwhile.
        """
        manifest = self.folder / "manifest.json"
        wait_for(
            paths,
            timeout=self.crew.timeout,
            what=what,
            say=self.crew.say,
            unless=lambda: self.crew.hosts == 1 or manifest.exists(),
        )

    @functools.cached_property
    def text_size(self) -> float:
        """Bytes of text of all units, about."""
        return text_size(self.units)

    @property
    def is_large(self) -> bool:
        """Whether preparing takes long enough for a person to wonder."""
        return self.text_size > IN_PROCESS_BYTES

    def _sample_size(self, unit: PreparationUnit, file: SourceFile) -> int:
        """Return the characters of a file that the tokenizer is trained on, or tried with."""
        if self.tokenizer:
            # Files of a source share alike, whatever their sizes.
            return max(1, TRIAL_CHARS // self._file_counts[unit.source.name])
        if unit.kind == "train":
            return int(self._sample_share * text_bytes(file))
        # A tokenizer must not learn from held-out text.
        return 0

    @functools.cached_property
    def _file_counts(self) -> Counter:
        """Files of each source, held-out ones included."""
        counts = Counter()
        for unit in self.units:
            counts[unit.source.name] += len(unit.files)
        return counts

    @functools.cached_property
    def _sample_share(self) -> float:
        """Share of all training text that makes a sample of SAMPLE_BYTES."""
        training = [unit for unit in self.units if unit.kind == "train"]
        return SAMPLE_BYTES / max(1, text_size(training))


def text_size(units: Sequence[PreparationUnit]) -> float:
    """Return the bytes of text of some units, about: compressed files are taken for larger."""
    return sum(text_bytes(file) for unit in units for file in unit.files)
