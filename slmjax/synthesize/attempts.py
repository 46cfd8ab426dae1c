"""One attempt at a request: reserved, journalled, sent, journalled again, settled.

Three invariants keep paid answers from being lost, paid for twice or paid for beyond the budget:

1. Reserve, journal, send. An attempt takes the most that it can cost from the budget, then writes
   a "request" to the journal, and is sent once that is on disk.
2. The end of an attempt is on disk before anybody learns of it: an "answer" before it is judged
   and counted, a "fault" before the request is sent again.
3. A reservation is settled once: at what the attempt cost, or in full where that is not known (the
   teacher reports no tokens, or the attempt was cancelled while it was open).
"""

import asyncio
from dataclasses import dataclass

from slmjax.synthesize.budget import Budget
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.teachers import Answer, Teacher, TeacherFault, TeacherRequest, reservation

Cost = tuple[int, float]  # (tokens, dollars)


@dataclass(frozen=True)
class Attempts:
    """Sends requests to a teacher; all attempts of a run share it.

    Args:
      price: dollars for a million tokens of prompts and of answers.
    """

    teacher: Teacher
    journal: Journal
    budget: Budget
    price: tuple[float, float]

    async def make(self, request: TeacherRequest) -> Answer:
        """Send a request once and return its answer.

        Raises: BudgetSpent where the budget has no room for the request, TeacherFault where the
          request fails.
        """
        most_tokens = reservation(request)  # (prompt, answer)
        reserved = (sum(most_tokens), self._dollars(most_tokens))
        await self.budget.reserve(*reserved)
        # The whole reservation counts as used until the cost is known. A task that is cancelled
        # before that leaves it so.
        used = reserved
        try:
            number = await self._journal_request(request, reserved)
            try:
                answer = await self.teacher.ask(request)
            except TeacherFault as fault:
                used = self._cost(fault.tokens, reserved)
                await self._journal_fault(request, number, fault, used)
                raise
            used = self._cost(answer.tokens, reserved)
            await self._journal_answer(request, number, answer, used)
            return answer
        finally:
            self.budget.settle(reserved, used)

    async def _journal_request(self, request: TeacherRequest, reserved: Cost) -> int:
        """Write a request to the journal; return its event's number, once it is on disk."""
        body = {
            "model": self.teacher.model,
            "prompt": request.prompt,
            "parameters": request.parameters,
        }
        tokens, dollars = reserved
        number, written = self.journal.request(request.key, tokens=tokens, cost=dollars, body=body)
        await asyncio.wrap_future(written)
        return number

    async def _journal_answer(
        self, request: TeacherRequest, number: int, answer: Answer, used: Cost
    ) -> None:
        body = {"text": answer.text, "finish": answer.finish, "tokens": answer.tokens}
        tokens, dollars = used
        written = self.journal.answer(request.key, number, tokens=tokens, cost=dollars, body=body)
        await asyncio.wrap_future(written)

    async def _journal_fault(
        self, request: TeacherRequest, number: int, fault: TeacherFault, used: Cost
    ) -> None:
        body = {"reason": fault.reason}
        tokens, dollars = used
        written = self.journal.fault(request.key, number, tokens=tokens, cost=dollars, body=body)
        await asyncio.wrap_future(written)

    def _cost(self, tokens: tuple[int, int] | None, reserved: Cost) -> Cost:
        """Return what an attempt cost: all that was reserved where its tokens are not known."""
        if tokens is None:
            return reserved
        return sum(tokens), self._dollars(tokens)

    def _dollars(self, tokens: tuple[int, int]) -> float:
        """Return the price of (prompt, answer) tokens."""
        prompt_tokens, answer_tokens = tokens
        prompt_price, answer_price = self.price
        # Prices are for a million tokens.
        return (prompt_tokens * prompt_price + answer_tokens * answer_price) / 1e6
