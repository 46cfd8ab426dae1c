"""A field of the config: default, meaning, check, and what a change of it affects."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

LARGEST = 2**31 - 1  # whole numbers are 32-bit in arrays of steps, rows and tokens


class Check(NamedTuple):
    """A condition on a field's value, and how an error says it: "it must <must>"."""

    holds: Callable[[Any], bool]
    must: str


POSITIVE = Check(lambda value: 0 < value < math.inf, "be positive")
NOT_NEGATIVE = Check(lambda value: 0 <= value < math.inf, "not be negative")
SHARE = Check(lambda value: 0 <= value < 1, "be at least 0 and less than 1")
PART = Check(lambda value: 0 < value <= 1, "be more than 0 and at most 1")

AFFECTS = {
    "learning": "what the model learns; a run goes on with the same value only",
    "chance": "what the model learns, by chance alone: runs that differ in it are repetitions",
    "order": "which text is read when; judged by the plan's fingerprint, not by its value",
    "compile": "how the same computation is carried out",
    "bookkeeping": "what is shown and kept",
}


class ConfigField(NamedTuple):
    """A field as the config's tables declare it.

    name: dotted, such as "model.width".
    kind: its type annotation, such as int or tuple[str, ...].
    choices: the values that it can have; empty: any.
    affects: a key of AFFECTS.
    before: what runs had that were saved before the field was there.
    one_text: on the command line its text is one entry, commas and all.
    """

    name: str
    kind: Any
    default: Any
    meaning: str
    check: Check | None
    choices: tuple[str, ...]
    affects: str
    before: Any
    one_text: bool


def setting(
    default: Any,
    meaning: str,
    check: Check | None = None,
    *,
    choices: tuple[str, ...] = (),
    affects: str = "learning",
    before: Any = None,
    one_text: bool = False,
) -> Any:
    """Declare a field of a group, see Field. The type annotation next to it is its type.

    Args:
      before: None where runs without the field had its default.
    """
    if affects not in AFFECTS:
        raise ValueError(f"affects is '{affects}'; it can be {', '.join(AFFECTS)}")
    before = default if before is None else before
    known = {"meaning": meaning, "check": check, "choices": choices, "affects": affects}
    metadata = known | {"before": before, "one_text": one_text}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def fields(group: type, prefix: str = "") -> Iterator[ConfigField]:
    """The fields of a group and of the groups in it, in their order."""
    kinds = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        kind, name = kinds[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(kind):
            yield from fields(kind, f"{name}.")
            continue
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory()
        yield ConfigField(name, kind, default, **field.metadata)


def typed(field: ConfigField, value: Any) -> Any:
    """`value` as the field's type: a list serves as a tuple, a whole number as a float.

    Raises: TypeError for a value of another type; its text says what an entry must be, or is "".
    """
    kind = typing.get_origin(field.kind) or field.kind
    if kind is str and isinstance(value, bool) and str(value) in field.choices:
        return str(value)
    if kind is float and _is_number(value):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is tuple and isinstance(value, list | tuple):
        return _entries(typing.get_args(field.kind), value)
    if kind in (bool, str, dict) and isinstance(value, kind):
        return value
    if kind is Any:
        return value
    raise TypeError("")


def _entries(kinds: tuple, values: list | tuple) -> tuple:
    """The entries of a tuple as its annotation has them."""
    of = kinds[0] if kinds else Any
    if of is str and not all(isinstance(value, str) for value in values):
        raise TypeError("texts, such as ('attention', 'gdn')")
    if of is float:
        if not all(_is_number(value) for value in values):
            raise TypeError("numbers, such as (0.001, 0.01)")
        return tuple(float(value) for value in values)
    return tuple(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
