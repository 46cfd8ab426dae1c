"""The synthesizer against a server that misbehaves, killed again and again: nothing that was paid for is lost or paid for twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from slmjax.synthesize.journal import Journal

ROOT = Path(__file__).parents[2]
SERVER = Path(__file__).with_name("server.py")
CONCURRENT = 200


@pytest.fixture
def server(tmp_path):
    """(url, log file) of a server in a process of its own."""
    pytest.importorskip("openai")
    log = tmp_path / "server.jsonl"
    process = subprocess.Popen(
        [sys.executable, str(SERVER), str(log), "7"], stdout=subprocess.PIPE, text=True
    )
    yield process.stdout.readline().strip(), log
    process.kill()
    process.wait()


def start(url, tmp_path, budget, documents):
    topics = tmp_path / "topics.txt"
    topics.write_text("rivers\nmills > water wheels\nbridges\n")
    settings = {
        "teacher": "openai",
        "model": "tester",
        "base_url": url,
        "documents": documents,
        "shard": 100,
        "topics": topics,
    }
    settings |= {
        "formats": "section",
        "max_tokens": 200,
        "concurrent": CONCURRENT,
        "timeout": 2.0,
        "retries": 6,
        "tokens": budget,
    }
    words = [f"--config.synthesize.{name}={value}" for name, value in settings.items()]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.synthesize.impatient",
            "--config=configs/textbook.py",
            f"--workdir={tmp_path / 'run'}",
            *words,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
    )


def read(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def arrived(log):
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.slow
def test_a_kill_loses_nothing_pays_nothing_twice_and_never_exceeds_the_budget(server, tmp_path):
    """The short form of .ci/drills/test_killed_synthesizer.py."""
    assert_kills_lose_nothing(server, tmp_path, kills=1, documents=400)


def assert_kills_lose_nothing(server, tmp_path, kills, documents):
    """Kill the stage while it asks, let its budget end, let it finish, start it once more.

    Then the server's log must agree with the journal, the shards and the rejects.
    """
    url, log = server
    rng, budget = random.Random(11), 1200 * documents
    for _ in range(kills):
        process, enough = (
            start(url, tmp_path, budget, documents),
            arrived(log) + rng.randint(1, 300),
        )
        deadline = time.monotonic() + 120
        while arrived(log) < enough and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        out = process.communicate()[0]
        assert arrived(log) >= enough and process.returncode == -signal.SIGKILL, out
    journal = Journal(tmp_path / "run" / "journal")
    spent = journal.spent()[0]
    journal.close()
    assert sum(entry["tokens"] for entry in read(log)) <= spent <= budget

    # A budget that ends before the documents do: what is counted at the server, kills included, stays within it.
    budget = spent + 80 * documents
    out = start(url, tmp_path, budget, documents).communicate(timeout=120)[0]
    assert "The budget is spent" in out, out
    assert sum(entry["tokens"] for entry in read(log)) <= budget
    # With more of it, the rest is asked for.
    more = start(url, tmp_path, 4 * budget, documents)
    out = more.communicate(timeout=180)[0]
    assert more.returncode == 0 and "The budget is spent" not in out, out
    assert sum(entry["tokens"] for entry in read(log)) <= 4 * budget

    journal = Journal(tmp_path / "run" / "journal")
    events = list(journal.events())
    spent = journal.spent()[0]
    journal.close()
    seen = read(log)
    assert sum(entry["tokens"] for entry in seen) <= spent <= 4 * budget
    assert {entry["mode"] for entry in seen} >= {
        "limit",
        "error",
        "hang",
        "cut",
        "broken",
        "empty",
        "endless",
        "ok",
        "short",
    }

    # Each key has one answer at most, and nothing was asked for it afterwards: neither by the journal nor as the server saw it.
    answers = {}
    for event in events:
        assert event.key not in answers, "asked again after its answer was journalled"
        if event.kind == "answer":
            answers[event.key] = event
    texts = {json.loads(event.body)["text"]: event for event in answers.values()}
    for entry in seen:
        event = texts.get(entry["text"]) if entry["mode"] == "ok" else None
        if event:
            assert entry["time"] <= event.time
    # Nothing was sent that was not journalled first.
    assert len(seen) <= sum(event.kind == "request" for event in events)

    # Every accepted answer is in the shards exactly once, and every other one among the rejects.
    folder = tmp_path / "run"
    shards = [
        json.loads(line)
        for file in sorted((folder / "documents").glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    told = Counter(json.loads(event.body)["text"] for event in answers.values())
    accepted = {text for text in told if "Too short" not in text}
    assert Counter(record["text"] for record in shards) == dict.fromkeys(accepted, 1)
    assert len(shards) > 0.8 * documents and len({record["id"] for record in shards}) == len(shards)
    assert sum(record["reason"] == "too short" for record in rejects) == told.total() - len(
        accepted
    )
    assert len(shards) + len(rejects) == documents

    # And one start more asks for nothing that was answered: at most for what was given up.
    start(url, tmp_path, 4 * budget, documents).communicate(timeout=120)
    given_up = sum(record["reason"].startswith("no answer") for record in rejects)
    assert len({entry["key"] for entry in read(log)[len(seen) :]}) == given_up
