"""The stage `curate`: raw text becomes a clean corpus: quality rules, decontamination, deduplication, and a report of what went and why.

Each pass over a file is one unit of work in one of the processes. The order of sources, files and lines decides everything, so the result
is the same however many processes there are; of near-duplicates the first one is kept.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from slmjax import config as configs
from slmjax.curate import report
from slmjax.curate.clean import Unit, clean
from slmjax.curate.clusters import Clusters
from slmjax.curate.decontaminate import build_index
from slmjax.curate.dedup import decisions
from slmjax.curate.index import Index
from slmjax.curate.language import language_rule
from slmjax.curate.minhash import Scheme, compiled
from slmjax.curate.quality import known
from slmjax.data.sources import Source, list_files, parse_sources
from slmjax.data.work import locked, run_units, terminal_progress, writable, write_atomic
from slmjax.errors import UserError, nearest

# Of config.curate: (type, what it is); configs/curate.py has the values.
SETTINGS = {
    "rules": (Mapping, "{source: names of quality rules}; 'others' for the sources that are not named"),
    "languages": (Sequence, "ISO 639 codes of the languages that stay; empty: all"),
    "evals": (Mapping, "{set: {path, fields}}: evaluation sets whose items must not be in the corpus"),
    "ngram": (int, "words of a shingle"),
    "bands": (int, "bands of hashes; a pair that shares one is compared"),
    "rows": (int, "hashes of a band"),
    "threshold": (float, "Jaccard similarity of shingles from which on a document is a duplicate"),
    "max_removed": (float, "share of a source that may go as duplicates before the run stops with an alarm"),
    "index": (str, "folder of an index to extend: what is in it counts as seen; empty: a new one in the work directory"),
    "samples": (int, "dropped documents shown for each reason"),
    "processes": (int, "0: one for each core"),
}


def run(config: ConfigDict, workdir: str, *, init_from: str = "", command: str = "", process: int = 0, processes: int = 1) -> None:
    """Curate config.data.sources into workdir/documents/<source>/*.jsonl.zst; the same command goes on after it was stopped.

    Raises: UserError for settings and sources that make no sense, and, after the report is written, where a source loses more than
      max_removed of its documents as duplicates.
    """
    if init_from or processes > 1:
        raise UserError("the stage curate takes neither --init_from nor --processes; config.curate.processes are those of this machine.")
    if "://" in workdir:
        raise UserError(f"--workdir={workdir}: the stage curate writes to a folder of this machine.")
    asked, sources = settings(config), parse_sources(config.data.sources)
    if not sources:
        raise UserError("config.data.sources is empty; expected name=path, where path is a file, folder or pattern.")
    folder = Path(workdir).expanduser().absolute()
    with writable(folder, "--workdir"), locked(folder / ".lock", print), terminal_progress() as progress:
        write_atomic(folder / "config.json", configs.to_json(config))
        found = curate(asked, sources, folder, progress)
        write_atomic(folder / "report.json", found | {"command": command})
        report.write(folder, found, command)
    print(report.summary(found))
    for alarm in found["alarms"]:
        print(f"ALARM: {alarm}")
    if found["alarms"]:
        raise UserError(
            f"no documents were written: {found['alarms'][0]}. {folder / 'duplicates.jsonl'} has every pair; "
            "raise config.curate.max_removed if that is right."
        )
    written = ",".join(f"{name}={folder / 'documents' / name}" for name in found["sources"] if found["sources"][name]["left"]["documents"])
    print(f"report: {folder / 'report.html'}\n\nnext:\n  python -m slmjax.launch --config=configs/tiny.py --config.data.sources={written}")


def settings(config: ConfigDict) -> dict[str, Any]:
    """config.curate, checked. Raises: UserError for a setting that is missing, unknown or of another type."""
    given = {name: value.to_dict() if isinstance(value, ConfigDict) else value for name, value in config.curate.items()}
    for name, value in given.items():
        if name not in SETTINGS:
            raise UserError(f"config.curate.{name}: the stage curate has no such setting.{nearest(name, SETTINGS)}")
        kind, meaning = SETTINGS[name]
        if isinstance(value, str) and kind is Sequence:
            given[name] = tuple(filter(None, value.split(",")))
        elif not isinstance(value, (int, float) if kind is float else kind):
            raise UserError(f"config.curate.{name} is {value!r}; expected {meaning}.")
    if missing := [name for name in SETTINGS if name not in given]:
        raise UserError(f"config.curate.{missing[0]} is missing; configs/curate.py has all settings.")
    for name in ("threshold", "max_removed"):
        if not 0 < given[name] <= 1:
            raise UserError(f"config.curate.{name} is {given[name]}; it must be more than 0 and at most 1.")
    for name in ("ngram", "bands", "rows"):
        if given[name] < 1:
            raise UserError(f"config.curate.{name} is {given[name]}; it must be positive.")
    if given["bands"] > 250:
        raise UserError(f"config.curate.bands is {given['bands']}; it can be at most 250.")
    for names in given["rules"].values():
        for name in names:
            known(name)
    return given


def curate(asked: Mapping[str, Any], sources: Sequence[Source], folder: Path, progress: Any) -> dict[str, Any]:
    """Run the passes; returns what the report tells. `folder` gets documents/, dropped.jsonl, duplicates.jsonl and, unless another is
    named, index/.
    """
    work = folder / "work"
    units = _units(asked, sources, work)
    count = asked["processes"] or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    todo = [(unit.file.size, (unit,)) for unit in units if not unit.path(".json").exists()]
    run_units(clean, todo, count, stage="clean", progress=progress)
    if not asked["index"]:
        shutil.rmtree(folder / "index", ignore_errors=True)
    index = Index(Path(asked["index"]).expanduser() if asked["index"] else folder / "index", units[0].scheme)
    batch = work.joinpath("key").read_text()
    index.add(batch, [(unit.name, unit.path(".sketches")) for unit in units])
    clusters, first = index.clusters(asked["threshold"]), index.first(batch)
    found = _found(asked, units, index, clusters, first)
    with open(folder / "duplicates.jsonl", "w", encoding="utf8") as out:
        out.writelines(json.dumps(entry) + "\n" for entry in decisions(index, clusters, first))
    with open(folder / "dropped.jsonl", "wb") as out:
        for unit in units:
            with open(unit.path(".dropped.jsonl"), "rb") as part:
                shutil.copyfileobj(part, out)
    if not found["alarms"]:
        shutil.rmtree(folder / "documents", ignore_errors=True)
        for unit, removed in zip(units, _by_unit(units, index, clusters, first)):
            _publish(unit, removed, folder / "documents" / unit.source.name / f"{unit.number:05d}.jsonl.zst")
        shutil.rmtree(work)
    return found


def _units(asked: Mapping[str, Any], sources: Sequence[Source], work: Path) -> list[Unit]:
    """The files, and in `work` what all of them need; what an earlier run with other settings or files left is removed."""
    scheme = Scheme(asked["ngram"], asked["bands"], asked["rows"])
    for name in asked["rules"]:
        if name != "others" and name not in (source.name for source in sources):
            raise UserError(f"config.curate.rules names '{name}', but the sources are {', '.join(source.name for source in sources)}.")
    files = [(source, file, number) for source in sources for number, file in enumerate(list_files(source))]
    decides = {name: value for name, value in asked.items() if name not in ("processes", "max_removed", "threshold", "index")}
    key = json.dumps(
        [decides, [(source.name, source.field, file.name, file.size, file.version) for source, file, _ in files]], sort_keys=True
    )
    key = hashlib.sha256(key.encode()).hexdigest()[:16]
    if not (work / "key").exists() or (work / "key").read_text() != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        if asked["evals"]:
            build_index(asked["evals"]).save(work / "evals.npz")
        write_atomic(work / "key", key)
    evals = str(work / "evals.npz") if asked["evals"] else ""
    speaks = (language_rule(asked["languages"]),) if asked["languages"] else ()
    return [
        Unit(source, file, number, str(work), (*speaks, *asked["rules"].get(source.name, asked["rules"].get("others", ()))), scheme, evals,
             asked["samples"])
        for source, file, number in files
    ]  # fmt: skip


def _by_unit(units: Sequence[Unit], index: Index, clusters: Clusters, first: int) -> list[np.ndarray]:
    """Of each unit, which of its kept documents are duplicates."""
    gone = (clusters.keeper != np.arange(len(clusters.keeper)))[first:]
    sizes = [unit["documents"] for unit in index.units()][-len(units) :]
    return np.split(gone, np.cumsum(sizes)[:-1])


def _publish(unit: Unit, removed: np.ndarray, file: Path) -> None:
    """Write the documents that are left, if any."""
    import zstandard

    if removed.all():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(unit.path(".jsonl"), "rb") as lines, zstandard.open(file, "wb") as out:
        for line, gone in zip(lines, removed, strict=True):
            if not gone:
                out.write(line)


def _found(asked: Mapping[str, Any], units: Sequence[Unit], index: Index, clusters: Clusters, first: int) -> dict[str, Any]:
    """What report.json holds."""
    sources: dict[str, dict] = {}
    for unit, removed in zip(units, _by_unit(units, index, clusters, first)):
        entry = sources.setdefault(unit.source.name, report.empty())
        report.add(entry, json.loads(unit.path(".json").read_text()), asked["samples"])
        sizes = np.fromfile(unit.path(".sketches") / "bytes", "<i8")
        for what, which in (("duplicate", removed), ("left", ~removed)):
            entry[what]["documents"] += int(which.sum())
            entry[what]["bytes"] += int(sizes[which].sum())
    alarms = []
    for name, entry in sources.items():
        before = entry["duplicate"]["documents"] + entry["left"]["documents"]
        if before and entry["duplicate"]["documents"] > asked["max_removed"] * before:
            share = entry["duplicate"]["documents"] / before
            alarms.append(f"source '{name}' loses {share:.1%} of its documents as duplicates, more than config.curate.max_removed, "
                          f"{asked['max_removed']:.0%}")  # fmt: skip
    removed = clusters.removed[clusters.removed >= first]
    near = clusters.similarity[removed]
    return {
        "sources": sources, "alarms": alarms, "threshold": asked["threshold"], "scheme": dataclasses.asdict(units[0].scheme),
        "similarity": np.histogram(near, 50, (0, 1))[0].tolist(), "seen_before": first, "compiled": compiled(),
        "largest_clusters": np.sort(np.bincount(clusters.keeper[removed]) if len(removed) else np.zeros(0, int))[::-1][:10].tolist(),
    }  # fmt: skip
