"""The stage `synthesize` end to end: what is written, what a second start does, and what each mistake gets."""

import asyncio
import dataclasses
import io
import json
import shutil
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from slmjax import config as configs
from slmjax import launch
from slmjax.config import SynthesizeConfig
from slmjax.data.prepare import prepare
from slmjax.errors import UserError
from slmjax.synthesize import synthesize_stage as stage
from slmjax.synthesize.journal import Journal
from slmjax.synthesize.live import StatusLine
from slmjax.synthesize.plan import FORMATS
from slmjax.synthesize.produce import Tally
from tests.synthesize.server import Server

RECIPE = str(Path(__file__).parents[2] / "configs" / "textbook.py")
FIELDS = {
    "text",
    "id",
    "teacher",
    "model",
    "prompt",
    "parameters",
    "date",
    "licence",
    "topic",
    "format",
    "audience",
    "checked",
    "tokens",
}


def write(workdir, *assignments, **more):
    """Run the stage with settings of config.synthesize."""
    config = configs.override(
        configs.load_recipe(RECIPE),
        ["synthesize.documents=150", *(f"synthesize.{words}" for words in assignments)],
    )
    return stage.run_synthesize(configs.freeze(config), str(workdir), **more)


def documents(workdir):
    return [
        json.loads(line)
        for file in sorted((workdir / "documents").iterdir())
        for line in file.read_text().split("\n")[:-1]
    ]


def rejects(workdir):
    return [json.loads(line) for line in (workdir / "rejects.jsonl").read_text().split("\n")[:-1]]


def events(workdir):
    journal = Journal(workdir / "journal")
    found = list(journal.events())
    journal.close()
    return found


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("textbook") / "run"
    assert write(workdir, "shard=40") == 0
    return workdir


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("slmjax.synthesize.produce.FIRST_WAIT", 0.001)
    modes = ["ok", "error", "short", "empty", "ok", "broken"]
    started = Server(lambda number, body: modes[number % len(modes)], lambda entry: None)
    yield started
    started.close()


def endpoint(server, **more):
    """Settings for a server of the tests, which writes sections alone."""
    settings = {
        "teacher": "openai",
        "model": "tester",
        "base_url": server.url,
        "formats": "section",
        "max_tokens": 200,
        "documents": 40,
    }
    return [
        f"{name}={value}"
        for name, value in {**settings, "retries": 9, "timeout": 5.0, **more}.items()
    ]


def test_each_document_says_where_it_is_from_and_shards_are_full(book):
    found = documents(book)
    assert (
        len(found)
        == len({record["id"] for record in found})
        == len({record["text"] for record in found})
        == 150
    )
    assert [
        len((book / "documents" / name).read_text().split("\n")) - 1
        for name in ("00000.jsonl", "00003.jsonl")
    ] == [40, 30]
    for record in found:
        assert (
            set(record) == FIELDS
            and record["teacher"] == "program"
            and record["checked"] == "answers"
        )
        assert all(record[name] for name in FIELDS)
        datetime.fromisoformat(record["date"])
    assert (
        rejects(book) == []
        and json.loads((book / "config.json").read_text())["stage"] == "synthesize"
    )


def test_the_coverage_report_counts_the_documents(book):
    figures, found = json.loads((book / "coverage.json").read_text()), documents(book)
    expected = Counter((record["topic"], record["format"]) for record in found)
    assert {
        (topic, form): n for topic, row in figures["counts"].items() for form, n in row.items()
    } == expected
    assert figures["documents"] == 150 and figures["tokens"] == sum(
        record["tokens"] for record in found
    )
    assert (
        figures["checked"] == {"answers": 150, "equations": 0, "nothing": 0}
        and figures["rejected"] == {}
    )
    page = (book / "coverage.md").read_text()
    assert all(topic in page for topic in figures["counts"]) and all(
        form in page for form in FORMATS
    )


def test_documents_are_byte_identical_whenever_they_are_written(book, tmp_path):
    write(tmp_path / "run", "shard=40", "concurrent=3")
    for file in (book / "documents").iterdir():
        assert file.read_bytes() == (tmp_path / "run" / "documents" / file.name).read_bytes()


def test_what_is_written_is_a_source_that_can_be_prepared(book, tmp_path):
    data = configs.DataConfig(
        sources={"book": str(book / "documents")}, vocab_size=400, heldout=0.05
    )
    prepared = prepare(data, seed=0, cache=str(tmp_path))
    assert (
        sum(len(index) for part in (prepared.train, prepared.heldout) for index in part.values())
        == 150
    )


def test_a_second_start_asks_for_nothing_and_more_documents_keep_the_earlier(book, tmp_path):
    shutil.copytree(book, tmp_path / "run [b]")
    before, files = (
        events(book),
        {file.name: file.read_bytes() for file in (book / "documents").iterdir()},
    )
    write(tmp_path / "run [b]", "shard=40")
    assert events(tmp_path / "run [b]") == before
    assert {
        file.name: file.read_bytes() for file in (tmp_path / "run [b]" / "documents").iterdir()
    } == files
    write(tmp_path / "run [b]", "shard=40", "documents=170")
    assert documents(tmp_path / "run [b]")[:150] == documents(book)
    assert (
        events(tmp_path / "run [b]")[: len(before)] == before
        and len(events(tmp_path / "run [b]")) == len(before) + 40
    )
    write(tmp_path / "run [b]", "shard=40", "documents=30")  # fewer: files of the longer run go
    assert documents(tmp_path / "run [b]") == documents(book)[:30]


def test_an_endpoint_writes_what_its_journal_has_and_rejects_keep_their_reasons(
    server, tmp_path, capsys
):
    assert (
        write(tmp_path, *endpoint(server), "price=(1.0, 2.0)", "licence=of the tests", "shard=7")
        == 0
    )
    accepted, rejected = documents(tmp_path), rejects(tmp_path)
    assert (
        len(accepted) + len(rejected) == 40
        and rejected
        and {record["reason"] for record in rejected} == {"too short"}
    )
    assert all(
        record["licence"] == "of the tests" and record["model"] == "tester"
        for record in accepted + rejected
    )
    assert {record["checked"] for record in accepted} == {"equations"} and all(
        "Too short" in record["text"] for record in rejected
    )
    answers = {event.key: event for event in events(tmp_path) if event.kind == "answer"}
    assert len(answers) == 40
    for record in accepted:
        (event,) = (event for key, event in answers.items() if key.startswith(record["id"]))
        assert json.loads(event.body)["text"] == record["text"]
        assert datetime.fromisoformat(record["date"]) == datetime.fromtimestamp(
            int(event.time), UTC
        )
    out = capsys.readouterr().out
    assert (
        f"{len(accepted)} documents" in out
        and f"{len(rejected)} rejected" in out
        and "Spent, with what is reserved" in out
    )
    arrived = server.arrived
    write(tmp_path, *endpoint(server), "price=(1.0, 2.0)", "licence=of the tests", "shard=7")
    assert server.arrived == arrived


def test_a_budget_in_dollars_ends_the_run_and_more_of_it_goes_on(server, tmp_path, capsys):
    priced = [*endpoint(server), "price=(1.0, 2.0)"]
    write(tmp_path, *priced, "cost=0.01")
    first = documents(tmp_path)
    assert "The budget is spent" in capsys.readouterr().out and 0 < len(first) < 30
    assert sum(event.cost for event in events(tmp_path) if event.kind != "request") <= 0.01
    write(tmp_path, *priced, "cost=1")
    assert len(documents(tmp_path)) + len(rejects(tmp_path)) == 40
    assert {record["id"] for record in first} <= {record["id"] for record in documents(tmp_path)}


def test_two_items_with_the_same_text_are_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "slmjax.synthesize.program_teacher.write_document",
        lambda item, seed: "# Title\n\n" + "Answer: 3.\n" * 50,
    )
    monkeypatch.setattr(
        "slmjax.synthesize.documents.judge_text", lambda item, text, finish: ("", "")
    )
    write(tmp_path, "documents=5")
    (kept,) = documents(tmp_path)
    assert [record["reason"] for record in rejects(tmp_path)] == [f"same text as {kept['id']}"] * 4


def test_a_lost_work_directory_comes_back_from_the_copies_of_its_journal(server, tmp_path):
    words = [*endpoint(server, documents=10), f"copies={tmp_path / 'copies'}"]
    write(tmp_path / "run", *words)
    before, arrived = documents(tmp_path / "run"), server.arrived
    shutil.rmtree(tmp_path / "run")
    write(tmp_path / "run", *words)
    assert documents(tmp_path / "run") == before and server.arrived == arrived


def test_it_runs_where_a_loop_runs_already_as_in_a_notebook(tmp_path):
    async def cell():
        return write(tmp_path, "documents=4")

    assert asyncio.run(cell()) == 0 and len(documents(tmp_path)) == 4


SERVERS = {
    """400 {"error": {"message": "Unknown name 'seed': Cannot find field."}}""": (
        "HTTP 400: Unknown name 'seed': Cannot find field. (1). config.synthesize.names says"
    ),
    '200 {"error": {"message": "insufficient credits", "code": 402}}': (
        "refuses model 'tester' (HTTP 402: insufficient credits); check the account's credit"
    ),
    '200 {"choices": [{"message": {"content": "cut"}, "finish_reason": "abort"}]}': "reason: ended by abort",
}


@pytest.mark.parametrize("mode", SERVERS)
def test_a_run_that_writes_nothing_ends_with_2_and_the_servers_words(tmp_path, mode, capsys):
    server = Server(lambda number, body: mode, lambda entry: None)
    words = [f"--config.synthesize.{word}" for word in endpoint(server, documents=6)]
    assert launch.main([f"--config={RECIPE}", f"--workdir={tmp_path}", *words]) == 2
    server.close()
    printed = capsys.readouterr()
    assert SERVERS[mode] in printed.err and not documents(tmp_path) and rejects(tmp_path)


def test_answers_that_cannot_be_used_end_the_run_before_all_are_paid_for(tmp_path):
    with_short = Server(lambda number, body: "short", lambda entry: None)
    with pytest.raises(
        UserError, match=r"the first \d+ answers of tester cannot be used \(the last: too short\)"
    ):
        write(tmp_path, *endpoint(with_short, documents=2000))
    with_short.close()
    assert 50 <= with_short.arrived < 250 and len(rejects(tmp_path)) >= 50


def test_a_teacher_that_refuses_leaves_the_documents_of_other_settings(server, tmp_path):
    write(tmp_path, *endpoint(server, documents=10))
    before = documents(tmp_path)
    refusing = Server(lambda number, body: "401", lambda entry: None)
    with pytest.raises(
        UserError,
        match=r"OPENAI_API_KEY.*documents is what an earlier run with other settings wrote",
    ):
        write(tmp_path, *endpoint(refusing, documents=10), "model=other")
    refusing.close()
    assert documents(tmp_path) == before


def test_passages_that_cannot_be_read_are_refused_before_anything_is_asked(tmp_path):
    (tmp_path / "good.jsonl").write_text('{"text": "a passage"}\n')
    (tmp_path / "other.jsonl").write_text('{"body": "a passage"}\n' * 3)
    both = f"passages=good={tmp_path}/good.jsonl,other={tmp_path}/other.jsonl"
    told = r"passages: 3 of 3 records of 'other' cannot be used \(other.jsonl line 1: no text: 'text' is missing"
    with pytest.raises(UserError, match=told):
        write(tmp_path / "run", both, "teacher=openai", "model=m")
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "passages=a.jsonl": "config.synthesize.passages: the teacher program reads no passages",
    "names={'seed': ''}": "is for the teacher openai; config.synthesize.teacher is program",
    "base_url=http://127.0.0.1:8000/v1": "is for the teacher openai; config.synthesize.teacher is program",
    "model=m": "is for the teacher openai",
    "names={'max_token': 'x'}": "Did you mean 'max_tokens'",
    "names={'max_tokens': ''}": "the budget counts with that limit",
    "names=seed": "names=seed: expected openai: {parameter: what the endpoint calls it",
    "documnts=3": "there is no such field. Did you mean 'synthesize.documents'?",
    "documents=many": "config.synthesize.documents=many: expected a value like 3600 (int)",
    "documents=0": "it must be positive",
    "documents=1.5": "expected a value like 3600 (int)",
    "temperature=-1": "it must not be negative",
    "temperature=nan": "expected a value like 0.8 (float)",
    "teacher=programm": "it can be program, openai, checkpoint. Did you mean 'program'?",
    "formats=dialog": "Did you mean 'dialogue'?",
    "topics=none.txt": "config.synthesize.topics: 'none.txt' cannot be read",
    "price=3": "config.synthesize.price is (3.0,); expected dollars for a million tokens (of prompts, of answers)",
    "price=(1, -1)": "expected dollars for a million tokens",
    "cost=5": "say what a million tokens cost",
    "audiences=": "config.synthesize.audiences is ()",
    "teacher=checkpoint": "--init_from=WORKDIR",
    "teacher=openai": "config.synthesize.model is empty",
    "journal=gs://bucket/journal": "SQLite needs a local disk",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_gets_one_sentence_and_leaves_nothing_behind(words, tmp_path, capsys):
    pytest.importorskip("openai")
    assert (
        launch.main(
            [f"--config={RECIPE}", f"--workdir={tmp_path / 'run'}", f"--config.synthesize.{words}"]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert MISTAKES[words] in err and err.startswith("slmjax: ") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_topic_without_problems_is_not_for_the_embedded_teacher(tmp_path):
    (tmp_path / "topics.txt").write_text("mathematics > numbers > number sequence\n")
    with pytest.raises(
        UserError,
        match=r"does not know 'mathematics.*Did you mean 'mathematics > numbers > number sequences'\?",
    ):
        write(tmp_path / "run", f"topics={tmp_path / 'topics.txt'}")


def test_what_a_recipe_leaves_out_is_as_in_the_textbooks_recipe_and_is_recorded(tmp_path):
    assert configs.Config().synthesize == configs.freeze(configs.load_recipe(RECIPE)).synthesize
    assert (
        stage.run_synthesize(
            configs.Config(stage="synthesize", synthesize=SynthesizeConfig(documents=1)),
            str(tmp_path),
        )
        == 0
    )
    recorded = configs.load_recipe(str(tmp_path / "config.json")).synthesize
    assert recorded.documents == 1 and set(recorded) == {
        field.name for field in dataclasses.fields(SynthesizeConfig)
    }


def test_other_mistakes_of_the_command_line(tmp_path):
    with pytest.raises(UserError, match="one process"):
        write(tmp_path, process=0, processes=2)
    with pytest.raises(UserError, match=r"--init_from names the model of the teacher checkpoint"):
        write(tmp_path, init_from="runs/tiny")
    with pytest.raises(
        UserError, match=r"the work directory is gs://bucket/run; SQLite needs a local disk"
    ):
        write("gs://bucket/run")


def test_a_folder_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "documents").write_text("in the way")
    assert (
        launch.main(
            [f"--config={RECIPE}", f"--workdir={tmp_path}", "--config.synthesize.documents=3"]
        )
        == 2
    )
    assert "cannot be written" in capsys.readouterr().err


def test_the_live_line_says_documents_speed_share_cost_and_time_left():
    now = [0.0]
    line = StatusLine(console=Console(file=open("/dev/null", "w")), clock=lambda: now[0])  # noqa: SIM115
    now[0] = 10.0
    tally = Tally(1000, settled=150, known=50, accepted=90, rejected=10, tokens=20_000, cost=1.5)
    assert (
        line.text(tally)
        == "150/1,000 documents  2k tokens/s  90.0 % accepted  $1.50  1 min 25 s left"
    )
    tally.faults["HTTP 500"] = 3
    assert line.text(tally).endswith("3 requests failed")
    tally.last_fault = "HTTP 500: out of memory"
    assert line.text(tally).endswith("3 requests failed (the last: HTTP 500: out of memory)")


def test_a_long_wait_that_the_teacher_asks_for_is_said_at_once_and_once():
    now = [0.0]
    console = Console(file=io.StringIO(), soft_wrap=True)
    line = StatusLine(console=console, clock=lambda: now[0])
    tally = Tally(10, faults={"HTTP 429": 1}, last_fault="HTTP 429: slower", hold=600.0)
    line(tally)
    tally.hold = 601.0  # of another request
    line(tally)
    said = console.file.getvalue().splitlines()
    assert len(said) == 1 and said[0].endswith(
        "1 requests failed (the last: HTTP 429: slower), all wait 10 min 00 s"
    )


@pytest.mark.slow
def test_a_model_of_our_own_writes_too(undisturbed, tmp_path):
    words = ["teacher=checkpoint", "documents=6", "max_tokens=24", "concurrent=4"]
    with pytest.raises(UserError, match="no document was written; 6 answers were rejected"):
        write(tmp_path / "run", *words, init_from=str(undisturbed))
    asked = [event for event in events(tmp_path / "run") if event.kind == "request"]
    answered = [
        json.loads(event.body) for event in events(tmp_path / "run") if event.kind == "answer"
    ]
    assert (
        len(asked)
        == len(answered)
        == 6
        == len(rejects(tmp_path / "run")) + len(documents(tmp_path / "run"))
    )
    prompts = [json.loads(event.body)["prompt"] for event in asked]
    assert sorted(prompts) == sorted(
        p for p in prompts for a in answered if a["text"].startswith(p)
    )
    assert all(answer["tokens"][1] <= 24 for answer in answered)
    before = events(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"cut at max_tokens\. Raise config\.synthesize\.max_tokens, 24"
    ):
        write(tmp_path / "run", *words, init_from=str(undisturbed))
    assert events(tmp_path / "run") == before
