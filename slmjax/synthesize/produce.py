"""Asking: many requests at once, each journalled and reserved before it is sent, asked again where that may help."""

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from slmjax.errors import UserError
from slmjax.synthesize.budget import Budget, BudgetSpent, Pace
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.teachers import Answer, Teacher, TeacherFault, TeacherRequest, reservation

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second try; doubled for each further one up to the longest, then shortened at random by up to a half, so that many
requests that failed together do not come back together."""
UNUSABLE = 50  # a teacher of which one answer in ten can be used fails so often once in 200 runs
SLOWER = 10  # a request that was told to wait may ask this many times as often as one that failed


@dataclass
class Tally:
    """What has happened so far; `tell` is called with it after every answer and fault."""

    total: int
    settled: int = 0
    known: int = 0  # of them answered before this start
    accepted: int = 0
    rejected: int = 0
    tokens: int = 0  # of answers, in this start
    cost: float = 0.0  # of everything in the journal
    spent: bool = False  # it stopped because the budget is spent
    signal: int = 0  # it stopped because of this signal
    faults: dict[str, int] = field(default_factory=dict)
    last: str = ""  # the reason of the last fault
    hold: float = 0.0  # time.monotonic() until which the teacher asks to wait


async def produce(
    requests: Iterable[TeacherRequest],
    teacher: Teacher,
    journal: Journal,
    budget: Budget,
    tally: Tally,
    *,
    price: tuple[float, float] = (0.0, 0.0),
    per_minute: float = 0.0,
    concurrent: int = 64,
    retries: int = 5,
    judge: Callable[[TeacherRequest, Answer], str] = lambda request, answer: "",
    tell: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Ask for every request that the journal has no answer of.

    Args:
      price: dollars for a million tokens of prompts and of answers.
      per_minute: most requests a minute; 0: no limit.
      concurrent: requests that are open at once.
      retries: times that a request is asked again; one that is told to wait (429) is patient for longer.
      judge: why an answer will be rejected; "" where it stands.
    Raises: UserError where the teacher refuses all requests, answers none of twice `concurrent` (at
      least 20) in a row, or where so many answers (at least 50) are rejected before one stands.
    """
    stop, remaining = asyncio.Event(), iter(requests)
    pace = Pace(per_minute, stop)
    asker = _Asker(
        teacher, journal, budget, tally, price, concurrent, retries, judge, tell, stop, pace
    )
    with _ToldToStop(stop, tally):
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrent):
                    group.create_task(asker.work(remaining))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await teacher.close()
    return tally


@dataclass
class _Asker:
    """What all workers of `produce` share; its arguments are there."""

    teacher: Teacher
    journal: Journal
    budget: Budget
    tally: Tally
    price: tuple[float, float]
    concurrent: int
    retries: int
    judge: Callable[[TeacherRequest, Answer], str]
    tell: Callable[[Tally], None]
    stop: asyncio.Event
    pace: Pace
    in_a_row: int = 0  # requests that came to nothing since the last answer

    async def work(self, remaining: Iterator[TeacherRequest]) -> None:
        """Settle requests one after the other, until there are none or the budget is spent."""
        for request in remaining:
            if self.stop.is_set():
                return
            if request.key in self.journal.answered:
                self.tally.settled += 1
                self.tally.known += 1
                continue
            try:
                await self.settle(request)
            except BudgetSpent:
                self.tally.spent = True
                return

    async def settle(self, request: TeacherRequest) -> None:
        """Ask until there is an answer, or there is no point in it."""
        tries = waits = 0
        while not self.stop.is_set():
            await self.pace.turn()
            if self.stop.is_set():
                return
            try:
                answer = await self.attempt(request)
            except TeacherFault as fault:
                self.failed(fault)
                tries, waits = tries + (not fault.limit), waits + fault.limit
                if not fault.again or tries > self.retries or waits > SLOWER * self.retries:
                    break
                await self.back_off(fault, tries + waits)
            else:
                self.answered(request, answer)
                return
        if self.stop.is_set():
            return
        self.tally.settled += 1
        self.tally.rejected += 1
        self.tell(self.tally)

    async def attempt(self, request: TeacherRequest) -> Answer:
        """One try, journalled before and after."""
        most = reservation(request)
        reserved = (sum(most), self.dollars(most))
        await self.budget.reserve(*reserved)
        used = reserved
        try:
            body = {
                "model": self.teacher.model,
                "prompt": request.prompt,
                "parameters": request.parameters,
            }
            number, written = self.journal.request(
                request.key, tokens=reserved[0], cost=reserved[1], body=body
            )
            await asyncio.wrap_future(written)
            try:
                answer = await self.teacher.ask(request)
            except TeacherFault as fault:
                used = self.used(fault.tokens, reserved)
                body = {"reason": fault.reason}
                await asyncio.wrap_future(
                    self.journal.fault(request.key, number, tokens=used[0], cost=used[1], body=body)
                )
                raise
            used = self.used(answer.tokens, reserved)
            body = {"text": answer.text, "finish": answer.finish, "tokens": answer.tokens}
            await asyncio.wrap_future(
                self.journal.answer(request.key, number, tokens=used[0], cost=used[1], body=body)
            )
            return answer
        finally:
            self.budget.settle(reserved, used)
            self.tally.cost = self.budget.spent_cost

    def dollars(self, tokens: tuple[int, int]) -> float:
        """The price of tokens of a prompt and of its answer."""
        return (tokens[0] * self.price[0] + tokens[1] * self.price[1]) / 1e6

    def used(
        self, tokens: tuple[int, int] | None, reserved: tuple[int, float]
    ) -> tuple[int, float]:
        """(tokens, dollars) of a try; all that was reserved where the teacher does not say."""
        return (sum(tokens), self.dollars(tokens)) if tokens else reserved

    def failed(self, fault: TeacherFault) -> None:
        """Count a fault. Raises: UserError for one that ends the run, or the last of too many in a row."""
        tally = self.tally
        tally.faults[fault.reason] = tally.faults.get(fault.reason, 0) + 1
        tally.last = fault.reason
        if fault.limit:
            tally.hold = max(tally.hold, time.monotonic() + fault.wait)
        self.tell(tally)
        if fault.ends:
            raise UserError(fault.ends) from fault
        if fault.limit:
            return
        self.in_a_row += 1
        if self.in_a_row >= max(20, 2 * self.concurrent):
            raise UserError(
                f"config.synthesize: {self.in_a_row} requests in a row came to nothing (the last: "
                f"{fault.reason}); what was answered is kept, and the same command goes on once "
                f"{self.teacher.model} answers."
            ) from fault

    async def back_off(self, fault: TeacherFault, tries: int) -> None:
        """Wait before a request is asked again: longer with each try, and as long as the teacher asks."""
        seconds = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
        if fault.limit:
            self.pace.hold(fault.wait)
        await self.pace.pause(max(fault.wait, seconds))

    def answered(self, request: TeacherRequest, answer: Answer) -> None:
        """Count an answer. Raises: UserError where none of so many can be used."""
        self.in_a_row = 0
        tally, reason = self.tally, self.judge(request, answer)
        tally.accepted += not reason
        tally.rejected += bool(reason)
        tally.tokens += answer.tokens[1] if answer.tokens else 0
        tally.settled += 1
        self.tell(tally)
        if not tally.accepted and tally.rejected >= max(UNUSABLE, 2 * self.concurrent):
            raise UserError(
                f"config.synthesize: the first {tally.rejected} answers of {self.teacher.model} "
                f"cannot be used (the last: {reason}); rejects.jsonl has them. What was "
                "answered is kept."
            )


class _ToldToStop:
    """Inside, the first SIGINT or SIGTERM sets `stop`, so that open requests are still answered; a second one has its usual effect."""

    def __init__(self, stop: asyncio.Event, tally: Tally):
        self._stop, self._tally, self._kept = stop, tally, {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            self._kept = {
                number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
            }
            for number in self._kept:
                signal.signal(
                    number, lambda number, frame: loop.call_soon_threadsafe(self._told, number)
                )

    def _told(self, number: int) -> None:
        self._tally.signal = number
        self._stop.set()
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)
        self._kept = {}
