"""From a recipe's ConfigDict to the frozen config that the library works with."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from slmjax.config.base import FIELDS, GROUPS, get
from slmjax.config.fields import INT32_MAX, ConfigField, typed
from slmjax.config.groups import STAGE_OF, Config, TrainConfig
from slmjax.config.run_phases import are_in_tokens, parse_phases, run_phases
from slmjax.errors import UserError, nearest

# Fields whose 0 lets config.train.minutes choose.
OPEN = ("data.vocab_size", "data.seq_len", "train.batch")


def freeze(config: ConfigDict) -> Config:
    """Return the checked config of a recipe.

    Where phases have tokens, train.steps is the number of their steps.

    What depends on files, devices or the rest of the library is checked where it is used.
    Raises: UserError naming the first field that makes no sense.
    """
    values: dict[str, dict[str, Any]] = {group: {} for group in ("", *GROUPS)}
    for field in FIELDS.values():
        values[field.group][field.leaf] = _checked(field, config)
    classes = {field.name: field.type for field in dataclasses.fields(Config)}
    arguments = values.pop("")  # fields outside any group
    # Each group is a dataclass of its own.
    for group, group_values in values.items():
        arguments[group] = classes[group](**group_values)
    config_of_groups = Config(**arguments)
    # First, as no batch of 0 rows may be counted in steps.
    _check_minutes(config_of_groups)
    frozen = _with_steps(config_of_groups)
    _check_together(frozen)
    return frozen


def _checked(field: ConfigField, config: ConfigDict) -> Any:
    """Return the value of one field, of its type and in its range. Raises: UserError."""
    name = field.name
    try:
        given = get(config, name)
    except (AttributeError, KeyError, TypeError):
        # A recipe may delete a field, or put a value where a group is.
        raise UserError(f"config.{name} is missing; expected {field.meaning}.") from None
    try:
        value = typed(field, _plain(given))
    except TypeError as error:
        raise UserError(f"config.{name} is {_plain(given)!r}; expected {error}.") from None
    # A choice is a name, and may be misspelt.
    if field.choices and value not in field.choices:
        choices = ", ".join(field.choices)
        hint = nearest(value, field.choices)
        raise UserError(f"config.{name} is '{value}'; it can be {choices}.{hint}")
    if field.check and not field.check.holds(value):
        raise UserError(f"config.{name} is {value!r}; it must {field.check.must}.")
    # Only training counts steps, rows and tokens in int32 arrays.
    is_of_training = name.partition(".")[0] not in STAGE_OF
    if type(value) is int and is_of_training and abs(value) > INT32_MAX:
        raise UserError(f"config.{name} is {value}; its size can be {INT32_MAX:,} at most.")
    return value


def _plain(value: Any) -> Any:
    """Return `value` with ConfigDicts as dicts and lists as tuples, at every depth."""
    if isinstance(value, ConfigDict | dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value


def _with_steps(config: Config) -> Config:
    """Return the config with the steps of phases in tokens.

    Raises: UserError for invalid phases, and where train.steps is another number.
    """
    data, train = config.data, config.train
    if not are_in_tokens(parse_phases(data.phases)):
        return config
    steps = run_phases(data, train)[-1].stop
    if train.steps not in (0, steps):
        raise UserError(
            f"config.train.steps is {train.steps}, but the tokens of config.data.phases are "
            f"{steps} steps; --config.train.steps=0 takes that number."
        )
    if steps > INT32_MAX:
        raise UserError(
            f"the tokens of config.data.phases are {steps:,} steps; a run can have {INT32_MAX:,}."
        )
    return dataclasses.replace(config, train=dataclasses.replace(train, steps=steps))


def _check_phases(config: Config) -> None:
    """Raises: UserError for phases whose rates or batches do not fit the rest of the config."""
    by_phases = config.train.schedule == "phases"
    if by_phases and not config.data.phases:
        raise UserError(
            "config.train.schedule is 'phases', but config.data.phases is empty; give phases with "
            "a rate, such as {'until': 1.0, 'rate': [1, 0]}."
        )
    for number, phase in enumerate(parse_phases(config.data.phases)):
        field = f"config.data.phases[{number}]"
        if by_phases and phase.rate is None:
            raise UserError(
                f"{field} has no rate, which config.train.schedule='phases' asks for; give it one, "
                "such as [1, 1] for the peak rate."
            )
        if not by_phases and phase.rate is not None:
            raise UserError(
                f"{field} has a rate, which config.train.schedule={config.train.schedule!r} does "
                "not read; set it to 'phases'."
            )
        microbatches = config.train.microbatches
        if phase.batch % microbatches:
            raise UserError(
                f"config.train.microbatches is {microbatches}; it must divide {field}.batch, "
                f"{phase.batch}."
            )


def _field(config: Config, name: str) -> Any:
    """Return the value of a field "group.name"."""
    group, _, leaf = name.partition(".")
    return getattr(getattr(config, group), leaf)


def _check_minutes(config: Config) -> None:
    """Raises: UserError for fields that config.train.minutes does not go with, or that need it."""
    train = config.train
    if train.size and not train.minutes:
        raise UserError(
            f"config.train.size is '{train.size}', which only config.train.minutes reads; give "
            f"--params={train.size}."
        )
    if not train.minutes or train.chosen:
        for name in OPEN:
            if not _field(config, name):
                raise UserError(
                    f"config.{name} is 0; it must be positive, unless config.train.minutes chooses."
                )
        return
    if train.steps:
        raise UserError(
            f"config.train.minutes is {train.minutes:g} and config.train.steps is {train.steps}: "
            "minutes choose the steps, so leave one of them 0."
        )
    others = {
        "config.data.phases is not empty": bool(config.data.phases),
        "config.train.branch is True": train.branch,
        f"config.stage is '{config.stage}'": config.stage != "train",
    }
    for other, is_so in others.items():
        if is_so:
            raise UserError(
                f"config.train.minutes is {train.minutes:g}, but {other}; minutes are for the "
                "stage train without phases or branch."
            )


def _check_together(config: Config) -> None:
    """Raises: UserError for fields that do not fit each other."""
    # Each key/value head serves the same number of query heads.
    heads, kv_heads = config.model.heads, config.model.kv_heads
    if heads % kv_heads:
        raise UserError(
            f"config.model.kv_heads is {kv_heads}; it must divide config.model.heads, {heads}."
        )
    batch, microbatches = config.train.batch, config.train.microbatches
    if batch % microbatches:
        raise UserError(
            f"config.train.microbatches is {microbatches}; it must divide config.train.batch, "
            f"{batch}."
        )
    _check_phases(config)
    if config.train.steps:
        _check_schedule(config.train)
    elif config.train.branch:
        raise UserError("config.train.branch is True, but config.train.steps is 0.")
    _check_profile(config.log.profile)


def _check_schedule(train: TrainConfig) -> None:
    """Raises: UserError for a warmup that leaves no room for the rest of the run."""
    warmup, decay, steps = train.warmup, train.decay, train.steps
    if train.schedule == "wsd" and warmup + decay * steps > steps:
        # A tenth of the run, or less where the decay leaves less.
        longest = int(steps * (1 - decay))  # steps before the decay
        advised = min(longest, max(1, steps // 10))
        raise UserError(
            f"config.train.warmup ({warmup} steps) and decay ({decay:g} of the run) exceed "
            f"config.train.steps, {steps}; for so short a run, --config.train.warmup={advised}."
        )
    if warmup > steps:  # under any other schedule
        raise UserError(
            f"config.train.warmup ({warmup}) exceeds config.train.steps ({steps}), so the "
            f"learning rate would never reach config.train.lr."
        )


def _check_profile(profile: str) -> None:
    """Raises: UserError where `profile` is neither empty nor "first:last", two steps."""
    if not profile:
        return
    first, _, last = profile.partition(":")
    are_steps = first.isdecimal() and last.isdecimal()
    if not are_steps or int(first) >= int(last):
        raise UserError(
            f"config.log.profile is '{profile}'; expected first:last, two steps, for example 20:25."
        )
