"""The identity of each file's content: a hash that is remembered in the cache.

Sizes and mtimes would not do: the mtimes of the same text differ between machines. Hashing costs a
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

# {path of an entry in the cache: (the unit's local files, the unit's source)}
Entries = dict[Path, tuple[list[SourceFile], Source]]


def file_identities(
    units: Sequence[PreparationUnit], cache: Path, crew: Crew
) -> dict[SourceFile, str]:
    """Return the identity of every file: the SHA-256 of a local one, the version of a remote one.

    A unit's hashes are kept in an entry of the cache, a file named by a hash of the paths, sizes
    and mtimes of the unit's files. So files are hashed once, and again only after a change.
    """
    entries = _entries(units, cache)
    _hash_missing(entries, crew)
    host_of_entry = {}
    for number, entry in enumerate(entries):
        host_of_entry[entry] = number % crew.hosts
    wait_for(host_of_entry, timeout=crew.timeout, what="hash the text", say=crew.say)
    identities = {}
    for unit in units:
        for file in unit.files:
            # The version of a local file is its mtime; the hash replaces it below.
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
        digest = hashlib.sha256(content).hexdigest()
        entries[cache / ".identity" / digest[:32]] = files, unit.source
    return entries


def _hash_missing(entries: Entries, crew: Crew) -> None:
    """Write the missing entries that are this host's to write."""
    tasks = []
    total = 0
    for number, (entry, (files, source)) in enumerate(entries.items()):
        is_of_other_host = number % crew.hosts != crew.host
        if is_of_other_host or _is_written(entry, len(files)):
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
