"""How much may be asked, and how fast: a budget of tokens and dollars that reservations cannot overdraw, and a pace for requests."""

import asyncio
import contextlib
import time


class BudgetSpent(Exception):
    """A reservation does not fit, and nothing that is open could make room for it."""


class Budget:
    """Tokens and dollars that may be spent; 0 is no limit.

    A reservation is taken before the request is sent and counts in full until it is settled. `spent` starts with what the journal has, in
    which the requests of a killed process stay counted.
    """

    def __init__(self, *, tokens: int = 0, cost: float = 0.0, spent: tuple[int, float] = (0, 0.0)):
        self.tokens, self.cost = tokens, cost
        self.spent_tokens, self.spent_cost = spent
        self._open, self._changed = 0, asyncio.Event()

    async def reserve(self, tokens: int, cost: float) -> None:
        """Take a reservation, waiting for open ones to be settled where that could make room.

        Raises: BudgetSpent where it cannot.
        """
        while not self._fits(tokens, cost):
            if not self._open:
                raise BudgetSpent
            self._changed.clear()
            await self._changed.wait()
        self.spent_tokens += tokens
        self.spent_cost += cost
        self._open += 1

    def settle(self, reserved: tuple[int, float], used: tuple[int, float]) -> None:
        """Count what a request did cost in place of its reservation."""
        self.spent_tokens += used[0] - reserved[0]
        self.spent_cost += used[1] - reserved[1]
        self._open -= 1
        self._changed.set()

    def _fits(self, tokens: int, cost: float) -> bool:
        return (not self.tokens or self.spent_tokens + tokens <= self.tokens) and (
            not self.cost or self.spent_cost + cost <= self.cost
        )


class Pace:
    """At most `per_minute` requests a minute (0: no limit), evenly spaced, and none while the server asked to wait.

    No wait lasts longer than until `stop` is set.
    """

    def __init__(self, per_minute: float, stop: asyncio.Event):
        self._gap, self._stop = 60.0 / per_minute if per_minute else 0.0, stop
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for this request's turn."""
        while (wait := self._next - time.monotonic()) > 0 and not self._stop.is_set():
            await self.pause(wait)
        self._next = time.monotonic() + self._gap

    async def pause(self, seconds: float) -> None:
        """Wait, of one request alone."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def hold(self, seconds: float) -> None:
        """Let no request start for so long: a limit of the server is one for all of them."""
        self._next = max(self._next, time.monotonic() + seconds)
