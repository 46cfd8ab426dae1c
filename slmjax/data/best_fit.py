"""Best-fit-decreasing packing that spreads short pieces over all rows.

No row then holds many more pieces than the average row.
"""

import heapq
from bisect import bisect_left, insort

import numpy as np
from jaxtyping import Int

# Pieces are placed longest first. A row is served before all others once the average length of the
# pieces that it still needs is at least this share of the piece to be placed. A lower share spreads
# pieces more evenly, a higher one leaves more documents whole. Of 0.5, 0.6, 0.7 and 0.8 this one
# did best on six kinds of text.
NEEDY_SHARE = 0.6
# Two pieces fill a row at once only where both are at most capacity / 4 long. Longer pairs would
# use up the pieces that should fill the gaps next to long ones, and more long pieces would be cut:
# without this limit ten times as many documents of source code are.
CLOSING_DIVISOR = 4

# Both types are plain tuples: with named tuples, packing takes a third longer.
# A span that was put into a row: (row, piece, offset inside the piece, length).
PlacedSpan = tuple[int, int, int, int]
# A row in a heap, neediest first: (minus the average length of the pieces that the row still needs,
# row, gap of the row when the entry was made). The entry is stale once the row's gap differs.
NeedyRow = tuple[float, int, int]


def best_fit_decreasing(
    lengths: Int[np.ndarray, "pieces"],
    rows: int,
    capacity: int,
    max_segments: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fill `rows` rows of `capacity` tokens exactly.

    Longest first, each piece goes whole into the fullest row that still takes it (Ding et al. 2024,
    "Fewer truncations improve language modeling", section 3). By that rule alone, the shortest
    pieces would all end up together in the last rows, hundreds in a row. So there are two more:
    a row that would need more than about 7/8 of `max_segments` pieces if it got only shorter ones
    is served first; and a row whose gap is filled exactly by two waiting pieces gets both.

    A row holds `max_segments` pieces. Its last place is kept for a piece that fills it. Pieces that
    no row takes whole are split over the remaining gaps, largest gap first, so that few are split.
    Where the pieces are too short for all of this, a row gets more than `max_segments`.

    Args:
      lengths: of the pieces, each at most `capacity`, together `rows * capacity` tokens.
    Returns: row, piece, offset inside the piece and length of every span (four int64 arrays).
    """
    state = _PackingState(lengths, rows, capacity, max_segments)
    longest_first = np.unique(lengths)[::-1]
    for length in longest_first.tolist():
        while state.waiting[length]:
            state.place(length)
    state.split_unplaced()
    spans = np.array(state.placed, np.int64).reshape(-1, 4)
    return tuple(spans.T)


class _PackingState:
    """Rows while they are filled, and the pieces that wait.

    A row's gap is the number of its free tokens; its places are how many more pieces it may get.
    `open` lists the rows with two free places or more, `last` those with one; full rows are in
    neither. Both lists hold gap * rows + row for each row, in sorted order: a bisection for
    length * rows finds the row with the smallest gap that takes a piece of this length.
    """

    def __init__(self, lengths: np.ndarray, rows: int, capacity: int, max_segments: int):
        self.rows = rows
        self.longest_closing = capacity // CLOSING_DIVISOR
        # The last place of a row is kept for a piece that fills the row.
        self.places_before_last = max_segments - 1
        # A row should need no more pieces than this.
        self.target_count = max(1, self.places_before_last - max_segments // 8)
        # waiting[length]: pieces of this length that are not placed, the first one at the end.
        self.waiting: list[list[int]] = [[] for _ in range(capacity + 1)]
        piece_lengths = lengths.tolist()
        for piece in reversed(range(len(piece_lengths))):
            self.waiting[piece_lengths[piece]].append(piece)
        # has_waiting[length]: whether any piece of this length waits, as an array for numpy.
        self.has_waiting = np.zeros(capacity + 1, bool)
        self.has_waiting[lengths] = True
        # Free tokens and number of pieces of each row.
        self.gap = [capacity] * rows
        self.count = [0] * rows
        self.open: list[int] = []
        self.last: list[int] = []
        self.needy: list[NeedyRow] = []
        self.unplaced: list[tuple[int, int]] = []  # (piece, length) that no row took whole
        self.placed: list[PlacedSpan] = []
        for row in range(rows):
            self._enlist(row)

    def place(self, length: int) -> None:
        """Put one piece of this length into its row, and two more where they fill the row."""
        row = self._take_row_for(length)
        if row is None:
            self.unplaced.append((self._pop(length), length))
            return
        self._put(row, self._pop(length), 0, length)
        gap = self.gap[row]
        # Two pieces of at most this length can fill the gap, and two places are left for them.
        two_can_fill = 1 < gap <= 2 * length
        is_short = length <= self.longest_closing
        if two_can_fill and is_short and self.count[row] < self.places_before_last:
            self._fill_with_two(row, length)
        self._enlist(row)

    def split_unplaced(self) -> None:
        """Fill the remaining gaps with the pieces that no row took whole."""
        for piece, length in self.unplaced:
            offset = 0
            while offset < length:
                row = self._take_row_for_rest(length - offset)
                filled = min(self.gap[row], length - offset)
                self._put(row, piece, offset, filled)
                self._enlist(row)
                offset += filled

    def _take_row_for(self, length: int) -> int | None:
        """Take the row that a piece of this length goes into out of the lists, and return it.

        It is the row that most needs a piece as long as this, or else the one with the smallest gap
        that takes it; None where no row does.
        """
        while self.needy:
            negative_need, row, gap = self.needy[0]
            is_stale = gap != self.gap[row]
            if is_stale or self.count[row] >= self.places_before_last:
                heapq.heappop(self.needy)
                continue
            if -negative_need >= NEEDY_SHARE * length and gap >= length:
                heapq.heappop(self.needy)
                index = bisect_left(self.open, gap * self.rows + row)
                self.open.pop(index)
                return row
            # The neediest row does not need so long a piece, or cannot take it.
            break
        tightest = bisect_left(self.open, length * self.rows)
        if tightest == len(self.open):
            return None
        return self.open.pop(tightest) % self.rows

    def _take_row_for_rest(self, length: int) -> int:
        """Take the row that the rest of a piece goes into out of the lists, and return it.

        It is the row with the smallest gap that takes the rest whole, or else the one with the
        largest gap. A row with one place left takes the rest only where that fills its gap.
        """
        tightest = bisect_left(self.open, length * self.rows)
        if tightest < len(self.open):
            return self.open.pop(tightest) % self.rows
        # Index of the largest gap of at most `length` among the rows with one place; -1: there is
        # none.
        fillable = bisect_left(self.last, (length + 1) * self.rows) - 1
        if self.open:
            open_gap_is_larger = fillable < 0 or self.open[-1] >= self.last[fillable]
            if open_gap_is_larger:
                return self.open.pop() % self.rows
        # Where all else is full, a row with one place takes the rest without being filled. Then it
        # gets more pieces than `max_segments`.
        return self.last.pop(max(fillable, 0)) % self.rows

    def _fill_with_two(self, row: int, length: int) -> None:
        """Fill a row exactly with two waiting pieces of at most `length`, where there are such."""
        gap = self.gap[row]
        # Lengths of the longer piece of the pair: from half of the gap to `length`.
        low = gap - gap // 2
        high = min(length, gap - 1)
        longer_waits = self.has_waiting[low : high + 1]
        shorter_waits = self.has_waiting[gap - high : gap - low + 1]
        # The pair's lengths sum to the gap: as one rises the other falls, so one mask is reversed.
        pairs = np.flatnonzero(longer_waits & shorter_waits[::-1])
        if not len(pairs):
            return
        longer = low + int(pairs[-1])
        shorter = gap - longer
        # A pair of equal lengths needs two waiting pieces of that length.
        if longer > shorter or len(self.waiting[longer]) > 1:
            self._put(row, self._pop(longer), 0, longer)
            self._put(row, self._pop(shorter), 0, shorter)

    def _put(self, row: int, piece: int, offset: int, length: int) -> None:
        self.placed.append((row, piece, offset, length))
        self.gap[row] -= length
        self.count[row] += 1

    def _enlist(self, row: int) -> None:
        """Put a row into `open` (and `needy`) or into `last`; a full row into none."""
        gap = self.gap[row]
        free_before_last = self.places_before_last - self.count[row]
        if gap and free_before_last > 0:
            insort(self.open, gap * self.rows + row)
            pieces_to_come = max(1, self.target_count - self.count[row])
            heapq.heappush(self.needy, (-gap / pieces_to_come, row, gap))
        elif gap:
            insort(self.last, gap * self.rows + row)

    def _pop(self, length: int) -> int:
        """Take the next waiting piece of this length."""
        piece = self.waiting[length].pop()
        if not self.waiting[length]:
            self.has_waiting[length] = False
        return piece
