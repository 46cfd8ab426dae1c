"""Building a folder of shards, step by step.

The steps: scan, choose held-out groups, train the tokenizer, collect held-out text, tokenize,
finish. Steps write intermediate results under `work~/`, one file for each unit of work, so a killed
run continues where it stopped and several hosts share the work.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
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
from slmjax.text.records import TEXT
from slmjax.text.walk import WORK


def build_shards(plan: PreparationPlan, alone: bool) -> None:
    """Build the plan's folder; intermediate results that are already there are kept.

    Args:
      alone: no other process works on this folder, so leftovers and damaged files may be removed.
    Raises: UserError for text that cannot be prepared; DamagedPart for a damaged intermediate
      result where other processes may be reading it too.
    """
    work = plan.folder / WORK
    if alone:
        _remove_leftovers(plan.folder, work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        _take_steps(plan)
    except (FileNotFoundError, FileExistsError):
        # Another process may have finished first and removed `work`. (While it does, mkdir may
        # raise FileExistsError.)
        if not ready(plan):
            raise
        shutil.rmtree(work, ignore_errors=True)
    except DamagedPart as error:
        if not alone:
            raise
        # The other intermediate results may be damaged too, so all are made again.
        plan.crew.say(f"{error.path} is damaged; preparing again")
        shutil.rmtree(plan.folder)
        build_shards(plan, alone)
    except UserError as error:
        # Tokenized units, perhaps hours of work, are kept for the next try. An Unusable error says
        # that a try with the same settings fails again.
        has_tokenized_units = any(work.glob("*.train.json"))
        is_useless = isinstance(error, Unusable) or not has_tokenized_units
        if alone and is_useless:
            shutil.rmtree(plan.folder, ignore_errors=True)
        raise


def ready(plan: PreparationPlan) -> bool:
    """Whether the folder is complete: a manifest, and all files as the manifest says.

    The manifest of a damaged folder is removed: other processes then see that it is unfinished.
    """
    manifest = plan.folder / "manifest.json"
    if not manifest.exists():
        return False
    names = [source.name for source in plan.sources]
    broken = broken_file(plan.folder, names, plan.settings)
    if not broken:
        return True
    plan.crew.say(f"{broken} is missing or damaged; preparing again")
    manifest.unlink(missing_ok=True)
    return False


def _remove_leftovers(folder: Path, work: Path) -> None:
    """Remove the files of an earlier preparation that this one cannot use."""
    if not work.exists():
        # The folder was finished before, since `work` is removed at the end, but is damaged now.
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
    # The files that all hosts share are written by one; the others wait for it.
    if plan.crew.host == 0:
        finish_folder(plan, reports, choice, seconds)
    plan.wait({plan.folder / "manifest.json": 0}, "finish")


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Store in `seconds` how long the step `name` takes, if it does not raise."""
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
    plan.wait(plan.result_files("scan", ".json"), "scan their files")
    return added_reports(plan)


def _choose(plan: PreparationPlan, reports: dict[str, Report]) -> HeldoutChoice:
    """Choose the held-out groups of each source that has no held-out files of its own."""
    # Sources of text; the others are prepared folders.
    text_names = []
    # The tables of groups of each source that has no held-out files, one for each unit.
    tables_of_units = {}
    for source in plan.sources:
        if source.name in plan.prepared_parts:
            continue
        text_names.append(source.name)
        if not source.heldout:
            tables_of_units[source.name] = []
    unmatched = _unmatched(plan, text_names, reports)
    for job in plan.jobs("train", all_hosts=True):
        name = job.unit.source.name
        if name in tables_of_units:
            tables_of_units[name].append(job.table("groups", GROUP))
    tables = {}
    sizes = {}
    for name, unit_tables in tables_of_units.items():
        tables[name] = np.concatenate(unit_tables)
        sizes[name] = reports[name]["bytes"]
    conversations = [source.name for source in plan.sources if source.kind != TEXT]
    choice = choose_groups(tables, sizes, _heldout_shares(plan), conversations)

    # Sources with held-out files choose no groups.
    no_groups = np.zeros(0, np.uint64)
    groups = dict.fromkeys(text_names, no_groups) | choice.groups
    own = dict.fromkeys(text_names, no_groups) | choice.own
    questions = [_heldout_questions(plan)]
    questions += [own[name] for name in conversations if name in own]
    # A source may have held-out files, and another one a held-out share of the same questions.
    all_questions = np.unique(np.concatenate(questions))
    for name in conversations:
        if name in groups:
            groups[name] = all_questions
    warnings = []
    for name in unmatched:
        warnings.append(
            f"data.group_by matches the id of no document of source '{name}', "
            "so each id is a group there"
        )
    if _unknown_questions(plan, conversations):
        warnings.append(
            "questions that are held out in a prepared folder are not known, so another source of "
            "dialogues or pairs may train on them; prepare the text of all in one run"
        )
    return HeldoutChoice(groups, (*warnings, *choice.warnings), own)


def _heldout_shares(plan: PreparationPlan) -> dict[str, float]:
    """Return the share of each source that is held out: its own, or that of all sources."""
    shares = {}
    for source in plan.sources:
        shares[source.name] = source.heldout_share
        if source.heldout_share is None:
            shares[source.name] = plan.data.heldout
    return shares


def _unknown_questions(plan: PreparationPlan, conversations: Sequence[str]) -> bool:
    """Whether some sources of conversations were prepared before, and not all of them together."""
    folders = set()
    for name in conversations:
        parts = plan.prepared_parts.get(name, ())
        # "" is the folder that is prepared now.
        folders |= {str(folder) for folder, _, _ in parts} or {""}
    return len(folders) > 1


def _heldout_questions(plan: PreparationPlan) -> np.ndarray:
    """Return the groups of held-out files of dialogues and pairs: no source trains on them."""
    groups = [np.zeros(0, np.uint64)]
    for job in plan.jobs("heldout", all_hosts=True):
        if job.unit.source.kind != TEXT:
            groups.append(job.table("groups", GROUP)["id"])
    return np.unique(np.concatenate(groups))


def _unmatched(
    plan: PreparationPlan,
    names: list[str],
    reports: dict[str, Report],
) -> list[str]:
    """Return the names of the sources in which `group_by` matches the id of no document.

    Empty unless `group_by` is a regular expression.
    Raises: UserError where it matches none in any source.
    """
    group_by = plan.data.group_by
    if not group_by:
        return []
    field, _ = grouping(group_by)
    # `group_by` names a field, whose value is the group: there is nothing to match.
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
    """Write the held-out documents of this host's units; host 0 writes the set of all shingles."""
    tasks = []
    for job in plan.jobs():
        if job.path("heldout", ".jsonl").exists():
            continue
        heldout_groups = choice.groups[job.unit.source.name]
        if passes.heldout_file_numbers(job, heldout_groups):
            own_groups = choice.own[job.unit.source.name]
            tasks.append((job, (heldout_groups, own_groups)))
        else:
            # The unit has no held-out document, so its text need not be read again.
            write_part(job.path("heldout", ".jsonl"), "")
    plan.run("collect", passes.collect, tasks)
    plan.wait(plan.result_files("heldout", ".jsonl"), "collect held-out text")

    # While they tokenize, all hosts look for these shingles in the training text.
    path = plan.folder / WORK / "shingles.bin"
    if plan.crew.host == 0 and not path.exists():
        hashes = [np.zeros(0, np.uint64)]
        for job in plan.jobs(all_hosts=True):
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
            heldout_groups = choice.groups[job.unit.source.name]
            tasks.append((job, (heldout_groups,)))
    plan.run("tokenize", passes.tokenize, tasks)


def _is_tokenized(plan: PreparationPlan, job: Job) -> bool:
    """Whether all training shards of a unit are there, as they were written."""
    if not job.path("train", ".json").exists():
        return False
    # The report alone is not enough: a shard may have been lost or damaged since.
    entries = job.report("train")["shards"]
    return not any(Shard(**entry).fault(plan.folder) for entry in entries)
