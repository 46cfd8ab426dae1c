"""Ask a teacher for many documents at once. No paid answer is lost, and none is paid for twice.

`concurrent` workers share one iterator of requests. A worker takes a request and makes attempts,
until one is answered or another would not help; then it takes the next. A run may take several
starts of the same command. An attempt keeps invariants of its own (attempts.py). Two more hold for
the whole run:

1. A request counts once in `Tally.settled`: as known, accepted or rejected. A request that the
   budget or a signal prevented does not count, and the next start asks for it.
2. After the first signal no attempt starts, and every wait ends; open attempts are still answered.
   After an error open attempts are cancelled, and stay counted as reserved.

Everything runs in one event loop, so that code between two awaits needs no lock.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from slmjax.errors import UserError
from slmjax.synthesize.attempts import Attempts
from slmjax.synthesize.budget import Budget, BudgetSpent, Pace
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.stop_signal import StopOnSignal
from slmjax.synthesize.teachers import Answer, Teacher, TeacherFault, TeacherRequest

# Seconds before the second attempt, and the most before a later one. The wait doubles with each
# attempt and is then shortened at random by up to a half, so that many requests that failed
# together do not come back together.
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0

# Fewest rejected answers, without one that is accepted, that end a run. If one answer in ten can
# be used, the first 50 are all rejected in one run of 200 (0.9 ** 50).
UNUSABLE = 50
FAILED = 20  # fewest failures in a row that end a run
LIMIT_PATIENCE = 10  # retries after a rate limit (429), for each retry after a failure


@dataclass
class Tally:
    """Counts of a run so far, for the status line (live.py) and the summary at the end."""

    total: int  # requests of the run
    settled: int = 0  # requests that need no further attempt: known, accepted or rejected
    known: int = 0  # answered in an earlier start
    accepted: int = 0  # in this start
    rejected: int = 0  # in this start, with requests that were given up
    tokens: int = 0  # of the answers of this start, without their prompts
    cost: float = 0.0  # dollars that count as spent in all starts
    spent: bool = False  # the run stopped because the budget is spent
    signal: int = 0  # the run stopped because of this signal; 0 without one
    faults: dict[str, int] = field(default_factory=dict)  # failed attempts of this start by reason
    last_fault: str = ""  # reason of the last failed attempt
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
    report: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Ask for every request that has no answer in the journal; close the teacher at the end.

    It ends early where the budget is spent, and at the first SIGINT or SIGTERM.

    Args:
      requests: all requests of the run; those with an answer are skipped.
      budget: for this and all earlier starts.
      tally: is counted up and returned.
      price: dollars for a million tokens of prompts and of answers.
      per_minute: most attempts a minute; 0 for no limit.
      concurrent: most attempts that are open at once.
      retries: times that a request is sent again; LIMIT_PATIENCE times as many where the teacher
        asks for fewer requests (429).
      judge: returns why an answer will be rejected; "" where it is accepted.
      report: called with the tally after every answer and fault.
    Raises: UserError where the teacher refuses all requests, where max(FAILED, 2 * concurrent)
      attempts in a row fail, or where max(UNUSABLE, 2 * concurrent) answers are rejected before
      one is accepted.
    """
    stop = asyncio.Event()

    def stop_for(number: int) -> None:
        tally.signal = number
        stop.set()

    workers = _Workers(
        attempts=Attempts(teacher, journal, budget, price),
        tally=tally,
        concurrent=concurrent,
        retries=retries,
        judge=judge,
        report=report,
        stop=stop,
        pace=Pace(per_minute, stop),
    )
    remaining = iter(requests)  # shared, so that each request goes to one worker
    with StopOnSignal(stop_for):
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrent):
                    group.create_task(workers.work(remaining))
        except BaseExceptionGroup as errors:
            # The first error cancelled the other workers; it is the one that the user must know.
            raise errors.exceptions[0] from None
        finally:
            await teacher.close()
    return tally


@dataclass
class _Workers:
    """The workers of a run and the state that they share; `produce` explains the fields."""

    attempts: Attempts
    tally: Tally
    concurrent: int
    retries: int
    judge: Callable[[TeacherRequest, Answer], str]
    report: Callable[[Tally], None]
    stop: asyncio.Event
    pace: Pace
    unusable: int = 0  # rejected answers; tally.rejected also counts requests that were given up
    failures_in_a_row: int = 0  # failed attempts since the last answer, rate limits left out

    async def work(self, remaining: Iterator[TeacherRequest]) -> None:
        """Run one worker: settle requests until there are none, the budget is spent, or `stop`."""
        for request in remaining:
            if self.stop.is_set():
                return
            # The key is a hash of everything that an answer depends on, so that an answer with the
            # same key is the one to this request.
            if request.key in self.attempts.journal.answered:
                self.tally.settled += 1
                self.tally.known += 1
                continue
            try:
                await self.settle(request)
            except BudgetSpent:
                self.tally.spent = True
                return

    async def settle(self, request: TeacherRequest) -> None:
        """Make attempts until one is answered, another would not help, or `stop` is set.

        Raises: BudgetSpent where the budget has no room for another one.
        """
        failures = limits = 0  # attempts that failed, and those that met a rate limit
        while True:
            await self.pace.turn()
            if self.stop.is_set():  # perhaps while it waited for its turn
                return
            try:
                answer = await self.attempts.make(request)
            except TeacherFault as fault:
                self.count_fault(fault)
                if fault.limit:
                    limits += 1
                else:
                    failures += 1
                too_often = failures > self.retries or limits > LIMIT_PATIENCE * self.retries
                if too_often or not fault.again:
                    break
                await self.back_off(fault, failures + limits)
            else:
                self.count_answer(request, answer)
                return
        # The request is given up. One that `stop` interrupted is not: the next start asks again.
        if not self.stop.is_set():
            self.tally.settled += 1
            self.tally.rejected += 1
            self.report(self.tally)

    def count_fault(self, fault: TeacherFault) -> None:
        """Count a failed attempt.

        Raises: UserError for one that ends the run, and for the last of too many in a row.
        """
        tally = self.tally
        tally.cost = self.attempts.budget.spent_cost
        tally.faults[fault.reason] = tally.faults.get(fault.reason, 0) + 1
        tally.last_fault = fault.reason
        if fault.limit:
            tally.hold = max(tally.hold, time.monotonic() + fault.wait)
        self.report(tally)
        if fault.ends:
            raise UserError(fault.ends) from fault
        if fault.limit:  # the teacher is there, and only asks to wait
            return
        self.failures_in_a_row += 1
        if self.failures_in_a_row >= max(FAILED, 2 * self.concurrent):
            raise UserError(
                f"config.synthesize: {self.failures_in_a_row} requests in a row came to nothing "
                f"(the last: {fault.reason}); what was answered is kept, and the same command goes "
                f"on once {self.attempts.teacher.model} answers."
            ) from fault

    def count_answer(self, request: TeacherRequest, answer: Answer) -> None:
        """Count an answer.

        Raises: UserError where the first max(UNUSABLE, 2 * concurrent) are all rejected.
        """
        self.failures_in_a_row = 0
        tally = self.tally
        tally.cost = self.attempts.budget.spent_cost
        reason = self.judge(request, answer)
        if reason:
            tally.rejected += 1
            self.unusable += 1
        else:
            tally.accepted += 1
        if answer.tokens:
            tally.tokens += answer.tokens[1]
        tally.settled += 1
        self.report(tally)
        if not tally.accepted and self.unusable >= max(UNUSABLE, 2 * self.concurrent):
            raise UserError(
                f"config.synthesize: the first {self.unusable} answers of "
                f"{self.attempts.teacher.model} cannot be used (the last: {reason}); "
                "rejects.jsonl has them. What was answered is kept."
            )

    async def back_off(self, fault: TeacherFault, attempts: int) -> None:
        """Wait before the next attempt: longer with each, and as long as the teacher asks."""
        doubled = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempts - 1))
        seconds = doubled * random.uniform(0.5, 1.0)
        if fault.limit:  # a rate limit holds for all requests together
            self.pace.hold(fault.wait)
        await self.pace.pause(max(fault.wait, seconds))
