"""The mixture as a schedule: which source, and which of its rows, is row g of the whole run, for any g."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from slmjax.data.packing import Recent, random_bits
from slmjax.errors import UserError, nearest

Phases = Sequence[Sequence[Any]]  # ((until, {name: weight}), ...), as tuples or, from a config.json, lists

# Part of the data order, as WINDOW_ROWS is.
BLOCK_ROWS = 1024
# Weights are kept as integers of this denominator, so that counts are exact on every machine.
UNITS = 2**30


class Mixture:
    """Row g of a run -> (source, row of that source). Weights are shares of rows, therefore of tokens.

    A phase starts at row `round(until * total_rows / align) * align` of the phase before it and is cut in blocks of 1,024
    rows. Counts at block edges are those of weight x rows rounded down or up (never off by a row or more), chosen by earliest
    deadline, which is what makes that possible for any number of sources (Tijdeman 1980, "The chairman assignment problem").
    Inside a block the j-th of a source's c rows falls at a seeded random place in the j-th c-th of the block, so that at *every* row of a
    phase a source is within 2 + weight x number of sources of its share. A source's rows are taken in order, 0, 1, 2, ...
    and go on over phase boundaries. The last block of a phase is cut short, not squeezed, therefore picks depend only on the phases
    begun so far: with constant phases a longer run begins with the picks of a shorter one, and with several phases
    the picks agree up to the earlier one of the two boundaries.

    Args:
      names: the sources.
      tokens: tokens of each source; their proportions are the weights where nothing else says so.
      phases: ((until, {name: weight}), ...): `until` is a share of the run, increasing to 1; a name left out has weight 0.
        Empty: one phase.
      total_rows: rows of the run; only phase boundaries depend on it.
      seed: of the order inside blocks.
      weights: of the one phase where `phases` is empty: one for each name, or None for all.
      align: boundaries fall on multiples of this many rows (the batch, so that a step has one set of weights).
    Raises: UserError for unknown or missing names, weights that are negative or all zero, and shares that do not increase to 1.
    """

    def __init__(
        self,
        names: Sequence[str],
        tokens: Sequence[int],
        phases: Phases,
        total_rows: int,
        seed: int,
        *,
        weights: Mapping[str, float | None] | None = None,
        align: int = 1,
    ):
        self.names = tuple(names)
        self._seed = seed
        fields = [f"data.phases[{i}]" for i in range(len(phases))]
        if not phases:
            fields, phases = ["data.sources"], [(1.0, _own_weights(self.names, tokens, weights or {}))]
        _check_shares([until for until, _ in phases])
        self._units = [_units(self.names, given, field) for field, (_, given) in zip(fields, phases)]
        self._starts = [0] + [round(until * total_rows / align) * align for until, _ in phases[:-1]]
        self._alphabetical = np.argsort(np.argsort(np.array(self.names)))
        self._edges = [np.zeros((1, len(self.names)), np.int64) for _ in phases]
        self._blocks = Recent(8)
        self._before = [np.zeros(len(self.names), np.int64)]
        for start, stop in zip(self._starts, self._starts[1:]):
            self._before.append(self._before[-1] + self._in_phase(len(self._before) - 1, stop - start))
        self._in_phase(len(phases) - 1, max(0, total_rows - self._starts[-1]))

    def pick(self, g: int) -> tuple[int, int]:
        """(index of the source, row of that source) of row g of the run."""
        phase = self._phase(g)
        block, inside = divmod(g - self._starts[phase], BLOCK_ROWS)
        sources, ranks = self._block(phase, block)
        source = sources[inside]
        return source, int(self._before[phase][source] + self._edge(phase, block)[source]) + ranks[inside]

    def rows_before(self, g: int) -> Int64[np.ndarray, "sources"]:
        """How many rows of each source are among the first g rows of the run."""
        phase = self._phase(g)
        return self._before[phase] + self._in_phase(phase, g - self._starts[phase])

    def begun(self, g: int) -> list[tuple[int, dict[str, int]]]:
        """Everything but the seed that decides the first g rows: start and weights (in units of 2^-30) of the phases that they reach."""
        return [
            (start, {name: int(units) for name, units in sorted(zip(self.names, self._units[i])) if units})
            for i, start in enumerate(self._starts)
            if start < g and (i + 1 == len(self._starts) or self._starts[i + 1] > start)
        ]

    def _phase(self, g: int) -> int:
        return max(i for i, start in enumerate(self._starts) if start <= g)

    def _in_phase(self, phase: int, rows: int) -> np.ndarray:
        """Rows of each source among the first `rows` of a phase."""
        block, inside = divmod(rows, BLOCK_ROWS)
        counts = self._edge(phase, block)
        return counts + np.bincount(self._block(phase, block)[0][:inside], minlength=len(self.names)) if inside else counts

    def _edge(self, phase: int, block: int) -> np.ndarray:
        """Rows of each source in the first `block` blocks of a phase."""
        if block >= len(self._edges[phase]):
            edges = list(self._edges[phase])
            while len(edges) <= max(block, 2 * len(self._edges[phase])):
                edges.append(_next_edge(edges[-1], len(edges) * BLOCK_ROWS, self._units[phase], self._alphabetical))
            self._edges[phase] = np.array(edges)
        return self._edges[phase][block]

    def _block(self, phase: int, block: int) -> tuple[list[int], list[int]]:
        """Source of every row of a block, and how many rows of that source stand before it in the block."""
        return self._blocks.get((phase, block), lambda: self._order(phase, block))

    def _order(self, phase: int, block: int) -> tuple[list[int], list[int]]:
        counts = self._edge(phase, block + 1) - self._edge(phase, block)
        sources = np.repeat(np.arange(len(counts)), counts)
        ranks = np.arange(BLOCK_ROWS) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.empty(BLOCK_ROWS)
        for source in np.flatnonzero(counts):
            # Named, not numbered: a source that comes or goes with weight 0 leaves the others' order alone.
            bits = random_bits(int(counts[source]), "mixture", self._seed, self.names[source], self._starts[phase], block)
            jitter = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
            places[sources == source] = (np.arange(counts[source]) + jitter) / counts[source]
        order = np.lexsort((self._alphabetical[sources], places))
        return sources[order].tolist(), ranks[order].tolist()


def _next_edge(counts: np.ndarray, rows: int, units: np.ndarray, tie: np.ndarray) -> np.ndarray:
    """Counts at the next block edge, `rows` rows into the phase: each is weight x rows, rounded down or up."""
    down = units * rows // UNITS
    new = np.maximum(counts, down)
    spare = rows - int(new.sum())
    # Row n + 1 of a source is due when weight x rows reaches n + 1; it may come early only once n is reached.
    released = np.flatnonzero(new * UNITS < units * rows)
    due = (new[released] + 1) / units[released]
    new[released[np.lexsort((tie[released], due))[:spare]]] += 1
    return new


def _units(names: Sequence[str], weights: Mapping[str, float], where: str) -> Int64[np.ndarray, "sources"]:
    """Weights as integers that sum to UNITS."""
    for name, weight in weights.items():
        if name not in names:
            raise UserError(f"{where} gives a weight to '{name}', but the sources are {', '.join(names)}.{nearest(name, names)}")
        if not 0 <= weight < float("inf"):
            raise UserError(f"{where} gives '{name}' the weight {weight}; expected a number of 0 or more.")
    given = np.array([float(weights.get(name, 0)) for name in names])
    if not given.sum():
        raise UserError(f"{where} gives every source the weight 0; at least one of {', '.join(names)} must be more.")
    units = np.rint(given / given.sum() * UNITS).astype(np.int64)
    units[int(np.argmax(units))] += UNITS - int(units.sum())
    return units


def _own_weights(names: Sequence[str], tokens: Sequence[int], weights: Mapping[str, float | None]) -> dict[str, float]:
    """The sources' own weights, or their tokens where none has one."""
    given = {name: weight for name, weight in weights.items() if weight is not None}
    if not given:
        return dict(zip(names, tokens, strict=True))
    for name in names:
        if name not in given:
            raise UserError(f"data.sources gives weights to {', '.join(given)} but none to '{name}': give one to every source or to none.")
    return given


def _check_shares(shares: Sequence[float]) -> None:
    if shares[-1] != 1.0 or not all(a < b for a, b in zip([0.0, *shares], shares)):
        raise UserError(f"data.phases end at {', '.join(map(str, shares))} of the run; expected increasing shares, the last one 1.0.")
