"""The base config, which recipes start from, and the assignments of a command line."""

import ast
import typing
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from slmjax.config.fields import ConfigField, fields
from slmjax.config.groups import Config
from slmjax.config.removed import REMOVED, removed_sentence
from slmjax.errors import UserError, nearest

FIELDS: dict[str, ConfigField] = {field.name: field for field in fields(Config)}
GROUPS = tuple(dict.fromkeys(name.rpartition(".")[0] for name in FIELDS if "." in name))
MAPPINGS = tuple(name for name, field in FIELDS.items() if field.kind is dict)
"""Fields whose keys are the user's own, such as data.sources."""


def base() -> ConfigDict:
    """Return every field at its default, for a recipe to change."""
    config = ConfigDict({group: {} for group in GROUPS})
    for field in FIELDS.values():
        group, _, leaf = field.name.rpartition(".")
        value = field.default
        get(config, group)[leaf] = ConfigDict(value) if isinstance(value, dict) else value
    config.lock()
    for name in MAPPINGS:
        get(config, name).unlock()
    return config


def get(config: Any, name: str) -> Any:
    """Return the value of a dotted field name; "" is the config itself."""
    for part in filter(None, name.split(".")):
        config = config[part]
    return config


Readers = Mapping[str, Callable[[str], dict]]


def override(
    config: ConfigDict, assignments: Sequence[str], readers: Readers = MappingProxyType({})
) -> ConfigDict:
    """Apply "a.b=value" assignments to `config`; values are read as Python literals of the field's type.

    Args:
      readers: {field: function from text to a dict} for mappings that have a short form.
    Raises: UserError for an unknown field (with the nearest name) or a value of another type.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--config.{name}: write --config.{name}=VALUE.")
        if name in GROUPS:
            leaves = [
                field.rpartition(".")[2] for field in FIELDS if field.rpartition(".")[0] == name
            ]
            raise UserError(
                f"--config.{name} is a group of fields; set one of {', '.join(leaves)}."
            )
        _assign(config, name, text, readers)
    return config


def _assign(config: ConfigDict, name: str, text: str, readers: Readers) -> None:
    own = next((field for field in MAPPINGS if name.startswith(f"{field}.")), "")
    if name in REMOVED:
        if literal(text) == REMOVED[name]:
            return
        raise UserError(f"--config.{name}: {removed_sentence(name)}")
    if name not in FIELDS and not own:
        raise UserError(f"--config.{name}: there is no such field.{nearest(name, FIELDS)}")
    group, _, leaf = name.rpartition(".")
    source = group.removeprefix("data.sources.")
    if own == "data.sources" and leaf == "path" and source not in config.data.sources:
        config.data.sources[source] = ConfigDict()  # a path makes a new source
    node = config
    for part in group.split(".") if group else ():
        if not isinstance(node, ConfigDict) or part not in node:
            raise UserError(f"--config.{name}: there is no such field.{nearest(name, FIELDS)}")
        node = node[part]
    if not isinstance(node, ConfigDict):
        raise UserError(f"--config.{name}: there is no such field.{nearest(name, FIELDS)}")
    if not text.strip():
        _check_empty(name, node.get(leaf), own)
    if name in MAPPINGS:
        node[leaf] = ConfigDict(_parsed_mapping(name, text, readers))
        return
    with node.unlocked(), node.ignore_type():
        if own == "data.sources":
            node[leaf] = _of_source(leaf, text)
        else:
            node[leaf] = literal(text) if own else _typed(FIELDS[name], text)


def _check_empty(name: str, current: Any, own: str) -> None:
    """An empty value may take away what a recipe says; else it is a mistake, as of a shell variable that is not set."""
    of_user = own and own != "data.sources"  # such as curate.rules.books
    if name == "data.sources" or not (current or of_user):
        raise UserError(
            f"--config.{name}= is empty; give it a value or leave it out (is a shell variable not set?)."
        )


def _of_source(field: str, text: str) -> Any:
    """A field of a source: names of files and fields may look like numbers."""
    return literal(text) if field in ("weight", "max_epochs") else quoted_literal(text)


def literal(text: str) -> Any:
    """Return the Python literal that a text is, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def quoted_literal(text: str) -> Any:
    """Return the literal of a text with brackets or quotation marks around it, else the text."""
    return literal(text) if text[:1] in ("[", "(", "{", "'", '"') else text


def _typed(field: ConfigField, text: str) -> Any:
    """A command line's text as the field's type."""
    value, default = literal(text), field.default
    if isinstance(default, str):
        return text
    texts = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
    if field.one_text and not texts:
        return (value if isinstance(value, str) else text,) if text.strip() else ()
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif isinstance(default, int) and number and float(value).is_integer():
        return int(value)
    elif isinstance(default, float) and number:
        return float(value)
    elif isinstance(default, tuple):
        numbers = typing.get_args(field.kind)[:1] == (float,)
        if isinstance(value, list | tuple):
            return tuple(value)
        if number and numbers:
            return (float(value),)
        if isinstance(value, str) and value[:1] not in ("[", "(", "{") and not numbers:
            return tuple(part.strip() for part in value.split(",") if part.strip())
    raise UserError(
        f"--config.{field.name}={text}: expected a value like {default!r} ({type(default).__name__})."
    )


def _parsed_mapping(name: str, text: str, readers: Readers) -> dict:
    if name in readers:
        return readers[name](text)
    value = literal(text)
    if isinstance(value, dict):
        return value
    raise UserError(f"--config.{name}={text}: expected {FIELDS[name].meaning}.")


def help_text() -> str:
    """Return every field with its default and meaning, by groups."""
    lines = []
    for group in ("", *GROUPS):
        if group:
            about = (Config.__dataclass_fields__[group].type.__doc__ or "").strip()
            lines.append(f"\n{group}: {about}")
        lines += [
            _help_line(field) for field in FIELDS.values() if field.name.rpartition(".")[0] == group
        ]
    return "\n".join(lines)


def _help_line(field: ConfigField) -> str:
    choices = f" ({', '.join(field.choices)})" if field.choices else ""
    return f"  --config.{field.name}={field.default!r}\n        {field.meaning}{choices}"
