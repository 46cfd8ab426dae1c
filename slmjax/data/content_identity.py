"""The identity of each file's content: a hash that is remembered in the cache.

Sizes and mtimes alone would differ between machines that hold the same text, and hashing costs a
hundredth of tokenizing.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from slmjax.data import passes
from slmjax.data.jobs import PreparationUnit
from slmjax.data.preparation_plan import Crew
from slmjax.text.records import Source, SourceFile
from slmjax.text.units import run_units, wait_for

# With fewer bytes to hash, starting processes takes longer than hashing in this one.
IN_PROCESS_HASHED = 400_000_000

# {path in the cache of a unit's hashes: (its local files, its source)}
Entries = dict[Path, tuple[list[SourceFile], Source]]


def file_identities(
    units: Sequence[PreparationUnit], cache: Path, crew: Crew
) -> dict[SourceFile, str]:
    """Return the identity of every file: the SHA-256 of a local one, the version of a remote one.

    The hashes of a unit's files are an entry in the cache. Its name is a hash of their paths, sizes
    and mtimes, so an unchanged file is hashed once.
    """
    entries = _entries(units, cache)
    _hash_missing(entries, crew)
    # The host that writes each entry.
    owners = {}
    for number, entry in enumerate(entries):
        owners[entry] = number % crew.hosts
    wait_for(owners, timeout=crew.timeout, what="hash the text", say=crew.say)
    identities = {}
    for unit in units:
        for file in unit.files:
            # Of a local file this is its mtime, which a hash replaces below.
            identities[file] = file.version
    for entry, (files, _) in entries.items():
        digests = entry.read_text().split("\n")
        identities.update(zip(files, digests, strict=True))
    return identities


def _entries(units: Sequence[PreparationUnit], cache: Path) -> Entries:
    """Return the entries of all units that have local files."""
    entries = {}
    for unit in units:
        files = [file for file in unit.files if not file.remote]
        if not files:
            continue
        rows = "\n".join(f"{file.path}\n{file.size}\n{file.version}" for file in files)
        # Names of files need not be UTF-8.
        content = rows.encode("utf-8", "surrogateescape")
        tag = hashlib.sha256(content).hexdigest()
        entries[cache / ".identity" / tag[:32]] = files, unit.source
    return entries


def _hash_missing(entries: Entries, crew: Crew) -> None:
    """Write those of this host's entries that are not there."""
    tasks = []
    total = 0
    for number, (entry, (files, source)) in enumerate(entries.items()):
        is_elsewhere = number % crew.hosts != crew.host
        if is_elsewhere or _is_written(entry, len(files)):
            continue
        size = sum(file.size for file in files)
        total += size
        tasks.append((size, (files, source, entry)))
    processes = crew.processes
    if total < IN_PROCESS_HASHED:
        processes = 1
    run_units(
        passes.content_hash,
        tasks,
        processes,
        stage="hash",
        progress=crew.progress,
    )


def _is_written(entry: Path, file_count: int) -> bool:
    """Whether an entry holds one SHA-256 for each of its unit's files."""
    if not entry.exists():
        return False
    pattern = rb"[0-9a-f]{64}(\n[0-9a-f]{64}){%d}" % (file_count - 1)
    return re.fullmatch(pattern, entry.read_bytes()) is not None
