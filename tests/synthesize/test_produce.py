"""Asking, with teachers that are functions: what is on disk when, how many are asked at once, and how it ends."""

import asyncio
import json
import os
import signal
import time

import pytest

from slmjax.errors import UserError
from slmjax.synthesize.budget import Budget
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.plan import DocumentPlan
from slmjax.synthesize.produce import Tally, produce
from slmjax.synthesize.synthesize_stage import requests
from slmjax.synthesize.teachers import Answer, Teacher, TeacherFault


class Stub(Teacher):
    """Answers as `answer(request)` does, after a turn of the loop."""

    name, model = "stub", "stub"

    def __init__(self, answer):
        self.answer, self.asked, self.open, self.most = answer, [], 0, 0

    def parameters(self, item):
        return {"max_tokens": 10, "number": item.number}

    async def ask(self, request):
        self.asked.append(request.key)
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.001)
        self.open -= 1
        return self.answer(request)


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path)
    yield opened
    assert opened._writer.is_alive()
    opened.close()


def make(journal, teacher, documents=50, budget=None, **more):
    plan = DocumentPlan(seed=0, topics=["rivers"], audiences=["adults"], formats=["section"])

    async def go():
        return await produce(
            requests(plan, teacher, documents),
            teacher,
            journal,
            budget or Budget(),
            Tally(documents),
            **more,
        )

    return asyncio.run(go())


def kinds(journal, key):
    """What is written of a key now, without waiting for the writer."""
    return [
        kind
        for (kind,) in journal._db.execute(
            "SELECT kind FROM events WHERE key = ? ORDER BY n", (key,)
        )
    ]


def test_a_request_is_on_disk_before_it_is_sent_and_an_answer_before_it_is_used(
    journal, monkeypatch
):
    insert = journal._insert
    monkeypatch.setattr(
        journal, "_insert", lambda events: (time.sleep(0.01), insert(events))
    )  # a slow disk

    def answer(request):
        assert kinds(journal, request.key) == ["request"]
        return Answer("text", "stop", (1, 1))

    def judge(request, answer):
        assert kinds(journal, request.key) == ["request", "answer"]
        return ""

    assert make(journal, Stub(answer), judge=judge).accepted == 50


def test_a_fault_is_on_disk_before_the_request_is_made_again(journal):
    def answer(request):
        if kinds(journal, request.key) == ["request"]:
            raise TeacherFault("once", (0, 0))
        assert kinds(journal, request.key) == ["request", "fault", "request"]
        return Answer("text", "stop", (1, 1))

    assert make(journal, Stub(answer), documents=3).accepted == 3


@pytest.mark.parametrize("concurrent", [1, 7, 64])
def test_as_many_are_open_at_once_as_was_asked_for(journal, concurrent):
    class Together(Stub):
        async def ask(self, request):
            answer = await super().ask(request)
            await asyncio.wait_for(self.barrier.wait(), 20)  # opens once as many stand before it
            return answer

    teacher = Together(lambda request: Answer("text", "stop", (1, 1)))
    teacher.barrier = asyncio.Barrier(concurrent)
    make(journal, teacher, documents=3 * concurrent, concurrent=concurrent)
    assert (
        teacher.most <= concurrent
        and len(teacher.asked) == len(set(teacher.asked)) == 3 * concurrent
    )


def test_an_answer_without_usage_stays_counted_as_reserved(journal):
    tally = make(
        journal, Stub(lambda request: Answer("text", "stop", None)), documents=2, price=(2e6, 1e6)
    )
    reserved = [event for event in journal.events() if event.kind == "request"]
    assert (
        journal.spent()
        == (sum(event.tokens for event in reserved), sum(event.cost for event in reserved))
        and tally.cost > 0
    )
    for event in reserved:
        asked = len(json.loads(event.body)["prompt"].encode()) + 64
        assert (event.tokens, event.cost) == (asked + 10, 2 * asked + 10)


def test_a_refusal_of_all_requests_ends_at_once_and_keeps_what_was_answered(journal):
    def answer(request):
        if request.item.number == 20:
            raise UserError("no such model")
        return Answer("text", "stop", (1, 1))

    teacher = Stub(answer)
    with pytest.raises(UserError, match="no such model"):
        make(journal, teacher, documents=1000, concurrent=4)
    assert 15 <= len(journal.answered) <= len(teacher.asked) < 40
    # What was open then stays counted.
    opened = [event for event in journal.events() if event.kind == "request"]
    assert journal.spent()[0] == 2 * len(journal.answered) + sum(
        event.tokens for event in opened if event.key not in journal.answered
    )


def test_told_to_stop_it_waits_for_what_is_open_and_asks_for_no_more(journal):
    def answer(request):
        if request.item.number == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return Answer("text", "stop", (1, 1))

    before = signal.getsignal(signal.SIGINT)
    teacher = Stub(answer)
    tally = make(journal, teacher, documents=1000, concurrent=8)
    assert tally.signal == signal.SIGINT and not tally.spent
    assert 20 <= len(teacher.asked) < 60 and set(teacher.asked) == set(
        journal.answered
    )  # every open request was answered
    assert signal.getsignal(signal.SIGINT) is before


def test_told_to_stop_it_does_not_wait_for_a_server_that_said_later(journal):
    def answer(request):
        os.kill(os.getpid(), signal.SIGTERM)
        raise TeacherFault("HTTP 429", (0, 0), wait=3600.0, limit=True)

    tally = make(journal, Stub(answer), documents=3)
    assert tally.signal == signal.SIGTERM and not journal.answered and journal.spent() == (0, 0.0)
