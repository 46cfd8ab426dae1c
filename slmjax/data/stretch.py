"""A stretch of a run's rows: how many rows each source gives up to any row, and in which order.

Words of this file, for one source:
  weight: its share at a row, as an integer in units of 1 / UNITS.
  due: the sum of its weights over the first rows, as an integer in the same units.
  count: how many of the first rows it gives, a whole number next to its due.
  edge: the counts of all sources at the border between two blocks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from slmjax.data.seeded import Recent, random_bits, unit_floats

# Both constants are part of the data order, as WINDOW_ROWS is: another value gives other rows.
BLOCK_ROWS = 1024
# Weights are integers with this denominator, so that counts are exact on every machine.
UNITS = 2**30

# Integers, one for each source: weights, dues or counts.
PerSource = Int64[np.ndarray, "sources"]

# A batch needs one block or two; a few more serve threads that read ahead.
RECENT_BLOCKS = 8
# Takes the place of a count of 0, whose row would be 0 / 0 where a weight begins at 0.
TINY_COUNT = 2.0**-60


class BlockOrder(NamedTuple):
    """The rows of one block: the source of each, and how many of that source precede it there."""

    sources: list[int]
    ranks: list[int]


class Stretch:
    """Rows of a run from `start` on.

    Their weights move linearly from `old` to `units` over the first `ramp` rows and then stay.

    The stretch is cut in blocks of 1,024 rows. Invariant: at every block edge the count of a source
    is its due rounded down or up, and all counts sum to the rows. Earliest deadline first keeps it
    for any number of sources and any weights (Tijdeman 1980, "The chairman assignment problem").
    Inside a block the j-th of a source's c rows falls at a seeded random place in the j-th of c
    equal parts of what is due to the source there. Therefore a source is at *every* row within
    2 + largest weight x number of sources of its due. Nothing depends on where the stretch ends:
    the last block is cut short, not squeezed.

    Args:
      names: the sources. Ties and random places follow names, not numbers: a source that comes or
        goes with weight 0 leaves the order of the others alone.
      seed: of the order inside blocks.
      start: row of the run; part of the seed.
      units, old: weights in units of 2^-30, each summing to 2^30; old: None without a ramp.
      ramp: rows, less than 2^31.
    """

    def __init__(
        self,
        names: Sequence[str],
        seed: int,
        start: int,
        units: PerSource,
        *,
        old: PerSource | None = None,
        ramp: int = 0,
    ):
        self.start = start
        self.units = units
        self.ramp = ramp
        self.old = units
        if old is not None and ramp:
            self.old = old
        self._names = tuple(names)
        self._seed = seed
        # Place of each source in the alphabet; it breaks ties.
        alphabet = np.argsort(np.array(names))
        self._alphabetical = np.argsort(alphabet)
        # Units that rounding leaves go to the source with the largest mean of old and new weight.
        both_ends = self.old + self.units
        by_weight = np.lexsort((self._alphabetical, -both_ends))
        self._largest = int(by_weight[0])
        # Row b holds the counts after b blocks. It grows when a later block is asked for.
        self._edges = np.zeros((1, len(names)), np.int64)
        self._blocks = Recent(RECENT_BLOCKS)

    def pick(self, row: int) -> tuple[int, int]:
        """Return the source of a row, and how many rows of that source precede it here."""
        block, inside = divmod(row, BLOCK_ROWS)
        sources, ranks = self._block(block)
        source = sources[inside]
        before_block = int(self._edge(block)[source])
        return source, before_block + ranks[inside]

    def counts(self, rows: int) -> PerSource:
        """Return the rows of each source among the first `rows` rows."""
        block, inside = divmod(rows, BLOCK_ROWS)
        counts = self._edge(block)
        if not inside:
            return counts
        begun = self._block(block).sources[:inside]
        counts_inside = np.bincount(begun, minlength=len(self.units))
        return counts + counts_inside

    def due(self, rows: int) -> PerSource:
        """Return the sum of each source's weights over the first `rows` rows, in units of 2^-30.

        Together they are exactly 2^30 x `rows`.
        """
        if not self.ramp:
            return self.units * rows
        # With m rows inside the ramp the integral of the line is
        #   old x m + (units - old) x m^2 / (2 ramp).
        # The square needs more than 64 bits, so one factor m is divided by 2 ramp first. The
        # remainder is below 2^32 and m below 2^31: their product fits.
        inside = min(rows, self.ramp)
        divisor = 2 * self.ramp
        change = self.units - self.old
        quotient, remainder = np.divmod(change * inside, divisor)
        due = (self.old + quotient) * inside
        due += remainder * inside // divisor
        # Behind the ramp the weights stay.
        due += self.units * (rows - inside)
        # Rounding down has left a few units.
        missing = UNITS * rows - int(due.sum())
        due[self._largest] += missing
        return due

    def units_at(self, row: int) -> PerSource:
        """Return the weights at a row of the stretch, in units of 2^-30, summing to 2^30."""
        if row >= self.ramp:
            return self.units
        change = (self.units - self.old) * row // self.ramp
        units = self.old + change
        missing = UNITS - int(units.sum())
        units[self._largest] += missing
        return units

    def reached(self, left: PerSource, rows: int) -> int:
        """Return after how many rows some source has given all rows that it has left.

        Args:
          left: rows that each source may still give, at least 1.
          rows: the answer where no source has given all of its rows earlier.
        """
        # A count is below due + 1 at the edge after `rows`. Most stretches end here, without a
        # look at any block.
        most = self.due(rows + BLOCK_ROWS) // UNITS + 1
        if np.all(left > most):
            return rows

        # Double the number of blocks until some source is used up at an edge.
        last_block = -(-rows // BLOCK_ROWS)
        block = 1
        while block < last_block and np.all(self._edge(block) < left):
            block = min(2 * block, last_block)
        self._edge(block)  # fills self._edges as far as this block
        is_used_up = self._edges >= left  # [edges, sources]
        used_up = np.flatnonzero(is_used_up.any(1))
        if not len(used_up):
            return rows

        # The first such edge ends the block in which it happened: find the row inside.
        block = int(used_up[0]) - 1
        order = self._block(block)
        sources = np.array(order.sources)
        before_block = self._edge(block)[sources]
        # How many rows the source of each row has given by then, this one included.
        given = np.array(order.ranks) + before_block + 1
        last_of_source = np.flatnonzero(given == left[sources])
        row = block * BLOCK_ROWS + int(last_of_source[0])
        return min(rows, row + 1)

    def _edge(self, block: int) -> PerSource:
        """Return the rows of each source in the first `block` blocks."""
        if block >= len(self._edges):
            # At least doubled, so that walking through a run copies each edge a few times only.
            last = max(block, 2 * len(self._edges))
            edges = list(self._edges)
            while len(edges) <= last:
                rows = len(edges) * BLOCK_ROWS
                edges.append(self._next_edge(edges[-1], rows))
            self._edges = np.array(edges)
        return self._edges[block]

    def _next_edge(self, counts: PerSource, rows: int) -> PerSource:
        """Return the counts at the next block edge, `rows` rows into the stretch.

        Each is its due, rounded down or up, and never less than `counts`, those of the edge before.
        """
        due = self.due(rows)
        new_counts = np.maximum(counts, due // UNITS)
        spare_rows = rows - int(new_counts.sum())
        # Row n + 1 of a source is released when more than n rows are due, and its deadline is where
        # n + 1 rows are due. Released rows with the earliest deadlines get what is left.
        released = np.flatnonzero(new_counts * UNITS < due)
        deadlines = self._row_when_due(released, new_counts[released] + 1)
        by_deadline = np.lexsort((self._alphabetical[released], deadlines))
        earliest = released[by_deadline[:spare_rows]]
        new_counts[earliest] += 1
        return new_counts

    def _row_when_due(
        self, source: np.ndarray | int, count: np.ndarray
    ) -> Float64[np.ndarray, "counts"]:
        """Return after how many rows, as a fraction, `count` rows of a source are due.

        It is the inverse of `due`, in floating point; infinite where they never are.
        """
        new = self.units[source] / UNITS
        if not self.ramp:
            return count / new
        old = self.old[source] / UNITS
        ramp = self.ramp
        count = np.maximum(count, TINY_COUNT)
        due_in_ramp = (old + new) / 2 * ramp
        # In the ramp x solves old x + (new - old) x^2 / (2 ramp) = count. This form of the root
        # divides by a sum, so that nothing cancels where old and new are nearly equal.
        with np.errstate(divide="ignore", invalid="ignore"):
            discriminant = old * old + 2 * (new - old) * count / ramp
            # Beyond the ramp it may be negative; the value is not used there.
            root = np.sqrt(np.maximum(discriminant, 0))
            in_ramp = 2 * count / (old + root)
            after_ramp = ramp + (count - due_in_ramp) / new
            return np.where(count <= due_in_ramp, in_ramp, after_ramp)

    def _block(self, block: int) -> BlockOrder:
        """Return the order of a block's rows."""
        return self._blocks.get(block, lambda: self._order(block))

    def _order(self, block: int) -> BlockOrder:
        """Return the order of a block's rows: by their seeded places, ties by name."""
        counts = self._edge(block + 1) - self._edge(block)
        # First all rows of source 0, then those of source 1, ...: [BLOCK_ROWS].
        sources = np.repeat(np.arange(len(counts)), counts)
        first_of_source = np.cumsum(counts) - counts
        ranks = np.arange(BLOCK_ROWS) - np.repeat(first_of_source, counts)

        first = block * BLOCK_ROWS
        due_at_begin = self.due(first) / UNITS
        due_at_end = self.due(first + BLOCK_ROWS) / UNITS
        places = np.empty(BLOCK_ROWS)
        for source in np.flatnonzero(counts).tolist():
            # In [0, 1) of the block. Only their order counts.
            source_places = self._random_shares(source, int(counts[source]), block)
            if first < self.ramp:
                # The source's weight moves: equal parts of its due are unequal numbers of rows.
                # All sources of this block then have rows of the stretch as places.
                due_in_block = due_at_end[source] - due_at_begin[source]
                due = due_at_begin[source] + source_places * due_in_block
                source_places = np.sort(self._row_when_due(source, due))
            places[sources == source] = source_places
        order = np.lexsort((self._alphabetical[sources], places))
        # Lists: picking one row from them is faster than from arrays.
        return BlockOrder(sources[order].tolist(), ranks[order].tolist())

    def _random_shares(self, source: int, count: int, block: int) -> Float64[np.ndarray, "count"]:
        """Return a random place in each of `count` equal parts of [0, 1)."""
        name = self._names[source]
        bits = random_bits(count, "mixture", self._seed, name, self.start, block)
        place_in_part = unit_floats(bits)
        return (np.arange(count) + place_in_part) / count
