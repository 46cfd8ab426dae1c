"""A stretch of a run's rows: which source gives each row, in proportion to changing weights.

Words of this file:
  weight: a source's share of a row, as an integer in units of 1 / UNITS.
  due: the sum of a source's weights over the first n rows of the stretch, in the same units.
  count: how many of the first n rows the source gives: its due, rounded down or up to whole rows.
  edge: the border between two blocks of rows; also the counts of all sources there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from slmjax.data.seeded import Recent, random_bits, unit_floats

# These two constants are part of the data order: with other values a run reads other rows.
# Counts follow the weights at every edge of a block; within a block the order is random.
BLOCK_ROWS = 1024
# A weight of 1. Weights are integers, so that counts are the same on every machine.
UNITS = 2**30

# Integers, one for each source: weights, dues or counts.
PerSource = Int64[np.ndarray, "sources"]

# Orders of blocks that are kept: a batch needs one or two, threads that read ahead some more.
RECENT_BLOCKS = 8
# Replaces a count of 0 in `_row_when_due`, which would be 0 / 0 where a ramp begins with weight 0.
TINY_COUNT = 2.0**-60


class BlockOrder(NamedTuple):
    """The rows of one block: the source of each, and how many rows of it precede in the block."""

    sources: list[int]
    ranks: list[int]


class Stretch:
    """Rows of a run from `start` on, whose weights move from `old` to `units` in a ramp.

    The weights move linearly over the first `ramp` rows and then stay. Rows are planned in blocks
    of 1,024. Invariant: at every block edge the count of a source is its due rounded down or up,
    and all counts sum to the rows. Earliest deadline first keeps it for any number of sources and
    any weights (Tijdeman 1980, "The chairman assignment problem"). Inside a block, a source that
    gives c rows has one at a seeded random place in each of c equal parts of its due there. So the
    count of a source differs from its due, at *any* row, by at most 2 + largest weight x number of
    sources. Nothing depends on where the stretch ends: its last block is the beginning of a whole
    one.

    Args:
      names: the sources. Ties and random places depend on names, not on numbers of sources: adding
        or removing a source of weight 0 does not change the order of the others.
      seed: of the order inside blocks.
      start: first row of the stretch in the run; part of the seed.
      units, old: weights in units of 2^-30, each summing to 2^30. old: None without a ramp.
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
        # Rank of each source's name in the alphabet; it breaks ties.
        by_name = np.argsort(np.array(names))
        self._alphabetical = np.argsort(by_name)
        # The source with the largest mean of old and new weight gets the units left by rounding.
        sum_of_ends = self.old + self.units
        by_weight = np.lexsort((self._alphabetical, -sum_of_ends))
        self._largest = int(by_weight[0])
        # Row b holds the counts after b blocks. Rows are appended when later blocks are asked for.
        self._edges = np.zeros((1, len(names)), np.int64)
        self._blocks = Recent(RECENT_BLOCKS)

    def pick(self, row: int) -> tuple[int, int]:
        """Return the source of a row, and how many of that source's rows precede in the stretch."""
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
        sources_inside = self._block(block).sources[:inside]
        counts_inside = np.bincount(sources_inside, minlength=len(self.units))
        return counts + counts_inside

    def due(self, rows: int) -> PerSource:
        """Return the sum of each source's weights over the first `rows` rows, in units of 2^-30.

        All together are exactly 2^30 x `rows`.
        """
        if not self.ramp:
            return self.units * rows
        # The sum over the first m rows of the ramp is taken as an integral:
        #   old x m + change x m^2 / (2 ramp).
        # change x m^2 needs more than 64 bits, so change x m is divided by 2 ramp before the second
        # factor m. The remainder is below 2^32 and m below 2^31, so their product fits.
        ramp_rows = min(rows, self.ramp)
        divisor = 2 * self.ramp
        change = self.units - self.old
        quotient, remainder = np.divmod(change * ramp_rows, divisor)
        due = (self.old + quotient) * ramp_rows
        due += remainder * ramp_rows // divisor
        # After the ramp the weights stay.
        due += self.units * (rows - ramp_rows)
        # Rounding down has left a few units.
        missing = UNITS * rows - int(due.sum())
        due[self._largest] += missing
        return due

    def units_at(self, row: int) -> PerSource:
        """Return the weights at a row of the stretch, in units of 2^-30; their sum is 2^30."""
        if row >= self.ramp:
            return self.units
        change = (self.units - self.old) * row // self.ramp
        units = self.old + change
        missing = UNITS - int(units.sum())
        units[self._largest] += missing
        return units

    def rows_until_spent(self, rows_left: PerSource, rows: int) -> int:
        """Return after how many rows the first source is spent, but at most `rows`.

        Args:
          rows_left: how many rows of each source are left, at least 1. A source that has given all
            of them is spent.
        """
        # The count at an edge is below due + 1, and the next edge is at most BLOCK_ROWS away. So
        # most calls return here, without planning any block.
        largest_counts = self.due(rows + BLOCK_ROWS) // UNITS + 1
        if np.all(rows_left > largest_counts):
            return rows

        # Double the number of blocks until some source is spent at an edge.
        last_block = -(-rows // BLOCK_ROWS)
        block = 1
        while block < last_block and np.all(self._edge(block) < rows_left):
            block = min(2 * block, last_block)
        self._edge(block)  # fills self._edges up to this block
        is_spent = self._edges >= rows_left  # [edges, sources]
        edges_with_spent = np.flatnonzero(is_spent.any(1))
        if not len(edges_with_spent):
            return rows

        # The source was spent in the block before the first such edge: find the row.
        block = int(edges_with_spent[0]) - 1
        order = self._block(block)
        sources = np.array(order.sources)  # [BLOCK_ROWS], as the next two
        before_block = self._edge(block)[sources]
        # How many rows the source of each row has given after it.
        given = np.array(order.ranks) + before_block + 1
        last_rows = np.flatnonzero(given == rows_left[sources])
        row = block * BLOCK_ROWS + int(last_rows[0])
        return min(rows, row + 1)

    def _edge(self, block: int) -> PerSource:
        """Return the rows of each source in the first `block` blocks."""
        if block >= len(self._edges):
            # At least doubled: a walk through the run then copies each edge only a few times.
            last = max(block, 2 * len(self._edges))
            edges = list(self._edges)
            while len(edges) <= last:
                rows = len(edges) * BLOCK_ROWS
                edges.append(self._next_edge(edges[-1], rows))
            self._edges = np.array(edges)
        return self._edges[block]

    def _next_edge(self, counts: PerSource, rows: int) -> PerSource:
        """Return the counts at the next block edge, `rows` rows into the stretch.

        Each is its due rounded down or up.

        Args:
          counts: at the edge before, which no new count is below.
        """
        due = self.due(rows)
        new_counts = np.maximum(counts, due // UNITS)
        spare_rows = rows - int(new_counts.sum())
        # A source with n rows so far may give another one when more than n rows are due, and must
        # have given it when n + 1 are due. The spare rows go to those with the earliest deadlines.
        candidates = np.flatnonzero(new_counts * UNITS < due)
        deadlines = self._row_when_due(candidates, new_counts[candidates] + 1)
        by_deadline = np.lexsort((self._alphabetical[candidates], deadlines))
        earliest = candidates[by_deadline[:spare_rows]]
        new_counts[earliest] += 1
        return new_counts

    def _row_when_due(
        self, source: np.ndarray | int, count: np.ndarray
    ) -> Float64[np.ndarray, "counts"]:
        """Return after how many rows of the stretch `count` rows of a source are due.

        It is the inverse of `due`: a float, and infinite where so many are never due.
        """
        new = self.units[source] / UNITS
        if not self.ramp:
            return count / new
        old = self.old[source] / UNITS
        ramp = self.ramp
        count = np.maximum(count, TINY_COUNT)
        due_in_ramp = (old + new) / 2 * ramp
        # In the ramp the row x solves old x + (new - old) x^2 / (2 ramp) = count. The solution has
        # the root in its denominator: the other form loses digits where old and new nearly agree.
        with np.errstate(divide="ignore", invalid="ignore"):
            discriminant = old * old + 2 * (new - old) * count / ramp
            # After the ramp it may be negative; `in_ramp` is not used there.
            root = np.sqrt(np.maximum(discriminant, 0))
            in_ramp = 2 * count / (old + root)
            after_ramp = ramp + (count - due_in_ramp) / new
            return np.where(count <= due_in_ramp, in_ramp, after_ramp)

    def _block(self, block: int) -> BlockOrder:
        """Return the order of a block's rows, from memory where it is recent."""
        return self._blocks.get(block, lambda: self._order(block))

    def _order(self, block: int) -> BlockOrder:
        """Return the order of a block's rows: by their seeded places, ties by name."""
        counts = self._edge(block + 1) - self._edge(block)
        # First all rows of source 0, then those of source 1, ...: [BLOCK_ROWS].
        sources = np.repeat(np.arange(len(counts)), counts)
        first_of_source = np.cumsum(counts) - counts
        ranks = np.arange(BLOCK_ROWS) - np.repeat(first_of_source, counts)

        # Every row gets a place, a float by which the rows are sorted.
        first_row = block * BLOCK_ROWS
        due_at_begin = self.due(first_row) / UNITS
        due_at_end = self.due(first_row + BLOCK_ROWS) / UNITS
        places = np.empty(BLOCK_ROWS)
        for source in np.flatnonzero(counts).tolist():
            # With constant weights a place is a share of the block.
            source_places = self._random_places(source, int(counts[source]), block)
            if first_row < self.ramp:
                # The weights move, so equal parts of a source's due are unequal numbers of rows.
                # In such a block the place is the row at which that part of its due is reached.
                due_in_block = due_at_end[source] - due_at_begin[source]
                due = due_at_begin[source] + source_places * due_in_block
                source_places = np.sort(self._row_when_due(source, due))
            places[sources == source] = source_places
        order = np.lexsort((self._alphabetical[sources], places))
        # Lists: picking one row from them is faster than from arrays.
        return BlockOrder(sources[order].tolist(), ranks[order].tolist())

    def _random_places(self, source: int, count: int, block: int) -> Float64[np.ndarray, "count"]:
        """Return a random number in each of `count` equal parts of [0, 1), in ascending order."""
        name = self._names[source]
        bits = random_bits(count, "mixture", self._seed, name, self.start, block)
        place_in_part = unit_floats(bits)
        return (np.arange(count) + place_in_part) / count
