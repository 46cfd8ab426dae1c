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

# With fewer bytes of text, starting processes (1 to 2 s) costs more than it saves.
IN_PROCESS_BYTES = 8_000_000
# Bytes of text that a tokenizer is trained on: with more, up to 32k merges change little.
SAMPLE_BYTES = 20_000_000
# Characters of each source's text that a given tokenizer is tested with.
TRIAL_CHARS = 500_000

# A prepared folder that a source names: (folder, manifest, names of the sources in it).
PreparedPart = tuple[Path, dict, tuple[str, ...]]


class Unusable(UserError):
    """Text that cannot be prepared with these settings.

    Intermediate results are of no use to another try, so they are removed.
    """


@dataclass(frozen=True)
class Crew:
    """The processes that share a preparation, and how they report. See `prepare`.

    processes: of this host; None: chosen by the size of the text.
    host, hosts: number of this host, from 0, and how many there are.
    """

    processes: int | None
    host: int
    hosts: int
    progress: Progress
    say: Callable[[str], None]
    timeout: float

    def sized(self, text_size: float) -> "Crew":
        """Return the crew with its number of processes chosen for so many bytes of text."""
        if self.processes is not None:
            return self
        processes = cores()
        if text_size < IN_PROCESS_BYTES:
            processes = 1
        return replace(self, processes=processes)


@dataclass(frozen=True)
class PreparationPlan:
    """The plan of a preparation: what is prepared, from which files, into which folder.

    data, seed: see `prepare`.
    prepared_parts: {source: its parts} for sources that are prepared already, in other folders.
    units: of the other sources. Hosts take them in turns, in this order.
    settings: all that decides what the folder holds; the manifest stores them.
    folder: the prepared folder; its name has a hash of the settings.
    tokenizer: the given one; None: one is trained, with the `special` tokens.
    """

    data: Any
    seed: int
    sources: tuple[Source, ...]
    prepared_parts: dict[str, list[PreparedPart]]
    units: tuple[PreparationUnit, ...]
    settings: dict
    folder: Path
    tokenizer: Tokenizer | None
    special: tuple[str, ...]
    crew: Crew

    def jobs(self, split: str = "", all_hosts: bool = False) -> list[Job]:
        """Return the jobs of this host's units, or those of all hosts'.

        Args:
          split: of units, "train" or "heldout"; "": both.
        """
        jobs = []
        for number, unit in enumerate(self.units):
            is_own = number % self.crew.hosts == self.crew.host
            if split not in ("", unit.split) or not (all_hosts or is_own):
                continue
            samples = tuple(self._sample_size(unit, file) for file in unit.files)
            job = Job(str(self.folder), unit, self.seed, self.data.group_by, samples)
            jobs.append(job)
        return jobs

    def run(self, stage: str, function: Callable, tasks: list[tuple[Job, tuple]]) -> None:
        """Call `function(job, *arguments)` for each task in the processes of this host.

        Args:
          stage: what the progress line calls it.
          tasks: (job, arguments).
        """
        # `run_units` uses the sizes for the order (largest first) and for the progress line.
        sized = [(job.unit.size, (job, *arguments)) for job, arguments in tasks]
        run_units(function, sized, self.crew.processes, stage=stage, progress=self.crew.progress)

    def result_files(self, result: str, suffix: str, split: str = "") -> dict[Path, int]:
        """Return {path of an intermediate result: number of the host that writes it}.

        Args:
          result, suffix: such as ("scan", ".json"), see `Job.path`.
          split: of units, "train" or "heldout"; "": both.
        """
        files = {}
        for number, job in enumerate(self.jobs(all_hosts=True)):
            if split in ("", job.unit.split):
                files[job.path(result, suffix)] = number % self.crew.hosts
        return files

    def wait(self, paths: dict[Path, int], what: str) -> None:
        """Wait until the files of other hosts are there, see `wait_for`.

        Raises: FileNotFoundError for a file that will not come: where there are no other hosts, or
          the folder has a manifest, since intermediate results are removed once it has one.
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
        """Estimated bytes of text of all units."""
        return text_size(self.units)

    @property
    def is_large(self) -> bool:
        """Whether preparing takes so long that a person should be told."""
        return self.text_size > IN_PROCESS_BYTES

    def _sample_size(self, unit: PreparationUnit, file: SourceFile) -> int:
        """Return how many characters of a file the tokenizer is trained on or tested with."""
        if self.tokenizer:
            # The same for each file of a source, whatever its size.
            return max(1, TRIAL_CHARS // self._file_counts[unit.source.name])
        if unit.split == "train":
            return int(self._sample_share * text_bytes(file))
        # A tokenizer must not learn from held-out text.
        return 0

    @functools.cached_property
    def _file_counts(self) -> Counter:
        """{source: number of its files}, held-out files included."""
        counts = Counter()
        for unit in self.units:
            counts[unit.source.name] += len(unit.files)
        return counts

    @functools.cached_property
    def _sample_share(self) -> float:
        """Share of all training text that makes a sample of SAMPLE_BYTES; may exceed 1."""
        training = [unit for unit in self.units if unit.split == "train"]
        return SAMPLE_BYTES / max(1, text_size(training))


def text_size(units: Sequence[PreparationUnit]) -> float:
    """Return the estimated bytes of text of some units; compressed files count as larger."""
    return sum(text_bytes(file) for unit in units for file in unit.files)
