"""Checks config.synthesize: its names exist, and its settings fit each other."""

import dataclasses
from collections.abc import Sequence

from slmjax.config import SynthesizeConfig
from slmjax.errors import UserError, nearest
from slmjax.synthesize.openai_teacher import NAMES
from slmjax.synthesize.plan import AUDIENCES, FORMATS


def check_settings(config: SynthesizeConfig) -> SynthesizeConfig:
    """Return the settings with `formats` as a tuple of names.

    Raises: UserError for unknown names, and for settings that do not fit each other.
    """
    _check_fields_of_openai(config)
    _check_prices(config)
    formats = chosen("formats", config.formats, tuple(FORMATS))
    names = config.audiences
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(
            f"config.synthesize.audiences is {names!r}; name {', '.join(AUDIENCES)}, or describe "
            "your own."
        )
    return dataclasses.replace(config, formats=formats)


def chosen(field: str, value: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a field of config.synthesize chooses among `known`.

    Args:
      field: its name, for the error.
      value: the names in a sequence, or in a text with commas.
    Raises: UserError for an unknown name, and where there is none.
    """
    parts = value.split(",") if isinstance(value, str) else value
    names = tuple(part.strip() for part in parts if part.strip())
    for name in names:
        if name not in known:
            raise UserError(
                f"config.synthesize.{field}: there is no '{name}'; there are {', '.join(known)}."
                f"{nearest(name, known)}"
            )
    if not names:
        raise UserError(f"config.synthesize.{field} is empty; name some of {', '.join(known)}.")
    return names


def _check_fields_of_openai(config: SynthesizeConfig) -> None:
    """Check the fields that only the teacher openai reads.

    Raises: UserError where another teacher is chosen and one of them is set, and for invalid
      config.synthesize.names.
    """
    other_teacher = config.teacher != "openai"
    for field, value in (("base_url", config.base_url), ("model", config.model)):
        if value and other_teacher:
            raise UserError(
                f"config.synthesize.{field} is '{value}', which is for the teacher openai; "
                f"config.synthesize.teacher is {config.teacher}."
            )
    if config.passages and other_teacher:
        raise UserError(
            f"config.synthesize.passages: the teacher {config.teacher} reads no passages; leave "
            "them out, or take the teacher openai."
        )
    for name, sent_name in config.names.items():
        if name not in NAMES or not isinstance(sent_name, str):
            raise UserError(
                f"config.synthesize.names: {name}={sent_name!r}; expected what the endpoint calls "
                f"{', '.join(NAMES)} ('': it takes none).{nearest(name, NAMES)}"
            )
    if config.names.get("max_tokens") == "":
        raise UserError(
            "config.synthesize.names.max_tokens is empty; the budget counts with that limit."
        )
    # Last, so that a misspelt name is reported first.
    if config.names and other_teacher:
        raise UserError(
            "config.synthesize.names is for the teacher openai; config.synthesize.teacher is "
            f"{config.teacher}."
        )


def _check_prices(config: SynthesizeConfig) -> None:
    """Raise UserError for invalid prices, and for a budget in dollars without prices."""
    prices = config.price
    if len(prices) != 2 or min(prices) < 0:
        raise UserError(
            f"config.synthesize.price is {prices!r}; expected dollars for a million tokens (of "
            "prompts, of answers)."
        )
    if config.cost and not any(prices):
        raise UserError(
            "config.synthesize.cost limits dollars, and config.synthesize.price is 0; say what a "
            "million tokens cost."
        )
