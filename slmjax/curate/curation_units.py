"""The units of work of the stage `curate`, and the folder of work that all of them share."""

import hashlib
import json
from collections.abc import Sequence

from etils import epath

from slmjax.curate.clean import CurationUnit
from slmjax.curate.curate_settings import (
    Settings,
    refuse_rules_of_conversations,
    refuse_unknown_sources,
    rules_of,
    scheme_of,
)
from slmjax.curate.decontaminate import EvalIndex, build_index
from slmjax.curate.eval_items import EvalSets, eval_files
from slmjax.curate.index import FORMAT
from slmjax.errors import UserError
from slmjax.text.chat_documents import CHAT_FORMAT
from slmjax.text.files import write_atomic
from slmjax.text.own_reader import reader_identity
from slmjax.text.records import TEXT, Source, SourceFile
from slmjax.text.source_files import bundles, list_files

SourcesWithFiles = Sequence[tuple[Source, Sequence[SourceFile]]]

# Settings that the content of `work` depends on.
DECIDING = ("rules", "languages", "evals", "ngram", "bands", "rows", "samples")


def curation_units(
    settings: Settings, sources: Sequence[Source], work: epath.Path
) -> list[CurationUnit]:
    """Return the units over the files of all sources, and write to `work` what they share.

    Files in `work` of an earlier run with other settings or other text are removed.

    Raises: UserError for settings that name an unknown source, for rules of running text that are
      named for a source of dialogues or pairs, and for an evaluation set that cannot be looked for.
    """
    refuse_unknown_sources(settings, [source.name for source in sources])
    refuse_rules_of_conversations(settings, sources)
    # Listed once: files that appear later belong to the next run.
    listed = [(source, list_files(source)) for source in sources]
    index_file = str(work / "evals.npz") if settings["evals"] else ""
    _prepare(work, _key_for(settings, listed), settings["evals"], index_file)
    units = []
    for source, files in listed:
        rules = rules_of(settings, source)
        for first, bundle in bundles(files):
            unit = CurationUnit(
                source=source,
                files=bundle,
                number=first,
                folder=str(work),
                rules=rules,
                scheme=scheme_of(settings),
                evals_file=index_file,
                samples=settings["samples"],
            )
            units.append(unit)
    return units


def work_key(work: epath.Path) -> str:
    """Return the key of `work`: a hash of its settings and files; "" where it has none."""
    file = work / "key"
    if not file.exists():
        return ""
    return file.read_bytes().decode(errors="replace")


def _key_for(settings: Settings, listed: SourcesWithFiles) -> str:
    """Return the key that `work` must have: a hash of everything that decides its content."""
    deciding = {name: settings[name] for name in DECIDING}
    deciding["format"] = FORMAT  # of the sketches
    # A file's version changes with its content, so no file need be read for this.
    versions = []
    for source, files in listed:
        reader = reader_identity(source) if source.reader else []
        kind = []
        if source.kind != TEXT:
            kind = [source.kind, CHAT_FORMAT]
        for file in files:
            content = (file.name, file.size, file.version)
            version = (source.name, source.field, *reader, *kind, *content)
            versions.append(version)
    for name, file in eval_files(settings["evals"]):
        versions.append((name, file.path, file.size, file.version))
    text = json.dumps([deciding, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prepare(work: epath.Path, key: str, sets: EvalSets, index_file: str) -> None:
    """Empty `work` and build the index of evaluation sets, unless it has both for this key.

    Args:
      key: see `work_key`.
      index_file: path of the index; "" without evaluation sets.
    """
    if work_key(work) == key and (not index_file or _can_be_loaded(index_file)):
        return
    if work.exists():
        work.rmtree()
    work.mkdir(parents=True)
    if index_file:
        index = build_index(sets)
        _refuse_undecided(index)
        index.save(index_file)
    # Written last: without it all of `work` is made again.
    write_atomic(work / "key", key)


def _can_be_loaded(index_file: str) -> bool:
    try:
        EvalIndex.load(index_file)
    except UserError:
        return False
    return True


def _refuse_undecided(index: EvalIndex) -> None:
    """Raise a UserError for an evaluation set of which no item would be looked for."""
    for name, (undecided, items) in index.undecided().items():
        if not items:
            raise UserError(f"config.curate.evals.{name}: its files hold no item.")
        if len(undecided) == items:
            raise UserError(
                f"config.curate.evals.{name}: none of its {items} items can be looked for; each is "
                "too short, or too much like the others, to differ from common phrases. Name more "
                "of its fields, or leave the set out."
            )
