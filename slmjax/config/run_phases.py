"""Phases of a run: the parts that it is trained in, each with its text, learning rate and batches.

The config lists them (`parse_phases`). `run_phases` says at which step each begins and ends.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from slmjax.errors import UserError, nearest

EXPECTED = (
    "expected {'until': 0.8, 'weights': {'books': 1}} or {'tokens': 2e9, ...}, for a smooth change "
    "with 'ramp'"
)
# How far a ramp may exceed its phase. Shares are decimal fractions, such as 0.9 - 0.8, and their
# difference is rounded.
ROUNDING = 1e-9


class Phase(NamedTuple):
    """A part of the run, as the config has it.

    until: share of the run's steps at which the phase ends; None where it has `tokens`.
    weights: {source: weight}, "*" for all sources that are not named; None: the sources' own.
    ramp: share of the run (of a phase with `tokens`: tokens), at the beginning of the phase, over
      which the weights move linearly from those of the phase before to these.
    tokens: length of the phase; None where it has `until`.
    rate: factors of the peak learning rate at its begin and its end.
    seq_len, batch: tokens of a row and rows of a step; 0: data.seq_len and train.batch.
    seed: of the order of documents and sources; None: the config's.
    """

    until: float | None = None
    weights: Mapping[str, float] | None = None
    ramp: float = 0.0
    tokens: float | None = None
    rate: tuple[float, float] | None = None
    seq_len: int = 0
    batch: int = 0
    seed: int | None = None


class RunPhase(NamedTuple):
    """Steps [first, stop) of a run.

    ramp: steps at the beginning, in which the weights change.
    weights, rate: see Phase.
    seq_len, batch: shape of every batch.
    seed: of the order; None: the config's.
    """

    first: int
    stop: int
    ramp: int
    weights: Mapping[str, float] | None
    rate: tuple[float, float] | None
    seq_len: int
    batch: int
    seed: int | None

    @property
    def step_tokens(self) -> int:
        """Tokens of a step."""
        return self.seq_len * self.batch


def parse_phases(value: Sequence[Any], *, begun: bool = False) -> tuple[Phase, ...]:
    """Return the phases that a config lists.

    Args:
      value: a sequence of mappings with the fields of `Phase`; or of (until, weights) or (until,
        weights, ramp).
      begun: other phases come before these, so that the first may have a ramp.
    Raises: UserError for an invalid phase, phases of which only some have tokens, shares that do
      not increase to 1, and a ramp longer than its phase or without a phase before it.
    """
    phases = []
    for number, given in enumerate(value):
        phases.append(_parse_phase(given, f"config.data.phases[{number}]"))
    if not are_in_tokens(phases):
        _check_ends([phase.until for phase in phases])
    start = 0.0
    for number, phase in enumerate(phases):
        length = phase.tokens
        if length is None:
            length = phase.until - start
            start = phase.until
        _check_ramp(number, phase, length, begun)
    return tuple(phases)


def are_in_tokens(phases: Sequence[Phase]) -> bool:
    """Return whether phases have `tokens`. Raises: UserError where only some of them have."""
    with_tokens = [phase.tokens is not None for phase in phases]
    if any(with_tokens) and not all(with_tokens):
        raise UserError(
            f"config.data.phases[{with_tokens.index(False)}] has no 'tokens', but another phase "
            "has; give all phases tokens, or all 'until'."
        )
    return any(with_tokens)


def run_phases(data: Any, train: Any) -> tuple[RunPhase, ...]:
    """Return the phases of a run in steps, without those that round to no step.

    A phase in tokens has tokens / (batch x seq_len) steps, rounded.

    Args:
      data, train: config.data and config.train. Without phases the run is one phase.
    Raises: UserError for invalid phases, and tokens that are less than a step.
    """
    given = parse_phases(data.phases) or (Phase(1.0),)
    in_tokens = are_in_tokens(given)
    phases = []
    first = 0
    for number, phase in enumerate(given):
        seq_len, batch = phase.seq_len or data.seq_len, phase.batch or train.batch
        if in_tokens:
            steps = round(phase.tokens / (seq_len * batch))
            ramp = round(phase.ramp / (seq_len * batch))
            stop = first + steps
            if not steps:
                raise UserError(
                    f"config.data.phases[{number}].tokens is {phase.tokens:g}, which is less than "
                    f"a step of {seq_len * batch:,}."
                )
        else:
            stop = _step_at(phase.until, train)
            ramp = _step_at(phase.ramp, train)
        if stop > first:
            phases.append(
                RunPhase(first, stop, ramp, phase.weights, phase.rate, seq_len, batch, phase.seed)
            )
        first = stop
    return tuple(phases)


def tokens_before(phases: Sequence[RunPhase], step: int) -> dict[int, int]:
    """Return {tokens of a row: tokens that the steps before `step` read in such rows}."""
    tokens: dict[int, int] = {}
    for phase in phases:
        steps = max(0, min(step, phase.stop) - phase.first)
        tokens[phase.seq_len] = tokens.get(phase.seq_len, 0) + steps * phase.step_tokens
    return tokens


def phases_before(data: Any, train: Any, step: int) -> tuple[dict[str, Any], ...]:
    """Return phases in tokens that are the first `step` steps of a run: the same batches and rates.

    A run with these phases, then others, and config.train.schedule="phases" can branch from it.

    Args:
      data, train: config.data and config.train of the run. Its learning rate is constant there,
        but for the warmup, unless its schedule is "phases".
    Raises: UserError for a step in which weights or rate are changing.
    """
    kept = []
    for phase in run_phases(data, train):
        steps = min(step, phase.stop) - phase.first
        if steps <= 0:
            break
        begin, end = phase.rate or (1, 1)
        if step < phase.stop and (steps < phase.ramp or begin != end):
            raise UserError(
                f"step {step} lies where the weights or the rate of config.data.phases change, so "
                "the steps before it are no phases of their own."
            )
        entry: dict[str, Any] = {"tokens": steps * phase.step_tokens, "rate": (begin, end)}
        if phase.weights is not None:
            entry["weights"] = dict(phase.weights)
        if phase.ramp:
            entry["ramp"] = phase.ramp * phase.step_tokens
        for name in ("seq_len", "batch"):
            if getattr(phase, name) != {"seq_len": data.seq_len, "batch": train.batch}[name]:
                entry[name] = getattr(phase, name)
        if phase.seed is not None:
            entry["seed"] = phase.seed
        kept.append(entry)
    return tuple(kept)


def _step_at(share: float, train: Any) -> int:
    # The formula of data/mixing.py, to the last bit: phases begin at the same step in both.
    return round(share * (train.steps * train.batch) / train.batch)


def _parse_phase(given: Any, field: str) -> Phase:
    fields = _named_fields(given)
    for name in fields:
        if name not in Phase._fields:
            raise UserError(
                f"{field} has no field '{name}'; {EXPECTED}.{nearest(str(name), Phase._fields)}"
            )
    phase = Phase(**fields)
    if not fields or (phase.until is None) == (phase.tokens is None):
        raise UserError(f"{field} is {given!r}; {EXPECTED}.")
    for name in ("until", "tokens", "ramp"):
        value = getattr(phase, name)
        if value is not None and not _is_number(value):
            raise UserError(f"{field} is {given!r}; {EXPECTED}.")
    _check_weights(phase.weights, field, given)
    if phase.tokens is not None and not 0 < phase.tokens < math.inf:
        raise UserError(f"{field}.tokens is {phase.tokens}; expected a positive number.")
    for name in ("seq_len", "batch"):
        value = getattr(phase, name)
        if name in fields and not (_is_whole(value) and value > 0):
            raise UserError(f"{field}.{name} is {value!r}; expected a positive whole number.")
    if phase.seed is not None and not (_is_whole(phase.seed) and phase.seed >= 0):
        raise UserError(f"{field}.seed is {phase.seed!r}; expected a whole number of 0 or more.")
    if phase.rate is not None:
        phase = phase._replace(rate=_parsed_rate(phase.rate, field))
    return phase


def _check_weights(weights: Any, field: str, given: Any) -> None:
    if weights is None:
        return
    if not hasattr(weights, "items"):
        raise UserError(f"{field} is {given!r}; {EXPECTED}.")
    for name, weight in weights.items():
        if not _is_number(weight) or not isinstance(name, str):
            raise UserError(
                f"{field} gives {name!r} the weight {weight!r}; "
                "expected a source's name and a number of 0 or more."
            )


def _parsed_rate(rate: Any, field: str) -> tuple[float, float]:
    is_pair = isinstance(rate, list | tuple) and len(rate) == 2
    if not is_pair or not all(_is_number(factor) and 0 <= factor < math.inf for factor in rate):
        raise UserError(
            f"{field}.rate is {rate!r}; expected two factors of the peak rate, such as [1, 0]."
        )
    begin, end = rate
    return float(begin), float(end)


def _is_number(value: Any) -> bool:
    # A bool is an int in Python, but "True" is not a number that anybody means.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _named_fields(given: Any) -> dict[Any, Any]:
    """Return a phase as {field: value}; empty for a value that cannot be a phase."""
    # A ConfigDict is a mapping by its methods, not by its class.
    if hasattr(given, "items"):
        return dict(given.items())
    if isinstance(given, list | tuple) and len(given) <= len(Phase._fields):
        named = dict(zip(Phase._fields, given))
        # A Phase itself has its defaults too.
        return {name: value for name, value in named.items() if value != Phase()._asdict()[name]}
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


def _check_ramp(number: int, phase: Phase, length: float, begun: bool) -> None:
    reason = ""
    if number == 0 and not begun:
        # There are no weights before it that a ramp could begin with.
        length = 0.0
        reason = " (the first has no weights to come from)"
    if not 0 <= phase.ramp <= length + ROUNDING:
        raise UserError(
            f"config.data.phases[{number}].ramp is {phase.ramp}; "
            f"expected 0 to {length:g}, the phase's own length{reason}."
        )
