"""A field of the config: its declaration, and the values and command-line words that it takes."""

import ast
import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Largest whole number of a training field: arrays of steps, rows and tokens are int32.
INT32_MAX = 2**31 - 1


class Check(NamedTuple):
    """A condition on a field's value, and how an error says it: "it must <must>"."""

    holds: Callable[[Any], bool]
    must: str


# All of them refuse NaN and infinity.
POSITIVE = Check(lambda value: 0 < value < math.inf, "be positive")
NOT_NEGATIVE = Check(lambda value: 0 <= value < math.inf, "not be negative")
SHARE = Check(lambda value: 0 <= value < 1, "be at least 0 and less than 1")
PART = Check(lambda value: 0 < value <= 1, "be more than 0 and at most 1")

# What a change of a field affects. It decides which runs may be resumed and which are repetitions.
AFFECTS = {
    "learning": "what the model learns; a run resumes with the same value only",
    "chance": "what the model learns, by chance alone: runs that differ in it are repetitions",
    "order": "which text is read when; judged by the plan's fingerprint, not by its value",
    "compile": "how the same computation is carried out",
    "bookkeeping": "what is shown and kept",
}


class ConfigField(NamedTuple):
    """A field as the config's tables declare it."""

    # Dotted, such as "model.width".
    name: str
    # Its type annotation, such as int or tuple[str, ...].
    kind: Any
    default: Any
    meaning: str
    check: Check | None
    # The values that it can have; empty: any.
    choices: tuple[str, ...]
    # A key of AFFECTS.
    affects: str
    # The value of runs that were saved before the field was there.
    before: Any
    # For a tuple of texts: a word of the command line is one entry, even with commas in it.
    one_text: bool

    @property
    def group(self) -> str:
        """The name of its group, "" for a field of the config itself."""
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """Its name within its group."""
        return self.name.rpartition(".")[2]


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
    """Declare a field of a group, see ConfigField. The annotation next to it is its type.

    Args:
      before: the value of runs saved before the field was there; None: its default.
    Raises: ValueError for an unknown `affects`.
    """
    if affects not in AFFECTS:
        raise ValueError(f"affects is '{affects}'; it can be {', '.join(AFFECTS)}")
    metadata = {
        "meaning": meaning,
        "check": check,
        "choices": choices,
        "affects": affects,
        "before": default if before is None else before,
        "one_text": one_text,
    }
    if isinstance(default, dict):
        # A dataclass refuses a mutable default.
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def fields(group: type, prefix: str = "") -> Iterator[ConfigField]:
    """Yield the fields of a group and of the groups in it, in their order."""
    kinds = typing.get_type_hints(group)
    for field in dataclasses.fields(group):
        kind = kinds[field.name]
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(kind):
            yield from fields(kind, f"{name}.")
            continue
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory()
        yield ConfigField(name, kind, default, **field.metadata)


def typed(field: ConfigField, value: Any) -> Any:
    """Return `value` as the field's type: a list serves as a tuple, a whole number as a float.

    Raises: TypeError for a value of another type; its text says what is expected.
    """
    kind = _base_kind(field)
    # model.unroll = True in a recipe is the choice "True".
    if kind is str and isinstance(value, bool) and str(value) in field.choices:
        return str(value)
    if kind is float and _is_number(value):
        return float(value)
    # To Python, True is an int.
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is tuple and isinstance(value, list | tuple):
        return _typed_entries(field, value)
    if kind in (bool, str, dict) and isinstance(value, kind):
        return value
    if kind is Any:
        return value
    raise TypeError(f"a value like {field.default!r} ({type(field.default).__name__})")


def typed_text(field: ConfigField, text: str) -> Any:
    """Return a word of the command line as the field's type.

    Raises: TypeError, see `typed`.
    """
    kind = _base_kind(field)
    if kind is str:
        # A name such as 12 or None is a text.
        return typed(field, text)
    if kind is bool:
        # 1 and 0 are refused: they are more often a mistake for another field.
        # Any word but true and false gives None, which `typed` refuses.
        return typed(field, {"true": True, "false": False}.get(text.lower()))
    if kind is tuple:
        return typed(field, _entries_of_text(field, text))
    value = literal(text)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 2e3
    return typed(field, value)


def literal(text: str) -> Any:
    """Return the value of a text that is a Python literal, and any other text as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def quoted_literal(text: str) -> Any:
    """Like `literal`, but only for text that begins with a bracket or a quotation mark."""
    return literal(text) if text[:1] in ("[", "(", "{", "'", '"') else text


def _base_kind(field: ConfigField) -> Any:
    """Return the type without what its entries are: tuple for tuple[str, ...]."""
    return typing.get_origin(field.kind) or field.kind


def _entry_kind(field: ConfigField) -> Any:
    """Return the type of a tuple's entries."""
    kinds = typing.get_args(field.kind)
    return kinds[0] if kinds else Any


def _typed_entries(field: ConfigField, values: list | tuple) -> tuple:
    kind = _entry_kind(field)
    if kind is str and not all(isinstance(value, str) for value in values):
        raise TypeError("texts, such as ('attention', 'gdn')")
    if kind is float:
        if not all(map(_is_number, values)):
            raise TypeError("numbers, such as (0.001, 0.01)")
        return tuple(map(float, values))
    if kind is int and not all(type(value) is int for value in values):
        raise TypeError("whole numbers, such as (0, 8)")
    # Entries of any other kind are checked by the stage that reads them.
    return tuple(values)


def _entries_of_text(field: ConfigField, text: str) -> Any:
    """Return the entries that a text names, or a value that `typed` refuses where it names none.

    A literal list gives its entries. Any other text is one entry, or several between commas.
    """
    if field.one_text:
        return _whole_text(text)
    value = literal(text)
    if isinstance(value, list | tuple):
        return value
    if _entry_kind(field) in (float, int):
        # A single number. Numbers with commas between them were a literal tuple above.
        return (value,) if _is_number(value) else value
    # A text that begins with a bracket and is no literal has a typing mistake.
    if isinstance(value, str) and value[:1] not in ("[", "(", "{"):
        parts = [part.strip() for part in value.split(",")]
        return tuple(filter(None, parts))
    return value


def _whole_text(text: str) -> list | tuple:
    """Return the texts of a literal list; any other text is the only entry, with its commas."""
    value = literal(text)
    if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
        return value
    if not text.strip():
        return ()
    # Quotation marks around the whole text are not part of it.
    entry = value if isinstance(value, str) else text
    return (entry,)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
