"""The weights of sources in each phase of a run, see config/run_phases.py for phases themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from slmjax.config.run_phases import parse_phases
from slmjax.data.stretch import UNITS, PerSource
from slmjax.errors import UserError, nearest

# The name that stands for all sources that a phase does not name.
OTHERS = "*"


def check_phases(
    value: Sequence[Any], names: Sequence[str], weights: Mapping[str, float | None]
) -> None:
    """Check phases before any text is prepared.

    Args:
      weights: {source: its own weight, or None}.
    Raises: UserError for invalid phases, and for weights that do not fit the sources.
    """
    # The sizes of the sources are not known yet, and any will do here.
    own = own_weights(names, [1] * len(names), weights) if needs_own_weights(value) else {}
    for number, phase in enumerate(parse_phases(value)):
        where = f"data.phases[{number}]"
        weight_units(names, phase_weights(names, own, phase.weights, where), where)


def needs_own_weights(phases: Sequence[Any]) -> bool:
    """Return whether a phase leaves the weight of some source to the source itself."""
    weights = [phase.weights for phase in parse_phases(phases, begun=True)]
    return any(given is None or OTHERS in given for given in weights)


def phase_weights(
    names: Sequence[str],
    own: Mapping[str, float],
    weights: Mapping[str, float] | None,
    where: str,
) -> Mapping[str, float]:
    """Return the weights of a phase with the sources' names in place of "*".

    Args:
      own: each source's weight where no phase gives one, see `own_weights`.
      weights: of the phase; None: the sources' own.
      where: what an error calls the weights.
    Raises: UserError where "*" stands for no source with a weight.
    """
    if weights is None:
        return own
    if OTHERS not in weights:
        return weights
    named = {name: weight for name, weight in weights.items() if name != OTHERS}
    others = {name: own[name] for name in names if name not in named}
    total = sum(others.values())
    if not total:
        raise UserError(
            f"{where} gives a weight to '{OTHERS}', which stands for the sources that it does not "
            "name, but none of these has a weight of its own."
        )
    if not named:
        # As they are: divided by their sum, they might be rounded to other units.
        return others
    share = weights[OTHERS] / total
    return named | {name: weight * share for name, weight in others.items()}


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

    A source of weight 0 may stand next to sources without weights.

    Raises: UserError where some sources have a weight above 0 and others have none.
    """
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not any(given.values()) and len(given) < len(names):
        sizes = dict(zip(names, tokens, strict=True))
        return sizes | dict.fromkeys(given, 0)
    # A weight cannot be compared with a number of tokens, so all sources need one.
    for name in names:
        if name not in given:
            raise UserError(
                f"data.sources gives weights to {', '.join(filter(given.get, given))} but none to "
                f"'{name}': "
                "give one to every source or to none."
            )
    return given


def _whole_units(weights: Shaped[np.ndarray, "sources"]) -> PerSource:
    """Return weights as integers that sum to UNITS, in the same proportions."""
    units = np.rint(weights / weights.sum() * UNITS).astype(np.int64)
    # The rounding error of the sum goes to the largest weight, where it matters least.
    units[int(np.argmax(units))] += UNITS - int(units.sum())
    return units
