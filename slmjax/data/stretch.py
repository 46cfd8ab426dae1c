"""Rows under one law of weights, constant or moving in a line: how many each source gives up to any row, and in which order."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from slmjax.data.packing import Recent, random_bits

# Part of the data order, as WINDOW_ROWS is.
BLOCK_ROWS = 1024
# Weights are kept as integers of this denominator, so that counts are exact on every machine.
UNITS = 2**30


class Stretch:
    """Rows of a run from `start` on, whose weights move linearly from `old` to `units` over the first `ramp` rows and then stay.

    The stretch is cut in blocks of 1,024 rows. Counts at block edges are the sums of the weights over the rows, rounded down or up
    (never off by a row or more), chosen by earliest deadline, which is what makes that possible for any number of sources and any
    weights (Tijdeman 1980, "The chairman assignment problem"). Inside a block the j-th of a source's c rows falls at a seeded random
    place in the j-th c-th of what the source is due in it, so that at *every* row a source is within 2 + largest weight x number of
    sources of its due. Nothing depends on where the stretch ends: the last block is cut short, not squeezed.

    Args:
      names: the sources; they, not their numbers, decide the order.
      seed: of the order inside blocks.
      start: row of the run; part of the seed.
      units, old: weights in units of 2^-30, each summing to 2^30; old: None where there is no ramp.
      ramp: rows, less than 2^31.
    """

    def __init__(
        self,
        names: Sequence[str],
        seed: int,
        start: int,
        units: Int64[np.ndarray, "sources"],
        *,
        old: Int64[np.ndarray, "sources"] | None = None,
        ramp: int = 0,
    ):
        self.start, self.units, self.ramp = start, units, ramp
        self.old = old if old is not None and ramp else units
        self._names, self._seed = tuple(names), seed
        self._alphabetical = np.argsort(np.argsort(np.array(names)))
        self._largest = int(np.lexsort((self._alphabetical, -(self.old + self.units)))[0])
        self._edges = np.zeros((1, len(names)), np.int64)
        self._blocks = Recent(8)

    def pick(self, row: int) -> tuple[int, int]:
        """(source, how many rows of it stand before in the stretch) of a row of the stretch."""
        block, inside = divmod(row, BLOCK_ROWS)
        sources, ranks = self._block(block)
        return sources[inside], int(self._edge(block)[sources[inside]]) + ranks[inside]

    def counts(self, rows: int) -> Int64[np.ndarray, "sources"]:
        """Rows of each source among the first `rows`."""
        block, inside = divmod(rows, BLOCK_ROWS)
        counts = self._edge(block)
        return (
            counts + np.bincount(self._block(block)[0][:inside], minlength=len(self.units))
            if inside
            else counts
        )

    def due(self, rows: int) -> Int64[np.ndarray, "sources"]:
        """The sum of each source's weights over the first `rows` rows, in units of 2^-30; exactly 2^30 x `rows` together."""
        if not self.ramp:
            return self.units * rows
        # old x rows + (new - old) x rows^2 / (2 ramp), rounded down without leaving 64 bits; what rounding left goes to the largest.
        inside = min(rows, self.ramp)
        whole, rest = np.divmod((self.units - self.old) * inside, 2 * self.ramp)
        due = (
            (self.old + whole) * inside
            + rest * inside // (2 * self.ramp)
            + self.units * (rows - inside)
        )
        due[self._largest] += UNITS * rows - int(due.sum())
        return due

    def units_at(self, row: int) -> Int64[np.ndarray, "sources"]:
        """The weights at a row of the stretch, in units of 2^-30, summing to 2^30."""
        if row >= self.ramp:
            return self.units
        units = self.old + (self.units - self.old) * row // self.ramp
        units[self._largest] += UNITS - int(units.sum())
        return units

    def reached(self, left: Int64[np.ndarray, "sources"], rows: int) -> int:
        """After how many rows some source has given `left` (at least 1) of its own; `rows` where that is later."""
        if np.all(left > self.due(rows + BLOCK_ROWS) // UNITS + 1):
            return rows
        block, last = 1, -(-rows // BLOCK_ROWS)
        while block < last and np.all(self._edge(block) < left):
            block = min(2 * block, last)
        self._edge(block)
        full = np.flatnonzero((self._edges >= left).any(1))
        if not len(full):
            return rows
        block = int(full[0]) - 1
        sources, ranks = map(np.array, self._block(block))
        given = np.flatnonzero(ranks + self._edge(block)[sources] + 1 == left[sources])
        return min(rows, block * BLOCK_ROWS + int(given[0]) + 1)

    def _edge(self, block: int) -> np.ndarray:
        """Rows of each source in the first `block` blocks."""
        if block >= len(self._edges):
            edges = list(self._edges)
            while len(edges) <= max(block, 2 * len(self._edges)):
                edges.append(self._next_edge(edges[-1], len(edges) * BLOCK_ROWS))
            self._edges = np.array(edges)
        return self._edges[block]

    def _next_edge(self, counts: np.ndarray, rows: int) -> np.ndarray:
        """Counts at the next block edge, `rows` rows into the stretch: each is its due, rounded down or up."""
        due = self.due(rows)
        new = np.maximum(counts, due // UNITS)
        spare = rows - int(new.sum())
        # Row n + 1 of a source must be there when n + 1 is due; it may come early only once n is passed.
        released = np.flatnonzero(new * UNITS < due)
        deadline = self._when(released, new[released] + 1)
        new[released[np.lexsort((self._alphabetical[released], deadline))[:spare]]] += 1
        return new

    def _when(self, source: np.ndarray | int, count: np.ndarray) -> np.ndarray:
        """After how many rows (no whole number) `count` rows of a source are due; infinite where they never are."""
        new = self.units[source] / UNITS
        if not self.ramp:
            return count / new
        old, ramp = self.old[source] / UNITS, self.ramp
        count = np.maximum(count, 2.0**-60)  # else 0 / 0 where a weight begins at 0
        in_ramp = (old + new) / 2 * ramp
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(np.maximum(old * old + 2 * (new - old) * count / ramp, 0))
            return np.where(
                count <= in_ramp, 2 * count / (old + root), ramp + (count - in_ramp) / new
            )

    def _block(self, block: int) -> tuple[list[int], list[int]]:
        """Source of every row of a block, and how many rows of that source stand before it in the block."""
        return self._blocks.get(block, lambda: self._order(block))

    def _order(self, block: int) -> tuple[list[int], list[int]]:
        counts = self._edge(block + 1) - self._edge(block)
        sources = np.repeat(np.arange(len(counts)), counts)
        ranks = np.arange(BLOCK_ROWS) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.empty(BLOCK_ROWS)
        first = block * BLOCK_ROWS
        begin, end = self.due(first) / UNITS, self.due(first + BLOCK_ROWS) / UNITS
        for source in np.flatnonzero(counts).tolist():
            # Named, not numbered: a source that comes or goes with weight 0 leaves the others' order alone.
            bits = random_bits(
                int(counts[source]), "mixture", self._seed, self._names[source], self.start, block
            )
            jitter = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
            place = (np.arange(counts[source]) + jitter) / counts[source]
            if first < self.ramp:
                place = np.sort(
                    self._when(source, begin[source] + place * (end[source] - begin[source]))
                )
            places[sources == source] = place
        order = np.lexsort((self._alphabetical[sources], places))
        return sources[order].tolist(), ranks[order].tolist()
