"""The journal: what counts as spent, what survives a crash, a lost disk and a full one, and who may write."""

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import threading

import pytest
import zstandard
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.synthesize.journal import Journal


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal")
    yield opened
    opened.close()


def ask(journal, key, tokens=100, cost=0.5):
    """A journalled request's number."""
    number, written = journal.request(key, tokens=tokens, cost=cost, body={"prompt": key})
    written.result()
    return number


def test_a_request_counts_in_full_until_it_is_answered(journal):
    first, second = ask(journal, "a"), ask(journal, "b", tokens=50, cost=0.25)
    assert journal.spent() == (150, 0.75) and not journal.answered
    journal.answer("a", first, tokens=30, cost=0.125, body={"text": "A"}).result()
    assert journal.spent() == (80, 0.375)
    journal.fault("b", second, tokens=50, cost=0.25, body={"reason": "cut"}).result()
    third = ask(journal, "b", tokens=50, cost=0.25)
    assert journal.spent() == (130, 0.625)
    journal.fault("b", third, tokens=0, cost=0.0, body={"reason": "HTTP 429"}).result()
    assert journal.spent() == (80, 0.375)
    assert journal.faults("b") == ["cut", "HTTP 429"] and journal.read("b") is None
    assert json.loads(journal.read("a").body) == {"text": "A"}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 500), st.sampled_from(["open", "answer", "fault"]), st.integers(0, 500)
        ),
        max_size=30,
    )
)
def test_what_is_spent_is_the_sum_of_ends_and_of_open_reservations(tmp_path_factory, requests):
    journal = Journal(tmp_path_factory.mktemp("journal"))
    for number, (reserved, end, used) in enumerate(requests):
        asked = ask(journal, f"k{number}", tokens=reserved, cost=reserved / 4)
        if end != "open":
            getattr(journal, end)(
                f"k{number}", asked, tokens=used, cost=used / 4, body={"reason": "", "text": ""}
            ).result()
    expected = sum(reserved if end == "open" else used for reserved, end, used in requests)
    assert journal.spent() == (expected, expected / 4)
    assert set(journal.answered) == {
        f"k{n}" for n, (_, end, _) in enumerate(requests) if end == "answer"
    }
    journal.close()


def test_one_request_cannot_end_twice(journal):
    number = ask(journal, "a")
    journal.answer("a", number, tokens=1, cost=0.0, body={"text": "A"}).result()
    with pytest.raises(UserError, match="UNIQUE"):
        journal.answer("a", number, tokens=1, cost=0.0, body={"text": "A"}).result()


def test_a_killed_process_leaves_what_was_written_and_its_reservations(tmp_path):
    code = f"""
import os
from slmjax.synthesize.journal import Journal
journal = Journal({str(tmp_path)!r})
number, written = journal.request("a", tokens=10, cost=0.5, body={{}})
written.result()
journal.answer("a", number, tokens=4, cost=0.25, body={{"text": "A"}}).result()
journal.request("b", tokens=100, cost=1.0, body={{}})[1].result()
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    journal = Journal(tmp_path)
    assert list(journal.answered) == ["a"] and journal.spent() == (104, 1.25)
    journal.close()


def test_a_second_writer_is_refused_until_the_first_has_gone(tmp_path):
    code = f"from slmjax.synthesize.journal import Journal; Journal({str(tmp_path)!r}).close()"
    first = Journal(tmp_path)
    with pytest.raises(UserError, match="another process writes"):
        Journal(tmp_path)
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode == 1 and "another process writes" in other.stderr
    first.close()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_requests_that_come_together_share_a_transaction(journal, monkeypatch):
    sizes, gate, insert = [], threading.Event(), journal._insert

    def slow_disk(events):
        gate.wait()
        sizes.append(len(events))
        insert(events)

    monkeypatch.setattr(journal, "_insert", slow_disk)
    written = [journal.request(f"k{i}", tokens=1, cost=0.0, body={})[1] for i in range(200)]
    assert not any(future.done() for future in written)
    gate.set()
    assert all(future.result() is None for future in written)
    assert sum(sizes) == 200 and len(sizes) <= 2


def test_an_answer_that_nobody_waits_for_any_more_is_written(journal, monkeypatch):
    number, gate, insert = ask(journal, "a"), threading.Event(), journal._insert
    monkeypatch.setattr(journal, "_insert", lambda events: (gate.wait(), insert(events)))
    first = journal.request("b", tokens=1, cost=0.0, body={})[1]  # keeps the writer busy
    second = journal.answer("a", number, tokens=1, cost=0.0, body={"text": "A"})
    assert second.cancel()
    gate.set()
    first.result()
    ask(journal, "c")
    assert [event.kind for event in journal.events()] == [
        "request",
        "request",
        "answer",
        "request",
    ] and "a" in journal.answered


def test_every_transaction_is_flushed_to_disk(journal):
    settings = [
        journal._db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "locking_mode")
    ]
    assert settings == ["wal", 2, "exclusive"]  # 2 is FULL: SQLite's documentation of the pragma


def test_a_full_disk_is_told_to_whoever_waits_and_nothing_is_written_after_it(journal):
    ask(journal, "a")
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(
        f"PRAGMA max_page_count={pages}"
    )  # SQLite's own "disk is full", at this size
    with pytest.raises(UserError, match=r"disk is full.*nothing that was answered before is lost"):
        journal.request("b", tokens=1, cost=0.0, body={"prompt": "x" * 100_000})[1].result()
    journal._db.execute("PRAGMA max_page_count=1000000")
    with pytest.raises(UserError, match="disk is full"):
        journal.request("c", tokens=1, cost=0.0, body={})[1].result()
    assert [event.key for event in journal.events()] == ["a"]


@pytest.mark.parametrize("place", ["gs://bucket/journal", "s3://bucket/journal"])
def test_a_remote_journal_is_refused(place):
    with pytest.raises(UserError, match=r"SQLite needs a local disk.*config\.synthesize\.copies"):
        Journal(place)


def test_a_file_that_is_no_journal_and_a_folder_that_cannot_be_are_named(tmp_path):
    (tmp_path / "journal.sqlite").write_bytes(b"no journal" * 1000)
    with pytest.raises(UserError, match=r"journal\.sqlite .*not a database"):
        Journal(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        Journal(tmp_path / "file")


def filled(folder, copies, keys):
    """A journal with an answer for each key, closed, as a list of its events."""
    journal = Journal(folder, copies=str(copies))
    for key in keys:
        journal.answer(
            key, ask(journal, key), tokens=7, cost=0.25, body={"text": "übrig \u2028 \ud83d"}
        ).result()
    events = list(journal.events())
    journal.close()
    return events


def test_a_lost_disk_is_restored_from_the_copies_and_the_journal_goes_on(tmp_path):
    copies = tmp_path / "copies [b]"
    filled(tmp_path / "disk", copies, "ab")
    events = filled(tmp_path / "disk", copies, "cd")
    assert len(list(copies.glob("events-*"))) == 2 and len(events) == 8
    (tmp_path / "disk" / "journal.sqlite").unlink()
    again = Journal(tmp_path / "disk", copies=str(copies))
    assert (
        list(again.events()) == events
        and set(again.answered) == set("abcd")
        and again.spent() == (28, 1.0)
    )
    again.close()
    assert len(filled(tmp_path / "disk", copies, "e")) == 10
    assert len(filled(tmp_path / "other disk", copies, "")) == 10


def test_a_disk_that_is_behind_its_copies_catches_up(tmp_path):
    filled(tmp_path / "disk", tmp_path / "copies", "ab")
    old = (tmp_path / "disk" / "journal.sqlite").read_bytes()
    events = filled(tmp_path / "disk", tmp_path / "copies", "c")
    (tmp_path / "disk" / "journal.sqlite").write_bytes(old)
    assert filled(tmp_path / "disk", tmp_path / "copies", "") == events


def test_segments_are_copied_while_the_journal_is_open(tmp_path):
    journal = Journal(tmp_path / "disk", copies=str(tmp_path / "copies"), every=0.02)
    ask(journal, "a")
    while not list((tmp_path / "copies").glob("events-*")):
        threading.Event().wait(0.01)
    ask(journal, "b")
    while len(list((tmp_path / "copies").glob("events-*"))) < 2:
        threading.Event().wait(0.01)
    lines = [
        zstandard.decompress(file.read_bytes()).decode()
        for file in sorted((tmp_path / "copies").glob("events-*"))
    ]
    assert [json.loads(line)[3] for line in lines] == ["a", "b"]
    journal.close()
    assert len(list((tmp_path / "copies").iterdir())) == 2


def test_copies_that_cannot_be_written_do_not_stop_the_journal(tmp_path):
    told = []
    journal = Journal(
        tmp_path / "disk", copies=str(tmp_path / "copies"), every=0.01, say=told.append
    )
    (tmp_path / "copies").write_text("not a folder")
    ask(journal, "a")
    while not told:
        threading.Event().wait(0.01)
    assert "could not be copied" in told[0] and "has all of it" in told[0]
    (tmp_path / "copies").unlink()
    journal.close()
    assert len(list((tmp_path / "copies").glob("events-*"))) == 1


MISTAKES = {
    "damaged": "is damaged",
    "cut": "is damaged",
    "missing": "is missing",
    "other": "is of another journal",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_copies_that_are_not_whole_or_not_of_this_journal_are_refused(tmp_path, mistake):
    copies = epath.Path(tmp_path / "copies")
    for keys in ("ab", "cd", "ef"):
        filled(tmp_path / "disk", copies, keys)
    middle = sorted(copies.glob("events-*"))[1]
    if mistake == "damaged":
        middle.write_bytes(b"xxxx")
    elif mistake == "cut":
        middle.write_bytes(middle.read_bytes()[:-10])
    elif mistake == "missing":
        middle.unlink()
    else:
        filled(tmp_path / "another", tmp_path / "its copies", "xyzxyz")
    place = tmp_path / ("another" if mistake == "other" else "new disk")
    with pytest.raises(UserError, match=MISTAKES[mistake]):
        Journal(place, copies=str(copies))


def test_a_damaged_journal_is_refused_or_its_answers_are_what_was_written(tmp_path):
    journal = Journal(tmp_path)
    bodies = {
        f"k{i}": {"text": f"answer {i} " * 40, "finish": "stop", "tokens": [3, 4]}
        for i in range(60)
    }
    for key, body in bodies.items():
        journal.answer(key, ask(journal, key), tokens=7, cost=0.25, body=body).result()
    failed = ask(journal, "failed")
    journal.fault("failed", failed, tokens=1, cost=0.0, body={"reason": "HTTP 500: oops"}).result()
    journal.close()
    whole, rng, refused = journal.file.read_bytes(), random.Random(0), 0
    for trial in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 8])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if trial % 10 == 0:
            del data[rng.randrange(len(data)) :]
        journal.file.write_bytes(data)
        for rest in tmp_path.glob("journal.sqlite-*"):
            rest.unlink()
        opened = None
        try:
            opened = Journal(tmp_path)
            found = {key: json.loads(opened.read(key).body) for key in opened.answered}
            assert found.items() <= bodies.items()
            assert set(opened.faults("failed")) <= {"HTTP 500: oops"}
            assert opened.spent()[0] >= 0
        except UserError as error:
            refused += 1
            assert "journal.sqlite" in str(error)
        finally:
            if opened:
                opened.close()
    assert refused > 100


def test_a_damaged_journal_with_copies_says_how_it_is_restored(tmp_path):
    filled(tmp_path / "disk", tmp_path / "copies", "abc")
    data = bytearray((tmp_path / "disk" / "journal.sqlite").read_bytes())
    data[100:400] = b"x" * 300
    (tmp_path / "disk" / "journal.sqlite").write_bytes(data)
    with pytest.raises(UserError, match="move it away, and it is restored"):
        Journal(tmp_path / "disk", copies=str(tmp_path / "copies"))
    (tmp_path / "disk" / "journal.sqlite").unlink()
    assert len(filled(tmp_path / "disk", tmp_path / "copies", "")) == 6


def test_a_segment_whose_events_are_none_is_refused_and_nothing_of_it_is_taken_over(tmp_path):
    filled(tmp_path / "disk", tmp_path / "copies", "ab")
    (segment,) = (tmp_path / "copies").glob("events-*")
    lines = [
        json.loads(line)
        for line in zstandard.decompress(segment.read_bytes()).decode().splitlines()
    ]
    for place, value in (
        (2, ["answer"]),
        (6, float("nan")),
        (5, 2**70),
        (5, "x"),
        (3, "other"),
        (7, '{"text": "A", "crc32": 1}'),
    ):
        changed = [
            [*line[:place], value, *line[place + 1 :]] if line[0] == 2 else line for line in lines
        ]
        segment.write_bytes(
            zstandard.compress("".join(json.dumps(line) + "\n" for line in changed).encode())
        )
        with pytest.raises(UserError, match="damaged"):
            Journal(tmp_path / "new", copies=str(tmp_path / "copies"))
        journal = Journal(tmp_path / "new")
        assert list(journal.events()) == []
        journal.close()


@pytest.mark.parametrize(
    "change", ["tokens = 1", "cost = 0.0", "key = 'another'", "tokens = tokens + 1"]
)
def test_a_changed_count_cost_or_key_is_damage(tmp_path, change):
    journal = Journal(tmp_path)
    ask(journal, "a")
    number, written = journal.request("b", tokens=100, cost=0.5, body={})
    written.result()
    journal.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite")) as db:
        db.execute(f"UPDATE events SET {change} WHERE n = ?", (number,))
        db.commit()
    with pytest.raises(
        UserError, match=rf"journal.sqlite is damaged \(event {number} is not what was written\)"
    ):
        Journal(tmp_path)


def test_a_journal_of_an_earlier_version_has_no_such_checksums_and_is_read(tmp_path):
    journal = Journal(tmp_path)
    journal.answer("a", ask(journal, "a"), tokens=40, cost=0.2, body={"text": "one"}).result()
    before = journal.spent(), journal.read("a").body
    journal.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite")) as db:
        db.execute("UPDATE events SET body = json_remove(body, '$.row', '$.crc32')")
        db.commit()
    journal = Journal(tmp_path)
    assert (journal.spent(), journal.read("a").body) == before
    journal.close()
