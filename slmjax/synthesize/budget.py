"""How much may be spent and how fast: a budget that cannot be overdrawn, and a pace of requests.

Both belong to one event loop: their methods do not run at the same time except where they wait.
"""

import asyncio
import contextlib
import time


class BudgetSpent(Exception):
    """A reservation does not fit, and no open reservation could make room for it."""


class Budget:
    """Tokens and dollars that may be spent; a limit of 0 is no limit.

    A reservation is taken before a request is sent, and counts in full until it is settled.

    Args:
      tokens, cost: the limits; cost in dollars.
      spent: (tokens, dollars) that the journal has at the start. The requests of a process that
        was killed are part of it.
    """

    def __init__(self, *, tokens: int = 0, cost: float = 0.0, spent: tuple[int, float] = (0, 0.0)):
        self.tokens = tokens
        self.cost = cost
        self.spent_tokens, self.spent_cost = spent
        self._open = 0  # reservations that are not settled
        self._settled = asyncio.Event()

    async def reserve(self, tokens: int, cost: float) -> None:
        """Take a reservation; wait for open ones to be settled where that could make room.

        Raises: BudgetSpent where it does not fit and none is open.
        """
        # Settling frees what a request did not use, so that open ones are worth waiting for.
        while not self._fits(tokens, cost):
            if not self._open:
                raise BudgetSpent
            self._settled.clear()
            await self._settled.wait()
        self.spent_tokens += tokens
        self.spent_cost += cost
        self._open += 1

    def settle(self, reserved: tuple[int, float], used: tuple[int, float]) -> None:
        """Replace a reservation by what its request did cost, both as (tokens, dollars)."""
        self.spent_tokens += used[0] - reserved[0]
        self.spent_cost += used[1] - reserved[1]
        self._open -= 1
        self._settled.set()

    def _fits(self, tokens: int, cost: float) -> bool:
        tokens_fit = not self.tokens or self.spent_tokens + tokens <= self.tokens
        cost_fits = not self.cost or self.spent_cost + cost <= self.cost
        return tokens_fit and cost_fits


class Pace:
    """At most so many requests a minute, evenly spaced, and none while the server asks to wait.

    Args:
      per_minute: 0 for no limit.
      stop: no wait lasts longer than until this is set.
    """

    def __init__(self, per_minute: float, stop: asyncio.Event):
        self._gap = 60.0 / per_minute if per_minute else 0.0  # seconds between two requests
        self._stop = stop
        self._next = 0.0  # time.monotonic() at which the next request may start

    async def turn(self) -> None:
        """Wait until this request may start."""
        while not self._stop.is_set():
            wait = self._next - time.monotonic()
            if wait <= 0:
                break
            await self.pause(wait)
        self._next = time.monotonic() + self._gap

    async def pause(self, seconds: float) -> None:
        """Let one request wait; the others go on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def hold(self, seconds: float) -> None:
        """Let no request start for so long: a server's limit applies to all of them together."""
        # max: of several answers "wait", the longest counts.
        self._next = max(self._next, time.monotonic() + seconds)
