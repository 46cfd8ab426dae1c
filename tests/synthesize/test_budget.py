"""Budget and pace: reservations never overdraw, whatever the order of requests and answers."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.synthesize.budget import Budget, BudgetSpent, Pace


@given(
    st.integers(1, 400),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), max_size=40),
    st.integers(0, 100),
    st.integers(0, 9),
)
def test_what_is_open_and_spent_never_exceeds_the_budget(budget_tokens, requests, before, seed):
    """Each of ten workers reserves, waits some turns of the loop, and settles for no more than it reserved."""
    rng, budget = random.Random(seed), Budget(tokens=budget_tokens, spent=(before, 0.0))
    most, done, refused = [before], [], []

    async def one(reserved, used):
        try:
            await budget.reserve(reserved, 0.0)
        except BudgetSpent:
            refused.append(reserved)
            return
        most.append(budget.spent_tokens)
        for _ in range(rng.randrange(5)):
            await asyncio.sleep(0)
        done.append(min(reserved, used))
        budget.settle((reserved, 0.0), (min(reserved, used), 0.0))

    async def worker(mine):
        for reserved, used in mine:
            await one(reserved, used)

    async def everything():
        await asyncio.wait_for(asyncio.gather(*(worker(requests[i::10]) for i in range(10))), 20)

    asyncio.run(everything())
    assert max(most) <= max(budget_tokens, before)
    assert budget.spent_tokens == before + sum(done) and len(done) + len(refused) == len(requests)
    # Whoever was refused would not have fitted at that time; at the end only less is left.
    assert all(reserved > 0 for reserved in refused)
    assert not refused or budget.spent_tokens + max(refused) > budget_tokens


def test_a_reservation_waits_for_room_that_an_open_one_may_make():
    async def check():
        budget = Budget(cost=1.0)
        await budget.reserve(10, 0.75)
        waiting = asyncio.create_task(budget.reserve(10, 0.5))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        budget.settle((10, 0.75), (4, 0.25))
        await waiting
        assert (budget.spent_tokens, budget.spent_cost) == (14, 0.75)
        waiting = asyncio.create_task(budget.reserve(10, 0.5))
        await asyncio.sleep(0)
        budget.settle((10, 0.5), (10, 0.5))
        with pytest.raises(BudgetSpent):
            await waiting

    asyncio.run(check())


def test_no_limit_is_no_limit():
    async def check():
        budget = Budget()
        await budget.reserve(10**15, 1e9)

    asyncio.run(check())


def test_requests_are_spaced_and_all_wait_when_the_server_asks_for_it():
    async def check():
        loop, pace = asyncio.get_running_loop(), Pace(6000.0, asyncio.Event())
        start = loop.time()
        for _ in range(6):
            await pace.turn()
        assert loop.time() - start >= 0.045  # five gaps of 10 ms; the clock may be a little coarse
        pace.hold(0.1)
        start = loop.time()
        await asyncio.gather(pace.turn(), pace.turn())
        assert loop.time() - start >= 0.099

    asyncio.run(check())


def test_no_wait_outlasts_the_end_of_the_run():
    async def check():
        stop = asyncio.Event()
        pace = Pace(0.0, stop)
        pace.hold(3600.0)
        asyncio.get_running_loop().call_later(0.01, stop.set)
        await asyncio.wait_for(asyncio.gather(pace.turn(), pace.pause(3600.0)), 10)

    asyncio.run(check())
