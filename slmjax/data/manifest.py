"""The manifest of a prepared folder: what it must hold, and whether the folder is as it says."""

import hashlib
import json
from pathlib import Path
from typing import Any

from slmjax.data.shard_files import Shard
from slmjax.errors import UserError

# Of manifests and shards: raised when a folder of an earlier version cannot be read any more.
FORMAT = 2


def read_manifest(folder: Path) -> dict:
    """Return the manifest of a prepared folder.

    Raises: UserError where it cannot be read, has another format or is damaged.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete the folder and prepare again."
        ) from error
    stored = None
    if isinstance(manifest, dict):
        stored = manifest.get("format")
    if stored != FORMAT:
        raise UserError(
            f"{path} has format {stored}; expected {FORMAT}: delete the folder and prepare again."
        )
    if not _is_complete(manifest):
        raise UserError(f"{path} is damaged; delete the folder and prepare again.")
    return manifest


def check_shards(source: dict, folder: Path) -> None:
    """Check the shards of a prepared source, given as its entry in the manifest.

    Raises: UserError where one is missing or damaged.
    """
    broken = _broken_shard(source, folder)
    if broken:
        raise UserError(
            f"{broken} is missing or damaged; delete {folder} and prepare its text again."
        )


def broken_file(folder: Path, names: list[str], settings: dict) -> str:
    """Return the first file of a folder that is not as it was written; "" where all are.

    Args:
      names: of the sources that it must hold, in order.
      settings: that it was prepared with.
    """
    manifest_path = str(folder / "manifest.json")
    try:
        manifest = read_manifest(folder)
    except UserError:
        return manifest_path
    # What is hashed below are the plan's settings: the manifest's own names are compared here.
    sources = manifest["sources"]
    if list(sources) != names:
        return manifest_path
    tokenizer = manifest["tokenizer"]["sha256"]
    if manifest["fingerprint"] != prepared_fingerprint(settings, tokenizer, sources):
        return manifest_path
    if _text_hash(folder / "tokenizer.json") != tokenizer:
        return str(folder / "tokenizer.json")
    for source in sources.values():
        broken = _broken_shard(source, folder)
        if broken:
            return broken
    return ""


def prepared_fingerprint(settings: dict, tokenizer: str, sources: dict[str, dict]) -> str:
    """Return a hash of the settings and of everything that was prepared with them.

    Args:
      tokenizer: its SHA-256.
      sources: as the manifest has them.
    """
    # Hashes of tables: a table has the content hash of every document.
    digests = []
    for source in sources.values():
        for shard in _shards_of(source):
            digests += shard.prints
    content = json.dumps([tokenizer, settings, digests], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _shards_of(source: dict) -> list[Shard]:
    """Return the shards of a source's entry: those for training, then those held out."""
    entries = source["shards"] + source["heldout_shards"]
    return [Shard(**entry) for entry in entries]


def _broken_shard(source: dict, folder: Path) -> str:
    """Return the first file of a source that is not as the manifest says; "" where all are."""
    for shard in _shards_of(source):
        fault = shard.fault(folder)
        if fault:
            return fault
    return ""


def _text_hash(path: Path) -> str:
    """Return the SHA-256 of a text file, as a Tokenizer has it; "" where it cannot be read."""
    try:
        return hashlib.sha256(path.read_text().encode()).hexdigest()
    except (OSError, ValueError):
        return ""


def _is_complete(manifest: dict) -> bool:
    """Whether all that is read from a manifest is there, with the right types."""
    # Somebody may have edited the file: reading on with a value of another type would fail much
    # later, with an error that names no file.
    try:
        texts: list[Any] = [manifest["fingerprint"], manifest["tokenizer"]["sha256"]]
        texts += manifest["warnings"]
        numbers: list[Any] = []
        for source in manifest["sources"].values():
            for shard in _shards_of(source):
                texts += [shard.path, shard.file, shard.sha256]
                numbers += [shard.documents, shard.tokens, shard.bytes, shard.size]
                for file, documents, digest in shard.parts:
                    texts += [file, digest]
                    numbers.append(documents)
            for report in (source, *source.get("heldout_files", ())):
                numbers += [report[field] for field in ("lines", "documents", "damaged", "size")]
                numbers += report["faults"].values()
                texts += report["first_faults"]
            numbers.append(source["removed"]["documents"])
            # Sources that were prepared before there were scores have no such field.
            texts.append(source.get("score", ""))
            if not isinstance(source["removed"]["bytes_share"], int | float):
                return False
    except (KeyError, TypeError, AttributeError, ValueError):
        return False
    # Not isinstance: a bool is an int in Python, but no count.
    numbers_are_whole = all(type(number) is int for number in numbers)
    return numbers_are_whole and all(isinstance(text, str) for text in texts)
