"""Best-fit-decreasing packing that spreads short pieces over all rows.

No row then holds many more pieces than the average row.
"""

import heapq
from bisect import bisect_left, insort

import numpy as np
from jaxtyping import Int

# A row asks for a piece of the present length once the average piece that it still needs is at
# least this share of it. Lower spreads pieces more evenly, higher leaves more documents whole; of
# 0.5, 0.6, 0.7 and 0.8 it did best on six kinds of text.
ASKING = 0.6
# Two pieces at once close a row only where they are at most capacity / 4 long. Longer ones would
# use up the short pieces that should fill the gaps next to long ones, and more of those would be
# cut: without the rule ten times as many documents of source code are.
CLOSING = 4


# Plain tuples: a window makes thousands of them, and named ones take a third longer to pack.
# A span that was put into a row: (row, piece, offset inside the piece, length).
PlacedSpan = tuple[int, int, int, int]
# An entry of a heap whose neediest row comes first: (minus the average length of the pieces that
# the row still needs, row, the row's gap when it asked). Stale once the gap is another one.
AskingRow = tuple[float, int, int]


def best_fit_decreasing(
    lengths: Int[np.ndarray, "pieces"],
    rows: int,
    capacity: int,
    max_segments: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fill `rows` rows of `capacity` tokens exactly.

    Longest first, each piece goes whole into the fullest row that still takes it (Ding et al. 2024,
    "Fewer truncations improve language modeling", section 3). Left to that, the last rows would be
    filled by the shortest pieces alone, hundreds in a row. Two rules are therefore added. A row
    that will need more than about 7/8 of `max_segments` pieces unless it gets long ones is served
    first, while there are such. And a row whose gap two waiting pieces fill exactly is closed with
    both.

    Pieces that no row takes whole are split over the gaps that are left, largest gap first, so that
    few are split. A row's last place is kept for a filler that closes it. Where the pieces are too
    short even so, a row gets more than `max_segments`.

    Args:
      lengths: of the pieces, each at most `capacity`, together `rows * capacity` tokens.
    Returns: row, piece, offset inside the piece and length of every span (four int64 arrays).
    """
    filling = _Filling(lengths, rows, capacity, max_segments)
    longest_first = np.unique(lengths)[::-1]
    for length in longest_first.tolist():
        while filling.waiting[length]:
            filling.place(length)
    filling.split_homeless()
    spans = np.array(filling.placed, np.int64).reshape(-1, 4)
    return tuple(spans.T)


class _Filling:
    """Rows while they are filled.

    The gap of a row is its free tokens. In the sorted lists `open` and `last` a row is kept as
    gap * rows + row, so that a search for length * rows finds the tightest row that takes a piece
    of this length. `open` holds the rows with two free places or more, `last` those with one; a
    full row is in neither.
    """

    def __init__(self, lengths: np.ndarray, rows: int, capacity: int, max_segments: int):
        self.rows = rows
        self.longest_closing = capacity // CLOSING
        # Places of a row except its last one, which is for a filler that closes it.
        self.places = max_segments - 1
        # A row should need no more pieces than this.
        self.aim = max(1, self.places - max_segments // 8)
        # Pieces that wait, by length; the first piece of a length is at the end of its list.
        self.waiting: list[list[int]] = [[] for _ in range(capacity + 1)]
        piece_lengths = lengths.tolist()
        for piece in reversed(range(len(piece_lengths))):
            self.waiting[piece_lengths[piece]].append(piece)
        # Lengths of which any piece waits, as a mask that numpy can search.
        self.waits = np.zeros(capacity + 1, bool)
        self.waits[lengths] = True
        self.gap = [capacity] * rows
        self.count = [0] * rows
        self.open: list[int] = []
        self.last: list[int] = []
        self.asking: list[AskingRow] = []
        self.homeless: list[tuple[int, int]] = []  # (piece, length) that no row took whole
        self.placed: list[PlacedSpan] = []
        for row in range(rows):
            self._keep(row)

    def place(self, length: int) -> None:
        """Put one piece of this length into its row, and two more where they close the row."""
        row = self._take_row_for(length)
        if row is None:
            self.homeless.append((self._pop(length), length))
            return
        self._put(row, self._pop(length), 0, length)
        gap = self.gap[row]
        # Two pieces of at most this length can fill the gap, and two places are left for them.
        two_can_fill = 1 < gap <= 2 * length
        is_short = length <= self.longest_closing
        if two_can_fill and is_short and self.count[row] < self.places:
            self._close(row, length)
        self._keep(row)

    def split_homeless(self) -> None:
        """Fill what is left of the rows with the pieces that no row took whole."""
        for piece, length in self.homeless:
            offset = 0
            while offset < length:
                row = self._take_row_for_rest(length - offset)
                filled = min(self.gap[row], length - offset)
                self._put(row, piece, offset, filled)
                self._keep(row)
                offset += filled

    def _take_row_for(self, length: int) -> int | None:
        """Return the row that a piece of this length goes into, and take it out of the lists.

        It is the row that most needs such a piece, else the tightest that takes it, else None.
        """
        while self.asking:
            negative_need, row, gap = self.asking[0]
            has_changed = gap != self.gap[row]
            if has_changed or self.count[row] >= self.places:
                heapq.heappop(self.asking)
                continue
            if -negative_need >= ASKING * length and gap >= length:
                heapq.heappop(self.asking)
                place = bisect_left(self.open, gap * self.rows + row)
                self.open.pop(place)
                return row
            break
        tightest = bisect_left(self.open, length * self.rows)
        if tightest == len(self.open):
            return None
        return self.open.pop(tightest) % self.rows

    def _take_row_for_rest(self, length: int) -> int:
        """Return the row that the rest of a piece goes into, whole or in part.

        It is the tightest that takes it whole, else the one with the largest gap. A row with one
        place left is for a piece that fills its gap.
        """
        tightest = bisect_left(self.open, length * self.rows)
        if tightest < len(self.open):
            return self.open.pop(tightest) % self.rows
        # The largest gap of at most `length` among rows with one place: the piece fills it.
        filled = bisect_left(self.last, (length + 1) * self.rows) - 1
        if self.open:
            has_larger_gap = filled < 0 or self.open[-1] >= self.last[filled]
            if has_larger_gap:
                return self.open.pop() % self.rows
        return self.last.pop(max(filled, 0)) % self.rows

    def _close(self, row: int, length: int) -> None:
        """Fill a row exactly with two waiting pieces of at most `length`, where there are such."""
        gap = self.gap[row]
        # The longer of the two is between half of the gap and `length`; the shorter is the rest.
        low = gap - gap // 2
        high = min(length, gap - 1)
        longer_waits = self.waits[low : high + 1]
        shorter_waits = self.waits[gap - high : gap - low + 1]
        # The longer one piece, the shorter the other: one of the masks is read backwards.
        shorter_waits = shorter_waits[::-1]
        pairs = np.flatnonzero(longer_waits & shorter_waits)
        if not len(pairs):
            return
        longer = low + int(pairs[-1])
        shorter = gap - longer
        # Two halves of the same length need two pieces of it.
        if longer > shorter or len(self.waiting[longer]) > 1:
            self._put(row, self._pop(longer), 0, longer)
            self._put(row, self._pop(shorter), 0, shorter)

    def _put(self, row: int, piece: int, offset: int, length: int) -> None:
        self.placed.append((row, piece, offset, length))
        self.gap[row] -= length
        self.count[row] += 1

    def _keep(self, row: int) -> None:
        """Put a row into the list where it belongs; a full row into none."""
        gap = self.gap[row]
        places = self.places - self.count[row]
        if gap and places > 0:
            insort(self.open, gap * self.rows + row)
            pieces_to_come = max(1, self.aim - self.count[row])
            heapq.heappush(self.asking, (-gap / pieces_to_come, row, gap))
        elif gap:
            insort(self.last, gap * self.rows + row)

    def _pop(self, length: int) -> int:
        """Take the next waiting piece of this length."""
        piece = self.waiting[length].pop()
        if not self.waiting[length]:
            self.waits[length] = False
        return piece
