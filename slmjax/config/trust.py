"""Which code a config names, and whether the user allows it to be imported."""

import dataclasses
import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from slmjax.config.groups import Config
from slmjax.errors import UserError


def check_trust(config: ConfigDict | Config, trust: Sequence[str], place: str) -> None:
    """Refuse a config that came with somebody else's files and names code which the user does not trust.

    Nothing is imported to find out. Only a recipe or the command line of the user may name code.

    Args:
      trust: names as they stand in the config: "module:Class" of a mixer, "seqio://module/task" of a
        source, all of curate.beam.
      place: where the config was read from.
    Raises: UserError that says what would be imported, and from which file.
    """
    for name in named_code(config):
        if name not in trust:
            module = name.removeprefix("seqio://").partition("/")[0].partition(":")[0]
            what = f"importing the module {module} ({_file_of(module)})"
            if name == config.curate.beam:
                what = "Apache Beam, which imports and installs what its options name,"
            raise UserError(
                f"'{place}' names '{name}': {what} would run its code. If you know that code, allow it with --trust={shlex.quote(name)}."
            )


def named_code(config: ConfigDict | Config) -> list[str]:
    """Return what in a config would import a module.

    That is mixers, channels and readers of sources "module:Name", SeqIO's tasks, and Beam's options.
    """
    blocks = [*_texts(config.model.pattern), *_texts(config.study.variants)]
    mixers = [name for block in blocks for name in (block.split() or [""])[0].split("+")]
    found = [mixer for mixer in mixers if ":" in mixer]
    values = config.to_dict() if isinstance(config, ConfigDict) else dataclasses.asdict(config)
    sources = values["data"]["sources"]
    readers = [entry.get("reader", "") for entry in sources.values() if isinstance(entry, dict)]
    found += [reader for reader in readers if ":" in reader]
    for text in _texts(values):
        found += [part for part in re.split(r"[,=]", text) if part.startswith("seqio://")]
    beam = config.curate.beam
    found += [] if re.fullmatch(r"(--runner=\w+)?", beam) else [beam]
    return list(dict.fromkeys(found))


def _texts(value: Any) -> Iterator[str]:
    """Every string in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, ConfigDict | dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _file_of(module: str) -> str:
    """Where the first package of a module's name would be imported from, found without importing it."""
    package = module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return "not found here"
    return spec.origin or ", ".join(spec.submodule_search_locations or ["built in"])
