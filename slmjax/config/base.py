"""The base config, which recipes start from, and the assignments of a command line."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from ml_collections import ConfigDict

from slmjax.config.fields import ConfigField, fields, literal, quoted_literal, typed_text
from slmjax.config.groups import Config
from slmjax.config.removed import REMOVED, removed_sentence
from slmjax.errors import UserError, empty_value, nearest

FIELDS: dict[str, ConfigField] = {field.name: field for field in fields(Config)}
# Names of the groups of fields, in the order in which --help lists them.
GROUPS = tuple(dict.fromkeys(field.group for field in FIELDS.values() if field.group))
# Fields whose keys are the user's own, such as data.sources.
MAPPINGS = tuple(name for name, field in FIELDS.items() if field.kind is dict)

# {field: function that parses the short form of its mapping}.
Readers = Mapping[str, Callable[[str], dict]]


def base() -> ConfigDict:
    """Return every field at its default, for a recipe to change."""
    config = ConfigDict({group: {} for group in GROUPS})
    for field in FIELDS.values():
        value = field.default
        if isinstance(value, dict):
            value = ConfigDict(value)
        get(config, field.group)[field.leaf] = value
    # A recipe that misspells a field gets an error, but may add keys to mappings.
    config.lock()
    _open_mappings(config)
    return config


def get(config: Any, name: str) -> Any:
    """Return the value under a dotted name, of a field or group; "" is the config itself.

    Raises: AttributeError, KeyError or TypeError where the config has no such name.
    """
    for part in filter(None, name.split(".")):
        config = config[part]
    return config


def override(
    config: ConfigDict, assignments: Sequence[str], readers: Readers = MappingProxyType({})
) -> ConfigDict:
    """Apply "a.b=value" assignments to `config`; values are Python literals of the field's type.

    Args:
      readers: {field: function from text to a dict} for mappings that have a short form.
    Raises: UserError for an unknown field (with the nearest name) or a value of another type.
    """
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"--config.{name}: write --config.{name}=VALUE.")
        if name in GROUPS:
            leaves = [field.leaf for field in FIELDS.values() if field.group == name]
            raise UserError(
                f"--config.{name} is a group of fields; set one of {', '.join(leaves)}."
            )
        _assign(config, name, text, readers)
    return config


def help_text() -> str:
    """Return every field with its default and meaning as text, by groups."""
    lines = []
    for group in ("", *GROUPS):
        if group:
            group_class = Config.__dataclass_fields__[group].type
            meaning = group_class.__doc__ or ""
            lines.append(f"\n{group}: {meaning.strip()}")
        for field in FIELDS.values():
            if field.group == group:
                lines.append(_help_line(field))
    return "\n".join(lines)


def _help_line(field: ConfigField) -> str:
    choices = f" ({', '.join(field.choices)})" if field.choices else ""
    return f"  --config.{field.name}={field.default!r}\n        {field.meaning}{choices}"


def _assign(config: ConfigDict, name: str, text: str, readers: Readers) -> None:
    """Set one field, or one entry of a mapping, to the value that a text stands for."""
    if name in REMOVED:
        # An old command still runs if it asks for the value that is now fixed.
        if literal(text) == REMOVED[name]:
            return
        raise UserError(f"--config.{name}: {removed_sentence(name)}")
    mapping = _mapping_around(name)
    if name not in FIELDS and not mapping:
        _refuse_unknown(name)
    leaf = name.rpartition(".")[2]
    if mapping == "data.sources" and leaf == "path":
        # A source that the recipe lacks is added by giving its path.
        _add_source(config.data.sources, name)
    node = _node_around(config, name)
    if not text.strip():
        _check_empty(name, node.get(leaf), mapping)
    if name in MAPPINGS:
        # Replaced as a whole: no entry of the recipe's mapping is kept.
        node[leaf] = ConfigDict(_parsed_mapping(name, text, readers))
        return
    if mapping == "data.sources":
        value = _source_value(leaf, text)
    elif mapping:
        # The stage checks the entries of its mappings.
        value = literal(text)
    else:
        value = _field_value(FIELDS[name], text)
    # Without the type check of ml_collections: the value has its type already, or a later check
    # refuses it with a better sentence.
    with node.unlocked(), node.ignore_type():
        node[leaf] = value
    # Leaving `unlocked` has locked everything below the node.
    _open_mappings(config)


def _add_source(sources: Any, name: str) -> None:
    """Add the source of data.sources.NAME.path to data.sources, unless it is there."""
    # NAME is empty where the field is data.sources.path.
    source = name.removeprefix("data.sources.").removesuffix("path")
    source = source.removesuffix(".")
    if not source or "." in source:
        raise UserError(
            f"--config.{name}: expected --config.data.sources.NAME.path, with a NAME without dots."
        )
    if source not in sources:
        sources[source] = ConfigDict()


def _open_mappings(config: ConfigDict) -> None:
    """Let mappings take keys of the user's own, in a config whose groups are locked."""
    for name in MAPPINGS:
        get(config, name).unlock()


def _mapping_around(name: str) -> str:
    """Return the mapping in which a name lies, such as data.sources; "" for none."""
    for mapping in MAPPINGS:
        if name.startswith(f"{mapping}."):
            return mapping
    return ""


def _node_around(config: ConfigDict, name: str) -> ConfigDict:
    """Return the group or mapping that holds `name`. Raises: UserError where there is none."""
    node = config
    group_names = name.split(".")[:-1]
    for part in group_names:
        if not isinstance(node, ConfigDict) or part not in node:
            _refuse_unknown(name)
        node = node[part]
    if not isinstance(node, ConfigDict):
        _refuse_unknown(name)
    return node


def _refuse_unknown(name: str) -> NoReturn:
    raise UserError(f"--config.{name}: there is no such field.{nearest(name, FIELDS)}")


def _check_empty(name: str, current: Any, mapping: str) -> None:
    """Raises: UserError for an empty value that is more likely a shell variable that is not set.

    An empty value may clear what a recipe sets, except all of data.sources. An entry of the user's
    own, such as curate.rules.books, may be empty too.
    """
    if name == "data.sources":
        raise empty_value(f"--config.{name}")
    is_own_entry = mapping and mapping != "data.sources"
    if not current and not is_own_entry:
        raise empty_value(f"--config.{name}")


def _field_value(field: ConfigField, text: str) -> Any:
    try:
        return typed_text(field, text)
    except TypeError as error:
        raise UserError(f"--config.{field.name}={text}: expected {error}.") from None


def _source_value(leaf: str, text: str) -> Any:
    """Return the value of a field of a source."""
    if leaf in ("weight", "max_epochs"):
        return literal(text)
    # A share of the text; anything else is names of files.
    if leaf == "heldout" and isinstance(literal(text), float):
        return literal(text)
    # All other fields are texts, even where a file or a field of records is named like a number.
    return quoted_literal(text)


def _parsed_mapping(name: str, text: str, readers: Readers) -> dict:
    if name in readers:
        # A reader takes both the short form and a literal.
        return readers[name](text)
    value = literal(text)
    if isinstance(value, dict):
        return value
    raise UserError(f"--config.{name}={text}: expected {FIELDS[name].meaning}.")
