"""Phases of the mixture: the parts of a run, each with its own weights of the sources."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from slmjax.data.stretch import UNITS, PerSource
from slmjax.errors import UserError, nearest

EXPECTED = "expected {'until': 0.8, 'weights': {'books': 1}} and, for a smooth change, 'ramp': 0.05"
# How far a ramp may exceed its phase. Shares are decimal fractions, such as 0.9 - 0.8, and their
# difference is rounded.
ROUNDING = 1e-9


class Phase(NamedTuple):
    """A part of the run with its own weights.

    until: share of the run at which the phase ends.
    weights: {source: weight}.
    ramp: share of the run, at the beginning of the phase, over which the weights move linearly from
      those of the phase before to these.
    """

    until: float
    weights: Mapping[str, float]
    ramp: float = 0.0


def parse_phases(value: Sequence[Any]) -> tuple[Phase, ...]:
    """Return the phases that a config lists.

    Args:
      value: a sequence of {"until": 0.8, "weights": {"web": 1.0}, "ramp": 0.05}, see `Phase`; or of
        (until, weights) or (until, weights, ramp).
    Raises: UserError for an invalid phase, shares that do not increase to 1, and a ramp longer than
      its phase or without a phase before it.
    """
    phases = []
    for number, given in enumerate(value):
        phases.append(_parse_phase(given, f"config.data.phases[{number}]"))
    _check_ends([phase.until for phase in phases])
    start = 0.0
    for number, phase in enumerate(phases):
        _check_ramp(number, phase, start)
        start = phase.until
    return tuple(phases)


def check_phases(value: Sequence[Any], names: Sequence[str]) -> None:
    """Check phases before any text is prepared.

    Raises: UserError for invalid phases, and for weights that do not fit the sources.
    """
    for number, phase in enumerate(parse_phases(value)):
        weight_units(names, phase.weights, f"data.phases[{number}]")


def weight_units(names: Sequence[str], weights: Mapping[str, float], where: str) -> PerSource:
    """Return weights as integers that sum to UNITS; a source that is left out has weight 0.

    Args:
      where: what an error calls the weights.
    Raises: UserError for an unknown source, a weight that is negative or infinite, and weights that
      are all 0.
    """
    for name, weight in weights.items():
        if name not in names:
            raise UserError(
                f"{where} gives a weight to '{name}', but the sources are {', '.join(names)}."
                f"{nearest(name, names)}"
            )
        if not 0 <= weight < float("inf"):
            raise UserError(
                f"{where} gives '{name}' the weight {weight}; expected a number of 0 or more."
            )
    # Weights are proportions: their sum may be any number.
    given = np.array([float(weights.get(name, 0)) for name in names])
    if not given.sum():
        raise UserError(
            f"{where} gives every source the weight 0; at least one of {', '.join(names)} must be "
            "more."
        )
    return _whole_units(given)


def units_without(units: PerSource, spent: Bool[np.ndarray, "sources"]) -> PerSource:
    """Return weights that are 0 for the sources in `spent`.

    The others keep their proportions and sum to UNITS; all are 0 where no other source has any.
    """
    kept = np.where(spent, 0, units)
    if 0 < kept.sum() < UNITS:
        return _whole_units(kept)
    return kept


def own_weights(
    names: Sequence[str], tokens: Sequence[int], weights: Mapping[str, float | None]
) -> dict[str, float]:
    """Return {source: weight}: the given weights, or the tokens of each source where none is given.

    Raises: UserError where some sources have a weight and others have none.
    """
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return dict(zip(names, tokens, strict=True))
    # A weight cannot be compared with a number of tokens, so all sources need one.
    for name in names:
        if name not in given:
            raise UserError(
                f"data.sources gives weights to {', '.join(given)} but none to '{name}': "
                "give one to every source or to none."
            )
    return given


def _parse_phase(given: Any, field: str) -> Phase:
    fields = _named_fields(given)
    for name in fields:
        if name not in Phase._fields:
            raise UserError(
                f"{field} has no field '{name}'; {EXPECTED}.{nearest(str(name), Phase._fields)}"
            )
    weights = fields.get("weights")
    until = fields.get("until")
    ramp = fields.get("ramp", 0)
    shares_are_numbers = isinstance(until, int | float) and isinstance(ramp, int | float)
    if not hasattr(weights, "items") or not shares_are_numbers:
        raise UserError(f"{field} is {given!r}; {EXPECTED}.")
    for name, weight in weights.items():
        # A bool is an int in Python, but "True" is not a weight that anybody means.
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not isinstance(name, str):
            raise UserError(
                f"{field} gives {name!r} the weight {weight!r}; "
                "expected a source's name and a number of 0 or more."
            )
    return Phase(**fields)


def _named_fields(given: Any) -> dict[Any, Any]:
    """Return a phase as {field: value}; empty for a value that cannot be a phase."""
    # A ConfigDict is a mapping by its methods, not by its class.
    if hasattr(given, "items"):
        return dict(given.items())
    if isinstance(given, list | tuple) and len(given) <= len(Phase._fields):
        return dict(zip(Phase._fields, given))
    return {}


def _check_ends(ends: Sequence[float]) -> None:
    if not ends:
        return
    increasing = all(start < end for start, end in zip([0.0, *ends], ends))
    if ends[-1] != 1.0 or not increasing:
        raise UserError(
            f"config.data.phases end at {', '.join(map(str, ends))} of the run; "
            "expected increasing shares, the last one 1.0."
        )


def _check_ramp(number: int, phase: Phase, start: float) -> None:
    longest = phase.until - start
    reason = ""
    if number == 0:
        # There are no weights before it that a ramp could begin with.
        longest = 0.0
        reason = " (the first has no weights to come from)"
    if not 0 <= phase.ramp <= longest + ROUNDING:
        raise UserError(
            f"config.data.phases[{number}].ramp is {phase.ramp}; "
            f"expected 0 to {longest:.3g}, the phase's own share{reason}."
        )


def _whole_units(weights: Shaped[np.ndarray, "sources"]) -> PerSource:
    """Return weights as integers that sum to UNITS, in the same proportions."""
    units = np.rint(weights / weights.sum() * UNITS).astype(np.int64)
    # The rounding error of the sum goes to the largest weight, where it matters least.
    units[int(np.argmax(units))] += UNITS - int(units.sum())
    return units
