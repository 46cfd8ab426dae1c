"""The mixture of sources: which source, and which of its rows, is row g of the whole run."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from slmjax.config.run_phases import Phase, parse_phases
from slmjax.data.phases import (
    needs_own_weights,
    own_weights,
    phase_weights,
    units_without,
    weight_units,
)
from slmjax.data.stretch import UNITS, PerSource, Stretch
from slmjax.errors import UserError

# The cap of a source without one: no run has so many rows.
NO_CAP = np.iinfo(np.int64).max


class Begin(NamedTuple):
    """What a mixture goes on from: rows of other shapes, or in another order, that come before it.

    row: number of its first row in the run.
    counts: rows of each source that are read before it, counted in rows of this mixture.
    units: the weights before it, from which a ramp begins.
    phase: number of its first phase in the config, for errors.
    """

    row: int
    counts: PerSource
    units: PerSource
    phase: int


class Mixture:
    """Maps row g of a run to (source, row of that source).

    Weights are shares of the rows, and therefore of the tokens. Each phase is a `Stretch` of rows,
    which decides counts and order. It ends at row `round(until * total_rows / align) * align`. A
    source that has given as many rows as its cap allows is spent. Then the stretch ends early, and
    the phase goes on with another one, in which the others take the source's share in proportion to
    their weights. A ramp goes on as well, to the phase's weights without the spent source.

    A source's rows are taken in order, 0, 1, 2, ..., across phase boundaries. What row g is depends
    only on the stretches that begin at or before it. So two runs of different length, or with
    different later phases, agree up to the first boundary that differs.

    Args:
      names: the sources.
      tokens: tokens of each source; its weight where neither `phases` nor `weights` has one.
      phases: see `parse_phases`, with `until`; a name left out has weight 0. Empty: one phase.
      total_rows: rows of the run, or of the part of it that begins at `begin`.
      seed: of the order inside blocks of rows.
      weights: {source: weight} where no phase gives one. All are numbers, or all are None or 0.
      align: phases and ramps begin and end on multiples of this many rows. It is the batch, so that
        the weights do not jump within a step.
      caps: {source: most of its rows in the run}; a name left out has no cap.
      row_tokens: tokens of a row, for errors about caps.
      begin: None for a mixture from the run's first row on.
    Attributes: names; total_rows, the number of the row after the last one; last_units, the weights
      of the last phase; spent, {source: row of the run from which on it is spent}.
    Raises: UserError for unknown or missing names, weights that are negative or all zero, shares
      that do not increase to 1, a ramp longer than its phase, and caps that leave nothing to train
      on before the end of the run.
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
        begin: Begin | None = None,
    ):
        self.names = tuple(names)
        nothing = np.zeros(len(self.names), np.int64)
        start = begin or Begin(0, nothing, nothing, 0)
        self._first_row = start.row
        self.total_rows = start.row + total_rows
        self.spent: dict[str, int] = {}
        self._seed = seed
        self._row_tokens = row_tokens
        caps = caps or {}
        self._caps = np.array([caps.get(name, NO_CAP) for name in names], np.int64)
        self._stretches: list[Stretch] = []
        # Rows of each source before each stretch, and a last entry: those of the whole run.
        self._before = [start.counts]

        # One phase for the whole run where there are none.
        parsed_phases = parse_phases(phases, begun=begin is not None) or (Phase(1.0),)
        # Fields of the config that an error about a phase names.
        fields = ["data.sources"]
        if phases:
            numbers = range(start.phase, start.phase + len(parsed_phases))
            fields = [f"data.phases[{number}]" for number in numbers]
        own = {}
        if needs_own_weights(parsed_phases):
            own = own_weights(self.names, tokens, weights or {})
        # All weights are checked before the first stretch is made.
        units = []
        for field, phase in zip(fields, parsed_phases):
            named = phase_weights(self.names, own, phase.weights, field)
            units.append(weight_units(self.names, named, field))
        self.last_units = units[-1]
        before = start.units if begin else units[0]
        self._add_phases(parsed_phases, fields, [before, *units], align)
        self._starts = [stretch.start for stretch in self._stretches]

    def __len__(self) -> int:
        return self.total_rows

    def __getitem__(self, g: int) -> tuple[int, int]:
        """Return `pick(g)`.

        With `len` this makes a Mixture a selection map of `grain.MapDataset.select_from_datasets`,
        for one dataset of rows for each source. A row beyond the end of a dataset means, in Grain
        as here, a row of its next epoch.
        Raises: IndexError for a row outside the run.
        """
        if not 0 <= g < self.total_rows:
            raise IndexError(f"row {g} of a run of {self.total_rows}")
        return self.pick(g)

    def pick(self, g: int) -> tuple[int, int]:
        """Return (index of the source, row of that source) of row g of the run."""
        i = self._stretch_at(g)
        source, row = self._stretches[i].pick(g - self._starts[i])
        row_before = int(self._before[i][source])
        return source, row_before + row

    def rows_before(self, g: int) -> PerSource:
        """Return how many rows of each source are among the first g rows of the run."""
        if not self._stretches:
            # A run without steps.
            return self._before[0]
        i = self._stretch_at(g)
        counts = self._stretches[i].counts(g - self._starts[i])
        return self._before[i] + counts

    def planned(self, g: int) -> Float64[np.ndarray, "sources"]:
        """Return the sum of each source's weights over the first g rows of the run.

        It is the exact share that `rows_before` rounds to whole rows.
        """
        # Zeros, because no stretch begins before row 0.
        sums = [np.zeros(len(self.names))]
        for stretch, stop in self._stretches_with_stops(g):
            if stretch.start < g:
                rows = min(stop, g) - stretch.start
                sums.append(stretch.due(rows) / UNITS)
        return np.sum(sums, 0)

    def weights(self) -> list[tuple[int, Float64[np.ndarray, "sources"]]]:
        """Return the corners of the weights, which are piecewise linear in the row of the run.

        A corner is (row, weight of each source). Where the weights jump there are two for one row.
        """
        corners = []
        for stretch, stop in self._stretches_with_stops(self.total_rows):
            rows = stop - stretch.start
            end_of_ramp = min(stretch.ramp, rows)
            for row in sorted({0, end_of_ramp, rows}):
                weights = stretch.units_at(row) / UNITS
                corners.append((stretch.start + row, weights))
        return corners

    def stretches_before(self, g: int) -> list[tuple]:
        """Return every stretch that begins before row g: with the seed, they decide these g rows.

        Returns: (start, {source: weight}) for each; with a ramp (start, {source: weight}, rows of
          the ramp, {source: old weight}). Weights are in units of 2^-30.
        """
        entries = []
        for stretch in self._stretches:
            if stretch.start >= g:
                break
            entry = (stretch.start, self._by_name(stretch.units))
            if stretch.ramp:
                entry += (stretch.ramp, self._by_name(stretch.old))
            entries.append(entry)
        return entries

    def _by_name(self, units: PerSource) -> dict[str, int]:
        """Return the weights that are not 0 as {source: weight}, in alphabetical order."""
        by_name = {}
        for name, weight in sorted(zip(self.names, units)):
            if weight:
                by_name[name] = int(weight)
        return by_name

    def _stretch_at(self, g: int) -> int:
        """Return the index of the stretch that row g is in."""
        return bisect.bisect_right(self._starts, g) - 1

    def _stretches_with_stops(self, last_stop: int) -> Iterator[tuple[Stretch, int]]:
        """Yield each stretch with the row at which it ends; the last one ends at `last_stop`."""
        stops = [*self._starts[1:], last_stop]
        return zip(self._stretches, stops)

    def _add_phases(
        self,
        phases: Sequence[Phase],
        fields: Sequence[str],
        units: Sequence[PerSource],
        align: int,
    ) -> None:
        """Append the stretches of all phases.

        Args:
          fields: the name of each phase in the config, for errors.
          units: the weights before the first phase, then those of each phase.
          align: see `Mixture`.
        """
        rows = self.total_rows - self._first_row

        def aligned_rows(share: float) -> int:
            return round(share * rows / align) * align

        start = self._first_row
        for number, phase in enumerate(phases):
            # The last phase ends with the run, also where this is no multiple of `align`.
            stop = self.total_rows
            if number < len(phases) - 1:
                stop = min(self.total_rows, self._first_row + aligned_rows(phase.until))
            old, new = units[number : number + 2]
            ramp = aligned_rows(phase.ramp)
            self._add_phase(fields[number], old, new, ramp, start, stop)
            start = stop

    def _add_phase(
        self,
        field: str,
        old: PerSource,
        new: PerSource,
        ramp: int,
        start: int,
        stop: int,
    ) -> None:
        """Append the stretches of rows [start, stop): one, and another whenever a source is spent.

        Args:
          field: the phase's name in the config, for errors.
          old, new: weights before the ramp and after it, in units of 2^-30.
          ramp: rows at the beginning of the phase in which the weights move from old to new.
        """
        phase_old, phase_new = old, new
        while start < stop:
            rows_so_far = self._before[-1]
            is_spent = self._caps <= rows_so_far
            is_wanted = phase_new > 0
            if ramp:
                is_wanted |= phase_old > 0
            for source in np.flatnonzero(is_wanted & is_spent):
                # An entry that is there stays: it has the first row without this source.
                self.spent.setdefault(self.names[source], start)

            if not ramp:
                old = new
            # The shares of spent sources go to the others.
            old = units_without(old, is_spent)
            new = units_without(new, is_spent)
            if not (old.any() or new.any()):
                raise self._all_spent_error(field, is_wanted, start)

            # If all sources of one end of a ramp are spent, the weights of the other end hold
            # until the ramp is over.
            end = stop
            if not new.any():
                end = min(stop, start + ramp)
            stretch = Stretch(
                self.names,
                self._seed,
                start,
                new if new.any() else old,
                old=old if old.any() else new,
                ramp=ramp,
            )
            # A source without a weight gives no rows here, so its cap does not matter.
            has_weight = old + new > 0
            rows_left = np.where(has_weight, self._caps - rows_so_far, NO_CAP)
            rows = stretch.rows_until_spent(rows_left, end - start)
            self._stretches.append(stretch)
            self._before.append(rows_so_far + stretch.counts(rows))
            # The next stretch goes on from the weights that the ramp has reached.
            old = stretch.units_at(rows)
            ramp = max(0, ramp - rows)
            start += rows

    def _all_spent_error(
        self, field: str, is_wanted: Bool[np.ndarray, "sources"], row: int
    ) -> UserError:
        """Return the error that from this row of the run on all wanted sources are spent."""
        names = [self.names[source] for source in np.flatnonzero(is_wanted)]
        run_tokens = self.total_rows * self._row_tokens
        readable = row * self._row_tokens
        return UserError(
            f"{field}: of the {run_tokens:,} tokens that the run asks for, only {readable:,} can "
            f"be read: after them every source with a weight ({', '.join(names)}) has reached its "
            "max_epochs; raise it, add text, or lower train.steps."
        )
