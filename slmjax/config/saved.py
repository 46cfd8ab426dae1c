"""The config as config.json and checkpoints keep it, and as older versions wrote it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from slmjax.config.base import FIELDS, GROUPS, base, get
from slmjax.config.groups import STAGE_OF, Config
from slmjax.config.removed import REMOVED, removed_sentence
from slmjax.errors import UserError, nearest

# Counts up when the meaning of a saved config changes. Files without a number have format 0.
FORMAT = 1


def to_dict(config: Config) -> dict:
    """Return the content of config.json: the format number, and the groups that the stage reads."""
    values = dataclasses.asdict(config)
    # Groups of other stages say nothing about this run.
    for group, stage in STAGE_OF.items():
        if stage != config.stage:
            del values[group]
    # With lists for tuples, so that it equals what is read back from the file.
    return {"format": FORMAT, **_as_json(values)}


def to_json(config: Config) -> str:
    """Return `to_dict` as JSON text with sorted keys."""
    return json.dumps(to_dict(config), indent=1, sort_keys=True)


def from_dict(saved: Any) -> ConfigDict:
    """Return the config that `to_dict` saved, in the form of `slmjax.config.base`.

    Raises: UserError for a newer format, an unknown field, and a removed field whose value is not
      the one that holds now; ValueError and TypeError for values of another kind.
    """
    if not isinstance(saved, Mapping):
        raise ValueError("it holds no object; expected the fields of a config.json")
    # What a newer version means by its fields is not known here.
    saved_format = saved.get("format", 0)
    if not isinstance(saved_format, int) or saved_format > FORMAT:
        raise UserError(
            f"the config has the format {saved_format!r}; this version of slmjax reads up to "
            f"{FORMAT}, so it was written by a newer one."
        )
    config = base()
    # A field that the file lacks has the value that held before the field was there.
    values = {name: field.before for name, field in FIELDS.items()}
    values |= _leaves(saved)
    for name, value in values.items():
        if name in REMOVED:
            if value != REMOVED[name]:
                raise UserError(f"config.{name} is {value!r}; {removed_sentence(name)}")
        elif name not in FIELDS:
            raise UserError(f"there is no field config.{name}.{nearest(name, FIELDS)}")
        else:
            field = FIELDS[name]
            get(config, field.group)[field.leaf] = _as_config(value)
    return config


def as_today(saved: Mapping) -> dict[str, Any]:
    """Return {field: value} of a saved config as this version would have saved it.

    So runs of different versions can be compared. Nothing is checked, and names that are no
    field's stay, such as those of a benchmark that trains with another library.
    """
    values = {}
    for name, value in _leaves(saved).items():
        has_fixed_value = name in REMOVED and value == REMOVED[name]
        if not has_fixed_value:
            values[name] = value
    for name, field in FIELDS.items():
        # A run does not save the groups of other stages, so they are not missing.
        is_of_training = name.partition(".")[0] not in STAGE_OF
        if name not in values and is_of_training:
            values[name] = _as_json(field.before)
    return values


def _leaves(saved: Mapping, prefix: str = "") -> dict[str, Any]:
    """Return {dotted name: value} of the fields in nested groups, and of unknown names.

    Raises: ValueError where a group is no mapping.
    """
    leaves = {}
    for key, value in saved.items():
        name = f"{prefix}{key}"
        if name == "format":  # no field
            continue
        if name not in GROUPS:
            # A field, whatever its value holds, or a name of another version.
            leaves[name] = value
        elif isinstance(value, Mapping):
            leaves |= _leaves(value, f"{name}.")
        else:
            raise ValueError(f"config.{name} is {value!r}; expected a group of fields")
    return leaves


def _as_json(value: Any) -> Any:
    """Return a value as it comes back from JSON: tuples are lists."""
    return json.loads(json.dumps(value))


def _as_config(value: Any) -> Any:
    """Return a JSON value as a ConfigDict holds it: objects are ConfigDicts, lists are tuples."""
    if isinstance(value, Mapping):
        return ConfigDict(dict(value))
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
