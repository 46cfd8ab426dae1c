"""From config.data to the plan of a preparation: what is to be prepared, in which folder."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slmjax.data.content_identity import file_identities
from slmjax.data.jobs import PreparationUnit, units_of
from slmjax.data.manifest import FORMAT, check_shards, read_manifest
from slmjax.data.preparation_plan import Crew, PreparationPlan, PreparedPart, text_size
from slmjax.errors import UserError, nearest
from slmjax.text.chat_documents import CHAT_FORMAT
from slmjax.text.chat_template import chat_ids
from slmjax.text.document_checks import grouping
from slmjax.text.own_reader import reader_identity
from slmjax.text.records import TEXT, Source, SourceFile
from slmjax.text.source_files import list_files
from slmjax.text.sources import parse_sources
from slmjax.text.tokenizer import EOT, Tokenizer, load_tokenizer

# Characters of a folder's name: at most so many for the names of its sources, and so many of the
# hash of its settings.
NAMES_LENGTH = 40
DIGEST_LENGTH = 12


def plan_preparation(
    data: Any, *, seed: int, cache: Path, special: tuple[str, ...], crew: Crew
) -> PreparationPlan:
    """Return the plan of a preparation, see `prepare` for the arguments.

    Raises: UserError for sources, tokenizer or grouping that cannot be used.
    """
    sources = parse_sources(data.sources)
    if not sources:
        raise UserError(
            "data.sources is empty; expected name=path, where path is a file, folder or pattern."
        )
    # Called for its error: the expression may not compile.
    grouping(data.group_by)
    # The parts of the sources that are prepared already, in other folders.
    prepared_parts = {}
    for source in sources:
        parts = _prepared_parts(source)
        if parts:
            prepared_parts[source.name] = parts
    tokenizer = _given_tokenizer(data, prepared_parts)
    if tokenizer and any(source.kind != TEXT for source in sources):
        # Before hours of reading: it must have the ids that mark turns.
        chat_ids(tokenizer)
    text_sources = [source for source in sources if source.name not in prepared_parts]
    units = _units(text_sources, crew.say)
    # The number of processes depends on the size of the text.
    crew = crew.sized(text_size(units))
    identities = file_identities(units, cache, crew)
    source_settings = {}
    for source in sources:
        parts = prepared_parts.get(source.name, ())
        source_settings[source.name] = _source_settings(source, units, identities, parts)
    tokenizer_setting = _trained_tokenizer(data, special)
    if tokenizer:
        tokenizer_setting = tokenizer.sha256
    settings = {
        "format": FORMAT,
        "sources": source_settings,
        "tokenizer": tokenizer_setting,
        "group_by": data.group_by,
        "heldout": data.heldout,
        "seed": seed,
    }
    if tokenizer and units:
        # This version tests a given tokenizer on the text. The setting gives the folder another
        # name, so that folders of versions without the test are not reused.
        settings["round_trip"] = True
    return PreparationPlan(
        data=data,
        seed=seed,
        sources=sources,
        prepared_parts=prepared_parts,
        units=tuple(units),
        settings=settings,
        folder=cache / _folder_name(sources, settings),
        tokenizer=tokenizer,
        special=special,
        crew=crew,
    )


def _folder_name(sources: Sequence[Source], settings: dict) -> str:
    # The names are for people; the digest makes the folder's name unique.
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    names = "-".join(source.name for source in sources)
    return f"{names[:NAMES_LENGTH].rstrip('-.')}-{digest[:DIGEST_LENGTH]}"


def _source_settings(
    source: Source,
    units: Sequence[PreparationUnit],
    identities: dict[SourceFile, str],
    parts: Sequence[PreparedPart],
) -> dict[str, Any]:
    """Return everything about a source that decides what the folder holds.

    Args:
      identities: see `file_identities`.
      parts: of a source that is prepared already; else empty.
    """
    files: dict[str, list] = {"train": [], "heldout": []}
    for unit in units:
        if unit.source.name == source.name:
            files[unit.split] += [[file.name, file.size, identities[file]] for file in unit.files]
    settings = {
        "field": source.field,
        "train": files["train"],
        "heldout": files["heldout"],
        "prepared": [[manifest["fingerprint"], *names] for _, manifest, names in parts],
    }
    # Fields of later versions are left out where they are empty: folders of earlier versions, whose
    # settings have no such fields, are then found.
    if source.score_field:
        settings["score"] = source.score_field
    if source.reader:
        settings["reader"] = reader_identity(source)
    if source.kind != TEXT:
        settings["kind"] = [source.kind, CHAT_FORMAT]
    if source.heldout_share is not None:
        settings["heldout_share"] = source.heldout_share
    return settings


def _trained_tokenizer(data: Any, special: tuple[str, ...]) -> str:
    """Return a description of the tokenizer that is trained."""
    description = f"byte-level BPE of {data.vocab_size}"
    # Folders that were prepared before there were other special tokens than EOT have this
    # description without them.
    if special != (EOT,):
        description += f" with {' '.join(special)}"
    return description


def _units(sources: Sequence[Source], say: Callable[[str], None]) -> list[PreparationUnit]:
    """Return the units of all sources of text, in the order in which hosts share them."""
    units = []
    # By name, so that the order in which the config lists sources does not matter.
    for source in sorted(sources, key=lambda source: source.name):
        units += _units_of_source(source, say)
    return units


def _units_of_source(source: Source, say: Callable[[str], None]) -> list[PreparationUnit]:
    """Return the units of a source: those to train on, then its own held-out files."""
    # The source's held-out files as a source. Held-out documents are read in their own order, so
    # they need no score.
    heldout_source = replace(source, path=source.heldout, heldout=(), score="")
    heldout_files = ()
    if heldout_source.path:
        # An error about these files names the field data.sources.NAME.heldout.
        named = replace(heldout_source, name=f"{source.name}.heldout")
        heldout_files = list_files(named, say)
    train_files = _without_heldout(list_files(source, say), heldout_files, source, say)
    train = units_of(source, train_files, "train")
    return train + units_of(heldout_source, heldout_files, "heldout")


def _without_heldout(
    files: Sequence[SourceFile],
    heldout: Sequence[SourceFile],
    source: Source,
    say: Callable[[str], None],
) -> list[SourceFile]:
    """Return the files of a source without those in `heldout`, which may lie in the same folder.

    Raises: UserError where no file remains.
    """
    # By real paths: the same file may be reached through a link.
    heldout_paths = {os.path.realpath(file.path) for file in heldout}
    train = [file for file in files if os.path.realpath(file.path) not in heldout_paths]
    if not train:
        raise UserError(
            f"data.sources.{source.name}: each of its files is held out too, "
            "so there is nothing to train on."
        )
    if len(train) < len(files):
        names = sorted(file.name for file in set(files) - set(train))
        listed = ", ".join(names[:3])
        if len(names) > 3:
            listed += f" and {len(names) - 3} more"
        say(f"data.sources.{source.name}: not trained on, as held out: {listed}")
    return train


def _prepared_parts(source: Source) -> list[PreparedPart]:
    """Return the prepared folder, or source in it, that each path of a source names.

    Empty for paths of text.
    Raises: UserError for shards that are missing or damaged, another score than the source asks
      for, and a source that has both prepared folders and text.
    """
    parts = []
    for path in source.path:
        part = _prepared_part(source, path)
        if part:
            parts.append(part)
    for folder, manifest, names in parts:
        for name in names:
            check_shards(manifest["sources"][name], folder)
            _check_score(source, folder / name, manifest["sources"][name])
            _check_kind(source, folder / name, manifest["sources"][name])
    if parts and (len(parts) < len(source.path) or source.heldout):
        raise UserError(
            f"data.sources.{source.name} mixes prepared folders with text; "
            "give each a name of its own."
        )
    return parts


def _prepared_part(source: Source, path: str) -> PreparedPart | None:
    """Return the prepared folder that a path names, with all its sources; None for text.

    The path may also be the folder of one source in a prepared folder: then with this source alone.
    """
    if "://" in path:
        return None
    place = Path(os.path.expanduser(path)).absolute()
    if (place / "manifest.json").is_file():
        manifest = read_manifest(place)
        return place, manifest, tuple(manifest["sources"])
    folder = place.parent
    if not (folder / "manifest.json").is_file():
        return None
    manifest = read_manifest(folder)
    if place.name not in manifest["sources"]:
        raise UserError(
            f"data.sources.{source.name}: {folder} has no source '{place.name}'."
            f"{nearest(place.name, manifest['sources'])}"
        )
    return folder, manifest, (place.name,)


def _check_score(source: Source, place: Path, entry: dict) -> None:
    """Check that a prepared source has the score that is asked for.

    Args:
      place: folder of the prepared source.
      entry: of the prepared source in its manifest.
    Raises: UserError where it has another score or none.
    """
    # Manifests of versions without scores have no such field.
    stored = entry.get("score", "")
    if source.score_field in ("", stored):
        return
    description = f"the score {stored!r}" if stored else "no score"
    raise UserError(
        f"data.sources.{source.name}.score is '{source.score}', but {place} was prepared with "
        f"{description}; prepare its text again with this score."
    )


def _check_kind(source: Source, place: Path, entry: dict) -> None:
    """Check that a prepared source is of the kind that the config names.

    Args:
      entry: of the prepared source in its manifest.
    Raises: UserError where it is of another kind.
    """
    stored = entry.get("kind", TEXT)
    if stored != source.kind:
        raise UserError(
            f"data.sources.{source.name}.kind is '{source.kind}', but {place} was prepared as "
            f"'{stored}'."
        )


def _given_tokenizer(data: Any, prepared_parts: dict[str, list[PreparedPart]]) -> Tokenizer | None:
    """Return the tokenizer of the config, or else of the prepared folders; None: train one.

    Raises: UserError where a folder was prepared with another tokenizer.
    """
    tokenizer = None
    origin = data.tokenizer  # where the tokenizer comes from, for the error
    if origin:
        tokenizer = load_tokenizer(origin)
    for name, parts in prepared_parts.items():
        for folder, manifest, _ in parts:
            # Without a tokenizer in the config, all folders must have that of the first.
            if tokenizer is None:
                tokenizer = load_tokenizer(folder / "tokenizer.json")
                origin = str(folder)
            if tokenizer.sha256 != manifest["tokenizer"]["sha256"]:
                raise UserError(
                    f"data.sources.{name}: {folder} was prepared with another tokenizer than "
                    f"{origin}; use the same for both."
                )
    return tokenizer
