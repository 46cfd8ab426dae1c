"""The stage `curate`: raw text becomes a clean corpus: quality rules, decontamination, deduplication, and a report of what went and why.

Each pass over a file is one unit of work in one of the processes. The order of sources, files and lines decides everything, so the result
is the same however many processes there are; of near-duplicates the first one is kept.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from slmjax import config as configs
from slmjax.config import CurateConfig
from slmjax.curate import curation_report as report
from slmjax.curate.clean import CurationUnit, clean, is_done, left_of, publish, reports_of
from slmjax.curate.clusters import Clusters
from slmjax.curate.decontaminate import EvalIndex, build_index
from slmjax.curate.index import FORMAT, Index
from slmjax.curate.language import language_rule
from slmjax.curate.minhash import Scheme, enough_bands
from slmjax.curate.near_duplicates import decisions
from slmjax.curate.quality import Rule, known
from slmjax.curate.runners import Beam, Local
from slmjax.curate.sketch_files import COLUMNS, read_column
from slmjax.errors import UserError, nearest
from slmjax.text.files import claimed, cores, terminal_progress, writable, write_atomic
from slmjax.text.records import Source
from slmjax.text.sources import bundles, list_files, parse_sources
from slmjax.text.walk import SKETCHES

SIMILARITIES = 50  # bars of the histogram of removed pairs' similarities


def run_curate(
    config: configs.Config,
    workdir: str,
    *,
    init_from: str = "",
    command: str = "",
    process: int = 0,
    processes: int = 1,
) -> None:
    """Curate config.data.sources into workdir/documents/<source>/*.jsonl.zst; the same command goes on after it was stopped.

    Raises: UserError for settings and sources that make no sense, and, after the report is written, where a source loses too much,
      see `curate`.
    """
    if init_from or processes > 1:
        raise UserError(
            "the stage curate takes neither --init_from nor --processes; config.curate.processes are those of this machine."
        )
    asked, sources, folder = (
        curate_settings(config.curate),
        parse_sources(config.data.sources),
        epath.Path(workdir),
    )
    if not sources:
        raise UserError(
            "config.data.sources is empty; expected name=path, where path is a file, folder or pattern."
        )
    for source in sources:
        if source.heldout:
            raise UserError(
                f"data.sources.{source.name}.heldout: the stage curate reads no held-out files; to keep "
                "their text out of the corpus name them in config.curate.evals."
            )
    if "://" in workdir and not (asked["beam"] and asked["index"]):
        raise UserError(
            f"--workdir={workdir} needs config.curate.beam, and in config.curate.index a folder of this machine for the index."
        )
    for warning in warnings(asked):
        print(f"WARNING: {warning}")
    others = asked["index"]  # which curations into other work directories may extend, too
    held = (
        claimed(str(Path(others).expanduser()), field="config.curate.index")
        if others
        else contextlib.nullcontext()
    )
    with writable(workdir, "--workdir"), held, terminal_progress() as progress:
        runner = (
            Beam(asked["beam"]) if asked["beam"] else Local(asked["processes"] or cores(), progress)
        )
        folder.mkdir(parents=True, exist_ok=True)
        _record(folder, configs.to_dict(config) | {"curate": asked})
        found = curate(asked, sources, folder, runner)
        write_atomic(folder / "report.json", found | {"command": command})
        report.write_curation_report(folder, found, command)
    print(report.curation_summary(found))
    for alarm in found["alarms"]:
        print(f"ALARM: {alarm}")
    if found["alarms"]:
        raise UserError(
            f"no documents were written: {found['alarms'][0]}. {folder / 'report.html'} says more."
        )
    written = ",".join(
        f"{name}={folder / 'documents' / name}"
        for name in found["sources"]
        if found["sources"][name]["left"]["documents"]
    )
    words = [
        "python",
        "-m",
        "slmjax.launch",
        "--config=configs/tiny.py",
        f"--config.data.sources={written}",
    ]
    print(f"report: {folder / 'report.html'}\n\nnext:\n  {shlex.join(words)}")


def curate_settings(chosen: CurateConfig) -> dict[str, Any]:
    """Return config.curate as the passes over the text read it.

    Raises: UserError for rules and languages that are no lists of names, and for unknown rules.
    """
    asked = dataclasses.asdict(chosen)
    for name in ("rules", "languages"):
        asked[name] = {
            source: _words(f"{name}.{source}", value) for source, value in asked[name].items()
        }
    for rule in itertools.chain(*asked["rules"].values()):
        known(rule)
    return asked


def _words(name: str, value: Any) -> tuple[str, ...]:
    """Names as a command line has them, "one,two", or as a recipe."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise UserError(f"config.curate.{name} is {value!r}; expected names, such as one,two.")
    return tuple(word.strip() for word in words if word.strip())


def warnings(asked: Mapping[str, Any]) -> list[str]:
    """What is allowed and most likely no good: bands that do not find pairs at the threshold."""
    scheme, threshold = Scheme(asked["ngram"], asked["bands"], asked["rows"]), asked["threshold"]
    found = float(scheme.candidate_probability(threshold))
    usual = float(Scheme().candidate_probability(CurateConfig.threshold))
    if found >= usual - 0.01:
        return []
    bands, rows = enough_bands(threshold, usual)
    return [
        f"with {asked['bands']} bands of {asked['rows']} rows, pairs of a similarity of "
        f"{threshold:g} (config.curate.threshold) are found with a probability of {found:.0%}; "
        f"config.curate.bands={bands} and rows={rows} find {usual:.0%}."
    ]


def _record(folder: epath.Path, settings: Mapping[str, Any]) -> None:
    """Write config.json; documents that were made with other settings are taken away first."""
    file, text = folder / "config.json", json.dumps(settings, indent=1, ensure_ascii=False)
    if not file.exists() or file.read_bytes() != text.encode("utf-8", "surrogateescape"):
        _remove(folder / "documents")
    write_atomic(file, text)


def _remove(folder: epath.Path) -> None:
    if folder.exists():
        folder.rmtree()


def curate(
    asked: Mapping[str, Any], sources: Sequence[Source], folder: epath.Path, runner: Local | Beam
) -> dict[str, Any]:
    """Run the passes; returns what the report tells. `folder` gets documents/, dropped.jsonl, duplicates.jsonl and, unless another is
    named, index/.

    With alarms there are no documents, and the index does not hold this batch: a source that is
    mostly unreadable, loses more than max_dropped for one reason or max_removed as duplicates, or
    has nothing left.
    """
    work = folder / "work"
    unfinished = _key(work)
    units = _units(asked, sources, work)
    runner.each(clean, [(unit.size, (unit,)) for unit in units if not is_done(unit)], "clean")
    sources_found = _counts(asked, units)
    with (folder / "dropped.jsonl").open("wb") as out:
        for unit in units:
            with unit.path(".dropped.jsonl").open("rb") as part:
                shutil.copyfileobj(part, out)
    if alarms := [alarm for entry in sources_found.items() for alarm in _losses(asked, *entry)]:
        _remove(folder / "documents")
        (folder / "duplicates.jsonl").unlink(missing_ok=True)
        if not asked["index"]:
            _remove(folder / "index")
        return _report(asked, units, sources_found, alarms)
    place = Path(asked["index"] or folder / "index").expanduser()
    if not asked["index"]:
        shutil.rmtree(place, ignore_errors=True)
    index, batch, sketches = (
        Index(place, units[0].scheme),
        _key(work),
        [unit.path(SKETCHES) for unit in units],
    )
    if unfinished != batch:
        index.forget(
            unfinished
        )  # a run that was stopped, with other settings: it left no documents
    left = [[left_of(found) for found in reports_of(unit)] for unit in units]  # of each file
    files = [list(zip(unit.names, of, strict=True)) for unit, of in zip(units, left)]
    index.add(batch, list(zip(files, sketches, strict=True)))
    clusters = index.clusters(asked["threshold"], runner.pairs(index, batch, sketches, work))
    first, sizes = index.span(batch)
    numbers = slice(first, first + int(sizes.sum()))
    ends = np.cumsum([sum(of) for of in left])
    gone = np.split((clusters.keeper != np.arange(len(index)))[numbers], ends[:-1])
    _count_duplicates(units, gone, sources_found)
    alarms = [alarm for entry in sources_found.items() for alarm in _repeats(asked, *entry)]
    if not alarms and not any(entry["left"]["documents"] for entry in sources_found.values()):
        alarms = ["every document is a duplicate of one that was seen before"]
    found = _report(asked, units, sources_found, alarms)
    found |= _clusters(clusters, gone, numbers)
    with (folder / "duplicates.jsonl").open("w") as out:
        out.writelines(json.dumps(entry) + "\n" for entry in decisions(index, clusters, numbers))
    _remove(folder / "documents")
    if alarms:
        index.forget(batch)
        return found
    # A folder in a bucket cannot be renamed: there documents appear one file after another.
    whole = folder / "documents" if "://" in str(folder) else work / "documents"
    _remove(whole)
    calls = [
        (unit, of, removed, str(whole / unit.source.name))
        for unit, of, removed in zip(units, left, gone)
    ]
    runner.each(publish, [(unit.size, call) for unit, call in zip(units, calls)], "write")
    (work / "key").unlink()  # from here on the batch counts as seen
    if whole != folder / "documents":
        whole.rename(folder / "documents")
    work.rmtree()
    return found


def _units(
    asked: Mapping[str, Any], sources: Sequence[Source], work: epath.Path
) -> list[CurationUnit]:
    """The files, and in `work` what all of them need; what an earlier run with other settings or files left is removed."""
    scheme = Scheme(asked["ngram"], asked["bands"], asked["rows"])
    names = [source.name for source in sources]
    for field in ("rules", "languages"):
        for name in asked[field]:
            if name not in ("others", *names):
                raise UserError(
                    f"config.curate.{field} names '{name}', but the sources are {', '.join(names)}.{nearest(name, names)}"
                )
    listed = [(source, list_files(source)) for source in sources]
    decides = {
        name: asked[name]
        for name in ("rules", "languages", "evals", "ngram", "bands", "rows", "samples")
    }
    decides["format"] = FORMAT
    read = [
        (source.name, source.field, file.name, file.size, file.version)
        for source, files in listed
        for file in files
    ]
    key = hashlib.sha256(json.dumps([decides, read], sort_keys=True).encode()).hexdigest()[:16]
    evals = str(work / "evals.npz") if asked["evals"] else ""
    if _key(work) != key or (evals and not _loads(evals)):
        if work.exists():
            work.rmtree()
        work.mkdir(parents=True)
        if evals:
            index = build_index(asked["evals"])
            _refuse_undecided(index)
            index.save(evals)
        write_atomic(work / "key", key)
    rules = {name: _rules(asked, name) for name in names}
    return [
        CurationUnit(
            source, together, number, str(work), rules[source.name], scheme, evals, asked["samples"]
        )
        for source, files in listed
        for number, together in bundles(files)
    ]


def _key(work: epath.Path) -> str:
    """What decides the content of `work`; "" where there is none."""
    file = work / "key"
    return file.read_bytes().decode(errors="replace") if file.exists() else ""


def _loads(evals: str) -> bool:
    try:
        EvalIndex.load(evals)
    except UserError:
        return False
    return True


def _refuse_undecided(evals: EvalIndex) -> None:
    """Raises: UserError for an evaluation set of which nothing would be looked for."""
    for name, (undecided, items) in evals.undecided().items():
        if not items:
            raise UserError(f"config.curate.evals.{name}: its files hold no item.")
        if len(undecided) == items:
            raise UserError(
                f"config.curate.evals.{name}: none of its {items} items can be looked for; each is too "
                "short, or too much like the others, to be told from common phrases. Name more of "
                "its fields, or leave the set out."
            )


def _rules(asked: Mapping[str, Any], source: str) -> tuple[str | Rule, ...]:
    """The rules of a source, those of its languages first."""
    rules, languages = (
        asked[field].get(source, asked[field].get("others", ())) for field in ("rules", "languages")
    )
    return (language_rule(languages), *rules) if languages else rules


def _counts(asked: Mapping[str, Any], units: Sequence[CurationUnit]) -> dict[str, dict[str, Any]]:
    """Of each source what its files' first pass counted; what is kept counts as left."""
    sources: dict[str, dict] = {}
    for unit in units:
        entry = sources.setdefault(unit.source.name, report.empty_counts())
        try:
            for found in reports_of(unit):
                report.add(entry, found, asked["samples"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            file = unit.path(".json")
            raise UserError(f"{file} is damaged; delete {file.parent} and start again.") from error
        kept = unit.path(SKETCHES) / "bytes"
        sizes = np.frombuffer(kept.read_bytes(), COLUMNS["bytes"])
        entry["left"]["documents"] += len(sizes)
        entry["left"]["bytes"] += int(sizes.sum())
    return sources


def _losses(asked: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> list[str]:
    """Alarms about a source before duplicates are looked for."""
    limit, most = asked["max_dropped"], f"config.curate.max_dropped, {asked['max_dropped']:.0%}"
    read, faults = entry["documents"].get("read", 0), sum(entry["faults"].values())
    if not read:
        first = next(iter(entry["examples"].values()), "its files hold no record")
        return [f"none of the {faults:,} records of source '{name}' can be used ({first})"]
    alarms = []
    for reason, count in entry["faults"].items():
        if count > limit * (read + faults):
            alarms.append(
                f"{count / (read + faults):.1%} of the records of source '{name}' cannot be used "
                f"({entry['examples'][reason]}), more than {most}"
            )
    for kind, count in report.kinds(entry).items():
        if count > limit * read:
            alarms.append(
                f"source '{name}' loses {count / read:.1%} of its documents to {kind}, more than "
                f"{most} (raise it, or take out what drops them)"
            )
    if not alarms and not entry["left"]["documents"]:
        alarms.append(f"source '{name}' loses all of its documents for one reason or another")
    return alarms


def _count_duplicates(
    units: Sequence[CurationUnit], gone: Sequence[np.ndarray], sources: Mapping[str, dict]
) -> None:
    """Move duplicates from what is left; `gone` says which of each unit's documents they are."""
    for unit, removed in zip(units, gone):
        entry = sources[unit.source.name]
        sizes = read_column(unit.path(SKETCHES) / "bytes", COLUMNS["bytes"], 0, len(removed))
        for what, sign in (("duplicate", 1), ("left", -1)):
            entry[what]["documents"] += sign * int(removed.sum())
            entry[what]["bytes"] += sign * int(sizes[removed].sum())


def _repeats(asked: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> list[str]:
    """Alarms about a source's duplicates."""
    duplicates, left = entry["duplicate"]["documents"], entry["left"]["documents"]
    share = duplicates / max(1, duplicates + left)
    if share <= asked["max_removed"]:
        return []
    most = f"config.curate.max_removed, {asked['max_removed']:.0%}"
    return [
        f"source '{name}' loses {share:.1%} of its documents as duplicates, more than {most} "
        "(duplicates.jsonl has every pair; raise it if that is right)"
    ]


def _report(
    asked: Mapping[str, Any],
    units: Sequence[CurationUnit],
    sources: Mapping[str, Any],
    alarms: Sequence[str],
) -> dict[str, Any]:
    """What report.json holds, without what only duplicates say, see `_clusters`."""
    undecided = EvalIndex.load(units[0].evals).undecided() if units[0].evals else {}
    evals = {
        name: {"items": items, "undecided": len(lines)}
        for name, (lines, items) in undecided.items()
    }
    return {
        "sources": sources,
        "alarms": list(alarms),
        "warnings": warnings(asked),
        "threshold": asked["threshold"],
        "scheme": dataclasses.asdict(units[0].scheme),
        "similarity": [0] * SIMILARITIES,
        "seen_before": 0,
        "largest_clusters": [],
        "evals": evals,
    }


def _clusters(clusters: Clusters, gone: Sequence[np.ndarray], numbers: slice) -> dict[str, Any]:
    """What report.json says of duplicates: similarities and sizes of clusters."""
    removed = np.flatnonzero(np.concatenate([np.zeros(numbers.start, bool), *gone]))
    sizes = np.unique(clusters.keeper[removed], return_counts=True)[1]
    return {
        "similarity": np.histogram(clusters.similarity[removed], SIMILARITIES, (0, 1))[0].tolist(),
        "seen_before": numbers.start,
        "largest_clusters": np.sort(sizes)[::-1][:10].tolist(),
    }
