"""The manifest of a prepared folder: read it, and check the folder's files against it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from slmjax.data.shard_files import Shard
from slmjax.errors import UserError

# Version of manifests and shards: raised when folders of earlier versions cannot be read any more.
FORMAT = 2


def read_manifest(folder: Path) -> dict:
    """Return the manifest of a prepared folder.

    Raises: UserError where it cannot be read, has another format or lacks a field.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); delete the folder and prepare again."
        ) from error
    version = None
    if isinstance(manifest, dict):
        version = manifest.get("format")
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}; expected {FORMAT}: delete the folder and prepare again."
        )
    # Manifests of versions without a seal have no such field.
    is_sealed = manifest.get("seal", "") in ("", manifest_seal(manifest))
    if not is_sealed or not _is_complete(manifest):
        raise UserError(f"{path} is damaged; delete the folder and prepare again.")
    return manifest


def manifest_seal(manifest: dict) -> str:
    """Return a hash of all fields but "seal" itself, by which a damaged name or number is seen."""
    fields = {name: value for name, value in manifest.items() if name != "seal"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def check_shards(source: dict, folder: Path) -> None:
    """Check the shards of a prepared source.

    Args:
      source: its entry in the manifest.
      folder: the prepared folder.
    Raises: UserError where a shard is missing or damaged.
    """
    broken = _broken_shard(source, folder)
    if broken:
        raise UserError(
            f"{broken} is missing or damaged; delete {folder} and prepare its text again."
        )


def broken_file(folder: Path, names: list[str], settings: dict) -> str:
    """Return the path of the first file that is missing or damaged; "" where there is none.

    Args:
      folder: a prepared folder that has a manifest.
      names: of the sources that it must hold, in order.
      settings: that it must have been prepared with, see `PreparationPlan`.
    """
    manifest_path = str(folder / "manifest.json")
    try:
        manifest = read_manifest(folder)
    except UserError:
        return manifest_path
    sources = manifest["sources"]
    # The fingerprint below does not hash the names in the manifest, so they are compared here.
    if list(sources) != names:
        return manifest_path
    tokenizer_hash = manifest["tokenizer"]["sha256"]
    if manifest["fingerprint"] != prepared_fingerprint(settings, tokenizer_hash, sources):
        return manifest_path
    if _text_hash(folder / "tokenizer.json") != tokenizer_hash:
        return str(folder / "tokenizer.json")
    for source in sources.values():
        broken = _broken_shard(source, folder)
        if broken:
            return broken
    return ""


def prepared_fingerprint(settings: dict, tokenizer_hash: str, sources: dict[str, dict]) -> str:
    """Return a hash of the settings, the tokenizer's SHA-256 and all documents.

    Args:
      sources: their entries in the manifest.
    """
    # Hashes of the shards' tables, which have the content hash of every document.
    digests = []
    for source in sources.values():
        for shard in _shards_of(source):
            digests += shard.prints
    content = json.dumps([tokenizer_hash, settings, digests], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _shards_of(source: dict) -> list[Shard]:
    """Return the shards in a source's entry: those for training, then the held-out ones."""
    entries = source["shards"] + source["heldout_shards"]
    return [Shard(**entry) for entry in entries]


def _broken_shard(source: dict, folder: Path) -> str:
    """Return the path of a source's first missing or damaged file; "" where there is none."""
    for shard in _shards_of(source):
        fault = shard.fault(folder)
        if fault:
            return fault
    return ""


def _text_hash(path: Path) -> str:
    """Return the SHA-256 of a text file; "" where it cannot be read."""
    # Read as text, not bytes: the manifest has the hash of the Tokenizer's text.
    try:
        return hashlib.sha256(path.read_text().encode()).hexdigest()
    except (OSError, ValueError):
        return ""


def _is_complete(manifest: dict) -> bool:
    """Whether a manifest has all fields that are read from it, with the right types."""
    # Somebody may have edited the file. A value of another type would fail much later, with an
    # error that does not name the file.
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
            # A source's entry has the fields of a scan report itself, those of its training files.
            for report in (source, *source.get("heldout_files", ())):
                numbers += [report[field] for field in ("lines", "documents", "damaged", "size")]
                numbers += report["faults"].values()
                texts += report["first_faults"]
            texts += [report["file"] for report in source.get("heldout_files", ())]
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
