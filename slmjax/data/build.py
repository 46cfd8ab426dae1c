"""Building a folder of shards, step by step.

The steps: scan, choose held-out groups, train the tokenizer, collect held-out text, tokenize,
finish. Every step leaves its results under `work~/`, one file a unit, so a killed run continues and
several hosts see each other's.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slmjax.data import passes
from slmjax.data.finish import finish_folder
from slmjax.data.heldout import GROUP, HeldoutChoice, choose_groups
from slmjax.data.jobs import Job
from slmjax.data.manifest import broken_file
from slmjax.data.preparation_plan import PreparationPlan, Unusable
from slmjax.data.scan_reports import Report, added_reports, check_faults
from slmjax.data.shard_files import Shard
from slmjax.data.tokenizer_pass import write_tokenizer
from slmjax.errors import UserError
from slmjax.text.document_checks import grouping
from slmjax.text.files import DamagedPart, write_part
from slmjax.text.hashing import shingles
from slmjax.text.walk import WORK


def build_shards(plan: PreparationPlan, alone: bool) -> None:
    """Take all steps; what is already there is kept.

    Only a process that is known to be `alone` removes anything.
    """
    work = plan.folder / WORK
    if alone:
        _remove_leftovers(plan.folder, work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        _take_steps(plan)
    except (FileNotFoundError, FileExistsError):
        # Another process without a lock finished first and cleaned up. (mkdir says "exists" of a
        # folder that is removed at that moment.)
        if not ready(plan):
            raise
        shutil.rmtree(work, ignore_errors=True)
    except DamagedPart as error:
        if not alone:
            raise
        # No part of the work can be trusted now: begin anew.
        plan.crew.say(f"{error.path} is damaged; preparing again")
        shutil.rmtree(plan.folder)
        build_shards(plan, alone)
    except UserError as error:
        # Hours of tokenizing are kept for another try, unless no other try can use them.
        is_tokenized = any(work.glob("*.train.json"))
        is_useless = isinstance(error, Unusable) or not is_tokenized
        if alone and is_useless:
            shutil.rmtree(plan.folder, ignore_errors=True)
        raise


def ready(plan: PreparationPlan) -> bool:
    """Whether the folder is complete: a manifest, and every shard with its size and its table."""
    manifest = plan.folder / "manifest.json"
    if not manifest.exists():
        return False
    names = [source.name for source in plan.sources]
    broken = broken_file(plan.folder, names, plan.settings)
    if broken:
        # Without a manifest the folder counts as unfinished for every other process too.
        plan.crew.say(f"{broken} is missing or damaged; preparing again")
        manifest.unlink(missing_ok=True)
    return not broken


def _remove_leftovers(folder: Path, work: Path) -> None:
    """Remove what an earlier preparation of the folder left and nobody can use."""
    if not work.exists():
        # The folder was finished once and is damaged since.
        shutil.rmtree(folder, ignore_errors=True)
    for leftover in folder.rglob(".tmp-*"):
        leftover.unlink(missing_ok=True)


def _take_steps(plan: PreparationPlan) -> None:
    seconds: dict[str, float] = {}
    with _timed(seconds, "scan"):
        reports = _scan(plan)
    check_faults(reports, plan.data.max_bad_share)
    with _timed(seconds, "choose"):
        choice = _choose(plan, reports)
    with _timed(seconds, "tokenizer"):
        write_tokenizer(plan, choice)
    with _timed(seconds, "collect"):
        _collect(plan, choice)
    with _timed(seconds, "tokenize"):
        _tokenize(plan, choice)
    # One host writes what is of all hosts; the others wait for it.
    if plan.crew.host == 0:
        finish_folder(plan, reports, choice, seconds)
    plan.wait({plan.folder / "manifest.json": 0}, "finish")


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how many seconds a step takes."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 2)


def _scan(plan: PreparationPlan) -> dict[str, Report]:
    """Scan this host's units, wait for the others', and add up the reports of each source."""
    tasks = []
    for job in plan.jobs():
        if not job.path("scan", ".json").exists():
            tasks.append((job, ()))
    plan.run("scan", passes.scan_files, tasks)
    plan.wait(plan.parts("scan", ".json"), "scan their files")
    return added_reports(plan)


def _choose(plan: PreparationPlan, reports: dict[str, Report]) -> HeldoutChoice:
    """Choose the held-out groups of each source that has no held-out files of its own."""
    # Sources of text; the others are prepared folders.
    names = []
    # Tables of groups by file, of the sources without held-out files.
    tables = {}
    for source in plan.sources:
        if source.name in plan.shards:
            continue
        names.append(source.name)
        if not source.heldout:
            tables[source.name] = []
    unmatched = _unmatched(plan, names, reports)
    for job in plan.jobs("train", own=False):
        name = job.unit.source.name
        if name in tables:
            tables[name].append(job.table("groups", GROUP))
    merged = {}
    sizes = {}
    for name, parts in tables.items():
        merged[name] = np.concatenate(parts)
        sizes[name] = reports[name]["bytes"]
    choice = choose_groups(merged, sizes, plan.data.heldout)

    # Sources with held-out files have no held-out groups.
    no_groups = np.zeros(0, np.uint64)
    groups = dict.fromkeys(names, no_groups) | choice.groups
    warnings = []
    for name in unmatched:
        warnings.append(
            f"data.group_by matches the id of no document of source '{name}', "
            "so each id is a group there"
        )
    return HeldoutChoice(groups, (*warnings, *choice.warnings))


def _unmatched(
    plan: PreparationPlan,
    names: list[str],
    reports: dict[str, Report],
) -> list[str]:
    """Return the sources of which `group_by`, where it is an expression, matches no id.

    Raises: UserError where it matches none of any source.
    """
    group_by = plan.data.group_by
    if not group_by:
        return []
    field, _ = grouping(group_by)
    # A plain field groups by its own value: every document has one.
    if field == group_by:
        return []
    unmatched = [name for name in names if not reports[name]["matched"]]
    if names and len(unmatched) == len(names):
        raise UserError(
            f"data.group_by: '{group_by}' matches the id of no document; "
            "expected a field or a regular expression."
        )
    return unmatched


def _collect(plan: PreparationPlan, choice: HeldoutChoice) -> None:
    """Gather the held-out documents of every unit that has some, and the set of their shingles."""
    tasks = []
    for job in plan.jobs():
        if job.path("heldout", ".jsonl").exists():
            continue
        chosen = choice.groups[job.unit.source.name]
        if passes.holding(job, chosen):
            tasks.append((job, (chosen,)))
        else:
            # No need to read the unit once more.
            write_part(job.path("heldout", ".jsonl"), "")
    plan.run("collect", passes.collect, tasks)
    plan.wait(plan.parts("heldout", ".jsonl"), "collect held-out text")

    # All hosts look for these shingles in the training text.
    path = plan.folder / WORK / "shingles.bin"
    if plan.crew.host == 0 and not path.exists():
        hashes = [np.zeros(0, np.uint64)]
        for job in plan.jobs(own=False):
            for document in job.lines("heldout"):
                hashes.append(shingles(document["text"]))
        unique = np.unique(np.concatenate(hashes))
        write_part(path, unique.tobytes())
    plan.wait({path: 0}, "collect held-out text")


def _tokenize(plan: PreparationPlan, choice: HeldoutChoice) -> None:
    """Tokenize the training documents of this host's units."""
    tasks = []
    for job in plan.jobs("train"):
        if not _is_tokenized(plan, job):
            chosen = choice.groups[job.unit.source.name]
            tasks.append((job, (chosen,)))
    plan.run("tokenize", passes.tokenize, tasks)


def _is_tokenized(plan: PreparationPlan, job: Job) -> bool:
    """Whether all shards of a unit are there, as they were written."""
    if not job.path("train", ".json").exists():
        return False
    # The report alone proves nothing: a shard may be lost or damaged since.
    entries = job.report("train")["shards"]
    return not any(Shard(**entry).fault(plan.folder) for entry in entries)
