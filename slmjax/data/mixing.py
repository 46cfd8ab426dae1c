"""The mixture as a schedule: which source, and which of its rows, is row g of the whole run."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from slmjax.data.phases import Phase, own_weights, parse_phases, units_without, weight_units
from slmjax.data.stretch import UNITS, PerSource, Stretch
from slmjax.errors import UserError

# A cap that no run reaches, so that sources without one need no other arithmetic.
NO_CAP = np.iinfo(np.int64).max


class Mixture:
    """Row g of a run -> (source, row of that source). Weights are shares of rows, thus of tokens.

    A phase starts at row `round(until * total_rows / align) * align` of the phase before it and is
    one `Stretch` of rows, which decides counts and order. Where a source has given all the rows of
    its cap, the stretch ends and another begins with the next row. In it the source's share goes to
    the others in proportion to their weights, and a ramp goes on to what is left of the phase's
    weights.

    A source's rows are taken in order, 0, 1, 2, ..., across phase boundaries. Picks depend only on
    the stretches begun so far. With constant phases a longer run begins with the picks of a shorter
    one; with several phases the picks agree up to the earlier one of the two boundaries.

    Args:
      names: the sources.
      tokens: tokens of each source; their proportions are the weights where nothing else says so.
      phases: see `parse_phases`; a name left out has weight 0. Empty: one phase.
      total_rows: rows of the run; only phase boundaries, ramps and how far caps are planned depend
        on it.
      seed: of the order inside blocks.
      weights: of the one phase where `phases` is empty: one for each name, or None for all.
      align: phases and ramps begin and end on multiples of this many rows (the batch, so that a
        step has one set of weights).
      caps: most rows of a source in the run; a name left out has no cap.
      row_tokens: tokens of a row, for errors about caps.
    Attributes: names, total_rows, spent ({source: row from which on its cap leaves nothing of it}).
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
    ):
        self.names = tuple(names)
        self.total_rows = total_rows
        self.spent: dict[str, int] = {}
        self._seed = seed
        self._row_tokens = row_tokens
        caps = caps or {}
        self._caps = np.array([caps.get(name, NO_CAP) for name in names], np.int64)
        self._stretches: list[Stretch] = []
        # Rows of each source before each stretch, and after the last one: one entry more.
        self._before = [np.zeros(len(self.names), np.int64)]

        planned = parse_phases(phases)
        fields = [f"data.phases[{number}]" for number in range(len(planned))]
        if not planned:
            # One phase for the whole run.
            constant = own_weights(self.names, tokens, weights or {})
            planned = (Phase(1.0, constant),)
            fields = ["data.sources"]
        self._add_phases(planned, fields, align)
        self._starts = [stretch.start for stretch in self._stretches]

    def __len__(self) -> int:
        return self.total_rows

    def __getitem__(self, g: int) -> tuple[int, int]:
        """Return `pick` of a row inside the run.

        A Mixture therefore serves as the selection map of `grain.MapDataset.select_from_datasets`.
        The datasets are then one of rows for each source; a row beyond the end of one is Grain's
        index into its next epoch.
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
        i = self._stretch_at(g)
        counts = self._stretches[i].counts(g - self._starts[i])
        return self._before[i] + counts

    def planned(self, g: int) -> Float64[np.ndarray, "sources"]:
        """Return each source's weights summed over the first g rows of the run.

        It is what `rows_before` rounds to whole rows.
        """
        # The first is for g = 0, which no stretch begins before.
        sums = [np.zeros(len(self.names))]
        for stretch, stop in self._stretches_with_stops(g):
            if stretch.start < g:
                rows = min(stop, g) - stretch.start
                sums.append(stretch.due(rows) / UNITS)
        return np.sum(sums, 0)

    def weights(self) -> list[tuple[int, Float64[np.ndarray, "sources"]]]:
        """Return (row, weights) wherever the line of the weights begins, bends or ends.

        At a jump there are two of the same row.
        """
        corners = []
        for stretch, stop in self._stretches_with_stops(self.total_rows):
            rows = stop - stretch.start
            end_of_ramp = min(stretch.ramp, rows)
            for row in sorted({0, end_of_ramp, rows}):
                weights = stretch.units_at(row) / UNITS
                corners.append((stretch.start + row, weights))
        return corners

    def begun(self, g: int) -> list[tuple]:
        """Return everything but the seed that decides the first g rows.

        Returns: (start, weights in units of 2^-30) of every stretch that they reach; with a ramp
          (start, weights, its rows, old weights).
        """
        reached = []
        for stretch in self._stretches:
            # What begins later has decided nothing yet.
            if stretch.start >= g:
                continue
            entry = (stretch.start, self._by_name(stretch.units))
            if stretch.ramp:
                entry += (stretch.ramp, self._by_name(stretch.old))
            reached.append(entry)
        return reached

    def _by_name(self, units: PerSource) -> dict[str, int]:
        """Return weights that are not 0 as {source: weight}, in the order of the alphabet."""
        by_name = {}
        for name, weight in sorted(zip(self.names, units)):
            if weight:
                by_name[name] = int(weight)
        return by_name

    def _stretch_at(self, g: int) -> int:
        return bisect.bisect_right(self._starts, g) - 1

    def _stretches_with_stops(self, last_stop: int) -> Iterator[tuple[Stretch, int]]:
        """Yield each stretch with the row at which it ends; the last one ends at `last_stop`."""
        stops = [*self._starts[1:], last_stop]
        return zip(self._stretches, stops)

    def _add_phases(self, phases: Sequence[Phase], fields: Sequence[str], align: int) -> None:
        """Append the stretches of all phases; fields: of the config, for errors."""

        def aligned(share: float) -> int:
            return round(share * self.total_rows / align) * align

        # All weights are checked before the first stretch is made.
        units = []
        for field, phase in zip(fields, phases):
            units.append(weight_units(self.names, phase.weights, field))
        start = 0
        for number, phase in enumerate(phases):
            # The last phase ends with the run, also where this is no multiple of `align`.
            stop = self.total_rows
            if number < len(phases) - 1:
                stop = min(self.total_rows, aligned(phase.until))
            # The first phase has no ramp, so its old weights do not matter.
            old = units[max(0, number - 1)]
            ramp = aligned(phase.ramp)
            self._add_phase(fields[number], old, units[number], ramp, start, stop)
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
        """Append rows [start, stop): a stretch, and another one after each cap that is reached.

        Args:
          field: of the config, for errors.
          old, new: weights before the ramp and after it, in units.
          ramp: rows of the phase in which the weights move.
        """
        given_old, given_new = old, new
        while start < stop:
            before = self._before[-1]
            spent = self._caps <= before
            wanted = given_new > 0
            if ramp:
                wanted |= given_old > 0
            for source in np.flatnonzero(wanted & spent):
                # A report names the first row from which on the others take its share.
                self.spent.setdefault(self.names[source], start)

            if not ramp:
                old = new
            # The shares of spent sources go to the others.
            old = units_without(old, spent)
            new = units_without(new, spent)
            if not (old.any() or new.any()):
                raise self._all_spent(field, wanted, start)

            # Where a cap leaves one end of a ramp without any weights, those of the other end hold
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
            # A source without a weight cannot reach its cap here.
            has_weight = old + new > 0
            left = np.where(has_weight, self._caps - before, NO_CAP)
            # Up to the next cap, or to the end.
            rows = stretch.reached(left, end - start)
            self._stretches.append(stretch)
            self._before.append(before + stretch.counts(rows))
            # The next stretch goes on from the weights that the ramp has reached.
            old = stretch.units_at(rows)
            ramp = max(0, ramp - rows)
            start += rows

    def _all_spent(self, field: str, wanted: Bool[np.ndarray, "sources"], row: int) -> UserError:
        """Return the error that nothing is left to train on from a row of the run on."""
        names = [self.names[source] for source in np.flatnonzero(wanted)]
        asked = self.total_rows * self._row_tokens
        readable = row * self._row_tokens
        return UserError(
            f"{field}: of the {asked:,} tokens that the run asks for, only {readable:,} can be "
            f"read: after them every source with a weight ({', '.join(names)}) has reached its "
            "max_epochs; raise it, add text, or lower train.steps."
        )
