"""Limits of a run: a budget of tokens and dollars, and a pace of requests.

Both belong to one event loop: two of their methods overlap only where one of them awaits.
"""

import asyncio
import contextlib
import time


class BudgetSpent(Exception):
    """A reservation does not fit, and there is no open one whose settling could make room."""


class Budget:
    """Tokens and dollars that may be spent; a limit of 0 is no limit.

    A reservation is taken before a request is sent, and counts in full until it is settled.

    Args:
      tokens, cost: the limits; cost in dollars.
      spent: (tokens, dollars) of earlier starts, from `Journal.spent`.
    """

    def __init__(self, *, tokens: int = 0, cost: float = 0.0, spent: tuple[int, float] = (0, 0.0)):
        self.tokens = tokens
        self.cost = cost
        self.spent_tokens, self.spent_cost = spent
        self._open = 0  # reservations that are not settled
        self._settled = asyncio.Event()  # wakes those who wait for room

    async def reserve(self, tokens: int, cost: float) -> None:
        """Take a reservation, as soon as it fits.

        Raises: BudgetSpent where it does not fit and no reservation is open.
        """
        # An open reservation is worth waiting for: settling frees what its request did not use.
        while not self._fits(tokens, cost):
            if not self._open:
                raise BudgetSpent
            self._settled.clear()
            await self._settled.wait()
        self.spent_tokens += tokens
        self.spent_cost += cost
        self._open += 1

    def settle(self, reserved: tuple[int, float], used: tuple[int, float]) -> None:
        """Replace a reservation by what its request cost, both as (tokens, dollars)."""
        self.spent_tokens += used[0] - reserved[0]
        self.spent_cost += used[1] - reserved[1]
        self._open -= 1
        self._settled.set()

    def _fits(self, tokens: int, cost: float) -> bool:
        tokens_fit = not self.tokens or self.spent_tokens + tokens <= self.tokens
        cost_fits = not self.cost or self.spent_cost + cost <= self.cost
        return tokens_fit and cost_fits


class Pace:
    """Spaces requests evenly, and starts none while the server asks to wait.

    Args:
      per_minute: most requests a minute; 0 for no limit.
      stop: ends every wait when it is set.
    """

    def __init__(self, per_minute: float, stop: asyncio.Event):
        self._gap = 60.0 / per_minute if per_minute else 0.0  # seconds between two requests
        self._stop = stop
        self._next_start = 0.0  # time.monotonic() at which the next request may start

    async def turn(self) -> None:
        """Wait until the caller's request may start."""
        # A loop: while this task waited, another request may have started or `hold` been called.
        while not self._stop.is_set():
            wait = self._next_start - time.monotonic()
            if wait <= 0:
                break
            await self.pause(wait)
        self._next_start = time.monotonic() + self._gap

    async def pause(self, seconds: float) -> None:
        """Wait, without delaying other requests."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def hold(self, seconds: float) -> None:
        """Let no request start for so long: a server's limit applies to all of them together."""
        # max: where several answers ask to wait, the longest wait counts.
        self._next_start = max(self._next_start, time.monotonic() + seconds)
