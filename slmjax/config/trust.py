"""The code that a config names, and whether the user allows it to be imported."""

import dataclasses
import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from slmjax.config.groups import Config
from slmjax.errors import UserError

# How the path of a SeqIO task begins.
SEQIO = "seqio://"
# No options, or only a runner of Beam's own: one with a dot would be imported from its module.
HARMLESS_BEAM = re.compile(r"(--runner=\w+)?")


def check_trust(config: ConfigDict | Config, trust: Sequence[str], place: str) -> None:
    """Refuse a config that came with somebody else's files and names code that is not trusted.

    Nothing is imported to find out. Only a recipe or the command line of the user may name code.

    Args:
      trust: names as they are written in the config: "module:Class" of a mixer or task,
        "seqio://module/task" of a source, all of curate.beam.
      place: where the config was read from.
    Raises: UserError that says what would be imported, and from which file.
    """
    for name in named_code(config):
        if name in trust:
            continue
        if name == config.curate.beam:
            action = "Apache Beam, which imports and installs what its options name,"
        else:
            # The first part of "module:Class" or "seqio://module/task".
            module = re.split("[/:]", name.removeprefix(SEQIO), maxsplit=1)[0]
            action = f"importing the module {module} ({_file_of(module)})"
        raise UserError(
            f"'{place}' names '{name}': {action} would run its code. "
            f"If you know that code, allow it with --trust={shlex.quote(name)}."
        )


def named_code(config: ConfigDict | Config) -> list[str]:
    """Return the names in a config that would import a module.

    They are "module:Name" of mixers, channels, the task and sources' readers;
    "seqio://module/task"; and Beam's options.
    """
    values = config.to_dict() if isinstance(config, ConfigDict) else dataclasses.asdict(config)
    candidates = _mixers_and_channels(config)
    candidates.append(_first_word(config.task))
    for source in values["data"]["sources"].values():
        if isinstance(source, dict):
            candidates.append(source.get("reader", ""))
    # Names without a colon are the library's own.
    named = [name for name in candidates if ":" in name]
    # SeqIO's tasks may be named in any field that names text.
    for text in _texts(values):
        # A short form of sources, "name=path, path", whose parts may have blanks around them.
        parts = [part.strip() for part in re.split(r"[,=]", text)]
        named += [part for part in parts if part.startswith(SEQIO)]
    if not HARMLESS_BEAM.fullmatch(config.curate.beam):
        named.append(config.curate.beam)
    return list(dict.fromkeys(named))


def _mixers_and_channels(config: ConfigDict | Config) -> list[str]:
    names = []
    for block in (*_texts(config.model.pattern), *_texts(config.study.variants)):
        # "mixer+channel option=value": the options name no code.
        names += _first_word(block).split("+")
    return names


def _first_word(text: str) -> str:
    words = text.split()
    return words[0] if words else ""


def _texts(value: Any) -> Iterator[str]:
    """Yield every string in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, ConfigDict | dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _file_of(module: str) -> str:
    """Return where a module's first package would be imported from, without importing it."""
    package = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        # It cannot be the name of a module, or its package cannot be searched.
        spec = None
    if spec is None:
        return "not found here"
    # A folder without __init__.py has no file of its own.
    return spec.origin or ", ".join(spec.submodule_search_locations or ["built in"])
