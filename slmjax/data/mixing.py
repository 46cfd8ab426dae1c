"""The mixture as a schedule: which source, and which of its rows, is row g of the whole run, for any g."""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from slmjax.data.stretch import UNITS, Stretch
from slmjax.errors import UserError, nearest

NO_CAP = np.iinfo(np.int64).max


class Phase(NamedTuple):
    """A part of the run: up to the share `until` of it, with {source: weight}, reached in a line over the share `ramp` at its beginning."""

    until: float
    weights: Mapping[str, float]
    ramp: float = 0.0


class Mixture:
    """Row g of a run -> (source, row of that source). Weights are shares of rows, therefore of tokens.

    A phase starts at row `round(until * total_rows / align) * align` of the phase before it and is one `Stretch` of rows, whose counts
    and order are told there. Where a source has given all the rows of its cap, the stretch ends and another begins with the next
    row, in which the source's share goes to the others in proportion to their weights (a ramp goes on to what is left of the phase's
    weights). A source's rows are taken in order, 0, 1, 2, ... and go on over phase boundaries. Picks depend only on the stretches begun
    so far: with constant phases a longer run begins with the picks of a shorter one, and with several phases the picks agree up to
    the earlier one of the two boundaries.

    Args:
      names: the sources.
      tokens: tokens of each source; their proportions are the weights where nothing else says so.
      phases: see `parse_phases`; a name left out has weight 0. Empty: one phase.
      total_rows: rows of the run; only phase boundaries, ramps and how far caps are planned depend on it.
      seed: of the order inside blocks.
      weights: of the one phase where `phases` is empty: one for each name, or None for all.
      align: phases and ramps begin and end on multiples of this many rows (the batch, so that a step has one set of weights).
      caps: most rows of a source in the run; a name left out has no cap.
      row_tokens: tokens of a row, for what is told of caps.
    Attributes: names, total_rows, spent ({source: row from which on its cap leaves nothing of it}).
    Raises: UserError for unknown or missing names, weights that are negative or all zero, shares that do not increase to 1, a ramp longer
      than its phase, and caps that leave nothing to train on before the end of the run.
    """

    def __init__(
        self,
        names: Sequence[str],
        tokens: Sequence[int],
        phases: Any,
        total_rows: int,
        seed: int,
        *,
        weights: Mapping[str, float | None] | None = None,
        align: int = 1,
        caps: Mapping[str, int] | None = None,
        row_tokens: int = 1,
    ):
        self.names, self.total_rows, self.spent = tuple(names), total_rows, {}
        self._seed, self._row_tokens = seed, row_tokens
        self._caps = np.array([(caps or {}).get(name, NO_CAP) for name in names], np.int64)
        fields = [f"data.phases[{i}]" for i in range(len(phases))]
        phases = parse_phases(phases)
        if not phases:
            fields, phases = (
                ["data.sources"],
                (Phase(1.0, _own_weights(self.names, tokens, weights or {})),),
            )
        units = [_units(self.names, phase.weights, field) for field, phase in zip(fields, phases)]
        starts = [
            0,
            *(
                min(total_rows, round(phase.until * total_rows / align) * align)
                for phase in phases[:-1]
            ),
            total_rows,
        ]
        self._stretches: list[Stretch] = []
        self._before = [np.zeros(len(self.names), np.int64)]
        for i, phase in enumerate(phases):
            ramp = round(phase.ramp * total_rows / align) * align
            self._lay(fields[i], units[max(0, i - 1)], units[i], ramp, starts[i], starts[i + 1])
        self._starts = [stretch.start for stretch in self._stretches]

    def __len__(self) -> int:
        return self.total_rows

    def __getitem__(self, g: int) -> tuple[int, int]:
        """`pick` inside the run, so that a Mixture serves as the selection map of `grain.MapDataset.select_from_datasets`.

        The datasets are then one of rows for each source; a row beyond the end of one is Grain's index into its next epoch.
        """
        if not 0 <= g < self.total_rows:
            raise IndexError(f"row {g} of a run of {self.total_rows}")
        return self.pick(g)

    def pick(self, g: int) -> tuple[int, int]:
        """(index of the source, row of that source) of row g of the run."""
        i = self._at(g)
        source, row = self._stretches[i].pick(g - self._starts[i])
        return source, int(self._before[i][source]) + row

    def rows_before(self, g: int) -> Int64[np.ndarray, "sources"]:
        """How many rows of each source are among the first g rows of the run."""
        i = self._at(g)
        return self._before[i] + self._stretches[i].counts(g - self._starts[i])

    def planned(self, g: int) -> Float64[np.ndarray, "sources"]:
        """Each source's weights summed over the first g rows of the run: what `rows_before` rounds to whole rows."""
        spans = [
            (stretch, min(stop, g))
            for stretch, stop in zip(self._stretches, [*self._starts[1:], g])
            if stretch.start < g
        ]
        return np.sum(
            [
                np.zeros(len(self.names)),
                *(stretch.due(stop - stretch.start) / UNITS for stretch, stop in spans),
            ],
            0,
        )

    def weights(self) -> list[tuple[int, Float64[np.ndarray, "sources"]]]:
        """(row, weights) wherever in the run the line of the weights begins, bends or ends; at a jump two of the same row."""
        out = []
        for stretch, stop in zip(self._stretches, [*self._starts[1:], self.total_rows]):
            corners = sorted({0, min(stretch.ramp, stop - stretch.start), stop - stretch.start})
            out += [(stretch.start + row, stretch.units_at(row) / UNITS) for row in corners]
        return out

    def begun(self, g: int) -> list[tuple]:
        """Everything but the seed that decides the first g rows.

        Returns: of every stretch that they reach (start, weights in units of 2^-30), with a ramp (start, weights, its rows, old weights).
        """

        def named(units: np.ndarray) -> dict[str, int]:
            return {name: int(n) for name, n in sorted(zip(self.names, units)) if n}

        reached = (stretch for stretch in self._stretches if stretch.start < g)
        return [
            (s.start, named(s.units), *([s.ramp, named(s.old)] if s.ramp else [])) for s in reached
        ]

    def _at(self, g: int) -> int:
        return bisect.bisect_right(self._starts, g) - 1

    def _lay(
        self, field: str, old: np.ndarray, new: np.ndarray, ramp: int, start: int, stop: int
    ) -> None:
        """Append the rows [start, stop) of a phase: a stretch, and another one after each cap that is reached."""
        given = old, new
        while start < stop:
            before = self._before[-1]
            spent, wanted = self._caps <= before, given[1] + (given[0] if ramp else 0) > 0
            for i in np.flatnonzero(wanted & spent):
                self.spent.setdefault(self.names[i], start)
            old, new = _without(old if ramp else new, spent), _without(new, spent)
            if not (old.any() or new.any()):
                told, row = (
                    ", ".join(name for name, of in zip(self.names, wanted) if of),
                    self._row_tokens,
                )
                raise UserError(
                    f"{field}: of the {self.total_rows * row:,} tokens that the run asks for, only {start * row:,} can be read: after them "
                    f"every source with a weight ({told}) has reached its max_epochs; raise it, add text, or lower train.steps."
                )
            # Where a cap leaves one end of a ramp without any weights, those of the other end hold until the ramp is over.
            stretch = Stretch(
                self.names,
                self._seed,
                start,
                new if new.any() else old,
                old=old if old.any() else new,
                ramp=ramp,
            )
            end = stop if new.any() else min(stop, start + ramp)
            rows = stretch.reached(
                np.where(old + new > 0, self._caps - before, NO_CAP), end - start
            )
            self._stretches.append(stretch)
            self._before.append(before + stretch.counts(rows))
            old, ramp, start = stretch.units_at(rows), max(0, ramp - rows), start + rows


def parse_phases(value: Sequence[Any]) -> tuple[Phase, ...]:
    """Phases as a config has them: ({"until": 0.8, "weights": {"web": 1.0}, "ramp": 0.05}, ...), or short as (until, weights) or Phases.

    `until` and `ramp` are shares of the run; over `ramp` the weights move in a line from the previous phase's to this one's.
    Raises: UserError for what is none, shares that do not increase to 1, and a ramp longer than its phase or without a phase before it.
    """
    phases, expected = (
        [],
        "expected {'until': 0.8, 'weights': {'books': 1}} and, for a smooth change, 'ramp': 0.05",
    )
    for i, given in enumerate(value):
        entry = given.items() if hasattr(given, "items") else ()
        if isinstance(given, list | tuple) and len(given) <= len(Phase._fields):
            entry = zip(Phase._fields, given)
        entry, field = dict(entry), f"config.data.phases[{i}]"
        for name in entry:
            if name not in Phase._fields:
                raise UserError(
                    f"{field} has no field '{name}'; {expected}.{nearest(str(name), Phase._fields)}"
                )
        weights = entry.get("weights")
        shares = [entry.get("until"), entry.get("ramp", 0)]
        if not hasattr(weights, "items") or not all(
            isinstance(share, int | float) for share in shares
        ):
            raise UserError(f"{field} is {given!r}; {expected}.")
        for name, weight in weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not isinstance(name, str):
                raise UserError(
                    f"{field} gives {name!r} the weight {weight!r}; expected a source's name and a number of 0 or more."
                )
        phases.append(Phase(**entry))
    ends = [phase.until for phase in phases]
    if ends and (ends[-1] != 1.0 or not all(a < b for a, b in zip([0.0, *ends], ends))):
        raise UserError(
            f"config.data.phases end at {', '.join(map(str, ends))} of the run; expected increasing shares, the last one 1.0."
        )
    for i, phase in enumerate(phases):
        room = phase.until - ends[i - 1] if i else 0.0
        if not 0 <= phase.ramp <= room + 1e-9:
            raise UserError(
                f"config.data.phases[{i}].ramp is {phase.ramp}; expected 0 to {room:.3g}, the phase's own share"
                f"{'' if i else ' (the first has no weights to come from)'}."
            )
    return tuple(phases)


def check_phases(value: Sequence[Any], names: Sequence[str]) -> None:
    """Raises: UserError for phases whose weights do not fit the sources; asked before text is prepared."""
    for i, phase in enumerate(parse_phases(value)):
        _units(names, phase.weights, f"data.phases[{i}]")


def _units(names: Sequence[str], weights: Mapping[str, float], where: str) -> np.ndarray:
    """Weights as integers that sum to UNITS."""
    for name, weight in weights.items():
        if name not in names:
            raise UserError(
                f"{where} gives a weight to '{name}', but the sources are {', '.join(names)}.{nearest(name, names)}"
            )
        if not 0 <= weight < float("inf"):
            raise UserError(
                f"{where} gives '{name}' the weight {weight}; expected a number of 0 or more."
            )
    given = np.array([float(weights.get(name, 0)) for name in names])
    if not given.sum():
        raise UserError(
            f"{where} gives every source the weight 0; at least one of {', '.join(names)} must be more."
        )
    return _whole(given)


def _whole(weights: np.ndarray) -> np.ndarray:
    units = np.rint(weights / weights.sum() * UNITS).astype(np.int64)
    units[int(np.argmax(units))] += UNITS - int(units.sum())
    return units


def _without(units: np.ndarray, spent: np.ndarray) -> np.ndarray:
    """Weights without some sources, the others in the same proportions; all 0 where no others have any."""
    kept = np.where(spent, 0, units)
    return _whole(kept) if 0 < kept.sum() < UNITS else kept


def _own_weights(
    names: Sequence[str], tokens: Sequence[int], weights: Mapping[str, float | None]
) -> dict[str, float]:
    """The sources' own weights, or their tokens where none has one."""
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return dict(zip(names, tokens, strict=True))
    for name in names:
        if name not in given:
            raise UserError(
                f"data.sources gives weights to {', '.join(given)} but none to '{name}': give one to every source or to none."
            )
    return given
