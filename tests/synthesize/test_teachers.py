"""Each way in which an endpoint can fail, alone: what is counted, what is asked again, and what ends the run."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from slmjax.errors import UserError
from slmjax.synthesize import openai_teacher, provider_errors, teachers
from slmjax.synthesize import produce as producing
from slmjax.synthesize.budget import Budget
from slmjax.synthesize.chat_completion import parse_answer
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.openai_teacher import OpenAITeacher as OpenAI
from slmjax.synthesize.plan import DocumentPlan
from slmjax.synthesize.produce import Tally, produce
from slmjax.synthesize.provider_errors import retry_after
from slmjax.synthesize.synthesize_stage import requests
from slmjax.synthesize.teachers import TeacherFault, reservation
from tests.synthesize.server import Server, article

pytest.importorskip("openai")
MAX_TOKENS = 100


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-tests")
    monkeypatch.setattr(producing, "FIRST_WAIT", 0.001)


class Run:
    """What `produce` made of a server whose first answers have these modes; all later ones are ok."""

    def __init__(
        self, folder, modes, *, documents=1, retries=5, timeout=0.5, concurrent=4, **budget
    ):
        self.seen = []
        server = Server(
            lambda number, body: modes[number] if number < len(modes) else "ok", self.seen.append
        )
        journal = Journal(folder)
        plan = DocumentPlan(seed=0, topics=["rivers"], audiences=["adults"], formats=["section"])
        sampling = {"max_tokens": MAX_TOKENS, "temperature": 0.5, "top_p": 0.9}
        self.error = None

        async def go():
            teacher = OpenAI("tester", server.url, sampling=sampling, seed=0, timeout=timeout)
            asked = list(requests(plan, teacher, documents))
            self.reserved = [sum(reservation(request)) for request in asked]
            spent = Budget(spent=journal.spent(), **budget)
            await produce(
                asked, teacher, journal, spent, self.tally, concurrent=concurrent, retries=retries
            )

        self.tally = Tally(documents)
        try:
            asyncio.run(go())
        except UserError as error:
            self.error = str(error)
        self.events = list(journal.events())
        self.kinds = [event.kind for event in self.events]
        self.reasons = [
            json.loads(event.body)["reason"] for event in self.events if event.kind == "fault"
        ]
        self.spent = journal.spent()[0]
        self.counted = sum(entry["tokens"] for entry in self.seen)
        self.headers = server.headers
        journal.close()
        server.close()


# Mode: (reason, what is counted for the failed request: everything it reserved, nothing, or what the answer says it used)
FAILURES = {
    "limit": ("HTTP 429: slower", "nothing"),
    "error": ("HTTP 500: oops", "reserved"),
    "503": ("HTTP 503: no", "reserved"),
    "hang": ("no answer in 0.5 s", "reserved"),
    "cut": ("the connection was cut", "reserved"),
    "broken": ("broken JSON", "reserved"),
    "empty": ("empty answer", "used"),
    "endless": ("no end after 50,000 bytes", "reserved"),
}


@pytest.mark.parametrize("mode", FAILURES)
def test_a_failure_is_counted_for_what_it_may_have_cost_and_asked_again(
    tmp_path, mode, monkeypatch
):
    monkeypatch.setattr(openai_teacher, "MAX_BYTES", 50_000)
    reason, counted = FAILURES[mode]
    run = Run(tmp_path, [mode])
    assert (
        run.kinds == ["request", "fault", "request", "answer"]
        and run.reasons == [reason]
        and run.error is None
    )
    first, fault, second, answer = run.events
    assert first.tokens == second.tokens == run.reserved[0] and first.key == second.key
    assert (
        fault.tokens
        == {"reserved": first.tokens, "nothing": 0, "used": run.seen[0]["tokens"]}[counted]
    )
    assert run.seen[0]["tokens"] <= fault.tokens and answer.tokens == run.seen[1]["tokens"]
    assert run.spent == fault.tokens + answer.tokens and len(run.seen) == 2
    assert run.tally.settled == run.tally.accepted == 1 and run.tally.faults == {reason: 1}


def test_an_endless_answer_ends_at_its_time_too(tmp_path):
    assert Run(tmp_path, ["endless"], timeout=0.3).reasons[0] in (
        "no answer in 0.3 s",
        "no end after 4,000,000 bytes",
    )


def test_retry_after_is_honoured_by_all_requests(tmp_path):
    run = Run(tmp_path, ["limit"], documents=6, concurrent=1)
    assert run.seen[1]["time"] - run.seen[0]["time"] >= 0.2  # what the server asks for
    assert run.tally.accepted == 6


def test_the_client_tries_nothing_by_itself(tmp_path):
    run = Run(tmp_path, ["error", "limit", "cut", "hang", "error"], documents=3, retries=9)
    assert len(run.seen) == run.kinds.count("request") == 8 and run.tally.accepted == 3


def test_a_request_is_given_up_after_its_retries_and_the_rest_goes_on(tmp_path):
    run = Run(tmp_path, ["error"] * 3, documents=2, retries=2, concurrent=1)
    assert run.kinds == ["request", "fault"] * 3 + ["request", "answer"]
    assert (run.tally.accepted, run.tally.rejected, run.tally.settled) == (1, 1, 2)
    again = Run(
        tmp_path, [], documents=2
    )  # a new start asks for what has no answer, and for nothing else
    assert len(again.seen) == 1 and again.tally.known == 1 and again.tally.accepted == 1


def test_a_bad_request_is_not_asked_again(tmp_path):
    run = Run(tmp_path, ["400"], concurrent=1)
    assert (
        run.kinds == ["request", "fault"]
        and run.spent == 0
        and run.reasons[0].startswith("HTTP 400")
    )


@pytest.mark.parametrize("mode", ["401", "403", "404"])
def test_a_refused_key_or_model_ends_the_run(tmp_path, mode):
    run = Run(tmp_path, [mode] * 50, documents=50)
    assert (
        f"refuses model 'tester' (HTTP {mode}" in run.error
        and "OPENAI_API_KEY" in run.error
        and len(run.seen) <= 4
    )


def test_a_server_that_only_fails_ends_the_run_before_it_ends_the_budget(tmp_path):
    run = Run(tmp_path, ["error"] * 1000, documents=200)
    assert (
        "20 requests in a row came to nothing (the last: HTTP 500: oops)" in run.error
        and len(run.seen) < 40
    )


def test_no_server_at_all_costs_nothing_and_is_told(tmp_path):
    async def go():
        teacher = OpenAI(
            "tester", "http://127.0.0.1:9/v1", sampling={"max_tokens": 9}, seed=0, timeout=5.0
        )
        plan = DocumentPlan(seed=0, topics=["rivers"], audiences=["adults"], formats=["section"])
        await produce(requests(plan, teacher, 50), teacher, journal, Budget(), Tally(50))

    journal = Journal(tmp_path)
    with pytest.raises(UserError, match=r"no connection to http://127\.0\.0\.1:9/v1"):
        asyncio.run(go())
    counted = [event.tokens for event in journal.events() if event.kind == "fault"]
    assert counted and not any(counted)
    journal.close()


def test_the_server_never_counts_more_than_the_budget(tmp_path):
    modes = ["error", "cut", "ok", "broken", "limit", "empty", "ok", "hang"] * 20
    run = Run(tmp_path, modes, documents=60, retries=9, concurrent=16, tokens=20_000)
    assert run.tally.spent and 0 < run.tally.accepted < 60
    assert run.counted <= run.spent <= 20_000
    again = Run(tmp_path, modes, documents=60, retries=9, concurrent=16, tokens=20_000)
    assert again.counted + run.counted <= again.spent <= 20_000


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path):
    run = Run(tmp_path, ["error"])
    assert run.headers[0]["authorization"] == "Bearer secret-of-the-tests"
    assert not any(b"secret-of-the-tests" in file.read_bytes() for file in tmp_path.iterdir())


def test_openais_own_endpoint_wants_a_key_and_every_endpoint_a_model(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        OpenAI("gpt", "", sampling={}, seed=0, timeout=1.0)
    with pytest.raises(UserError, match=r"config\.synthesize\.model is empty"):
        OpenAI("", "http://127.0.0.1:9/v1", sampling={}, seed=0, timeout=1.0)


def completion(**changes):
    choice = {
        "message": {"content": changes.pop("content", "text")},
        "finish_reason": changes.pop("finish", "stop"),
    }
    return json.dumps(
        {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, **changes}
    ).encode()


def test_a_completion_is_read_with_what_it_used():
    assert parse_answer(completion()) == teachers.Answer("text", "stop", (3, 4))
    assert parse_answer(completion(finish="length")).finish == "length"
    for usage in (
        None,
        {},
        {"prompt_tokens": 3},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": 10**30},
    ):
        assert parse_answer(completion(usage=usage)).tokens is None


FINISHES = {
    "stop": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "STOP": "stop",
    None: "stop",
    "length": "length",
    "MAX_TOKENS": "length",
}
FINISHES |= {
    word: word
    for word in ("content_filter", "abort", "tool_calls", "error", "safety", "anything else")
}


@pytest.mark.parametrize("finish", FINISHES)
def test_an_answer_is_whole_cut_or_ended_for_the_providers_own_reason(finish):
    assert parse_answer(completion(finish=finish)).finish == FINISHES[finish]


def test_an_answer_in_parts_is_their_text_without_thoughts():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "one "},
        {"text": "two"},
    ]
    assert parse_answer(completion(content=parts)).text == "one two"
    with pytest.raises(TeacherFault, match="part of type 'image_url', which is no text") as fault:
        parse_answer(completion(content=[{"type": "image_url", "image_url": {}}]))
    assert not fault.value.again and fault.value.tokens == (3, 4)  # it is paid for


def message(finish="stop", **fields):
    return json.dumps(
        {
            "choices": [{"message": fields, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        }
    ).encode()


EMPTY = {
    message(
        "length", content=None, reasoning_content="hm"
    ): "only thoughts, no answer (the thoughts used up max_tokens)",
    message(content="", reasoning="hm"): "only thoughts, no answer",
    message("content_filter", content=None): "empty answer, finish_reason content_filter",
    message("tool_calls", tool_calls=[]): "empty answer, finish_reason tool_calls",
    message(content=None, refusal="I will not do that."): "refusal: I will not do that.",
}


@pytest.mark.parametrize("body", EMPTY, ids=EMPTY.values())
def test_an_answer_without_text_says_why_is_paid_for_and_not_asked_again(body):
    with pytest.raises(TeacherFault) as fault:
        parse_answer(body)
    assert (fault.value.reason, fault.value.tokens, fault.value.again) == (
        EMPTY[body],
        (3, 4),
        False,
    )


# Answer of the server: (how its fault begins, whether the request is asked again, whether the run ends)
COMPLAINTS = {
    '200 {"error": {"message": "insufficient credits", "code": 402}}': (
        "HTTP 402: insufficient credits",
        False,
        True,
    ),
    '200 {"error": {"message": "overloaded", "code": 503}}': ("HTTP 503: overloaded", True, False),
    '200 {"error": "model is loading"}': ("error: model is loading", True, False),
    '200 {"object": "error", "message": "too long", "type": "BadRequestError"}': (
        "HTTP 400: too long",
        False,
        False,
    ),
    '200 {"choices": [{"error": {"code": "429", "message": "slow down"}}]}': (
        "HTTP 429: slow down",
        True,
        False,
    ),
    '200 {"choices": [{"error": {"code": 1e999, "message": "bad luck"}}]}': (
        "error: bad luck",
        True,
        False,
    ),
    '200 {"detail": [{"msg": "no such field"}]}': ("error: no such field", True, False),
    "200 ": ("broken JSON: the body is empty", True, False),
    "200 <html><head><title>x</title></head><body>Log in</body></html>": (
        "broken JSON: Log in",
        True,
        False,
    ),
    '400 [{"error": {"code": 400, "message": "Unknown name \\"seed\\""}}]': (
        'HTTP 400: Unknown name "seed"',
        False,
        False,
    ),
    '400 {"message": "no"}': ("HTTP 400: no", False, False),
    '402 {"error": {"message": "pay first"}}': ("HTTP 402: pay first", False, True),
    '405 {"error": {"message": "not so"}}': ("HTTP 405: not so", False, False),
    '429 {"error": {"message": "no quota", "code": "insufficient_quota"}}': (
        "HTTP 402: no quota",
        False,
        True,
    ),
    "502 <html><body><h1>Bad Gateway</h1></body></html>": ("HTTP 502: Bad Gateway", True, False),
}


@pytest.mark.parametrize("mode", COMPLAINTS)
def test_the_providers_words_reach_the_user_and_nothing_is_asked_again_in_vain(tmp_path, mode):
    reason, again, ends = COMPLAINTS[mode]
    run = Run(tmp_path, [mode], concurrent=1)
    assert run.reasons == [reason]
    assert run.kinds == ["request", "fault", "request", "answer"][: 4 if again else 2]
    assert (run.error is not None) == ends and (not ends or reason in run.error)
    assert again or run.spent == 0


@pytest.mark.parametrize(
    "url, told",
    [
        ("127.0.0.1:8000/v1", "Did you mean 'http://127.0.0.1:8000/v1'"),
        ("ftp://127.0.0.1/v1", "expected an address such as http"),
        ("http://", "expected an address"),
        ("http://127.0.0.1 :8000/v1", "expected an address"),
        ("https://127.0.0.1/v1/chat/completions/", "Did you mean 'https://127.0.0.1/v1'"),
    ],
)
def test_an_address_that_is_none_is_named_before_anything_is_asked(url, told):
    with pytest.raises(UserError, match=r"config\.synthesize\.base_url is") as error:
        OpenAI("tester", url, sampling={}, seed=0, timeout=1.0)
    assert told in str(error.value)


def test_parameters_are_sent_under_the_endpoints_names_or_not_at_all():
    bodies = []
    server = Server(lambda number, body: bodies.append(body) or "ok", lambda entry: None)
    names = {"max_tokens": "max_completion_tokens", "seed": ""}

    async def go():
        teacher = OpenAI(
            "tester",
            server.url,
            sampling={"max_tokens": 50, "top_p": 0.9},
            seed=0,
            timeout=5.0,
            names=names,
        )
        (request,) = requests(
            DocumentPlan(seed=0, topics=["rivers"], audiences=["adults"], formats=["section"]),
            teacher,
            1,
        )
        await teacher.ask(request)
        await teacher.close()
        return request

    request = asyncio.run(go())
    server.close()
    assert {*bodies[0]} == {"model", "messages", "max_completion_tokens", "top_p"} and bodies[0][
        "max_completion_tokens"
    ] == 50
    assert request.parameters == {
        "max_tokens": 50,
        "top_p": 0.9,
    }  # which the budget and the key of the request go by


NONE = [
    b"",
    b"<html>",
    b"[]",
    b"{}",
    b"null",
    b"[" * 100_000,
    b'{"choices": []}',
    b'{"choices": "text"}',
    completion()[:-5],
]
NONE += [b'{"choices": [{"message": %s}]}' % message for message in (b"null", b'{"content": 3}')]
NONE += [
    b'{"choices": [{"text": "of another endpoint"}]}',
    b'data: {"choices": [{"delta": {"content": "cut"}}]}\n\n',
]


@pytest.mark.parametrize("body", NONE)
def test_what_is_no_completion_is_broken(body):
    with pytest.raises(TeacherFault, match=r"broken JSON|no chat completion") as fault:
        parse_answer(body)
    assert fault.value.tokens is None and fault.value.again
    if b"another endpoint" in body:  # it is JSON, and the user sees what it holds
        assert "of another endpoint" in fault.value.reason


def test_half_a_surrogate_pair_is_named_and_paid_for():
    with pytest.raises(TeacherFault, match="half a surrogate pair") as fault:
        parse_answer(completion(content="some \ud83d words"))
    assert fault.value.tokens == (3, 4)
    assert parse_answer(completion(content="some \U0001f600 words")).text == "some \U0001f600 words"


def test_an_answer_that_comes_as_a_stream_is_read_whole():
    pieces = [
        {"choices": [{"delta": {"role": "assistant"}}]},
        *({"choices": [{"delta": {"content": word}}]} for word in ("one ", "two")),
    ]
    pieces += [
        {"choices": [{"delta": {}, "finish_reason": "length"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    ]
    lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces]
    assert parse_answer("".join([*lines, "data: [DONE]\n\n"]).encode()) == teachers.Answer(
        "one two", "length", (3, 4)
    )
    error = {"error": {"message": "overloaded", "code": 503}}
    with pytest.raises(provider_errors.Complaint, match="overloaded"):
        parse_answer("".join([*lines[:2], f"data: {json.dumps(error)}\n\n"]).encode())


@pytest.mark.parametrize(
    "first", [": keep-alive\n\n", "event: message\n", "id: 1\n", "retry: 100\n\n", "\n: x\n\n"]
)
def test_a_stream_may_begin_with_a_comment_or_another_field(first):
    piece = {"choices": [{"delta": {"content": "some words"}, "finish_reason": "stop"}]}
    body = f"{first}data: {json.dumps(piece)}\n\n"
    assert parse_answer(body.encode()) == teachers.Answer("some words", "stop", None)
    with pytest.raises(TeacherFault, match="broken JSON"):
        parse_answer(first.encode())


def test_a_streamed_refusal_and_streamed_thoughts_say_why_there_is_no_text():
    def stream(name, *pieces, finish):
        deltas = [{"delta": {"content": None, name: piece}} for piece in pieces]
        deltas.append({"delta": {}, "finish_reason": finish})
        lines = [f"data: {json.dumps({'choices': [delta]})}\n\n" for delta in deltas]
        return "".join(lines).encode()

    with pytest.raises(TeacherFault, match=r"^refusal: I will not.$") as fault:
        parse_answer(stream("refusal", "I will ", "not.", finish="stop"))
    assert not fault.value.again
    with pytest.raises(
        TeacherFault, match=r"only thoughts, no answer .*used up max_tokens"
    ) as fault:
        parse_answer(stream("reasoning_content", "Let me", " see", finish="length"))
    assert not fault.value.again


def test_a_model_that_the_endpoint_does_not_serve_is_told_with_those_that_it_does(tmp_path):
    run = Run(tmp_path, ["404"])
    assert "The endpoint serves testers. Did you mean 'testers'?" in run.error


@pytest.mark.parametrize("content", ["", "  \n", None])
def test_an_empty_answer_is_paid_for(content):
    with pytest.raises(TeacherFault, match="empty answer") as fault:
        parse_answer(completion(content=content))
    assert fault.value.tokens == (3, 4)


def test_retry_after_is_a_number_or_a_date():
    assert [retry_after(value) for value in ("", "3", "0.25", "-5", "nan", "soon", "1e9")] == [
        0.0,
        3.0,
        0.25,
        0.0,
        0.0,
        0.0,
        600.0,
    ]
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < retry_after(date) <= 60
    assert (
        retry_after(format_datetime(datetime.fromtimestamp(time.time() - 60, UTC), usegmt=True))
        == 0.0
    )


def test_a_prompt_reserves_no_less_than_any_byte_level_tokenizer_makes_of_it():
    from slmjax.synthesize.plan import Item
    from slmjax.synthesize.teachers import TeacherRequest

    text = "ΔΣ 漢字 🙂 " + article("x")
    item = Item(0, "t", "a", "adults", "section", "", (), "")
    assert reservation(TeacherRequest("k", text, {"max_tokens": 7}, item)) == (
        len(text.encode()) + 64,
        7,
    )
