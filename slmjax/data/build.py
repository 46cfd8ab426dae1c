"""How a folder of shards is built: scan, choose held-out groups, train the tokenizer, collect held-out text, tokenize, finish.

Every step leaves its results under `work/`, one file a unit, so a killed run continues and several hosts see each other's.
"""

import collections
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.data import passes
from slmjax.data.heldout import GROUP, Choice, Matcher, choose_groups, seen_in_training, shingles
from slmjax.data.passes import Job, Unit
from slmjax.data.shards import Shard, ShardWriter, shard_entry
from slmjax.data.sources import Source, SourceFile, grouping
from slmjax.data.tokenizer import HOSTILE, Tokenizer, load, train_bpe
from slmjax.data.work import Progress, run_units, seal_is_broken, sealed, wait_for, write_atomic
from slmjax.errors import UserError

FORMAT = 2
SAMPLE_BYTES = 20_000_000  # text that a tokenizer is trained on: merges up to 32k change little beyond it
TRIAL_CHARS = 500_000  # of a source's text that a given tokenizer must give back
TRIAL_PIECE = 5_000  # of one document
MAX_CHANGED = 0.05  # share of its documents that may change; held-out ones that do are left out
_EXPANSION = {".gz": 3.0, ".xz": 4.2, ".zst": 3.8, ".parquet": 2.5}


@dataclass(frozen=True)
class Plan:
    """What is to be prepared and where, before anything is read but its content hashes."""

    data: Any
    seed: int
    sources: tuple[Source, ...]
    shards: dict[str, list[tuple[Path, dict, tuple[str, ...]]]]  # of prepared sources: (folder, manifest, names in it)
    units: tuple[Unit, ...]
    settings: dict
    folder: Path
    tokenizer: Tokenizer | None
    processes: int
    host: int
    hosts: int
    progress: Progress
    say: Callable[[str], None]
    timeout: float

    def jobs(self, kind: str = "", own: bool = True) -> list[Job]:
        """Jobs of this host's units (or all), of one kind (or both)."""
        guess = {unit: text_bytes(unit.file) if unit.kind == "train" else 0 for unit in self.units}
        share = SAMPLE_BYTES / max(1, sum(guess.values()))
        sample = {unit: int(share * guess[unit]) for unit in self.units}
        if self.tokenizer:
            files = collections.Counter(unit.source.name for unit in self.units)
            sample = {unit: max(1, TRIAL_CHARS // files[unit.source.name]) for unit in self.units}
        return [
            Job(str(self.folder), unit, self.seed, self.data.group_by, sample[unit])
            for i, unit in enumerate(self.units)
            if kind in ("", unit.kind) and (not own or i % self.hosts == self.host)
        ]

    def run(self, stage: str, function: Callable, tasks: list[tuple[Job, tuple]]) -> None:
        sized = [(job.unit.file.size, (job, *arguments)) for job, arguments in tasks]
        run_units(function, sized, self.processes, stage=stage, progress=self.progress)

    def wait(self, paths: list[Path], what: str) -> None:
        """Wait for other hosts, unless there are none, or all has been finished (and cleaned up) meanwhile."""
        manifest = self.folder / "manifest.json"
        wait_for(paths, timeout=self.timeout, what=what, say=self.say, unless=lambda: self.hosts == 1 or manifest.exists())


def build(plan: Plan, alone: bool) -> None:
    """All passes; what is already there is kept. Only a process that is known to be alone removes anything."""
    work = plan.folder / "work"
    if alone and not work.exists():
        shutil.rmtree(plan.folder, ignore_errors=True)  # finished once and damaged since
    for leftover in plan.folder.rglob(".tmp-*") if alone else ():
        leftover.unlink(missing_ok=True)
    try:
        work.mkdir(parents=True, exist_ok=True)
        seconds: dict[str, float] = {}
        reports = _timed(seconds, "scan", _scan, plan)
        check_faults(reports, plan.data.max_bad_share)
        choice = _timed(seconds, "choose", _choose, plan, reports)
        _timed(seconds, "tokenizer", _tokenizer, plan, choice)
        _timed(seconds, "collect", _collect, plan, choice)
        _timed(seconds, "tokenize", _tokenize, plan, choice)
        if plan.host == 0:
            _timed(seconds, "heldout", _finish, plan, reports, choice, seconds)
        plan.wait([plan.folder / "manifest.json"], "finish")
    except (FileNotFoundError, FileExistsError):  # mkdir says "exists" of a folder that is removed at that moment
        if not ready(plan):  # else another process without a lock finished first and cleaned up
            raise
        shutil.rmtree(work, ignore_errors=True)
    except UserError:
        if alone and not list(work.glob("*.train.json")):
            shutil.rmtree(plan.folder, ignore_errors=True)
        raise


def ready(plan: Plan) -> bool:
    """Whether the folder is complete: a manifest, the tokenizer and every shard as they were written."""
    path = plan.folder / "manifest.json"
    if not path.exists():
        return False
    try:
        broken = _broken(plan.folder, read_manifest(plan.folder))
    except UserError:
        broken = path.name
    if broken:
        plan.say(f"{plan.folder / broken} is missing or damaged; preparing again")
        path.unlink(missing_ok=True)
    return not broken


def _broken(folder: Path, manifest: dict) -> str:
    """A file of the folder that is not the one that was written; "" where all are."""
    tokenizer = folder / "tokenizer.json"
    content = tokenizer.read_bytes() if tokenizer.exists() else b""
    if hashlib.sha256(content).hexdigest() != manifest["tokenizer"]["sha256"]:
        return tokenizer.name
    for source in manifest["sources"].values():
        for entry in source["shards"] + source["heldout_shards"]:
            if not Shard(**entry).intact(folder):
                return entry["path"]
    return ""


def read_manifest(folder: Path) -> dict:
    """The manifest of a prepared folder. Raises: UserError where it is not the one that was written."""
    path, fault = folder / "manifest.json", "its content is not what was written"
    try:
        manifest = json.loads(path.read_text())
        if isinstance(manifest, dict) and not seal_is_broken(manifest):
            fault = ""
    except (OSError, ValueError, TypeError, RecursionError) as error:
        fault = str(error)
    if fault:
        raise UserError(f"{path} cannot be read ({fault}); delete the folder and prepare again.")
    if manifest.get("format") != FORMAT or "sources" not in manifest:
        raise UserError(f"{path} has format {manifest.get('format')}; expected {FORMAT}: prepare again.")
    return manifest


def _timed(seconds: dict, name: str, function: Callable, *arguments: Any) -> Any:
    start = time.perf_counter()
    result = function(*arguments)
    seconds[name] = round(time.perf_counter() - start, 2)
    return result


def _scan(plan: Plan) -> dict[str, dict]:
    """Scan this host's units, wait for the others', and add up the reports of each source."""
    plan.run("scan", passes.scan, [(job, ()) for job in plan.jobs() if not job.path("scan", ".json").exists()])
    jobs = plan.jobs(own=False)
    plan.wait([job.path("scan", ".json") for job in jobs], "scan their files")
    out = {s.name: {"lines": 0, "documents": 0, "bytes": 0, "matched": 0, "faults": {}, "first_faults": [], "damaged": 0, "size": 0}
           for s in plan.sources}  # fmt: skip
    for job in jobs:
        report, total = json.loads(job.path("scan", ".json").read_text()), out[job.unit.source.name]
        for field in ("lines", "damaged") + (("documents", "bytes", "matched") if job.unit.kind == "train" else ()):
            total[field] += report.get(field, 0)
        total["size"] += job.unit.file.size
        total["first_faults"] = (total["first_faults"] + report["first_faults"])[: passes.FIRST_FAULTS]
        for reason, count in report["faults"].items():
            total["faults"][reason] = total["faults"].get(reason, 0) + count
    return out


def check_faults(reports: dict[str, dict], limit: float) -> None:
    """Raises: UserError where a source has too many bad records, or no text at all."""
    for name, report in reports.items():
        bad = sum(report["faults"].values())
        share = max(bad / max(1, report["lines"]), report["damaged"] / max(1, report["size"]))
        if share > limit:
            examples = "; ".join(report["first_faults"])
            raise UserError(
                f"data.sources.{name}: {bad} of {report['lines']} records ({share:.2%} of it) cannot be used, "
                f"more than data.max_bad_share={limit}: {examples}."
            )
        if report["size"] and not report["documents"]:
            raise UserError(f"data.sources.{name}: its files hold no document.")


def _choose(plan: Plan, reports: dict[str, dict]) -> Choice:
    """Held-out groups of each source that has none of its own."""
    regular = plan.data.group_by and grouping(plan.data.group_by)[0] != plan.data.group_by
    text = [source for source in plan.sources if source.name not in plan.shards]
    unmatched = [source.name for source in text if regular and not reports[source.name]["matched"]]
    if text and len(unmatched) == len(text):
        raise UserError(f"data.group_by: '{plan.data.group_by}' matches the id of no document; expected a field or a regular expression.")
    tables = {}
    for source in text:
        if not source.heldout:
            jobs = [job for job in plan.jobs("train", own=False) if job.unit.source.name == source.name]
            tables[source.name] = np.concatenate([np.fromfile(job.path("groups", ".bin"), GROUP) for job in jobs])
    choice = choose_groups(tables, {name: reports[name]["bytes"] for name in tables}, plan.data.heldout)
    none = {source.name: np.zeros(0, np.uint64) for source in text}
    warnings = [f"data.group_by matches the id of no document of source '{name}', so each id is a group there" for name in unmatched]
    return Choice({**none, **choice.groups}, (*warnings, *choice.warnings))


def _tokenizer(plan: Plan, choice: Choice) -> None:
    """Write tokenizer.json: the given one, or one trained on the sample without its held-out groups."""
    path = plan.folder / "tokenizer.json"
    if plan.tokenizer:
        _check_round_trip(plan, plan.tokenizer)
    if plan.host == 0 and not path.exists():
        tokenizer = plan.tokenizer
        if tokenizer is None:
            texts = []
            for job in plan.jobs("train", own=False):
                held = set(choice.groups[job.unit.source.name].tolist())
                with open(job.path("sample", ".jsonl")) as stream:
                    texts += [text for group, text in map(json.loads, stream) if group not in held]
            plan.progress("tokenizer", 0, 1)
            tokenizer = train_bpe(texts, plan.data.vocab_size)
            plan.progress("tokenizer", 1, 1)
        tokenizer.save(path)
    plan.wait([path], "train the tokenizer")


def _check_round_trip(plan: Plan, tokenizer: Tokenizer) -> None:
    """Raises: UserError where the tokens of a source's text do not give it back.

    Bits per byte of such tokens would be those of another text.
    """

    def gives_back(text: str, ids: list[int]) -> bool:
        return tokenizer.keeps(text, ids) and tokenizer.decode(ids) in (text, f" {text}")

    for source in plan.sources:
        texts = []
        for job in plan.jobs("train", own=False):
            if job.unit.source.name == source.name:
                with open(job.path("sample", ".jsonl")) as stream:
                    texts += [text[:TRIAL_PIECE] for _, text in map(json.loads, stream)]
        pairs = zip(texts, tokenizer.encode_batch(texts), strict=True)
        changed = [(text, ids) for text, ids in pairs if not gives_back(text, ids)]
        if len(changed) > MAX_CHANGED * len(texts):
            text, ids = changed[0]
            raise UserError(
                f"data.tokenizer: '{plan.data.tokenizer}' loses text: of {len(texts)} documents of "
                f"data.sources.{source.name} it gives back {len(texts) - len(changed)} as they are; "
                f"{text[:40]!r} becomes {tokenizer.decode(ids)[:40]!r}. Use a byte-level tokenizer "
                "without a normalizer, or leave data.tokenizer empty to train one."
            )


def _collect(plan: Plan, choice: Choice) -> None:
    """Gather the held-out documents of every unit that has some, and the set of all their shingles."""

    def needed(job: Job) -> bool:
        if job.unit.kind == "heldout" or not json.loads(job.path("scan", ".json").read_text())["complete"]:
            return True
        return bool(np.isin(np.fromfile(job.path("groups", ".bin"), GROUP)["id"], choice.groups[job.unit.source.name]).any())

    tasks = [(job, (choice.groups[job.unit.source.name],)) for job in plan.jobs() if not job.path("heldout", ".jsonl").exists()]
    for job, _ in tasks:
        if not needed(job):
            write_atomic(job.path("heldout", ".jsonl"), "")
    plan.run("collect", passes.collect, [task for task in tasks if not task[0].path("heldout", ".jsonl").exists()])
    jobs = plan.jobs(own=False)
    plan.wait([job.path("heldout", ".jsonl") for job in jobs], "collect held-out text")
    path = plan.folder / "work" / "shingles.bin"
    if plan.host == 0 and not path.exists():
        hashes = [shingles(document["text"]) for job in jobs for document in _heldout(job)]
        write_atomic(path, np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes])).tobytes())
    plan.wait([path], "collect held-out text")


def _heldout(job: Job) -> list[dict]:
    with open(job.path("heldout", ".jsonl")) as stream:
        return [json.loads(line) for line in stream]


def _tokenize(plan: Plan, choice: Choice) -> None:
    def done(job: Job) -> bool:
        path = job.path("train", ".json")
        return path.exists() and all(Shard(**entry).intact(plan.folder) for entry in json.loads(path.read_text())["shards"])

    tasks = [(job, (choice.groups[job.unit.source.name],)) for job in plan.jobs("train") if not done(job)]
    plan.run("tokenize", passes.tokenize, tasks)


def _finish(plan: Plan, reports: dict, choice: Choice, seconds: dict) -> None:
    """Write held-out shards without what training has seen, and the manifest."""
    jobs = plan.jobs(own=False)
    plan.wait([job.path("train", ".json") for job in jobs if job.unit.kind == "train"], "tokenize their files")
    tokenizer = load(plan.folder / "tokenizer.json")
    hashes = np.fromfile(plan.folder / "work" / "shingles.bin", "<u8")
    matcher, seen = Matcher(hashes), np.zeros(len(hashes), bool)
    for job in jobs:
        if job.unit.kind == "train":
            seen[np.fromfile(job.path("seen", ".bin"), "<i8")] = True
    warnings = list(choice.warnings)
    if tokenizer.vocab_size < plan.data.vocab_size and plan.tokenizer is None:
        warnings.append(f"the text has pairs for {tokenizer.vocab_size} tokens only, not data.vocab_size={plan.data.vocab_size}")
    if plan.tokenizer and not tokenizer.keeps(HOSTILE, tokenizer.encode(HOSTILE)):
        warnings.append(
            "data.tokenizer changes some characters or blanks of a text before it is cut into "
            "tokens; held-out documents that it changes are left out of bits per byte"
        )
    sources = {}
    for source in plan.sources:
        own = [job for job in jobs if job.unit.source.name == source.name]
        entry = sources[source.name] = {
            **{field: getattr(source, field) for field in ("path", "field", "revision", "heldout")},
            "score": source.score_field,
            "files": [[j.unit.kind, *row] for j, row in zip(own, _file_rows(plan, source), strict=True)],
            **reports[source.name],
            **_write_heldout(plan, own, tokenizer, matcher, seen),
            "shards": [s for j in own if j.unit.kind == "train" for s in json.loads(j.path("train", ".json").read_text())["shards"]],
        }
        if own and not entry["shards"]:
            raise UserError(f"data.sources.{source.name}: nothing is left to train on after holding out; add text or lower data.heldout.")
        if entry["changed"]:
            warnings.append(
                f"data.tokenizer does not give back {entry['changed']} held-out documents of source "
                f"'{source.name}' as they are; they are left out of bits per byte"
            )
        if own and entry["removed"]["documents"] and not entry["heldout_shards"]:
            warnings.append(f"all held-out text of source '{source.name}' occurs in training too, so all of it was removed")
    prints = [entry["sha256"] for s in sources.values() for entry in s["shards"] + s["heldout_shards"]]
    manifest = {
        "format": FORMAT,
        "fingerprint": hashlib.sha256(json.dumps([tokenizer.sha256, plan.settings, prints], sort_keys=True).encode()).hexdigest(),
        "settings": {key: value for key, value in plan.settings.items() if key != "sources"},
        "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size, "eot": tokenizer.eot},
        "sources": sources,
        "warnings": warnings,
        "seconds": seconds,
    }
    write_atomic(plan.folder / "manifest.json", sealed(manifest))
    shutil.rmtree(plan.folder / "work", ignore_errors=True)


def _file_rows(plan: Plan, source: Source) -> list[list]:
    entry = plan.settings["sources"][source.name]
    return entry["train"] + entry["heldout"]


def _write_heldout(plan: Plan, jobs: list[Job], tokenizer: Tokenizer, matcher: Matcher, seen: np.ndarray) -> dict:
    """Shards of held-out documents, one for each input file that has some, and how much of them training had."""
    kept, shards, changed = {"documents": 0, "bytes": 0}, [], 0
    removed = {"documents": 0, "bytes": 0}
    for job in jobs:
        offset = sum(other.unit.kind == "train" for other in jobs) if job.unit.kind == "heldout" else 0
        path = f"{job.unit.source.name}/heldout-{offset + job.unit.index:05d}.arrayrecord"
        with ShardWriter(plan.folder, path, job.unit.file.name, vocab_size=tokenizer.vocab_size, eot=tokenizer.eot) as writer:
            for document in _heldout(job):
                ids = tokenizer.encode(document["text"])
                if plan.tokenizer and not tokenizer.keeps(document["text"], ids):
                    changed += 1
                    continue
                gone = seen_in_training(document["text"], matcher, seen)
                for field, amount in (("documents", 1), ("bytes", document["bytes"])):
                    (removed if gone else kept)[field] += amount
                if not gone:
                    writer.add(ids, document["bytes"], document["key"], document["line"])
        shards += [shard_entry(shard) for shard in writer.shards]
    for field in ("documents", "bytes"):
        removed[f"{field}_share"] = removed[field] / max(1, removed[field] + kept[field])
    return {
        "heldout_documents": kept["documents"],
        "heldout_bytes": kept["bytes"],
        "removed": removed,
        "changed": changed,
        "heldout_shards": shards,
    }


def text_bytes(file: SourceFile) -> float:
    """A guess of a file's text from its size, for shares of work and sample only."""
    return file.size * next((factor for ending, factor in _EXPANSION.items() if file.path.lower().endswith(ending)), 1.0)
