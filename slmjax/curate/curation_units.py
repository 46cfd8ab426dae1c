"""The units of work of the stage `curate`, and the folder of work that all of them share."""

import hashlib
import json
from collections.abc import Sequence

from etils import epath

from slmjax.curate.clean import CurationUnit
from slmjax.curate.curate_settings import Settings, refuse_unknown_sources, rules_of, scheme_of
from slmjax.curate.decontaminate import EvalIndex, build_index
from slmjax.curate.index import FORMAT
from slmjax.errors import UserError
from slmjax.text.files import write_atomic
from slmjax.text.records import Source, SourceFile
from slmjax.text.source_files import bundles, list_files

Listed = Sequence[tuple[Source, Sequence[SourceFile]]]  # sources with their files

# Settings that decide what a unit leaves.
DECIDING = ("rules", "languages", "evals", "ngram", "bands", "rows", "samples")


def curation_units(
    asked: Settings, sources: Sequence[Source], work: epath.Path
) -> list[CurationUnit]:
    """Return the units over the files of all sources, and write to `work` what all of them need.

    What an earlier run with other settings or files has left there is removed.

    Raises: UserError for settings that name an unknown source, and for an evaluation set that
      cannot be looked for.
    """
    refuse_unknown_sources(asked, [source.name for source in sources])
    # Listed once: files that appear later belong to the next run.
    listed = [(source, list_files(source)) for source in sources]
    evals = str(work / "evals.npz") if asked["evals"] else ""
    _prepare(work, _identity(asked, listed), asked["evals"], evals)
    units = []
    for source, files in listed:
        rules = rules_of(asked, source.name)
        for number, together in bundles(files):
            unit = CurationUnit(
                source=source,
                files=together,
                number=number,
                folder=str(work),
                rules=rules,
                scheme=scheme_of(asked),
                evals=evals,
                samples=asked["samples"],
            )
            units.append(unit)
    return units


def work_key(work: epath.Path) -> str:
    """Return the identity of the settings and files of `work`; "" where there is none."""
    file = work / "key"
    if not file.exists():
        return ""
    return file.read_bytes().decode(errors="replace")


def _identity(asked: Settings, listed: Listed) -> str:
    """Return a hash of everything that decides the content of `work`."""
    decides = {name: asked[name] for name in DECIDING}
    decides["format"] = FORMAT  # of the sketches
    read = []
    for source, files in listed:
        for file in files:
            # The version changes with the content, so a file need not be read for this.
            read.append((source.name, source.field, file.name, file.size, file.version))
    text = json.dumps([decides, read], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prepare(work: epath.Path, key: str, sets: Settings, evals: str) -> None:
    """Make `work` anew, with the index of evaluation sets, unless it is there already.

    Args:
      key: its identity.
      evals: path of the index; "" without evaluation sets.
    """
    if work_key(work) == key and (not evals or _can_be_loaded(evals)):
        return
    if work.exists():
        work.rmtree()
    work.mkdir(parents=True)
    if evals:
        index = build_index(sets)
        _refuse_undecided(index)
        index.save(evals)
    # Written last: without it all of `work` is made again.
    write_atomic(work / "key", key)


def _can_be_loaded(evals: str) -> bool:
    try:
        EvalIndex.load(evals)
    except UserError:
        return False
    return True


def _refuse_undecided(evals: EvalIndex) -> None:
    """Raise a UserError for an evaluation set of which no item would be looked for."""
    for name, (undecided, items) in evals.undecided().items():
        if not items:
            raise UserError(f"config.curate.evals.{name}: its files hold no item.")
        if len(undecided) == items:
            raise UserError(
                f"config.curate.evals.{name}: none of its {items} items can be looked for; each is "
                "too short, or too much like the others, to differ from common phrases. Name more "
                "of its fields, or leave the set out."
            )
