"""From a recipe's ConfigDict to the frozen config that the library works with."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from slmjax.config.base import FIELDS, GROUPS, get
from slmjax.config.fields import LARGEST, ConfigField, typed
from slmjax.config.groups import STAGE_OF, Config
from slmjax.errors import UserError, nearest


def freeze(config: ConfigDict) -> Config:
    """Return the checked config of a recipe.

    What depends on files, devices or the rest of the library is checked where it is used.
    Raises: UserError naming the first field that makes no sense.
    """
    values: dict[str, dict[str, Any]] = {group: {} for group in ("", *GROUPS)}
    for field in FIELDS.values():
        group, _, leaf = field.name.rpartition(".")
        values[group][leaf] = _checked(field, config)
    own = values.pop("")
    kinds = {field.name: field.type for field in dataclasses.fields(Config)}
    frozen = Config(
        **own, **{group: kinds[group](**of_group) for group, of_group in values.items()}
    )
    _check_together(frozen)
    return frozen


def _checked(field: ConfigField, config: ConfigDict) -> Any:
    """The value of one field, of its type and in its range."""
    name = field.name
    try:
        given = get(config, name)
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"config.{name} is missing; expected {field.meaning}.") from None
    try:
        value = typed(field, _plain(given))
    except TypeError as error:
        default = field.default
        expected = str(error) or f"a value like {default!r} ({type(default).__name__})"
        raise UserError(f"config.{name} is {_plain(given)!r}; expected {expected}.") from None
    if field.choices and value not in field.choices:
        choices = ", ".join(field.choices)
        raise UserError(
            f"config.{name} is '{value}'; it can be {choices}.{nearest(value, field.choices)}"
        )
    if field.check and not field.check.holds(value):
        raise UserError(f"config.{name} is {value!r}; it must {field.check.must}.")
    of_training = name.partition(".")[0] not in STAGE_OF
    if type(value) is int and of_training and abs(value) > LARGEST:
        raise UserError(f"config.{name} is {value}; its size can be {LARGEST:,} at most.")
    return value


def _plain(value: Any) -> Any:
    """`value` with ConfigDicts as dicts, also in lists."""
    if isinstance(value, ConfigDict | dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return value


def _check_together(config: Config) -> None:
    """Raises: UserError for fields that do not fit each other."""
    m, t = config.model, config.train
    if m.heads % m.kv_heads:
        raise UserError(
            f"config.model.kv_heads is {m.kv_heads}; it must divide config.model.heads, {m.heads}."
        )
    if t.batch % t.microbatches:
        raise UserError(
            f"config.train.microbatches is {t.microbatches}; it must divide config.train.batch, {t.batch}."
        )
    if t.schedule == "wsd" and t.warmup + t.decay * t.steps > t.steps:
        most = int(t.steps * (1 - t.decay))
        shorter = min(most, max(1, t.steps // 10))
        raise UserError(
            f"config.train.warmup ({t.warmup} steps) and decay ({t.decay:g} of the run) exceed "
            f"config.train.steps, {t.steps}; for so short a run, --config.train.warmup={shorter}."
        )
    if t.warmup > t.steps:  # under any other schedule
        raise UserError(
            f"config.train.warmup ({t.warmup}) exceeds config.train.steps ({t.steps}), so the "
            f"learning rate would never reach config.train.lr."
        )
    if config.log.profile:
        first, _, last = config.log.profile.partition(":")
        if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
            raise UserError(
                f"config.log.profile is '{config.log.profile}'; expected first:last, two steps, for example 20:25."
            )
