"""The stage `curate`: raw text becomes a clean corpus.

Quality rules, decontamination, deduplication, and a report of what went and why. Each pass over a
file is one unit of work in one of the processes. The order of sources, files and lines decides
everything, so the result is the same however many processes there are; of near-duplicates the first
one is kept.
"""

import contextlib
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from slmjax import config as configs
from slmjax.curate import curation_report
from slmjax.curate.clean import clean, is_done, left_of, publish, reports_of
from slmjax.curate.curate_settings import Settings, curate_settings, warnings
from slmjax.curate.curation_counts import (
    Gone,
    Units,
    cluster_counts,
    count_duplicates,
    count_first_pass,
    duplicate_alarms,
    loss_alarms,
    report_counts,
)
from slmjax.curate.curation_units import curation_units, work_key
from slmjax.curate.index import Index
from slmjax.curate.near_duplicates import decisions
from slmjax.curate.runners import Beam, Local
from slmjax.errors import UserError
from slmjax.text.claims import claimed
from slmjax.text.files import writable, write_atomic
from slmjax.text.records import Source
from slmjax.text.sources import parse_sources
from slmjax.text.units import cores, terminal_progress
from slmjax.text.walk import SKETCHES

FileSizes = Sequence[Sequence[int]]  # documents of each file of each unit


def run_curate(
    config: configs.Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    process: int = 0,
    processes: int = 1,
) -> None:
    """Curate config.data.sources into workdir/documents/<source>/*.jsonl.zst.

    The same command goes on after it was stopped.

    Raises: UserError for settings and sources that make no sense, and, after the report is written,
      where a source loses too much, see `curate`.
    """
    if init_from or processes > 1:
        raise UserError(
            "the stage curate takes neither --init_from nor --processes; "
            "config.curate.processes are those of this machine."
        )
    asked = curate_settings(config.curate)
    sources = parse_sources(config.data.sources)
    folder = epath.Path(workdir)
    _refuse_sources(sources)
    if "://" in workdir and not (asked["beam"] and asked["index"]):
        raise UserError(
            f"--workdir={workdir} needs config.curate.beam, and in config.curate.index a folder of "
            "this machine for the index."
        )
    for warning in warnings(asked):
        print(f"WARNING: {warning}")
    with writable(workdir, "--workdir"), _claim(asked["index"]), terminal_progress() as progress:
        if asked["beam"]:
            runner = Beam(asked["beam"])
        else:
            runner = Local(asked["processes"] or cores(), progress)
        folder.mkdir(parents=True, exist_ok=True)
        _record(folder, configs.to_dict(config) | {"curate": asked})
        # With alarms, too, there is a report; the error comes after it.
        result = curate(asked, sources, folder, runner)
        write_atomic(folder / "report.json", result | {"command": command})
        curation_report.write_curation_report(folder, result, command)
    _print_result(folder, result)


def _refuse_sources(sources: Sequence[Source]) -> None:
    if not sources:
        raise UserError(
            "config.data.sources is empty; expected name=path, where path is a file, folder or "
            "pattern."
        )
    for source in sources:
        if source.heldout:
            raise UserError(
                f"data.sources.{source.name}.heldout: the stage curate reads no held-out files; to "
                "keep their text out of the corpus name them in config.curate.evals."
            )


def _claim(index: str) -> contextlib.AbstractContextManager:
    """Return a lock on a named index, which curations into other work directories may extend."""
    if not index:
        return contextlib.nullcontext()
    return claimed(str(Path(index).expanduser()), field="config.curate.index")


def _record(folder: epath.Path, settings: Mapping[str, Any]) -> None:
    """Write config.json; documents that were made with other settings are removed first."""
    file = folder / "config.json"
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    data = text.encode("utf-8", "surrogateescape")
    if not file.exists() or file.read_bytes() != data:
        _remove(folder / "documents")
    write_atomic(file, text)


def _print_result(folder: epath.Path, result: Mapping[str, Any]) -> None:
    """Print a summary and the next command. Raises: UserError where there are alarms."""
    print(curation_report.curation_summary(result))
    for alarm in result["alarms"]:
        print(f"ALARM: {alarm}")
    if result["alarms"]:
        raise UserError(
            f"no documents were written: {result['alarms'][0]}. {folder / 'report.html'} says more."
        )
    written = []
    for name, entry in result["sources"].items():
        if entry["left"]["documents"]:
            written.append(f"{name}={folder / 'documents' / name}")
    words = ["python", "-m", "slmjax.launch", "--config=configs/tiny.py"]
    words.append(f"--config.data.sources={','.join(written)}")
    print(f"report: {folder / 'report.html'}\n\nnext:\n  {shlex.join(words)}")


def curate(
    asked: Settings, sources: Sequence[Source], folder: epath.Path, runner: Local | Beam
) -> dict[str, Any]:
    """Run the passes and return the content of report.json.

    `folder` gets documents/, dropped.jsonl, duplicates.jsonl and, unless another is named, index/.
    With alarms there are no documents, and the index does not hold this batch. An alarm is raised
    by a source that is mostly unreadable, loses more than max_dropped for one reason or max_removed
    as duplicates, or has nothing left.

    Args:
      asked: see `curate_settings`.
      runner: does the passes.
    """
    work = folder / "work"
    unfinished = work_key(work)
    units = curation_units(asked, sources, work)
    # Units that a stopped run has finished are not done again.
    waiting = [(unit.size, (unit,)) for unit in units if not is_done(unit)]
    runner.each(clean, waiting, "clean")
    counts = count_first_pass(asked, units)
    _join_dropped(units, folder / "dropped.jsonl")
    if alarms := loss_alarms(asked, counts):
        # Nothing stays of an earlier run that would seem to belong to this report.
        _remove(folder / "documents")
        (folder / "duplicates.jsonl").unlink(missing_ok=True)
        if not asked["index"]:
            _remove(folder / "index")
        return report_counts(asked, units, counts, alarms)

    index = _open_index(asked["index"], folder, units)
    batch = work_key(work)
    if unfinished != batch:
        # A run that was stopped, with other settings: it left no documents.
        index.forget(unfinished)
    file_sizes = _file_sizes(units)
    _add_units(index, batch, units, file_sizes)
    sketches = [unit.path(SKETCHES) for unit in units]
    pairs = runner.pairs(index, batch, sketches, work)
    clusters = index.clusters(asked["threshold"], pairs)
    # The index may hold earlier batches: this one's documents are `numbers` of all.
    first, sizes = index.span(batch)
    numbers = slice(first, first + int(sizes.sum()))
    # For each unit which of its documents are duplicates.
    ends = np.cumsum([sum(sizes) for sizes in file_sizes])
    gone = np.split(clusters.is_removed[numbers], ends[:-1])
    count_duplicates(units, gone, counts)
    alarms = duplicate_alarms(asked, counts)
    report = report_counts(asked, units, counts, alarms) | cluster_counts(clusters, gone, first)
    with (folder / "duplicates.jsonl").open("w") as out:
        for decision in decisions(index, clusters, numbers):
            out.write(json.dumps(decision) + "\n")
    _remove(folder / "documents")
    if alarms:
        # The documents do not count as seen, so that they can be curated with other settings.
        index.forget(batch)
        return report
    _publish_all(units, file_sizes, gone, folder, runner)
    return report


def _join_dropped(units: Units, file: epath.Path) -> None:
    with file.open("wb") as out:
        for unit in units:
            with unit.path(".dropped.jsonl").open("rb") as part:
                shutil.copyfileobj(part, out)


def _open_index(named: str, folder: epath.Path, units: Units) -> Index:
    """Return the named index, or a new one in the work directory."""
    place = Path(named or folder / "index").expanduser()
    if not named:
        # What an earlier run of this work directory has left does not count as seen.
        shutil.rmtree(place, ignore_errors=True)
    return Index(place, units[0].scheme)


def _file_sizes(units: Units) -> list[list[int]]:
    """Return how many documents of each file of each unit the first pass has kept."""
    return [[left_of(report) for report in reports_of(unit)] for unit in units]


def _add_units(index: Index, batch: str, units: Units, file_sizes: FileSizes) -> None:
    added = []
    for unit, sizes in zip(units, file_sizes, strict=True):
        files = list(zip(unit.names, sizes, strict=True))
        added.append((files, unit.path(SKETCHES)))
    index.add(batch, added)


def _publish_all(
    units: Units,
    file_sizes: FileSizes,
    gone: Gone,
    folder: epath.Path,
    runner: Local | Beam,
) -> None:
    """Write the documents that are left to `folder`, and remove its work."""
    work = folder / "work"
    # A folder in a bucket cannot be renamed: there documents appear one file after another.
    is_bucket = "://" in str(folder)
    whole = folder / "documents" if is_bucket else work / "documents"
    _remove(whole)
    tasks = []
    for unit, sizes, removed in zip(units, file_sizes, gone):
        place = str(whole / unit.source.name)
        tasks.append((unit.size, (unit, sizes, removed, place)))
    runner.each(publish, tasks, "write")
    (work / "key").unlink()  # from here on the batch counts as seen
    if not is_bucket:
        whole.rename(folder / "documents")
    work.rmtree()


def _remove(folder: epath.Path) -> None:
    if folder.exists():
        folder.rmtree()
