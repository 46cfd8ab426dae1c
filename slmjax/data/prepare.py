"""Preparation: named sources of text become a folder of token shards with a manifest, once; later runs reuse it.

The folder's name carries a hash of everything that decides its content: each source's file names, sizes and content (SHA-256 of local files,
remembered in the cache by path, size and mtime, so that an unchanged file is read once in its life; a store's own checksum or a commit
hash for remote ones), fields, tokenizer, grouping, held-out share and seed. Sizes and mtimes alone would differ between machines that
hold the same text, and hashing costs a hundredth of tokenizing.
"""

import hashlib
import json
import os
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
from slmjax.data.shards import Shard, ShardSet, ShardWriter, shard_entry
from slmjax.data.sources import Source, SourceFile, grouping, list_files, parse_sources
from slmjax.data.tokenizer import Tokenizer, load, train_bpe
from slmjax.data.work import Progress, locked, run_units, terminal_progress, wait_for, writable, write_atomic
from slmjax.errors import UserError, nearest

FORMAT = 1
SAMPLE_BYTES = 20_000_000  # text that a tokenizer is trained on: merges up to 32k change little beyond it
IN_PROCESS_BYTES = 8_000_000  # below this, starting processes (1 to 2 s) costs more than it saves
_EXPANSION = {".gz": 3.0, ".xz": 4.2, ".zst": 3.8, ".parquet": 2.5}


@dataclass(frozen=True)
class Prepared:
    """A prepared folder: tokens of each source for training and held out, with what the manifest says of them."""

    folder: Path
    manifest: dict
    tokenizer: Tokenizer
    train: dict[str, ShardSet]
    heldout: dict[str, ShardSet]
    fingerprint: str


@dataclass(frozen=True)
class _Plan:
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
        guess = {unit: _text_bytes(unit.file) if unit.kind == "train" else 0 for unit in self.units}
        share = 0 if self.tokenizer else SAMPLE_BYTES / max(1, sum(guess.values()))
        return [
            Job(str(self.folder), unit, self.seed, self.data.group_by, int(share * guess[unit]))
            for i, unit in enumerate(self.units)
            if kind in ("", unit.kind) and (not own or i % self.hosts == self.host)
        ]

    def run(self, stage: str, function: Callable, tasks: list[tuple[Job, tuple]]) -> None:
        sized = [(job.unit.file.size, (job, *arguments)) for job, arguments in tasks]
        run_units(function, sized, self.processes, stage=stage, progress=self.progress)

    def wait(self, paths: list[Path], what: str) -> None:
        wait_for(paths, timeout=self.timeout, what=what, say=self.say)


def prepare(
    data: Any,
    *,
    seed: int,
    cache: str | Path,
    processes: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
    timeout: float = 3600.0,
) -> Prepared:
    """Tokenize text into shards under `cache`, or reuse what is there; a killed call continues, and two at once give one result.

    Args:
      data: has sources, tokenizer, vocab_size, group_by, heldout (share) and max_bad_share, as config.data.
      seed: decides which groups are held out and which text the tokenizer is trained on.
      processes: 1 works in this process; None takes all cores for more than 8 MB of text.
      process_index, process_count: this host among those that share the work; `cache` and the text must be on a shared file system.
      progress: called with (stage, bytes done, bytes in all); None shows a line where stderr is a terminal.
      say: is given the few sentences that a person should read.
      timeout: seconds without any sign of the other hosts before it is an error.
    Raises: UserError for sources, tokenizer, grouping or cache that cannot be used, and for more than max_bad_share bad records.
    """
    if "://" in str(cache):
        raise UserError(f"data.cache is '{cache}'; expected a folder of this machine or of a shared file system.")
    cache = Path(cache).expanduser().absolute()
    if progress is None:
        with terminal_progress() as line:
            return prepare(data, seed=seed, cache=cache, processes=processes, process_index=process_index, process_count=process_count,
                           progress=line, say=say, timeout=timeout)  # fmt: skip
    with writable(cache):
        cache.mkdir(parents=True, exist_ok=True)
        plan = _plan(data, seed, cache, processes, (process_index, process_count), progress, say, timeout)
        if not _ready(plan):
            suffix = f"-{process_index}" if process_count > 1 else ""
            with locked(cache / f".{plan.folder.name}{suffix}.lock", say):
                if not _ready(plan):
                    _build(plan)
        prepared = _open(plan)
    _check_faults(prepared.manifest["sources"], data.max_bad_share)
    for warning in prepared.manifest["warnings"]:
        say(f"warning: {warning}")
    return prepared


def summary(prepared: Prepared) -> str:
    """A table of what was prepared: documents, tokens, bytes a token, bad records, held-out documents and those removed as duplicates."""
    rows = [("source", "documents", "tokens", "bytes/token", "bad", "held out", "removed")]
    for name, entry in prepared.manifest["sources"].items():
        train, heldout = prepared.train[name], prepared.heldout[name]
        size = int(train.bytes.sum())
        removed = f"{entry['removed']['documents']} ({entry['removed']['bytes_share']:.1%})"
        ratio = f"{size / max(1, train.tokens):.2f}"
        rows.append((name, f"{len(train):,}", f"{train.tokens:,}", ratio, f"{sum(entry['faults'].values())}", f"{len(heldout):,}", removed))
    tokens, size = sum(s.tokens for s in prepared.train.values()), sum(int(s.bytes.sum()) for s in prepared.train.values())
    totals = [sum(int(row[i].split()[0].replace(",", "")) for row in rows[1:]) for i in (1, 4, 5, 6)]
    rows.append(("all", f"{totals[0]:,}", f"{tokens:,}", f"{size / max(1, tokens):.2f}", str(totals[1]), f"{totals[2]:,}", str(totals[3])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    return "\n".join([*lines, f"tokenizer: {prepared.tokenizer.vocab_size:,} tokens; in {prepared.folder}"])


def _plan(data: Any, seed: int, cache: Path, processes: int | None, host: tuple[int, int], *rest: Any) -> _Plan:
    progress, say, timeout = rest
    sources = parse_sources(data.sources)
    if not sources:
        raise UserError("data.sources is empty; expected name=path, where path is a file, folder or pattern.")
    grouping(data.group_by)
    shards = {source.name: found for source in sources if (found := _prepared_parts(source))}
    tokenizer = _given_tokenizer(data, shards)
    units = []
    for source in sorted(sources, key=lambda source: source.name):
        if source.name not in shards:
            units += [Unit(source, file, "train", i) for i, file in enumerate(list_files(source))]
            own = Source(source.name, source.heldout, field=source.field, revision=source.revision)
            units += [Unit(own, file, "heldout", i) for i, file in enumerate(list_files(own) if source.heldout else ())]
    if processes is None:
        processes = 1 if sum(_text_bytes(unit.file) for unit in units) < IN_PROCESS_BYTES else len(os.sched_getaffinity(0))
    identities = _identities([unit.file for unit in units], cache, processes, host, progress, say, timeout)
    settings = {
        "format": FORMAT,
        "sources": {
            source.name: {
                "field": source.field,
                **{
                    kind: [[u.file.name, u.file.size, identities[u.file]] for u in units if (u.source.name, u.kind) == (source.name, kind)]
                    for kind in ("train", "heldout")
                },
                "prepared": [[manifest["fingerprint"], *names] for _, manifest, names in shards.get(source.name, ())],
            }
            for source in sources
        },
        "tokenizer": tokenizer.sha256 if tokenizer else f"byte-level BPE of {data.vocab_size}",
        "group_by": data.group_by,
        "heldout": data.heldout,
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / f"{'-'.join(source.name for source in sources)[:40].rstrip('-.')}-{digest}"
    return _Plan(data, seed, sources, shards, tuple(units), settings, folder, tokenizer, processes, *host, progress, say, timeout)


def _prepared_parts(source: Source) -> list[tuple[Path, dict, tuple[str, ...]]]:
    """(folder, manifest, names of sources in it) for each path, if the paths are prepared folders or sources in them; else []."""
    out = []
    for path in source.path:
        place = Path(path).expanduser().absolute()
        for folder, only in ((place, None), (place.parent, place.name)):
            if "://" not in path and (folder / "manifest.json").is_file():
                manifest = _read_manifest(folder)
                if only is not None and only not in manifest["sources"]:
                    raise UserError(f"data.sources.{source.name}: {folder} has no source '{only}'.{nearest(only, manifest['sources'])}")
                out.append((folder, manifest, (only,) if only else tuple(manifest["sources"])))
                break
    if out and (len(out) < len(source.path) or source.heldout):
        raise UserError(f"data.sources.{source.name} mixes prepared folders with text; give each a name of its own.")
    return out


def _given_tokenizer(data: Any, shards: dict) -> Tokenizer | None:
    tokenizer = load(data.tokenizer) if data.tokenizer else None
    origin = data.tokenizer
    for name, parts in shards.items():
        for folder, manifest, _ in parts:
            if tokenizer is None:
                tokenizer, origin = load(folder / "tokenizer.json"), str(folder)
            if tokenizer.sha256 != manifest["tokenizer"]["sha256"]:
                raise UserError(f"data.sources.{name}: {folder} was prepared with another tokenizer than {origin}; use the same for both.")
    return tokenizer


def _identities(files: list[SourceFile], cache: Path, processes: int, host: tuple[int, int], *rest: Any) -> dict[SourceFile, str]:
    progress, say, timeout = rest
    entries = {}
    for file in files:
        if not file.remote:
            tag = hashlib.sha256(f"{file.path}\n{file.size}\n{file.version}".encode("utf-8", "surrogateescape")).hexdigest()
            entries[file] = cache / ".identity" / tag[:32]
    tasks = [(f.size, (f, entry)) for i, (f, entry) in enumerate(entries.items()) if i % host[1] == host[0] and not entry.exists()]
    few = sum(size for size, _ in tasks) < 50 * IN_PROCESS_BYTES
    run_units(passes.content_hash, tasks, 1 if few else processes, stage="hash", progress=progress)
    wait_for(entries.values(), timeout=timeout, what="hash the text", say=say)
    return {file: entries[file].read_text() if file in entries else file.version for file in files}


def _build(plan: _Plan) -> None:
    work = plan.folder / "work"
    if plan.hosts == 1 and not work.exists():
        shutil.rmtree(plan.folder, ignore_errors=True)  # finished once and damaged since, or nothing worth keeping
    for leftover in plan.folder.rglob(".tmp-*") if plan.hosts == 1 else ():
        leftover.unlink(missing_ok=True)
    try:
        work.mkdir(parents=True, exist_ok=True)
        seconds: dict[str, float] = {}
        reports = _timed(seconds, "scan", _scan, plan)
        _check_faults(reports, plan.data.max_bad_share)
        choice = _timed(seconds, "choose", _choose, plan, reports)
        _timed(seconds, "tokenizer", _tokenizer, plan, choice)
        _timed(seconds, "collect", _collect, plan, choice)
        _timed(seconds, "tokenize", _tokenize, plan, choice)
        if plan.host == 0:
            _timed(seconds, "heldout", _finish, plan, reports, choice, seconds)
        plan.wait([plan.folder / "manifest.json"], "finish")
    except FileNotFoundError:
        if not _ready(plan):  # else another process without a lock finished first and cleaned up
            raise
    except UserError:
        if plan.hosts == 1 and not list(work.glob("*.train.json")):
            shutil.rmtree(plan.folder, ignore_errors=True)
        raise


def _timed(seconds: dict, name: str, function: Callable, *arguments: Any) -> Any:
    start = time.perf_counter()
    result = function(*arguments)
    seconds[name] = round(time.perf_counter() - start, 2)
    return result


def _scan(plan: _Plan) -> dict[str, dict]:
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


def _check_faults(reports: dict[str, dict], limit: float) -> None:
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


def _choose(plan: _Plan, reports: dict[str, dict]) -> Choice:
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


def _tokenizer(plan: _Plan, choice: Choice) -> None:
    """Write tokenizer.json: the given one, or one trained on the sample without its held-out groups."""
    path = plan.folder / "tokenizer.json"
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
        temporary = plan.folder / f".tmp-tokenizer-{os.getpid()}"
        tokenizer.save(temporary)
        os.replace(temporary, path)
    plan.wait([path], "train the tokenizer")


def _collect(plan: _Plan, choice: Choice) -> None:
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


def _tokenize(plan: _Plan, choice: Choice) -> None:
    def done(job: Job) -> bool:
        path = job.path("train", ".json")
        return path.exists() and all(Shard(**entry).intact(plan.folder) for entry in json.loads(path.read_text())["shards"])

    tasks = [(job, (choice.groups[job.unit.source.name],)) for job in plan.jobs("train") if not done(job)]
    plan.run("tokenize", passes.tokenize, tasks)


def _finish(plan: _Plan, reports: dict, choice: Choice, seconds: dict) -> None:
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
    sources = {}
    for source in plan.sources:
        own = [job for job in jobs if job.unit.source.name == source.name]
        entry = sources[source.name] = {
            **{field: getattr(source, field) for field in ("path", "field", "revision", "heldout")},
            "files": [[j.unit.kind, *row] for j, row in zip(own, _file_rows(plan, source), strict=True)],
            **reports[source.name],
            **_write_heldout(plan, own, tokenizer, matcher, seen),
            "shards": [s for j in own if j.unit.kind == "train" for s in json.loads(j.path("train", ".json").read_text())["shards"]],
        }
        if own and not entry["shards"]:
            raise UserError(f"data.sources.{source.name}: nothing is left to train on after holding out; add text or lower data.heldout.")
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
    write_atomic(plan.folder / "manifest.json", manifest)
    shutil.rmtree(plan.folder / "work", ignore_errors=True)


def _file_rows(plan: _Plan, source: Source) -> list[list]:
    entry = plan.settings["sources"][source.name]
    return entry["train"] + entry["heldout"]


def _write_heldout(plan: _Plan, jobs: list[Job], tokenizer: Tokenizer, matcher: Matcher, seen: np.ndarray) -> dict:
    """Shards of held-out documents, one for each input file that has some, and how much of them training had."""
    kept, shards = {"documents": 0, "bytes": 0}, []
    removed = {"documents": 0, "bytes": 0}
    for job in jobs:
        offset = sum(other.unit.kind == "train" for other in jobs) if job.unit.kind == "heldout" else 0
        path = f"{job.unit.source.name}/heldout-{offset + job.unit.index:05d}.arrayrecord"
        with ShardWriter(plan.folder, path, job.unit.file.name, vocab_size=tokenizer.vocab_size, eot=tokenizer.eot) as writer:
            for document in _heldout(job):
                gone = seen_in_training(document["text"], matcher, seen)
                for field, amount in (("documents", 1), ("bytes", document["bytes"])):
                    (removed if gone else kept)[field] += amount
                if not gone:
                    writer.add(tokenizer.encode(document["text"]), document["bytes"], document["key"], document["line"])
        shards += [shard_entry(shard) for shard in writer.shards]
    for field in ("documents", "bytes"):
        removed[f"{field}_share"] = removed[field] / max(1, removed[field] + kept[field])
    return {"heldout_documents": kept["documents"], "heldout_bytes": kept["bytes"], "removed": removed, "heldout_shards": shards}


def _ready(plan: _Plan) -> bool:
    """Whether the folder is complete: a manifest, and every shard with its size."""
    if not (plan.folder / "manifest.json").exists():
        return False
    manifest = _read_manifest(plan.folder)
    entries = [entry for source in manifest["sources"].values() for entry in source["shards"] + source["heldout_shards"]]
    broken = next((entry["path"] for entry in entries if not Shard(**entry).intact(plan.folder)), None)
    if broken:
        plan.say(f"{plan.folder / broken} is missing or damaged; preparing again")
        (plan.folder / "manifest.json").unlink(missing_ok=True)
    return broken is None


def _read_manifest(folder: Path) -> dict:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'manifest.json'} cannot be read ({error}); delete the folder and prepare again.") from error
    if manifest.get("format") != FORMAT or "sources" not in manifest:
        raise UserError(f"{folder / 'manifest.json'} has format {manifest.get('format')}; expected {FORMAT}: prepare again.")
    return manifest


def _open(plan: _Plan) -> Prepared:
    manifest, tokenizer = _read_manifest(plan.folder), load(plan.folder / "tokenizer.json")

    def shard_set(source: Source, kind: str) -> ShardSet:
        parts = plan.shards.get(source.name) or [(plan.folder, manifest, (source.name,))]
        found = [(Shard(**e), str(folder)) for folder, m, names in parts for name in names for e in m["sources"][name][kind]]
        shards, folders = [shard for shard, _ in found], [folder for _, folder in found]
        return ShardSet(shards, folders, vocab_size=tokenizer.vocab_size, salt=tokenizer.sha256)

    train = {source.name: shard_set(source, "shards") for source in plan.sources}
    heldout = {source.name: shard_set(source, "heldout_shards") for source in plan.sources}
    prints = [tokenizer.sha256, *((name, train[name].fingerprint, heldout[name].fingerprint) for name in train)]
    return Prepared(plan.folder, manifest, tokenizer, train, heldout, hashlib.sha256(json.dumps(prints).encode()).hexdigest())


def _text_bytes(file: SourceFile) -> float:
    """A guess of a file's text from its size, for shares of work and sample only."""
    return file.size * next((factor for ending, factor in _EXPANSION.items() if file.path.lower().endswith(ending)), 1.0)
