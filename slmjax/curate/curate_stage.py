"""The stage `curate`: raw text becomes a clean corpus.

It applies quality rules, decontaminates, deduplicates, and reports what was dropped and why. Each
pass over a file is one unit of work, done by one of several processes. Of near-duplicates the first
one is kept, in the order of sources, files and lines, so the number of processes does not change
the result.
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
from slmjax.curate.clean import clean, count_kept, is_done, publish, reports_of
from slmjax.curate.curate_settings import (
    Settings,
    conversation_notes,
    curate_settings,
    warnings,
)
from slmjax.curate.curation_counts import (
    RemovedOfUnits,
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
from slmjax.text.records import CHAT, PAIRS, TEXT, Source
from slmjax.text.sources import parse_sources
from slmjax.text.units import cores, terminal_progress
from slmjax.text.walk import SKETCHES

# Options of slmjax.launch that train on sources of each kind, for the commands that are printed.
TRAINING_OPTIONS = {
    TEXT: ("--config=configs/tiny.py",),
    CHAT: ("--config=configs/sft.py", "--init_from=runs/tiny"),
    PAIRS: ("--config=configs/orpo.py", "--init_from=runs/sft"),
}
KeptOfFiles = Sequence[Sequence[int]]  # for each unit: how many documents of each file are kept


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

    After it was stopped, the same command goes on where it was.

    Args:
      init_from, processes: refused unless they have their defaults.
      command: the command line, for the report.
    Raises: UserError for settings and sources that make no sense, and, after the report is written,
      where a source loses too much, see `curate`.
    """
    if init_from or processes > 1:
        raise UserError(
            "the stage curate takes neither --init_from nor --processes; "
            "config.curate.processes are those of this machine."
        )
    settings = curate_settings(config.curate)
    sources = parse_sources(config.data.sources)
    folder = epath.Path(workdir)
    _refuse_sources(sources)
    if "://" in workdir and not (settings["beam"] and settings["index"]):
        raise UserError(
            f"--workdir={workdir} needs config.curate.beam, and in config.curate.index a folder of "
            "this machine for the index."
        )
    for warning in warnings(settings):
        print(f"WARNING: {warning}")
    for note in conversation_notes(settings, sources):
        print(note)
    with writable(workdir, "--workdir"), _claim(settings["index"]), terminal_progress() as progress:
        if settings["beam"]:
            runner = Beam(settings["beam"])
        else:
            runner = Local(settings["processes"] or cores(), progress)
        folder.mkdir(parents=True, exist_ok=True)
        _write_config(folder, configs.to_dict(config) | {"curate": settings})
        # The report is written in spite of alarms: `_print_result` raises the error after it.
        result = curate(settings, sources, folder, runner)
        write_atomic(folder / "report.json", result | {"command": command})
        curation_report.write_curation_report(folder, result, command)
    _print_result(folder, result, sources)


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


def _write_config(folder: epath.Path, config: Mapping[str, Any]) -> None:
    """Write config.json; documents that were made with another config are removed first."""
    file = folder / "config.json"
    text = json.dumps(config, indent=1, ensure_ascii=False)
    data = text.encode("utf-8", "surrogateescape")
    if not file.exists() or file.read_bytes() != data:
        _remove(folder / "documents")
    write_atomic(file, text)


def _print_result(folder: epath.Path, result: Mapping[str, Any], sources: Sequence[Source]) -> None:
    """Print a summary and the next commands. Raises: UserError where there are alarms."""
    print(curation_report.curation_summary(result))
    for alarm in result["alarms"]:
        print(f"ALARM: {alarm}")
    if result["alarms"]:
        raise UserError(
            f"no documents were written: {result['alarms'][0]}. {folder / 'report.html'} says more."
        )
    print(f"report: {folder / 'report.html'}\n\nnext:")
    for kind in TRAINING_OPTIONS:
        names = []
        for source in sources:
            left = result["sources"][source.name]["left"]
            if source.kind == kind and left["documents"]:
                names.append(source.name)
        if names:
            print(f"  {_next_command(folder, kind, names)}")


def _next_command(folder: epath.Path, kind: str, names: Sequence[str]) -> str:
    """Return the command that trains on the sources of a kind, of which documents are left."""
    paths = [f"{name}={folder / 'documents' / name}" for name in names]
    words = ["python", "-m", "slmjax.launch", *TRAINING_OPTIONS[kind]]
    words.append(f"--config.data.sources={','.join(paths)}")
    if kind != TEXT:
        words += [f"--config.data.sources.{name}.kind={kind}" for name in names]
    return shlex.join(words)


def curate(
    settings: Settings, sources: Sequence[Source], folder: epath.Path, runner: Local | Beam
) -> dict[str, Any]:
    """Run the passes and return the content of report.json.

    The passes write documents/, dropped.jsonl, duplicates.jsonl and, unless settings name another
    index, index/ to `folder`. If there are alarms they write no documents, and the index does not
    keep this batch. There is an alarm for a source that is mostly unreadable, loses more than
    max_dropped for one kind of reason or max_removed as duplicates, or has nothing left.

    Args:
      settings: see `curate_settings`.
      runner: does the passes.
    """
    work = folder / "work"
    unfinished = work_key(work)  # the batch of a run that was stopped, if any
    units = curation_units(settings, sources, work)
    batch = work_key(work)
    # Units that a stopped run has finished are not done again.
    waiting = [(unit.size, (unit,)) for unit in units if not is_done(unit)]
    runner.each(clean, waiting, "clean")
    counts = count_first_pass(settings, units)
    _join_dropped(units, folder / "dropped.jsonl")
    if alarms := loss_alarms(settings, counts):
        # Files of an earlier run would seem to belong to this report.
        _remove(folder / "documents")
        (folder / "duplicates.jsonl").unlink(missing_ok=True)
        if not settings["index"]:
            _remove(folder / "index")
        return report_counts(settings, units, counts, alarms)

    index = _open_index(settings["index"], folder, units)
    if unfinished != batch:
        # The stopped run had other settings or files. It has published no documents, so those that
        # it added to the index do not count as seen.
        index.forget(unfinished)
    kept_of_files = _kept_of_files(units)
    _add_units(index, batch, units, kept_of_files)
    sketches = [unit.path(SKETCHES) for unit in units]
    pairs = runner.pairs(index, batch, sketches, work)
    clusters = index.clusters(settings["threshold"], pairs)
    # The index may hold earlier batches: the documents of this batch have the numbers `numbers`.
    first, sizes = index.span(batch)
    numbers = slice(first, first + int(sizes.sum()))
    ends = np.cumsum([sum(kept) for kept in kept_of_files])
    removed_of_units = np.split(clusters.is_removed[numbers], ends[:-1])
    count_duplicates(units, removed_of_units, counts)
    alarms = duplicate_alarms(settings, counts)
    report = report_counts(settings, units, counts, alarms)
    report |= cluster_counts(clusters, removed_of_units, first)
    with (folder / "duplicates.jsonl").open("w") as out:
        for decision in decisions(index, clusters, numbers):
            out.write(json.dumps(decision) + "\n")
    _remove(folder / "documents")
    if alarms:
        # So that the same documents can be curated with other settings.
        index.forget(batch)
        return report
    _publish_all(units, kept_of_files, removed_of_units, folder, runner)
    return report


def _join_dropped(units: Units, file: epath.Path) -> None:
    """Write the lines about dropped documents of all units to one file."""
    with file.open("wb") as out:
        for unit in units:
            with unit.path(".dropped.jsonl").open("rb") as part:
                shutil.copyfileobj(part, out)


def _open_index(named: str, folder: epath.Path, units: Units) -> Index:
    """Return the named index, or a new one in the work directory."""
    place = Path(named or folder / "index").expanduser()
    if not named:
        # Documents of an earlier run in this work directory do not count as seen.
        shutil.rmtree(place, ignore_errors=True)
    return Index(place, units[0].scheme)


def _kept_of_files(units: Units) -> list[list[int]]:
    """Return how many documents of each file of each unit the first pass has kept."""
    return [[count_kept(report) for report in reports_of(unit)] for unit in units]


def _add_units(index: Index, batch: str, units: Units, kept_of_files: KeptOfFiles) -> None:
    added = []
    for unit, kept in zip(units, kept_of_files, strict=True):
        files = list(zip(unit.names, kept, strict=True))
        added.append((files, unit.path(SKETCHES)))
    index.add(batch, added)


def _publish_all(
    units: Units,
    kept_of_files: KeptOfFiles,
    removed_of_units: RemovedOfUnits,
    folder: epath.Path,
    runner: Local | Beam,
) -> None:
    """Write the documents that are left to folder/documents, and remove folder/work."""
    work = folder / "work"
    # Elsewhere all documents appear at once; a folder in a bucket cannot be renamed, so there they
    # appear one file after another.
    is_bucket = "://" in str(folder)
    target = folder / "documents" if is_bucket else work / "documents"
    _remove(target)
    tasks = []
    for unit, kept, removed in zip(units, kept_of_files, removed_of_units):
        source_folder = str(target / unit.source.name)
        tasks.append((unit.size, (unit, kept, removed, source_folder)))
    runner.each(publish, tasks, "write")
    (work / "key").unlink()  # from here on the batch counts as seen
    if not is_bucket:
        target.rename(folder / "documents")
    work.rmtree()


def _remove(folder: epath.Path) -> None:
    if folder.exists():
        folder.rmtree()
