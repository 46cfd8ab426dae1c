"""Batches of a run whose phases have rows of another length, number or order: plans in a row."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from slmjax.config.run_phases import Phase, RunPhase, are_in_tokens, parse_phases
from slmjax.data.batch_plan import BatchPlan
from slmjax.data.rows import Arrays, Fields


def plan_of_phases(
    make: Callable[..., BatchPlan], settings: Mapping[str, Any], phases: Sequence[RunPhase]
) -> "BatchPlan | PhasedPlan":
    """Return the batches of a run: one plan, or several where the shape or order changes.

    Args:
      make: BatchPlan, or a subclass of it.
      settings: its arguments for a run of one shape, see `prepare_stage.plan_settings`.
      phases: of the run, see `run_phases`.
    """
    parts = [list(part) for _, part in groupby(phases, _kind)]
    if not parts or (len(parts) == 1 and not are_in_tokens(parse_phases(settings["phases"]))):
        changed = {}
        if parts:
            changed = _shape(parts[0][0], settings)
        return make(**settings | changed)
    plans: list[BatchPlan] = []
    for part in parts:
        steps = part[-1].stop - part[0].first
        after = plans[-1] if plans else None
        changed = _shape(part[0], settings) | {"steps": steps, "phases": _shares(part)}
        plans.append(make(**settings | changed, after=after))
    if len(plans) == 1:
        return plans[0]
    return PhasedPlan(plans)


class PhasedPlan:
    """The batches of a run as one BatchPlan after the other; see Rows and BatchPlan for methods.

    A source is read on across the plans. Running text goes on at the token of its epoch where the
    plan before has left it, rounded up to a whole row. With "concat" no more than a row is left out
    there. "best_fit" mixes the rows of a window of 512, so of the window in which the change falls
    some text is read twice and as much not at all in this epoch. Where the seed changes, the same
    holds of the epoch. Of dialogues and pairs the share of the epoch is kept.

    Args:
      spans: at least two, each with the one before as its `after`.
    """

    def __init__(self, spans: Sequence[BatchPlan]):
        self.spans = tuple(spans)
        last = self.spans[-1]
        self.train, self.scores, self.max_epochs = last.train, last.scores, last.max_epochs
        self.total_tokens = last.total_tokens
        self.max_segments = max(plan.max_segments for plan in self.spans)
        self._first_steps = [plan.first_step for plan in self.spans]

    @property
    def row_plans(self) -> list:
        """The rows of each source at the end of the run."""
        return self.spans[-1].row_plans

    def rows(self, step: int) -> list[tuple[int, int]]:
        return self._at(step).rows(step)

    def places(self, step: int) -> int | None:
        return self._at(step).places(step)

    def shapes(self, step: int) -> Fields:
        return self._at(step).shapes(step)

    def read(self, step: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """See Rows; the number of the span is sent along."""
        number = self._number_at(step)
        return {**self.spans[number].read(step, rows), "span": np.int32(number)}

    def unpack(self, compact: Mapping[str, np.ndarray]) -> Arrays:
        folded = dict(compact)
        return self.spans[int(folded.pop("span"))].unpack(folded)

    def documents(self, step: int) -> list[str]:
        return self._at(step).documents(step)

    def epochs(self, step: int | None = None) -> dict[str, float]:
        if step is None:
            return self.spans[-1].epochs()
        return self._at(step).epochs(step)

    def spent(self) -> dict[str, int]:
        spent: dict[str, int] = {}
        for plan in self.spans:
            # A source that is spent stays so: its first token without it counts.
            spent = plan.spent() | spent
        return spent

    def shares(self, points: int = 40) -> dict[str, Any]:
        """See BatchPlan; each span has its part of the points."""
        edges = [0, *(plan.total_tokens for plan in self.spans)]
        shares = []
        for plan, (start, stop) in zip(self.spans, pairwise(edges), strict=True):
            part = round(points * (stop - start) / self.total_tokens)
            shares.append(plan.shares(max(1, part)))
        return _joined(shares)

    def fingerprint(self, step: int) -> str:
        # What comes before a span is read by the spans before it.
        return self._at(max(0, step - 1)).fingerprint(step)

    def _number_at(self, step: int) -> int:
        return bisect.bisect_right(self._first_steps, step) - 1

    def _at(self, step: int) -> BatchPlan:
        return self.spans[self._number_at(step)]


def _kind(phase: RunPhase) -> tuple:
    """Return what is the same in all phases of a span."""
    return phase.seq_len, phase.batch, phase.seed


def _shape(phase: RunPhase, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a phase's BatchPlan that a phase may change."""
    seed = settings["seed"] if phase.seed is None else phase.seed
    return {"seq_len": phase.seq_len, "batch": phase.batch, "seed": seed}


def _shares(part: Sequence[RunPhase]) -> tuple[Phase, ...]:
    """Return phases of one span with shares of the span's steps; these round to the same steps."""
    first, steps = part[0].first, part[-1].stop - part[0].first
    phases = []
    for phase in part:
        until = (phase.stop - first) / steps
        phases.append(Phase(until, phase.weights, phase.ramp / steps))
    return tuple(phases)


def _joined(values: Sequence[Any]) -> Any:
    """Return nested dicts of lists with the lists put end to end."""
    if isinstance(values[0], dict):
        return {name: _joined([value[name] for value in values]) for name in values[0]}
    return [entry for value in values for entry in value]
