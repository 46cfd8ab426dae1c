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
from slmjax.data.heldout import GROUP, HeldoutChoice, choose_groups, seen_in_training
from slmjax.data.passes import Job, PreparationUnit
from slmjax.data.shards import Shard, ShardWriter, shard_entry
from slmjax.errors import UserError
from slmjax.text.document_checks import grouping
from slmjax.text.files import DamagedPart, read_part, write_atomic, write_part
from slmjax.text.hashing import Matcher, shingles
from slmjax.text.records import Source, SourceFile
from slmjax.text.source_files import text_bytes
from slmjax.text.tokenizer import EOT, HOSTILE, Tokenizer, train_bpe
from slmjax.text.units import Progress, run_units, wait_for

FORMAT = 2
COUNTS = (
    "lines",
    "documents",
    "bytes",
    "damaged",
    "marks",
)  # what is added up of the files of a source
SAMPLE_BYTES = (
    20_000_000  # text that a tokenizer is trained on: merges up to 32k change little beyond it
)
TRIAL_CHARS = 500_000  # of a source's text that a given tokenizer must give back
TRIAL_PIECE = 5_000  # of one document
MAX_CHANGED = 0.05  # share of its documents that may change; held-out ones that do are left out


@dataclass(frozen=True)
class PreparationPlan:
    """What is to be prepared and where, before anything is read but its content hashes."""

    data: Any
    seed: int
    sources: tuple[Source, ...]
    shards: dict[
        str, list[tuple[Path, dict, tuple[str, ...]]]
    ]  # of prepared sources: (folder, manifest, names in it)
    units: tuple[PreparationUnit, ...]
    settings: dict
    folder: Path
    tokenizer: Tokenizer | None
    special: tuple[str, ...]  # special tokens of a tokenizer that is trained
    processes: int
    host: int
    hosts: int
    progress: Progress
    say: Callable[[str], None]
    timeout: float

    def jobs(self, kind: str = "", own: bool = True) -> list[Job]:
        """Jobs of this host's units (or all), of one kind (or both)."""
        files = collections.Counter(unit.source.name for unit in self.units for _ in unit.files)
        text = sum(
            text_bytes(file) for unit in self.units if unit.kind == "train" for file in unit.files
        )
        share = SAMPLE_BYTES / max(1, text)

        def sample(unit: PreparationUnit, file: SourceFile) -> int:
            if self.tokenizer:
                return max(1, TRIAL_CHARS // files[unit.source.name])
            return int(share * text_bytes(file)) if unit.kind == "train" else 0

        return [
            Job(
                str(self.folder),
                unit,
                self.seed,
                self.data.group_by,
                tuple(sample(unit, file) for file in unit.files),
            )
            for i, unit in enumerate(self.units)
            if kind in ("", unit.kind) and (not own or i % self.hosts == self.host)
        ]

    def run(self, stage: str, function: Callable, tasks: list[tuple[Job, tuple]]) -> None:
        sized = [(job.unit.size, (job, *arguments)) for job, arguments in tasks]
        run_units(function, sized, self.processes, stage=stage, progress=self.progress)

    def parts(self, stage: str, suffix: str, kind: str = "") -> dict[Path, int]:
        """What a stage writes for each unit (of one kind, or both): path -> the process that writes it."""
        jobs = enumerate(self.jobs(own=False))
        return {
            job.path(stage, suffix): i % self.hosts
            for i, job in jobs
            if kind in ("", job.unit.kind)
        }

    def wait(self, paths: dict[Path, int], what: str) -> None:
        """Wait for other hosts, unless there are none, or all has been finished (and cleaned up) meanwhile."""
        manifest = self.folder / "manifest.json"
        wait_for(
            paths,
            timeout=self.timeout,
            what=what,
            say=self.say,
            unless=lambda: self.hosts == 1 or manifest.exists(),
        )


def build_shards(plan: PreparationPlan, alone: bool) -> None:
    """All passes; what is already there is kept. Only a process that is known to be alone removes anything."""
    work = plan.folder / passes.WORK
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
        plan.wait({plan.folder / "manifest.json": 0}, "finish")
    except (
        FileNotFoundError,
        FileExistsError,
    ):  # mkdir says "exists" of a folder that is removed at that moment
        if not ready(plan):  # else another process without a lock finished first and cleaned up
            raise
        shutil.rmtree(work, ignore_errors=True)
    except DamagedPart as error:
        if not alone:
            raise
        plan.say(f"{error.path} is damaged; preparing again")
        shutil.rmtree(plan.folder)
        build_shards(plan, alone)
    except UserError as error:
        if alone and (isinstance(error, Unusable) or not list(work.glob("*.train.json"))):
            shutil.rmtree(plan.folder, ignore_errors=True)
        raise


class Unusable(UserError):
    """Text that cannot be prepared with these settings: nothing of the work is of use to another try."""


def ready(plan: PreparationPlan) -> bool:
    """Whether the folder is complete: a manifest, and every shard with its size and its table."""
    if not (plan.folder / "manifest.json").exists():
        return False
    broken = _broken(plan)
    if broken:
        plan.say(f"{broken} is missing or damaged; preparing again")
        (plan.folder / "manifest.json").unlink(missing_ok=True)
    return not broken


def _text_hash(path: Path) -> str:
    """SHA-256 of a text file, as a Tokenizer has it; "" where it cannot be read."""
    try:
        return hashlib.sha256(path.read_text().encode()).hexdigest()
    except (OSError, ValueError):
        return ""


def _broken(plan: PreparationPlan) -> str:
    """The first file of the folder that is not as it was written; "" where all are."""
    try:
        manifest = read_manifest(plan.folder)
    except UserError:
        return str(plan.folder / "manifest.json")
    same_names = list(manifest["sources"]) == [source.name for source in plan.sources]
    if not same_names or manifest["fingerprint"] != _fingerprint(
        plan, manifest["tokenizer"]["sha256"], manifest["sources"]
    ):
        return str(plan.folder / "manifest.json")
    if _text_hash(plan.folder / "tokenizer.json") != manifest["tokenizer"]["sha256"]:
        return str(plan.folder / "tokenizer.json")
    return next(
        filter(
            None, (_broken_shard(source, plan.folder) for source in manifest["sources"].values())
        ),
        "",
    )


def _fingerprint(plan: PreparationPlan, tokenizer: str, sources: dict[str, dict]) -> str:
    """A hash of the settings and of everything that was prepared with them; the sources are as the manifest has them."""
    shards = [
        Shard(**entry)
        for source in sources.values()
        for entry in source["shards"] + source["heldout_shards"]
    ]
    prints = [digest for shard in shards for digest in shard.prints]
    content = json.dumps([tokenizer, plan.settings, prints], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def check_shards(source: dict, folder: Path) -> None:
    """Raises: UserError where a shard of a prepared source (its entry in the manifest) is missing or damaged."""
    if broken := _broken_shard(source, folder):
        raise UserError(
            f"{broken} is missing or damaged; delete {folder} and prepare its text again."
        )


def _broken_shard(source: dict, folder: Path) -> str:
    """The first file that is not as the manifest says; "" where all are."""
    shards = (Shard(**entry) for entry in source["shards"] + source["heldout_shards"])
    return next(filter(None, (shard.fault(folder) for shard in shards)), "")


def read_manifest(folder: Path) -> dict:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder / 'manifest.json'} cannot be read ({error}); delete the folder and prepare again."
        ) from error
    stored = manifest.get("format") if isinstance(manifest, dict) else None
    if stored != FORMAT:
        raise UserError(
            f"{folder / 'manifest.json'} has format {stored}; expected {FORMAT}: delete the folder and prepare again."
        )
    if not _complete(manifest):
        raise UserError(
            f"{folder / 'manifest.json'} is damaged; delete the folder and prepare again."
        )
    return manifest


def _complete(manifest: dict) -> bool:
    """Whether all that is read from a manifest is there, with the right types."""
    try:
        texts = [manifest["fingerprint"], manifest["tokenizer"]["sha256"], *manifest["warnings"]]
        numbers = []
        for source in manifest["sources"].values():
            shards = [Shard(**entry) for entry in source["shards"] + source["heldout_shards"]]
            texts += [text for shard in shards for text in (shard.path, shard.file, shard.sha256)]
            parts = [part for shard in shards for part in shard.parts]
            texts += [text for file, _, digest in parts for text in (file, digest)]
            numbers += [documents for _, documents, _ in parts]
            numbers += [
                number
                for shard in shards
                for number in (shard.documents, shard.tokens, shard.bytes, shard.size)
            ]
            for report in (source, *source.get("heldout_files", ())):
                numbers += [
                    report[field] for field in ("lines", "documents", "damaged", "size")
                ] + [*report["faults"].values()]
                texts += report["first_faults"]
            numbers += [source["removed"]["documents"]]
            share = source["removed"]["bytes_share"]
            texts.append(source.get("score", ""))
            if not isinstance(share, (int, float)):
                return False
    except (KeyError, TypeError, AttributeError, ValueError):
        return False
    return all(isinstance(text, str) for text in texts) and all(
        type(number) is int for number in numbers
    )


def _timed(seconds: dict, name: str, function: Callable, *arguments: Any) -> Any:
    start = time.perf_counter()
    result = function(*arguments)
    seconds[name] = round(time.perf_counter() - start, 2)
    return result


def _scan(plan: PreparationPlan) -> dict[str, dict]:
    """Scan this host's units, wait for the others', and add up the reports of each source."""
    plan.run(
        "scan",
        passes.scan_files,
        [(job, ()) for job in plan.jobs() if not job.path("scan", ".json").exists()],
    )
    plan.wait(plan.parts("scan", ".json"), "scan their files")
    out = {
        source.name: _no_report() | {"matched": 0, "heldout_files": []} for source in plan.sources
    }
    jobs = plan.jobs(own=False)
    reports = (
        (job.unit, *of) for job in jobs for of in zip(job.unit.files, job.scanned(), strict=True)
    )
    for unit, file, report in reports:
        total = out[unit.source.name]
        if unit.kind == "heldout":
            files, total = total["heldout_files"], {"file": file.name, **_no_report()}
            files.append(total)
        else:
            total["matched"] += report.get("matched", 0)
        for field in COUNTS:
            total[field] += report.get(field, 0)
        total["size"] += file.size
        for (reason, count), first in zip(report["faults"].items(), report["first_faults"]):
            if reason not in total["faults"]:
                total["first_faults"].append(first)
            total["faults"][reason] = total["faults"].get(reason, 0) + count
    return out


def _no_report() -> dict:
    return {**dict.fromkeys(COUNTS, 0), "size": 0, "faults": {}, "first_faults": []}


def check_faults(reports: dict[str, dict], limit: float) -> None:
    """Raises: UserError where a source or one of its held-out files has too many bad records, or no text at all."""
    for name, report in reports.items():
        _check_report(f"data.sources.{name}", report, limit)
        for own in report.get("heldout_files", ()):  # folders of earlier versions do not have them
            _check_report(f"data.sources.{name}.heldout: {own['file']}", own, limit)


def _check_report(where: str, report: dict, limit: float) -> None:
    bad = sum(report["faults"].values())
    share = max(bad / max(1, report["lines"]), report["damaged"] / max(1, report["size"]))
    if share > limit:
        examples = "; ".join(report["first_faults"])
        raise Unusable(
            f"{where}: {bad} of {report['lines']} records ({share:.2%} of it) cannot be used, "
            f"more than data.max_bad_share={limit}: {examples}."
        )
    if report["size"] and not report["documents"]:
        raise Unusable(f"{where}: it holds no document.")


def _choose(plan: PreparationPlan, reports: dict[str, dict]) -> HeldoutChoice:
    """Held-out groups of each source that has none of its own."""
    regular = plan.data.group_by and grouping(plan.data.group_by)[0] != plan.data.group_by
    text = [source for source in plan.sources if source.name not in plan.shards]
    unmatched = [source.name for source in text if regular and not reports[source.name]["matched"]]
    if text and len(unmatched) == len(text):
        raise UserError(
            f"data.group_by: '{plan.data.group_by}' matches the id of no document; expected a field or a regular expression."
        )
    tables = {}
    for source in text:
        if not source.heldout:
            jobs = [
                job for job in plan.jobs("train", own=False) if job.unit.source.name == source.name
            ]
            tables[source.name] = np.concatenate([job.table("groups", GROUP) for job in jobs])
    choice = choose_groups(
        tables, {name: reports[name]["bytes"] for name in tables}, plan.data.heldout
    )
    none = {source.name: np.zeros(0, np.uint64) for source in text}
    warnings = [
        f"data.group_by matches the id of no document of source '{name}', so each id is a group there"
        for name in unmatched
    ]
    return HeldoutChoice({**none, **choice.groups}, (*warnings, *choice.warnings))


def _tokenizer(plan: PreparationPlan, choice: HeldoutChoice) -> None:
    """Write the tokenizer: the given one, or one trained on the sample without its held-out groups."""
    path = plan.folder / passes.WORK / "tokenizer.json"
    if plan.tokenizer:
        _check_round_trip(plan, plan.tokenizer)
    if plan.host == 0 and not path.exists():
        tokenizer = plan.tokenizer
        if tokenizer is None:
            texts = []
            for job in plan.jobs("train", own=False):
                held = set(choice.groups[job.unit.source.name].tolist())
                texts += [text for group, text in job.lines("sample") if group not in held]
            plan.progress("tokenizer", 0, 1)
            tokenizer = train_bpe(texts, plan.data.vocab_size, plan.special)
            plan.progress("tokenizer", 1, 1)
        write_part(path, tokenizer.content)
    plan.wait({path: 0}, "train the tokenizer")


def _check_round_trip(plan: PreparationPlan, tokenizer: Tokenizer) -> None:
    """Raises: UserError where the tokens of a source's text do not give it back.

    Bits per byte of such tokens would be those of another text.
    """

    def gives_back(text: str, ids: list[int]) -> bool:
        return tokenizer.keeps(text, ids) and tokenizer.decode(ids) in (text, f" {text}")

    for source in plan.sources:
        texts = []
        for job in plan.jobs("train", own=False):
            if job.unit.source.name == source.name:
                # A piece out of a document may begin with a blank, which many tokenizers take for their own.
                texts += [text[:TRIAL_PIECE].lstrip(" ") for _, text in job.lines("sample")]
        pairs = zip(texts, tokenizer.encode_batch(texts), strict=True)
        changed = [(text, ids) for text, ids in pairs if not gives_back(text, ids)]
        if len(changed) > MAX_CHANGED * len(texts):
            text, back = changed[0][0], tokenizer.decode(changed[0][1]).removeprefix(" ")
            pairs = enumerate(zip(text, back))
            same = next((i for i, (one, other) in pairs if one != other), min(len(text), len(back)))
            text, back = (side[max(0, same - 20) :][:40] for side in (text, back))
            raise UserError(
                f"data.tokenizer: '{plan.data.tokenizer}' loses text: of {len(texts)} documents of "
                f"data.sources.{source.name} it gives back {len(texts) - len(changed)} as they are; "
                f"{text!r} becomes {back!r}. Use a byte-level tokenizer "
                "without a normalizer, or leave data.tokenizer empty to train one."
            )


def _collect(plan: PreparationPlan, choice: HeldoutChoice) -> None:
    """Gather the held-out documents of every unit that has some, and the set of all their shingles."""

    tasks = [
        (job, (choice.groups[job.unit.source.name],))
        for job in plan.jobs()
        if not job.path("heldout", ".jsonl").exists()
    ]
    for job, (chosen,) in tasks:
        if not passes.holding(job, chosen):
            write_part(job.path("heldout", ".jsonl"), "")
    plan.run(
        "collect",
        passes.collect,
        [task for task in tasks if not task[0].path("heldout", ".jsonl").exists()],
    )
    jobs = plan.jobs(own=False)
    plan.wait(plan.parts("heldout", ".jsonl"), "collect held-out text")
    path = plan.folder / passes.WORK / "shingles.bin"
    if plan.host == 0 and not path.exists():
        hashes = [shingles(document["text"]) for job in jobs for document in job.lines("heldout")]
        write_part(path, np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes])).tobytes())
    plan.wait({path: 0}, "collect held-out text")


def _tokenize(plan: PreparationPlan, choice: HeldoutChoice) -> None:
    def done(job: Job) -> bool:
        if not job.path("train", ".json").exists():
            return False
        return not any(Shard(**entry).fault(plan.folder) for entry in job.report("train")["shards"])

    tasks = [
        (job, (choice.groups[job.unit.source.name],)) for job in plan.jobs("train") if not done(job)
    ]
    plan.run("tokenize", passes.tokenize, tasks)


def _finish(plan: PreparationPlan, reports: dict, choice: HeldoutChoice, seconds: dict) -> None:
    """Write held-out shards without what training has seen, and the manifest."""
    jobs = plan.jobs(own=False)
    plan.wait(plan.parts("train", ".json", kind="train"), "tokenize their files")
    tokenizer = Tokenizer(read_part(plan.folder / passes.WORK / "tokenizer.json").decode())
    hashes = np.frombuffer(read_part(plan.folder / passes.WORK / "shingles.bin"), "<u8")
    matcher, seen = Matcher(hashes), np.zeros(len(hashes), bool)
    for job in jobs:
        if job.unit.kind == "train":
            seen[job.table("seen", "<i8")] = True
    warnings = [*_marks(reports), *choice.warnings]
    if tokenizer.vocab_size < plan.data.vocab_size and plan.tokenizer is None:
        warnings.append(
            f"the text has pairs for {tokenizer.vocab_size} tokens only, not data.vocab_size={plan.data.vocab_size}"
        )
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
            "files": [
                [kind, *row]
                for kind in ("train", "heldout")
                for row in plan.settings["sources"][source.name][kind]
            ],
            **reports[source.name],
            **_write_heldout(plan, own, tokenizer, matcher, seen),
            "shards": [
                s for j in own if j.unit.kind == "train" for s in j.report("train")["shards"]
            ],
        }
        if own and not entry["shards"]:
            raise Unusable(
                f"data.sources.{source.name}: nothing is left to train on after holding out; add text or lower data.heldout."
            )
        if entry["changed"]:
            warnings.append(
                f"data.tokenizer does not give back {entry['changed']} held-out documents of source "
                f"'{source.name}' as they are; they are left out of bits per byte"
            )
        if own and entry["removed"]["documents"] and not entry["heldout_shards"]:
            warnings.append(
                f"all held-out text of source '{source.name}' occurs in training too, so all of it was removed"
            )
    manifest = {
        "format": FORMAT,
        "fingerprint": _fingerprint(plan, tokenizer.sha256, sources),
        "settings": {key: value for key, value in plan.settings.items() if key != "sources"},
        "tokenizer": {
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
        },
        "sources": sources,
        "warnings": warnings,
        "seconds": seconds,
    }
    tokenizer.save(plan.folder / "tokenizer.json")
    write_atomic(plan.folder / "manifest.json", manifest)
    shutil.rmtree(plan.folder / passes.WORK, ignore_errors=True)


def _marks(reports: dict) -> list[str]:
    """A warning for each source whose documents hold end-of-text marks, as plain text that ends nothing."""
    out = []
    for name, report in reports.items():
        documents, marks = report["documents"], report["marks"]
        if marks and 10 * marks >= documents:
            held = "1 document with" if documents == 1 else f"{documents:,} documents with"
            out.append(
                f"source '{name}' is {held} {marks:,} marks {EOT} in the text, which end no document; "
                "cut it there: one document a line in a .jsonl, or a .txt for each"
            )
    return out


def _write_heldout(
    plan: PreparationPlan, jobs: list[Job], tokenizer: Tokenizer, matcher: Matcher, seen: np.ndarray
) -> dict:
    """Shards of held-out documents, one for each unit that has some, and how much of them training had."""
    kept, shards, changed = {"documents": 0, "bytes": 0}, [], 0
    removed = {"documents": 0, "bytes": 0}
    train = sum(len(job.unit.files) for job in jobs if job.unit.kind == "train")
    for job in jobs:
        unit = job.unit
        first = unit.index + (train if unit.kind == "heldout" else 0)
        path = f"{unit.source.name}/heldout-{first:05d}.arrayrecord"
        documents, written = collections.Counter(), collections.Counter()  # of each file
        with ShardWriter(
            plan.folder,
            path,
            unit.files[0].name,
            vocab_size=tokenizer.vocab_size,
            eot=tokenizer.eot,
        ) as writer:
            for document in job.lines("heldout"):
                number = document.get("file", 0)
                if number and not documents[number]:
                    writer.next_file(unit.files[number].name)
                documents[number] += 1
                (ids,) = tokenizer.encode_arrays([document["text"]])
                if plan.tokenizer and not tokenizer.keeps(document["text"], ids):
                    changed += 1
                    continue
                gone = seen_in_training(document["text"], matcher, seen)
                for field, amount in (("documents", 1), ("bytes", document["bytes"])):
                    (removed if gone else kept)[field] += amount
                if not gone:
                    written[number] += 1
                    writer.add(ids, document["bytes"], document["key"], document["line"])
        for number, count in documents.items():
            if unit.kind == "heldout" and not written[number]:
                raise Unusable(
                    f"data.sources.{unit.source.name}.heldout: every document of {unit.files[number].name} occurs in training too "
                    f"({count:,}); name a file of other text."
                )
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
