"""Asking: many requests at once, each journalled and reserved before it is sent, asked again where that may help."""

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from slmjax.curate.synthesize.budget import Budget, BudgetSpent, Pace
from slmjax.curate.synthesize.journal import Journal
from slmjax.curate.synthesize.teachers import Answer, Fault, Request, Teacher, reservation
from slmjax.errors import UserError

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
    requests: Iterable[Request],
    teacher: Teacher,
    journal: Journal,
    budget: Budget,
    tally: Tally,
    *,
    price: tuple[float, float] = (0.0, 0.0),
    per_minute: float = 0.0,
    concurrent: int = 64,
    retries: int = 5,
    judge: Callable[[Request, Answer], str] = lambda request, answer: "",
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
    in_a_row = 0  # requests that came to nothing since the last answer

    def dollars(tokens: tuple[int, int]) -> float:
        return (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6

    async def attempt(request: Request) -> Answer:
        """One try, journalled before and after."""
        most = reservation(request)
        reserved = (sum(most), dollars(most))
        await budget.reserve(*reserved)
        used = reserved
        try:
            body = {"model": teacher.model, "prompt": request.prompt, "parameters": request.parameters}
            number, written = journal.request(request.key, tokens=reserved[0], cost=reserved[1], body=body)
            await asyncio.wrap_future(written)
            try:
                answer = await teacher.ask(request)
            except Fault as fault:
                used = (sum(fault.tokens), dollars(fault.tokens)) if fault.tokens else reserved
                await asyncio.wrap_future(journal.fault(request.key, number, tokens=used[0], cost=used[1], body={"reason": fault.reason}))
                raise
            used = (sum(answer.tokens), dollars(answer.tokens)) if answer.tokens else reserved
            body = {"text": answer.text, "finish": answer.finish, "tokens": answer.tokens}
            await asyncio.wrap_future(journal.answer(request.key, number, tokens=used[0], cost=used[1], body=body))
            return answer
        finally:
            budget.settle(reserved, used)
            tally.cost = budget.spent_cost

    async def settle(request: Request) -> None:
        """Ask until there is an answer, or there is no point in it."""
        nonlocal in_a_row
        tries = waits = 0
        while not stop.is_set():
            await pace.turn()
            if stop.is_set():
                return
            try:
                answer = await attempt(request)
            except Fault as fault:
                tally.faults[fault.reason] = tally.faults.get(fault.reason, 0) + 1
                tally.last = fault.reason
                if fault.limit:
                    tally.hold = max(tally.hold, time.monotonic() + fault.wait)
                tell(tally)
                if fault.ends:
                    raise UserError(fault.ends) from fault
                tries, waits = tries + (not fault.limit), waits + fault.limit
                if not fault.limit:
                    in_a_row += 1
                    if in_a_row >= max(20, 2 * concurrent):
                        raise UserError(
                            f"config.synthesize: {in_a_row} requests in a row came to nothing (the last: {fault.reason}); what was "
                            f"answered is kept, and the same command goes on once {teacher.model} answers."
                        ) from fault
                if not fault.again or tries > retries or waits > SLOWER * retries:
                    break
                back_off = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries + waits - 1)) * random.uniform(0.5, 1.0)
                if fault.limit:
                    pace.hold(fault.wait)
                await pace.pause(max(fault.wait, back_off))
            else:
                in_a_row = 0
                reason = judge(request, answer)
                tally.accepted, tally.rejected = tally.accepted + (not reason), tally.rejected + bool(reason)
                tally.tokens += answer.tokens[1] if answer.tokens else 0
                tally.settled += 1
                tell(tally)
                if not tally.accepted and tally.rejected >= max(UNUSABLE, 2 * concurrent):
                    raise UserError(
                        f"config.synthesize: the first {tally.rejected} answers of {teacher.model} "
                        f"cannot be used (the last: {reason}); rejects.jsonl has them. What was "
                        "answered is kept."
                    )
                return
        if stop.is_set():
            return
        tally.settled, tally.rejected = tally.settled + 1, tally.rejected + 1
        tell(tally)

    async def work() -> None:
        for request in remaining:
            if stop.is_set():
                return
            if request.key in journal.answered:
                tally.settled, tally.known = tally.settled + 1, tally.known + 1
                continue
            try:
                await settle(request)
            except BudgetSpent:
                tally.spent = True
                return

    with _ToldToStop(stop, tally):
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrent):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await teacher.close()
    return tally


class _ToldToStop:
    """Inside, the first SIGINT or SIGTERM sets `stop`, so that open requests are still answered; a second one has its usual effect."""

    def __init__(self, stop: asyncio.Event, tally: Tally):
        self._stop, self._tally, self._kept = stop, tally, {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            self._kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in self._kept:
                signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(self._told, number))

    def _told(self, number: int) -> None:
        self._tally.signal = number
        self._stop.set()
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)
        self._kept = {}
