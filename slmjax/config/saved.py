"""The config as config.json and checkpoints keep it, and what older versions wrote."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from slmjax.config.base import FIELDS, base, get
from slmjax.config.groups import STAGE_OF, Config
from slmjax.config.removed import REMOVED, removed_sentence
from slmjax.errors import UserError, nearest

FORMAT = 1
"""Counts changes of what a saved config means. Files without a number have format 0."""


def to_dict(config: Config) -> dict:
    """Return a config as JSON has it, with its format number; groups of other stages are left out."""
    values = dataclasses.asdict(config)
    for group, stage in STAGE_OF.items():
        if stage != config.stage:
            del values[group]
    return {"format": FORMAT, **json.loads(json.dumps(values))}


def to_json(config: Config) -> str:
    """Return `to_dict` as text, stable in its order."""
    return json.dumps(to_dict(config), indent=1, sort_keys=True)


def from_dict(saved: Any) -> ConfigDict:
    """Return the config of what `to_dict` gave, as `slmjax.config.base` has it.

    Raises: UserError for a newer format, a field that is unknown, and a removed field whose value is not
      what holds now; ValueError and TypeError for values of another kind.
    """
    if not isinstance(saved, Mapping):
        raise ValueError("it holds no object; expected the fields of a config.json")
    number = saved.get("format", 0)
    if not isinstance(number, int) or number > FORMAT:
        raise UserError(
            f"the config has the format {number!r}; this version of slmjax reads up to {FORMAT}, so it was written by a newer one."
        )
    config = base()
    before = {name: field.before for name, field in FIELDS.items()}
    for name, value in {**before, **_leaves(saved)}.items():
        if name in REMOVED:
            if value != REMOVED[name]:
                raise UserError(f"config.{name} is {value!r}; {removed_sentence(name)}")
        elif name not in FIELDS:
            raise UserError(f"there is no field config.{name}.{nearest(name, FIELDS)}")
        else:
            group, _, leaf = name.rpartition(".")
            get(config, group)[leaf] = _as_config(value)
    return config


def as_today(saved: Mapping) -> dict[str, Any]:
    """Return {field: value} of a saved config as this version would have saved it, to compare runs by.

    What is no field, such as a peer's own facts, stays. Nothing is checked.
    """
    leaves = _leaves(saved)
    there = {
        name: value
        for name, value in leaves.items()
        if not (name in REMOVED and value == REMOVED[name])
    }
    for name, field in FIELDS.items():
        if name not in there and name.partition(".")[0] not in STAGE_OF:
            there[name] = json.loads(json.dumps(field.before))
    return there


def _leaves(saved: Mapping, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of what lies below the groups of fields."""
    groups = {name.rpartition(".")[0] for name in FIELDS} - {""}
    found = {}
    for key, value in saved.items():
        name = f"{prefix}{key}"
        if name == "format":
            continue
        if name not in groups:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= _leaves(value, f"{name}.")
        else:
            raise ValueError(f"config.{name} is {value!r}; expected a group of fields")
    return found


def _as_config(value: Any) -> Any:
    """A JSON value as a ConfigDict holds it: objects as ConfigDicts, lists as tuples."""
    if isinstance(value, Mapping):
        return ConfigDict(dict(value))
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
