"""The journal of paid requests: a request is on disk before it is sent, an answer before anyone sees it (SQLite, one writer).

The journal is one growing table of events. A "request" reserves the most it can cost; an "answer" or a "fault" ends it and says what it did
cost. A request without an end, because the process was killed or the line was cut, stays counted at its reservation for ever.
"""

import json
import queue
import re
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from etils import epath

from slmjax.errors import UserError
from slmjax.text.files import write_atomic

FILE = "journal.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS events (
  n INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, request INTEGER,
  tokens INTEGER NOT NULL, cost REAL NOT NULL, body TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS one_end ON events (request) WHERE request IS NOT NULL;
"""
# What counts as spent: what a request did cost where that is known, else its reservation.
_SPENT = """
SELECT COALESCE(SUM(COALESCE(ends.tokens, asked.tokens)), 0), COALESCE(SUM(COALESCE(ends.cost, asked.cost)), 0.0)
FROM events AS asked LEFT JOIN events AS ends ON ends.request = asked.n WHERE asked.kind = 'request'
"""
# An event that is none: a number, name or body of another type, an end of nothing, or no JSON. Answers
# have a text, a reason to end and tokens, faults a reason; other bodies are for the reader alone.
_WRONG = """
SELECT n FROM events WHERE
  typeof(time) NOT IN ('real', 'integer') OR typeof(key) != 'text' OR typeof(body) != 'text'
  OR kind NOT IN ('request', 'answer', 'fault') OR (kind = 'request') != (request IS NULL)
  OR typeof(tokens) != 'integer' OR tokens < 0 OR typeof(cost) NOT IN ('real', 'integer') OR NOT cost >= 0
  OR NOT json_valid(body)
  OR (request IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM events AS asked WHERE asked.n = events.request AND asked.key = events.key))
LIMIT 1
"""
_ROWS = "SELECT n, json_extract(body, '$.row'), kind, key, request, tokens, cost FROM events"
_INSERT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class Event(NamedTuple):
    """A row. kind: "request", "answer" or "fault"; request: the number of the request that this one ends; cost in dollars."""

    n: int
    time: float
    kind: str
    key: str
    request: int | None
    tokens: int
    cost: float
    body: str  # a JSON object, on disk with checksums: "crc32" of itself, "row" of the rest


def _checksum(body: dict) -> int:
    return zlib.crc32(json.dumps(body).encode())


def _row_checksum(kind: str, key: str, request: int | None, tokens: int, cost: float) -> int:
    return zlib.crc32(json.dumps([kind, key, request, tokens, float(cost)]).encode())


class Journal:
    """The events of one work directory; whoever opens it is the only one who may, until `close` or the end of the process.

    Every write is a transaction that is flushed to disk (synchronous=FULL); what waits while the disk is busy shares the next transaction,
    so that hundreds of requests at once cost a few flushes.

    Args:
      folder: on a local disk; made if it is missing.
      copies: a folder, local or remote, that gets all new events as a closed segment every `every` seconds; where it has events that
        `folder` lacks (a new disk), they are restored first. What a lost disk had not copied yet is lost: what was asked in that time is
        not known to be spent.
    Raises: UserError for a remote folder, a journal that another process holds, a full disk, a
      damaged journal (whole or one of its events), or copies of another journal.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        copies: str = "",
        every: float = 60.0,
        say: Callable[[str], None] = print,
    ):
        if "://" in str(folder):
            raise UserError(
                f"config.synthesize.journal is '{folder}'; SQLite needs a local disk: name a local folder (its closed segments can be "
                f"copied to a remote one, config.synthesize.copies)."
            )
        self.file = Path(folder).expanduser() / FILE
        self.answered: dict[str, int] = {}  # key -> number of its answer
        self._has_copies = bool(copies)
        self._say, self._lock, self._waiting = say, threading.Lock(), queue.SimpleQueue()
        self._broken: BaseException | None = None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # check_same_thread: the lock sees to it that one thread at a time uses the connection.
            self._db = sqlite3.connect(
                self.file, isolation_level=None, check_same_thread=False, timeout=0
            )
            # The lock on the file that this keeps is what makes a second writer impossible; the system takes it away with the process.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
        except (sqlite3.Error, OSError) as error:
            raise self._trouble(error) from error
        self._copies = epath.Path(copies) if copies else None
        try:
            self._verify()
            self._copied = self._restore() if self._copies else 0
            if self._copies:
                self._verify()
        except UserError:
            self._db.close()
            raise
        last = self._query("SELECT COALESCE(MAX(n), 0) FROM events")[0][0]
        if self._copied > last:
            raise UserError(
                f"config.synthesize.copies: '{copies}' ends before its own last event; is a segment missing?"
            )
        self._next = last + 1
        self.answered.update(self._query("SELECT key, n FROM events WHERE kind = 'answer'"))
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        self._closing = threading.Event()
        self._copier = threading.Thread(target=self._copy_now_and_then, args=(every,), daemon=True)
        if self._copies:
            self._copier.start()

    def request(
        self, key: str, *, tokens: int, cost: float, body: dict
    ) -> tuple[int, "Future[None]"]:
        """Journal what is about to be asked; its number, and a future that is done once it is on disk."""
        return self._append("request", key, None, tokens, cost, body)

    def answer(
        self, key: str, request: int, *, tokens: int, cost: float, body: dict
    ) -> "Future[None]":
        """Journal the answer of a request and what it cost; the future is done once it is on disk."""
        return self._append("answer", key, request, tokens, cost, body)[1]

    def fault(
        self, key: str, request: int, *, tokens: int, cost: float, body: dict
    ) -> "Future[None]":
        """Journal that a request came to nothing and what is counted for it; the future is done once it is on disk."""
        return self._append("fault", key, request, tokens, cost, body)[1]

    def read(self, key: str) -> Event | None:
        """The answer of a key, if there is one."""
        if key not in self.answered:
            return None
        event = Event(*self._query("SELECT * FROM events WHERE n = ?", self.answered[key])[0])
        return event._replace(body=json.dumps(self._opened(event)))

    def faults(self, key: str) -> list[str]:
        """The reasons why requests of a key came to nothing, in order."""
        rows = self._query("SELECT * FROM events WHERE kind = 'fault' AND key = ? ORDER BY n", key)
        return [str(self._opened(Event(*row)).get("reason")) for row in rows]

    def spent(self) -> tuple[int, float]:
        """(tokens, dollars) that count as spent: all that is journalled."""
        return self._query(_SPENT)[0]

    def events(self, after: int = 0) -> Iterator[Event]:
        """All events with a larger number than `after`."""
        return map(Event._make, self._query("SELECT * FROM events WHERE n > ? ORDER BY n", after))

    def close(self) -> None:
        """Write what waits, copy it, and let go of the file."""
        self._waiting.put(None)
        self._writer.join()
        if self._copies:
            self._closing.set()
            self._copier.join()
        self._db.close()

    def _query(self, question: str, *values: Any) -> list[tuple]:
        """The rows of a question. Raises: UserError where the file is damaged."""
        try:
            with self._lock:
                return self._db.execute(question, values).fetchall()
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def _verify(self) -> None:
        """Raises: UserError for a file that SQLite finds damaged, and for an event that none is."""
        found = self._query("PRAGMA integrity_check(1)")[0][0]
        if found != "ok":
            raise self._damaged(found.replace("\n", " "))
        if row := self._query(_WRONG):
            raise self._damaged(f"event {row[0][0]} is none")
        for n, checksum, *row in self._query(_ROWS):  # older journals have no such checksum
            if checksum is not None and checksum != _row_checksum(*row):
                raise self._damaged(f"event {n} is not what was written")

    def _opened(self, event: Event) -> dict:
        """The body of an event without its checksum. Raises: UserError where they do not agree."""
        try:
            body = json.loads(event.body)
            body.pop("row", None)
            checksum = body.pop("crc32", None)  # older journals have none
        except (ValueError, AttributeError, RecursionError) as error:
            raise self._damaged(f"event {event.n}: {error}") from error
        if checksum not in (None, _checksum(body)):
            raise self._damaged(f"event {event.n} is not what was written")
        return body

    def _damaged(self, what: str) -> UserError:
        advice = "name another folder"
        if self._has_copies:
            advice = "move it away, and it is restored from config.synthesize.copies"
        return UserError(f"config.synthesize.journal: {self.file} is damaged ({what}); {advice}.")

    def _append(
        self, kind: str, key: str, request: int | None, tokens: int, cost: float, body: dict
    ) -> tuple[int, "Future[None]"]:
        n, self._next = self._next, self._next + 1
        future: Future[None] = Future()
        checksums = {
            "crc32": _checksum(body),
            "row": _row_checksum(kind, key, request, tokens, cost),
        }
        sealed = json.dumps({**body, **checksums})
        self._waiting.put((Event(n, time.time(), kind, key, request, tokens, cost, sealed), future))
        return n, future

    def _write(self) -> None:
        """The writer: everything that waits goes into one transaction."""
        ending = False
        while not ending:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            ending = None in batch
            events = [entry[0] for entry in batch if entry is not None]
            # Whoever no longer waits for an answer has paid for it all the same.
            futures = [
                entry[1]
                for entry in batch
                if entry is not None and entry[1].set_running_or_notify_cancel()
            ]
            try:
                if self._broken:
                    raise self._broken
                with self._lock:
                    self._insert(events)
            except Exception as error:  # whoever waits must hear of it, whatever it is
                # Numbers are given in order: after one transaction that failed, none may follow.
                self._broken = self._trouble(error) if isinstance(error, sqlite3.Error) else error
                for future in futures:
                    future.set_exception(self._broken)
                continue
            self.answered.update((event.key, event.n) for event in events if event.kind == "answer")
            for future in futures:
                future.set_result(None)

    def _insert(self, events: list[Event], copied: bool = False) -> None:
        """Write events, all or none. Raises: ValueError where one that was `copied` is none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(_INSERT, events)
            if copied and (row := self._db.execute(_WRONG).fetchone()):
                raise ValueError(f"event {row[0]} is none")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _trouble(self, error: Exception) -> UserError:
        if "locked" in str(error):
            return UserError(
                f"config.synthesize.journal: another process writes {self.file}; wait for it, or choose another work directory."
            )
        kept = (sqlite3.OperationalError, sqlite3.IntegrityError)
        broken = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, kept)
        if broken or any(word in str(error) for word in ("decode", "no such column", "malformed")):
            return self._damaged(str(error))
        full = "full" in str(error) or "disk I/O" in str(error)
        advice = (
            "free some space and start again: nothing that was answered before is lost"
            if full
            else "choose another folder"
        )
        return UserError(
            f"config.synthesize.journal: cannot write {self.file} ({error}); {advice}."
        )

    def _restore(self) -> int:
        """Take over the events that the copies have and this journal lacks; the number of the last event that is copied."""
        last = self._query("SELECT COALESCE(MAX(n), 0) FROM events")[0][0]
        copied = 0
        names = (file.name for file in self._copies.iterdir()) if self._copies.exists() else ()
        segments = (
            name for name in names if name.startswith("events-") and name.endswith(".jsonl.zst")
        )
        found = [self._copies / name for name in sorted(segments)]
        for segment in found:
            numbers = re.fullmatch(r"events-(\d+)-(\d+)\.jsonl\.zst", segment.name)
            if not numbers:
                raise UserError(f"config.synthesize.copies: {segment} is no segment of a journal.")
            first, copied = map(int, numbers.groups())
            if copied <= last and segment is not found[-1]:
                continue
            try:
                lines = (
                    zstandard.ZstdDecompressor()
                    .decompressobj()
                    .decompress(segment.read_bytes())
                    .decode()
                    .splitlines()
                )
                events = [Event(*json.loads(line)) for line in lines]
                if [event.n for event in events] != list(range(first, copied + 1)):
                    raise ValueError("events are missing in it")
                for event in events:
                    self._opened(event)
            except (zstandard.ZstdError, ValueError, TypeError, RecursionError) as error:
                raise UserError(
                    f"config.synthesize.copies: {segment} is damaged ({error})."
                ) from error
            for event in events:
                if event.n <= last:
                    rows = self._query("SELECT * FROM events WHERE n = ?", event.n)
                    if not rows or Event(*rows[0]) != event:
                        raise UserError(
                            f"config.synthesize.copies: {segment} is of another journal than {self.file}; name another folder."
                        )
            if first > last + 1:
                raise UserError(
                    f"config.synthesize.copies: the segment before {segment} is missing."
                )
            try:
                self._insert([event for event in events if event.n > last], copied=True)
            except (
                sqlite3.ProgrammingError,
                sqlite3.IntegrityError,
                ValueError,
                OverflowError,
            ) as error:
                raise UserError(
                    f"config.synthesize.copies: {segment} is damaged ({error})."
                ) from error
            last = max(last, copied)
        return copied

    def _copy_now_and_then(self, every: float) -> None:
        closing, told = False, False
        while not closing:
            closing = self._closing.wait(every)
            try:
                self._copy()
                told = False
            except Exception as error:  # every store has its own exceptions; what is not copied now is copied the next time
                if closing or not told:
                    told = True
                    self._say(
                        f"the journal could not be copied to {self._copies} ({error}); {self.file} has all of it"
                    )

    def _copy(self) -> None:
        events = list(self.events(self._copied))
        if not events:
            return
        lines = "".join(json.dumps(event) + "\n" for event in events)
        name = f"events-{events[0].n:012d}-{events[-1].n:012d}.jsonl.zst"
        write_atomic(
            self._copies / name,
            zstandard.ZstdCompressor(write_checksum=True).compress(lines.encode()),
        )
        self._copied = events[-1].n
