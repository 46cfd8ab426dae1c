"""Parse what a user types for data.sources into named sources."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from slmjax.errors import UserError, nearest
from slmjax.text.records import KINDS, SEQIO, TEXT, Source
from slmjax.text.source_files import SUPPORTED
from slmjax.text.walk import printable

EXPECTED = "expected name=path, where path is a file, folder or pattern"
# Prepared text has these files next to the folders of its sources, so no source can have the name.
RESERVED = ("manifest.json", "tokenizer.json")
# Scores over all sources have these names in metrics and reports.
OVER_ALL = ("preferences", "answers", "total")
LONGEST_NAME = 150  # most characters of a source's name, which becomes part of file names

# A source's name: at least one character is no dot, so that no name is "." or "..".
_NAME = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# "name=path" and "name:weight=path"
_NAMED = re.compile(r"([^/=:*?\[\]]+)(?::([^/=:]*))?=(.*)")
# The supported endings of a file, one or several, as in "a.jsonl.xz".
_ENDINGS = re.compile(r"(\.(txt|jsonl|parquet|gz|xz|zst))+$")


def parse_sources(value: Any) -> tuple[Source, ...]:
    """Return the sources of whatever a user may type.

    Args:
      value: "books:0.7=~/books,web=data/*.jsonl.xz", a bare path, {name: path or {path, weight,
        ...}} with the fields of Source, or Sources. A SeqIO mixture (seqio://MODULE/NAME) gives a
        source for each of its tasks.
    Raises: UserError for an unknown field, a bad or repeated name, a missing path, or a weight or
      max_epochs that is not a positive number, or a fraction above 1.
    """
    if isinstance(value, str) and value and not value.strip():
        raise UserError(f"data.sources is blank; {EXPECTED}.")
    if not value:
        return ()
    sources: list[Source] = []
    for source in _named_sources(value):
        sources += _split_mixture(source)
    # A run on text alone has no such scores.
    has_conversations = any(source.kind != TEXT for source in sources)
    # Checked last, since a mixture's tasks bring names of their own.
    names = [source.name for source in sources]
    for name in names:
        _check_name(name, names)
        if has_conversations and name in OVER_ALL:
            problem = f"'{name}' is the name of scores over all sources"
            raise UserError(f"data.sources: {problem}; give the source another name (name=path).")
    return tuple(sources)


def _named_sources(value: Any) -> list[Source]:
    """Return the sources of a value of any accepted type, with named mixtures still whole."""
    if isinstance(value, (str, os.PathLike)):
        return _from_text(str(value))
    # A dict, or the ConfigDict of a recipe.
    if hasattr(value, "items"):
        return [_from_entry(str(name), entry) for name, entry in value.items()]
    if not isinstance(value, (list, tuple)):
        raise UserError(f"data.sources is {value!r}; {EXPECTED}.")
    sources: list[Source] = []
    for item in value:
        if isinstance(item, Source):
            sources.append(item)
        else:
            sources += _from_text(str(item))
    return sources


def _check_name(name: str, names: Sequence[str]) -> None:
    """Refuse a name that is repeated in `names` or cannot name files. Raises: UserError."""
    if names.count(name) > 1:
        advice = "give each its own name (name=path)"
        raise UserError(f"data.sources: two sources are named '{name}'; {advice}.")
    if not _NAME.fullmatch(name):
        advice = "use letters, digits, '_', '-' and '.'"
        raise UserError(f"data.sources: '{name}' is no name; {advice}.")
    if len(name) > LONGEST_NAME:
        problem = f"'{name[:40]}...' has {len(name)} characters"
        raise UserError(f"data.sources: {problem}; give it a shorter name (name=path).")
    # Prepared text keeps each source in a folder of its name, next to RESERVED and to half-written
    # files, which begin with .tmp-.
    if name in RESERVED or name.startswith(".tmp-"):
        problem = f"'{name}' is a file of prepared text"
        raise UserError(f"data.sources: {problem}; give the source another name (name=path).")


def _from_text(text: str) -> list[Source]:
    """Return the sources of "name:weight=path,name=path,path"."""
    # A path may hold a comma or an equals sign: text that exists as a path is one path.
    if text and _exists(text):
        return _unnamed(text)
    sources: list[Source] = []
    for piece in text.split(","):
        piece = piece.strip()
        if not piece:
            problem = f"'{printable(text)}' has an empty part"
            raise UserError(f"data.sources: {problem}; expected name=path or a path.")
        # A piece with "/" before its "=" does not match: it is a path alone.
        named = _NAMED.match(piece)
        if not named:
            sources += _unnamed(piece)
            continue
        name, weight, path = named.groups()
        entry = {"path": path}
        if weight is not None:
            entry["weight"] = weight
        sources.append(_from_entry(name.strip(), entry))
    return sources


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        # The text is too long for a path, names an unknown user, or lies in an unreadable folder.
        return False


def _unnamed(path: str) -> list[Source]:
    """Return the sources of a path without a name.

    A prepared folder gives each of its sources, and a SeqIO task or mixture names itself. Any other
    path is one source, named after its last piece.
    """
    if path.startswith(SEQIO):
        return _split_mixture(Source("", (path,)))
    manifest = Path(os.path.expanduser(path)) / "manifest.json"
    if "://" not in path and manifest.is_file():
        names = _prepared_names(manifest)
        if names:
            return [Source(name, (os.path.join(path, name),)) for name in names]
    return [Source(_name_of_path(path), (path,))]


def _name_of_path(path: str) -> str:
    """Return the last piece of a path that can be made a name, without its endings; else "text"."""
    # ".", ".." and "../.." are named after the folder that they lead to.
    if path.strip("./") == "":
        path = os.path.abspath(path)
    for piece in reversed(re.split(r"[/\\]+", path)):
        stem = _ENDINGS.sub("", piece)
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")
        if name:
            return name
    return "text"


def _prepared_names(manifest: Path) -> list[str]:
    """Return the names of a prepared folder's sources; none where the manifest is not slmjax's."""
    try:
        content = json.loads(manifest.read_text())
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(content, dict) or not isinstance(content.get("sources"), dict):
        return []
    return list(content["sources"])


def _split_mixture(source: Source) -> list[Source]:
    """Return the source, or those of the SeqIO mixture that it names."""
    if not any(path.startswith(SEQIO) for path in source.path):
        return [source]
    # Imported late: seqio brings TensorFlow, which takes seconds.
    from slmjax.text.seqio_source import split_mixture

    return split_mixture(source)


def _from_entry(name: str, entry: Any) -> Source:
    """Return the source of one entry: a Source, a mapping of its fields, or a path.

    Raises: UserError that names the field.
    """
    if isinstance(entry, Source):
        return replace(entry, name=name)
    if not hasattr(entry, "items"):
        entry = {"path": entry}
    entry = dict(entry.items())
    where = f"data.sources.{name}"
    _check_fields(entry, where)
    weight = _positive(entry, "weight", where, or_zero=True)
    max_epochs = _positive(entry, "max_epochs", where)
    fraction = _positive(entry, "fraction", where) or 1.0
    if fraction > 1:
        raise UserError(f"{where}.fraction is {fraction:g}; expected a number above 0, at most 1.")
    path = _paths(entry.get("path"), f"{where}.path")
    if not path:
        expected = f"expected a file, folder or pattern of {SUPPORTED}"
        raise UserError(f"{where}: path is missing; {expected}.")
    if entry.get("field") == "":
        expected = "expected the name of a field or column, such as text"
        raise UserError(f"{where}.field is empty; {expected}.")
    heldout, heldout_share = _heldout(entry.get("heldout"), f"{where}.heldout")
    kind = str(entry.get("kind") or TEXT)
    if kind not in KINDS:
        expected = f"expected one of {', '.join(KINDS)}"
        raise UserError(f"{where}.kind is '{kind}'; {expected}.{nearest(kind, KINDS)}")
    if kind != TEXT:
        _check_conversations(entry, kind, where)
    if entry.get("score") == "-":
        expected = "expected the name of a field that holds a number, such as -quality"
        raise UserError(f"{where}.score is '-'; {expected}.")
    return Source(
        name,
        path,
        weight,
        field=str(entry.get("field") or "text"),
        revision=str(entry.get("revision") or ""),
        heldout=heldout,
        max_epochs=max_epochs,
        fraction=fraction,
        score=str(entry.get("score") or ""),
        reader=str(entry.get("reader") or ""),
        kind=kind,
        heldout_share=heldout_share,
    )


def _check_conversations(entry: Mapping, kind: str, where: str) -> None:
    """Refuse fields that mean nothing for dialogues and pairs. Raises: UserError."""
    reasons = {
        "field": "its records have fields of their own",
        "score": "its documents have no order",
    }
    for field, reason in reasons.items():
        # A saved config has the default of `field`.
        default = "text" if field == "field" else ""
        if entry.get(field) not in (None, "", default):
            raise UserError(
                f"{where}.{field} is '{entry[field]}', but a source of the kind '{kind}' has none: "
                f"{reason}."
            )


def _heldout(value: Any, where: str) -> tuple[tuple[str, ...], float | None]:
    """Return (held-out files, held-out share), of which a user gives one or the other.

    Raises: UserError for a share that is not from 0 to below 1, and for anything that is no path.
    """
    # An integer may be the name of a folder, such as 2024; 0 and 1 are read as shares.
    is_share = isinstance(value, float) or value in (0, 1)
    if not is_share:
        return _paths(value, where), None
    # NaN is refused too.
    if not 0 <= value < 1:
        raise UserError(f"{where} is {value}; expected files, or a share from 0 to below 1.")
    return (), float(value)


def _check_fields(entry: Mapping, where: str) -> None:
    """Refuse a field that Source does not have. Raises: UserError."""
    # The name is the entry's key, and a share is written as `heldout`.
    internal = ("name", "heldout_share")
    known = [field.name for field in fields(Source) if field.name not in internal]
    for field in entry:
        if field not in known:
            close = nearest(str(field), known)
            names = ", ".join(known)
            raise UserError(f"{where}: there is no field '{field}' (fields: {names}).{close}")


def _positive(entry: Mapping, field: str, where: str, *, or_zero: bool = False) -> float | None:
    """Return a field as a positive number, or 0 where that is allowed; None where it is not given.

    Raises: UserError where it is anything else.
    """
    value = entry.get(field)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0  # refused below
    expected = "a positive number"
    if or_zero:
        expected = "a number of 0 or more"
    is_allowed_zero = or_zero and number == 0
    # NaN is refused too: it fails both comparisons.
    if not is_allowed_zero and not 0 < number < float("inf"):
        raise UserError(f"{where}.{field} is {value!r}; expected {expected}.")
    return number


def _paths(value: Any, where: str) -> tuple[str, ...]:
    """Return paths as a user may give them: none, one, or a list.

    Raises: UserError for a blank path, and for a value of another type.
    """
    if value is None or value == "":
        return ()
    values = value if isinstance(value, (list, tuple)) else [value]
    for path in values:
        # The command line turns a folder named 2024 into an integer.
        is_number = isinstance(path, int) and not isinstance(path, bool)
        is_path = is_number or isinstance(path, (str, os.PathLike))
        if not is_path or not str(path).strip():
            raise UserError(f"{where} is {value!r}; expected a path or a list of paths.")
    return tuple(map(str, values))
