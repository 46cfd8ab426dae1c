"""Best-fit-decreasing packing that spreads short pieces over all rows, so that no row holds many more than the average."""

import heapq
from bisect import bisect_left, insort

import numpy as np
from jaxtyping import Int

# A row asks for a piece of the present length once the average piece that it still needs is at least this share of it. Lower
# spreads pieces more evenly, higher leaves more documents whole; of 0.5, 0.6, 0.7 and 0.8 it did best on six kinds of text.
ASKING = 0.6
# Two pieces at once close a row only where they are at most capacity / 4 long: with longer ones the short pieces that should fill
# the gaps beside long ones are used up, and more of those are cut. Without the rule ten times as many documents of source code are.
CLOSING = 4


def best_fit_decreasing(
    lengths: Int[np.ndarray, "pieces"], rows: int, capacity: int, max_segments: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fill `rows` rows of `capacity` tokens exactly with pieces of at most `capacity` and `rows * capacity` tokens together.

    Longest first, each piece goes whole into the fullest row that still takes it (Ding et al. 2024, "Fewer truncations improve
    language modeling", section 3). Left to that, the last rows would be filled by the shortest pieces alone, hundreds in a row. Two
    rules are therefore added. A row that will need more than about 7/8 of `max_segments` pieces unless it gets long ones is served
    first, while there are such. And a row whose gap two waiting pieces fill exactly is closed with both.

    Pieces that no row takes whole are split over the gaps that are left, largest gap first, so that few are split. A row's last
    place is kept for a filler that closes it. Where the pieces are too short even so, a row gets more than `max_segments`.
    Returns: row, piece, offset inside the piece and length of every placed span (four int64 arrays).
    """
    filling = _Filling(lengths, rows, capacity, max_segments)
    for length in np.unique(lengths)[::-1].tolist():
        while filling.pool[length]:
            filling.place(length)
    filling.split()
    return tuple(np.array(filling.placed, np.int64).reshape(-1, 4).T)


class _Filling:
    """Rows while they are filled.

    A gap is kept as gap * rows + row, so that a sorted list of integers finds the tightest one: in `open` those of rows that
    have two places or more left, in `last` the others.
    """

    def __init__(self, lengths: np.ndarray, rows: int, capacity: int, max_segments: int):
        self.rows, self.closing = rows, capacity // CLOSING
        self.places = max_segments - 1  # but for the last
        self.aim = max(1, self.places - max_segments // 8)
        self.pool: list[list[int]] = [
            [] for _ in range(capacity + 1)
        ]  # pieces that wait, by length
        for piece, length in reversed(list(enumerate(lengths.tolist()))):
            self.pool[length].append(piece)
        self.waits = np.zeros(capacity + 1, bool)  # which lengths do
        self.waits[lengths] = True
        self.gap, self.count = [capacity] * rows, [0] * rows
        self.open: list[int] = []
        self.last: list[int] = []
        self.asking: list[
            tuple[float, int, int]
        ] = []  # a heap of (-average piece that a row needs, row, its gap then)
        self.homeless: list[tuple[int, int]] = []
        self.placed: list[tuple[int, int, int, int]] = []
        for row in range(rows):
            self._keep(row)

    def place(self, length: int) -> None:
        """One piece of this length into its row, and two more where they close the row."""
        row = self._row_for(length)
        if row is None:
            self.homeless.append((self._pop(length), length))
            return
        self._put(row, self._pop(length), 0, length)
        if 1 < self.gap[row] <= 2 * length <= 2 * self.closing and self.count[row] < self.places:
            self._close(row, length)
        self._keep(row)

    def split(self) -> None:
        """Fill what is left of the rows with the pieces that found no row."""
        for piece, length in self.homeless:
            start = 0
            while start < length:
                row = self._row_for_rest(length - start)
                filled = min(self.gap[row], length - start)
                self._put(row, piece, start, filled)
                self._keep(row)
                start += filled

    def _row_for(self, length: int) -> int | None:
        """The row that most needs a piece of this length, else the tightest that takes one, else None; it leaves the lists."""
        while self.asking:
            need, row, gap = self.asking[0]
            if gap != self.gap[row] or self.count[row] >= self.places:
                heapq.heappop(self.asking)  # the row has changed since
                continue
            if -need >= ASKING * length and gap >= length:
                heapq.heappop(self.asking)
                self.open.pop(bisect_left(self.open, gap * self.rows + row))
                return row
            break
        at = bisect_left(self.open, length * self.rows)
        return self.open.pop(at) % self.rows if at < len(self.open) else None

    def _row_for_rest(self, length: int) -> int:
        """The row where a piece of this length is to go, whole or in part: the tightest that takes it whole, else the largest gap.

        A row with one place left is for a piece that fills its gap.
        """
        at = bisect_left(self.open, length * self.rows)
        if at < len(self.open):
            return self.open.pop(at) % self.rows
        filled = bisect_left(self.last, (length + 1) * self.rows) - 1
        if self.open and (filled < 0 or self.open[-1] >= self.last[filled]):
            return self.open.pop() % self.rows
        return self.last.pop(max(filled, 0)) % self.rows

    def _close(self, row: int, length: int) -> None:
        """Two waiting pieces of at most `length` that fill the row exactly, where there are such."""
        gap = self.gap[row]
        low, high = gap - gap // 2, min(length, gap - 1)  # lengths of the longer one
        both = np.flatnonzero(
            self.waits[low : high + 1] & self.waits[gap - high : gap - low + 1][::-1]
        )
        if not len(both):
            return
        longer = low + int(both[-1])
        if 2 * longer > gap or len(self.pool[longer]) > 1:
            for part in (longer, gap - longer):
                self._put(row, self._pop(part), 0, part)

    def _put(self, row: int, piece: int, start: int, length: int) -> None:
        self.placed.append((row, piece, start, length))
        self.gap[row] -= length
        self.count[row] += 1

    def _keep(self, row: int) -> None:
        """Put a row that is not full into the list where it belongs."""
        gap, count = self.gap[row], self.count[row]
        if gap and count < self.places:
            insort(self.open, gap * self.rows + row)
            heapq.heappush(self.asking, (-gap / max(1, self.aim - count), row, gap))
        elif gap:
            insort(self.last, gap * self.rows + row)

    def _pop(self, length: int) -> int:
        piece = self.pool[length].pop()
        if not self.pool[length]:
            self.waits[length] = False
        return piece
