"""Preparation: named sources of text become a folder of token shards with a manifest, once; later runs reuse it.

The folder's name carries a hash of everything that decides its content: each source's file names, sizes and content (SHA-256 of local
files, remembered in the cache by path, size and mtime, so that an unchanged file is hashed once; a store's own checksum or a commit hash
for remote ones), fields, tokenizer, grouping, held-out share and seed. Sizes and mtimes alone would differ between machines that hold
the same text, and hashing costs a hundredth of tokenizing.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmjax.data import passes
from slmjax.data.build import (
    FORMAT,
    PreparationPlan,
    build_shards,
    check_faults,
    check_shards,
    read_manifest,
    ready,
)
from slmjax.data.passes import PreparationUnit, units_of
from slmjax.data.shards import Shard, ShardSet
from slmjax.errors import UserError, nearest
from slmjax.text.claims import locked
from slmjax.text.document_checks import grouping
from slmjax.text.files import writable
from slmjax.text.own_reader import reader_identity
from slmjax.text.records import Source, SourceFile
from slmjax.text.source_files import list_files, text_bytes
from slmjax.text.sources import parse_sources
from slmjax.text.tokenizer import EOT, SPECIAL, Tokenizer, load_tokenizer
from slmjax.text.units import Progress, cores, run_units, terminal_progress, wait_for

IN_PROCESS_BYTES = 8_000_000  # below this, starting processes (1 to 2 s) costs more than it saves


@dataclass(frozen=True)
class Prepared:
    """A prepared folder: tokens of each source for training and held out, with what the manifest says of them."""

    folder: Path
    manifest: dict
    tokenizer: Tokenizer
    train: dict[str, ShardSet]
    heldout: dict[str, ShardSet]
    fingerprint: str


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
    special: tuple[str, ...] = tuple(SPECIAL),
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
      special: special tokens of a tokenizer that is trained.
    Raises: UserError for sources, tokenizer, grouping or cache that cannot be used, and for more than max_bad_share bad records.
    """
    if "://" in str(cache):
        raise UserError(
            f"data.cache is '{cache}'; expected a folder of this machine or of a shared file system."
        )
    cache = Path(os.path.expanduser(cache)).absolute()
    if progress is None:
        with terminal_progress() as line:
            return prepare(
                data,
                seed=seed,
                cache=cache,
                processes=processes,
                process_index=process_index,
                process_count=process_count,
                progress=line,
                say=say,
                timeout=timeout,
                special=special,
            )
    with writable(cache):
        cache.mkdir(parents=True, exist_ok=True)
        host = (process_index, process_count)
        plan = _plan(data, seed, cache, processes, host, special, progress, say, timeout)
        if not ready(plan):
            suffix = f"-{process_index}" if process_count > 1 else ""
            with locked(cache / f".{plan.folder.name}{suffix}.lock", say) as held:
                if not ready(plan):
                    size = sum(text_bytes(file) for unit in plan.units for file in unit.files)
                    if size > IN_PROCESS_BYTES:
                        say(
                            f"preparing about {size / 1e6:,.0f} MB of text in {plan.folder} ({plan.processes} processes)"
                        )
                    build_shards(plan, alone=bool(held) and process_count == 1)
        prepared = _open(plan)
    check_faults(prepared.manifest["sources"], data.max_bad_share)
    for warning in prepared.manifest["warnings"]:
        say(f"warning: {warning}")
    return prepared


def preparation_summary(prepared: Prepared) -> str:
    """A table of what was prepared: documents, tokens, bytes a token, bad records, held-out documents and those removed as duplicates."""
    rows = [("source", "documents", "tokens", "bytes/token", "bad", "held out", "removed")]
    for name, entry in prepared.manifest["sources"].items():
        train, heldout = prepared.train[name], prepared.heldout[name]
        size = int(train.bytes.sum())
        removed = f"{entry['removed']['documents']} ({entry['removed']['bytes_share']:.1%})"
        ratio = f"{size / max(1, train.tokens):.2f}"
        rows.append(
            (
                name,
                f"{len(train):,}",
                f"{train.tokens:,}",
                ratio,
                f"{sum(entry['faults'].values())}",
                f"{len(heldout):,}",
                removed,
            )
        )
    tokens, size = (
        sum(s.tokens for s in prepared.train.values()),
        sum(int(s.bytes.sum()) for s in prepared.train.values()),
    )
    totals = [
        sum(int(row[i].split()[0].replace(",", "")) for row in rows[1:]) for i in (1, 4, 5, 6)
    ]
    rows.append(
        (
            "all",
            f"{totals[0]:,}",
            f"{tokens:,}",
            f"{size / max(1, tokens):.2f}",
            str(totals[1]),
            f"{totals[2]:,}",
            str(totals[3]),
        )
    )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return "\n".join(
        [*lines, f"tokenizer: {prepared.tokenizer.vocab_size:,} tokens; in {prepared.folder}"]
    )


def _plan(
    data: Any,
    seed: int,
    cache: Path,
    processes: int | None,
    host: tuple[int, int],
    special: tuple[str, ...],
    *rest: Any,
) -> PreparationPlan:
    progress, say, timeout = rest
    sources = parse_sources(data.sources)
    if not sources:
        raise UserError(
            "data.sources is empty; expected name=path, where path is a file, folder or pattern."
        )
    grouping(data.group_by)
    shards = {source.name: found for source in sources if (found := _prepared_parts(source))}
    tokenizer = _given_tokenizer(data, shards)
    units = []
    for source in sorted(sources, key=lambda source: source.name):
        if source.name not in shards:
            own = replace(source, path=source.heldout, heldout=(), score="")
            heldout = (
                list_files(replace(own, name=f"{source.name}.heldout"), say) if own.path else ()
            )
            train = _without(list_files(source, say), heldout, source, say)
            units += units_of(source, train, "train") + units_of(own, heldout, "heldout")
    if processes is None:
        processes = (
            1
            if sum(text_bytes(file) for unit in units for file in unit.files) < IN_PROCESS_BYTES
            else cores()
        )
    identities = _identities(units, cache, processes, host, progress, say, timeout)
    settings = _settings(data, seed, sources, shards, units, identities, tokenizer, special)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / f"{'-'.join(source.name for source in sources)[:40].rstrip('-.')}-{digest}"
    given = (data, seed, sources, shards, tuple(units), settings, folder)
    return PreparationPlan(*given, tokenizer, special, processes, *host, *rest)


def _without(
    files: tuple, heldout: tuple, source: Source, say: Callable[[str], None]
) -> list[SourceFile]:
    """The files of a source that are not held out: a held-out file may lie in the source's folder."""
    places = {os.path.realpath(file.path) for file in heldout}
    train = [file for file in files if os.path.realpath(file.path) not in places]
    if not train:
        raise UserError(
            f"data.sources.{source.name}: each of its files is held out too, so there is nothing to train on."
        )
    if len(train) < len(files):
        names = sorted(file.name for file in set(files) - set(train))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(
            f"data.sources.{source.name}: not trained on, as held out: {', '.join(names[:3])}{more}"
        )
    return train


def _settings(
    data: Any,
    seed: int,
    sources: tuple,
    shards: dict,
    units: list[PreparationUnit],
    identities: dict,
    tokenizer: Tokenizer | None,
    special: tuple[str, ...],
) -> dict:
    """All that decides what the folder holds; its hash is in the folder's name."""

    def rows(source: Source, kind: str) -> list[list]:
        own = (unit.files for unit in units if (unit.source.name, unit.kind) == (source.name, kind))
        return [[file.name, file.size, identities[file]] for files in own for file in files]

    trained = f"byte-level BPE of {data.vocab_size}"
    if special != (EOT,):  # runs that began without reserved ids find their folders by this name
        trained += f" with {' '.join(special)}"
    return {
        "format": FORMAT,
        "sources": {
            source.name: {
                "field": source.field,
                "train": rows(source, "train"),
                "heldout": rows(source, "heldout"),
                "prepared": [
                    [manifest["fingerprint"], *names]
                    for _, manifest, names in shards.get(source.name, ())
                ],
                # Left out where none is asked for, so that folders of versions without scores are found.
                **({"score": source.score_field} if source.score_field else {}),
                **({"reader": reader_identity(source)} if source.reader else {}),
            }
            for source in sources
        },
        "tokenizer": tokenizer.sha256 if tokenizer else trained,
        "group_by": data.group_by,
        "heldout": data.heldout,
        "seed": seed,
        # Of a given tokenizer: its text was checked; folders of versions that did not are not used.
        **({"round_trip": True} if tokenizer and units else {}),
    }


def _prepared_parts(source: Source) -> list[tuple[Path, dict, tuple[str, ...]]]:
    """(folder, manifest, names of sources in it) for each path, if the paths are prepared folders or sources in them; else []."""
    out = []
    for path in source.path:
        place = Path(os.path.expanduser(path)).absolute()
        for folder, only in ((place, None), (place.parent, place.name)):
            if "://" not in path and (folder / "manifest.json").is_file():
                manifest = read_manifest(folder)
                if only is not None and only not in manifest["sources"]:
                    raise UserError(
                        f"data.sources.{source.name}: {folder} has no source '{only}'.{nearest(only, manifest['sources'])}"
                    )
                out.append((folder, manifest, (only,) if only else tuple(manifest["sources"])))
                break
    for folder, manifest, names in out:
        for name in names:
            check_shards(manifest["sources"][name], folder)
            stored = manifest["sources"][name].get(
                "score", ""
            )  # folders of versions without scores do not say
            if source.score_field not in ("", stored):
                raise UserError(
                    f"data.sources.{source.name}.score is '{source.score}', but {folder / name} was prepared with "
                    f"{f'the score {stored!r}' if stored else 'no score'}; prepare its text again with this score."
                )
    if out and (len(out) < len(source.path) or source.heldout):
        raise UserError(
            f"data.sources.{source.name} mixes prepared folders with text; give each a name of its own."
        )
    return out


def _given_tokenizer(data: Any, shards: dict) -> Tokenizer | None:
    tokenizer = load_tokenizer(data.tokenizer) if data.tokenizer else None
    origin = data.tokenizer
    for name, parts in shards.items():
        for folder, manifest, _ in parts:
            if tokenizer is None:
                tokenizer, origin = load_tokenizer(folder / "tokenizer.json"), str(folder)
            if tokenizer.sha256 != manifest["tokenizer"]["sha256"]:
                raise UserError(
                    f"data.sources.{name}: {folder} was prepared with another tokenizer than {origin}; use the same for both."
                )
    return tokenizer


def _identities(
    units: list[PreparationUnit], cache: Path, processes: int, host: tuple[int, int], *rest: Any
) -> dict[SourceFile, str]:
    progress, say, timeout = rest
    entries: dict[Path, tuple[list[SourceFile], Source]] = {}
    for unit in units:
        if files := [file for file in unit.files if not file.remote]:
            rows = "\n".join(f"{file.path}\n{file.size}\n{file.version}" for file in files)
            tag = hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()
            entries[cache / ".identity" / tag[:32]] = files, unit.source
    own = (entry for i, entry in enumerate(entries.items()) if i % host[1] == host[0])
    tasks = [
        (sum(f.size for f in of[0]), (*of, entry))
        for entry, of in own
        if not _is_identity(entry, len(of[0]))
    ]
    few = sum(size for size, _ in tasks) < 50 * IN_PROCESS_BYTES
    run_units(passes.content_hash, tasks, 1 if few else processes, stage="hash", progress=progress)
    owners = {entry: i % host[1] for i, entry in enumerate(entries)}
    wait_for(owners, timeout=timeout, what="hash the text", say=say)
    found = {file: file.version for unit in units for file in unit.files}
    for entry, (files, _) in entries.items():
        found |= zip(files, entry.read_text().split("\n"), strict=True)
    return found


def _is_identity(entry: Path, files: int) -> bool:
    return (
        entry.exists()
        and re.fullmatch(rb"[0-9a-f]{64}(\n[0-9a-f]{64}){%d}" % (files - 1), entry.read_bytes())
        is not None
    )


def _open(plan: PreparationPlan) -> Prepared:
    manifest, tokenizer = read_manifest(plan.folder), load_tokenizer(plan.folder / "tokenizer.json")

    def shard_set(source: Source, kind: str) -> ShardSet:
        parts = plan.shards.get(source.name) or [(plan.folder, manifest, (source.name,))]
        found = [
            (Shard(**e), str(folder))
            for folder, m, names in parts
            for name in names
            for e in m["sources"][name][kind]
        ]
        shards, folders = [shard for shard, _ in found], [folder for _, folder in found]
        return ShardSet(shards, folders, vocab_size=tokenizer.vocab_size, salt=tokenizer.sha256)

    train = {source.name: shard_set(source, "shards") for source in plan.sources}
    heldout = {source.name: shard_set(source, "heldout_shards") for source in plan.sources}
    prints = [
        tokenizer.sha256,
        *((name, train[name].fingerprint, heldout[name].fingerprint) for name in train),
    ]
    return Prepared(
        plan.folder,
        manifest,
        tokenizer,
        train,
        heldout,
        hashlib.sha256(json.dumps(prints).encode()).hexdigest(),
    )
