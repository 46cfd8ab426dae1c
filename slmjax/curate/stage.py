"""The stage `curate`: raw text becomes a clean corpus: quality rules, decontamination, deduplication, and a report of what went and why.

Each pass over a file is one unit of work in one of the processes. The order of sources, files and lines decides everything, so the result
is the same however many processes there are; of near-duplicates the first one is kept.
"""

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
from ml_collections import ConfigDict

from slmjax import config as configs
from slmjax.curate import report
from slmjax.curate.clean import Unit, clean, publish
from slmjax.curate.clusters import Clusters
from slmjax.curate.decontaminate import EvalIndex, build_index
from slmjax.curate.dedup import decisions
from slmjax.curate.index import COLUMNS, Index, read_column
from slmjax.curate.language import language_rule
from slmjax.curate.minhash import Scheme
from slmjax.curate.quality import known
from slmjax.curate.runners import Beam, Local
from slmjax.data.sources import Source, list_files, parse_sources
from slmjax.data.work import cores, terminal_progress, writable, write_atomic
from slmjax.errors import UserError, nearest

# Of config.curate: (what holds where a recipe leaves it out, what it is); a default's type is the setting's.
SETTINGS = {
    "rules": (
        {"others": ("gopher_repetition", "gopher_quality", "c4_any_line_end", "fineweb")},
        "{source: names of quality rules}; 'others' for the sources that are not named",
    ),
    "languages": ((), "ISO 639 codes of the languages that stay; empty: all"),
    "evals": ({}, "{set: {path, fields}}: evaluation sets whose items must not be in the corpus"),
    "ngram": (5, "words of a shingle"),
    "bands": (14, "bands of hashes; a pair that shares one is compared"),
    "rows": (8, "hashes of a band"),
    "threshold": (0.75, "Jaccard similarity of shingles from which on a document is a duplicate"),
    "max_removed": (0.9, "share of a source that may go as duplicates before the run stops with an alarm"),
    "index": ("", "folder of an index to extend: what is in it counts as seen; empty: a new one in the work directory"),
    "samples": (5, "dropped documents shown for each reason"),
    "processes": (0, "0: one for each core"),
    "beam": ("", "Apache Beam's options, with a runner; empty: processes of this machine"),
}


def run(config: ConfigDict, workdir: str, *, init_from: str = "", command: str = "", process: int = 0, processes: int = 1) -> None:
    """Curate config.data.sources into workdir/documents/<source>/*.jsonl.zst; the same command goes on after it was stopped.

    Raises: UserError for settings and sources that make no sense, and, after the report is written, where a source loses more than
      max_removed of its documents as duplicates.
    """
    if init_from or processes > 1:
        raise UserError("the stage curate takes neither --init_from nor --processes; config.curate.processes are those of this machine.")
    asked, sources, folder = settings(config), parse_sources(config.data.sources), epath.Path(workdir)
    if not sources:
        raise UserError("config.data.sources is empty; expected name=path, where path is a file, folder or pattern.")
    if "://" in workdir and not (asked["beam"] and asked["index"]):
        raise UserError(f"--workdir={workdir} needs config.curate.beam, and in config.curate.index a folder of this machine for the index.")
    with writable(workdir, "--workdir"), terminal_progress() as progress:
        runner = Beam(asked["beam"]) if asked["beam"] else Local(asked["processes"] or cores(), progress)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "config.json", configs.to_dict(config) | {"curate": asked})
        found = curate(asked, sources, folder, runner)
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
    words = ["python", "-m", "slmjax.launch", "--config=configs/tiny.py", f"--config.data.sources={written}"]
    print(f"report: {folder / 'report.html'}\n\nnext:\n  {shlex.join(words)}")


def settings(config: ConfigDict) -> dict[str, Any]:
    """config.curate, checked; what a recipe leaves out is as in SETTINGS.

    Raises: UserError for a setting that is unknown or of another type.
    """
    given = {name: default for name, (default, _) in SETTINGS.items()}
    given |= {name: value.to_dict() if isinstance(value, ConfigDict) else value for name, value in config.curate.items()}
    for name, value in given.items():
        if name not in SETTINGS:
            raise UserError(f"config.curate.{name}: the stage curate has no such setting.{nearest(name, SETTINGS)}")
        default, meaning = SETTINGS[name]
        if isinstance(default, tuple):
            given[name] = _words(value)
        elif not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
            raise UserError(f"config.curate.{name} is {value!r}; expected {meaning}.")
    for name in ("threshold", "max_removed"):
        if not 0 < given[name] <= 1:
            raise UserError(f"config.curate.{name} is {given[name]}; it must be more than 0 and at most 1.")
    for name in ("ngram", "bands", "rows"):
        if given[name] < 1:
            raise UserError(f"config.curate.{name} is {given[name]}; it must be positive.")
    if given["bands"] > 250:
        raise UserError(f"config.curate.bands is {given['bands']}; it can be at most 250.")
    given["rules"] = {source: _words(names) for source, names in given["rules"].items()}
    for name in itertools.chain(*given["rules"].values()):
        known(name)
    return given


def _words(names: str | Sequence[str]) -> tuple[str, ...]:
    """As a command line has them, "one,two", or as a recipe."""
    return tuple(filter(None, names.split(","))) if isinstance(names, str) else tuple(names)


def curate(asked: Mapping[str, Any], sources: Sequence[Source], folder: epath.Path, runner: Local | Beam) -> dict[str, Any]:
    """Run the passes; returns what the report tells. `folder` gets documents/, dropped.jsonl, duplicates.jsonl and, unless another is
    named, index/.
    """
    work = folder / "work"
    units = _units(asked, sources, work)
    runner.each(clean, [(unit.file.size, (unit,)) for unit in units if not unit.path(".json").exists()], "clean")
    place = Path(asked["index"] or folder / "index").expanduser()
    if not asked["index"]:
        shutil.rmtree(place, ignore_errors=True)
    index, batch, sketches = Index(place, units[0].scheme), (work / "key").read_text(), [unit.path(".sketches") for unit in units]
    index.add(batch, [(unit.name, of) for unit, of in zip(units, sketches)])
    clusters = index.clusters(asked["threshold"], runner.pairs(index, batch, sketches, work))
    first, sizes = index.span(batch)
    numbers = slice(first, first + int(sizes.sum()))
    gone = np.split((clusters.keeper != np.arange(len(index)))[numbers], np.cumsum(sizes)[:-1])
    found = _found(asked, units, gone, clusters, numbers)
    with (folder / "duplicates.jsonl").open("w") as out:
        out.writelines(json.dumps(entry) + "\n" for entry in decisions(index, clusters, numbers))
    with (folder / "dropped.jsonl").open("wb") as out:
        for unit in units:
            with unit.path(".dropped.jsonl").open("rb") as part:
                shutil.copyfileobj(part, out)
    if not found["alarms"]:
        if (folder / "documents").exists():
            (folder / "documents").rmtree()
        places = [str(folder / "documents" / unit.source.name / f"{unit.number:05d}.jsonl.zst") for unit in units]
        runner.each(publish, [(unit.file.size, of) for unit, of in zip(units, zip(units, gone, places))], "write")
        work.rmtree()
    return found


def _units(asked: Mapping[str, Any], sources: Sequence[Source], work: epath.Path) -> list[Unit]:
    """The files, and in `work` what all of them need; what an earlier run with other settings or files left is removed."""
    scheme = Scheme(asked["ngram"], asked["bands"], asked["rows"])
    for name in asked["rules"]:
        if name != "others" and name not in (source.name for source in sources):
            raise UserError(f"config.curate.rules names '{name}', but the sources are {', '.join(source.name for source in sources)}.")
    files = [(source, file, number) for source in sources for number, file in enumerate(list_files(source))]
    decides = {name: asked[name] for name in ("rules", "languages", "evals", "ngram", "bands", "rows", "samples")}
    read = [(source.name, source.field, file.name, file.size, file.version) for source, file, _ in files]
    key = hashlib.sha256(json.dumps([decides, read], sort_keys=True).encode()).hexdigest()[:16]
    if not (work / "key").exists() or (work / "key").read_text() != key:
        if work.exists():
            work.rmtree()
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


def _found(
    asked: Mapping[str, Any], units: Sequence[Unit], gone: Sequence[np.ndarray], clusters: Clusters, numbers: slice
) -> dict[str, Any]:
    """What report.json holds; `gone` tells of each unit's documents which are duplicates."""
    sources: dict[str, dict] = {}
    for unit, removed in zip(units, gone):
        entry = sources.setdefault(unit.source.name, report.empty())
        report.add(entry, json.loads(unit.path(".json").read_text()), asked["samples"])
        sizes = read_column(unit.path(".sketches") / "bytes", COLUMNS["bytes"], 0, len(removed))
        for what, which in (("duplicate", removed), ("left", ~removed)):
            entry[what]["documents"] += int(which.sum())
            entry[what]["bytes"] += int(sizes[which].sum())
    alarms = []
    for name, entry in sources.items():
        share = entry["duplicate"]["documents"] / max(1, entry["duplicate"]["documents"] + entry["left"]["documents"])
        if share > asked["max_removed"]:
            most = f"more than config.curate.max_removed, {asked['max_removed']:.0%}"
            alarms.append(f"source '{name}' loses {share:.1%} of its documents as duplicates, {most}")
    removed = np.flatnonzero(np.concatenate([np.zeros(numbers.start, bool), *gone]))
    undecided = EvalIndex.load(units[0].evals).undecided() if units[0].evals else {}
    evals = {name: {"items": items, "undecided": len(lines)} for name, (lines, items) in undecided.items()}
    largest = np.sort(np.unique(clusters.keeper[removed], return_counts=True)[1])[::-1][:10]
    return {
        "sources": sources, "alarms": alarms, "threshold": asked["threshold"], "scheme": dataclasses.asdict(units[0].scheme),
        "similarity": np.histogram(clusters.similarity[removed], 50, (0, 1))[0].tolist(), "seen_before": numbers.start,
        "largest_clusters": largest.tolist(), "evals": evals,
    }  # fmt: skip
