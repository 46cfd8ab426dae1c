"""The journal of paid requests (SQLite, one writer).

A request is on disk before it is sent, and its answer before anybody sees it.
The journal is one growing table of events. A "request" reserves the most that it can cost. An
"answer" or a "fault" ends it and says what it did cost. A request without an end, because the
process was killed or the line was cut, stays counted at its reservation for ever.
"""

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from etils import epath

from slmjax.errors import UserError
from slmjax.synthesize import journal_events as stored
from slmjax.synthesize.journal_copies import (
    SegmentCopier,
    damaged_segment,
    list_segments,
    read_segment,
    segment_range,
)
from slmjax.synthesize.journal_events import Event
from slmjax.synthesize.journal_file import JournalFile


class _Waiting(NamedTuple):
    """An event that the writer thread will write; the future is done once it is on disk."""

    event: Event
    written: "Future[None]"


class Journal(JournalFile):
    """The events of one work directory; one process holds it, until `close` or until it ends.

    Every write is a transaction that is flushed to disk (synchronous=FULL). Events that wait while
    the disk is busy share the next transaction, so that hundreds of requests cost a few flushes.

    Args:
      folder: on a local disk; made if it is missing.
      copies: a folder, local or remote, that gets all new events as a closed segment. Where it has
        events that `folder` lacks (a new disk), they are restored first. Events that were not
        copied when a disk was lost are lost with it: what they spent is not known.
      every: seconds between two segments.
      say: gets a line where a segment could not be copied.
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
        super().__init__(folder, restorable=bool(copies))
        self.answered: dict[str, int] = {}  # key -> number of its answer
        self._copies = epath.Path(copies) if copies else None
        self._say = say
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()  # None: end
        self._broken: BaseException | None = None  # why nothing can be written any more
        try:
            copied = self._check_and_restore()
        except UserError:
            self._db.close()
            raise
        self._next = self._last_number() + 1
        self.answered.update(self._query("SELECT key, n FROM events WHERE kind = 'answer'"))
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        self._copier: SegmentCopier | None = None
        if self._copies:
            self._copier = SegmentCopier(
                self._copies, copied, every, self.events, self._report_copy_failure
            )

    def request(
        self, key: str, *, tokens: int, cost: float, body: dict
    ) -> tuple[int, "Future[None]"]:
        """Journal a request before it is sent.

        Returns: its number, and a future that is done once it is on disk.
        """
        return self._append("request", key, None, tokens, cost, body)

    def answer(
        self, key: str, request: int, *, tokens: int, cost: float, body: dict
    ) -> "Future[None]":
        """Journal a request's answer and its cost; the future is done once it is on disk."""
        return self._append("answer", key, request, tokens, cost, body)[1]

    def fault(
        self, key: str, request: int, *, tokens: int, cost: float, body: dict
    ) -> "Future[None]":
        """Journal that a request failed and its cost; the future is done once it is on disk."""
        return self._append("fault", key, request, tokens, cost, body)[1]

    def read(self, key: str) -> Event | None:
        """Return the answer to a key, its body without checksums; None where there is none."""
        if key not in self.answered:
            return None
        rows = self._query("SELECT * FROM events WHERE n = ?", self.answered[key])
        event = Event(*rows[0])
        return event._replace(body=json.dumps(self._opened(event)))

    def faults(self, key: str) -> list[str]:
        """Return the reasons why requests of a key failed, in order."""
        rows = self._query("SELECT * FROM events WHERE kind = 'fault' AND key = ? ORDER BY n", key)
        return [str(self._opened(Event(*row)).get("reason")) for row in rows]

    def spent(self) -> tuple[int, float]:
        """Return the tokens and dollars that count as spent, open reservations included."""
        return self._query(stored.SPENT)[0]

    def events(self, after: int = 0) -> Iterator[Event]:
        """Return all events with a number larger than `after`, in order."""
        rows = self._query("SELECT * FROM events WHERE n > ? ORDER BY n", after)
        return map(Event._make, rows)

    def close(self) -> None:
        """Write the events that wait, copy them, and let go of the file."""
        self._waiting.put(None)
        self._writer.join()
        if self._copier:
            self._copier.close()
        self._db.close()

    def _check_and_restore(self) -> int:
        """Check the journal, and restore events that only the copies have.

        Returns: the number of the last event that is copied.
        """
        self._verify()
        if not self._copies:
            return 0
        copied = self._restore(self._copies)
        self._verify()  # what the copies brought
        if copied > self._last_number():
            raise UserError(
                f"config.synthesize.copies: '{self._copies}' ends before its own last event; is a "
                "segment missing?"
            )
        return copied

    def _restore(self, copies: epath.Path) -> int:
        """Insert the events that this journal lacks; return the number of the last copied event."""
        last, copied = self._last_number(), 0
        segments = list_segments(copies)
        for segment in segments:
            first, copied = segment_range(segment)
            # The last segment is read even where it has nothing new: it proves whose copies
            # these are.
            if copied <= last and segment is not segments[-1]:
                continue
            events = read_segment(segment)
            self._compare(segment, [event for event in events if event.n <= last])
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
                raise damaged_segment(segment, error) from error
            last = max(last, copied)
        return copied

    def _compare(self, segment: epath.Path, events: list[Event]) -> None:
        """Raise UserError where copied events differ from those of this journal."""
        for event in events:
            rows = self._query("SELECT * FROM events WHERE n = ?", event.n)
            if not rows or Event(*rows[0]) != event:
                raise UserError(
                    f"config.synthesize.copies: {segment} is of another journal than {self.file}; "
                    "name another folder."
                )

    def _append(
        self, kind: str, key: str, request: int | None, tokens: int, cost: float, body: dict
    ) -> tuple[int, "Future[None]"]:
        """Give an event the next number and hand it to the writer thread."""
        n = self._next
        self._next += 1
        checksum = stored.fields_checksum(kind, key, request, tokens, cost)
        text = stored.seal_body(body, checksum)
        event = Event(n, time.time(), kind, key, request, tokens, cost, text)
        written: Future[None] = Future()
        self._waiting.put(_Waiting(event, written))
        return n, written

    def _write(self) -> None:
        """Run the writer thread: all events that wait go into one transaction."""
        ending = False
        while not ending:
            batch = [self._waiting.get()]  # waits for the first
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            ending = None in batch
            self._write_batch([waiting for waiting in batch if waiting is not None])

    def _write_batch(self, batch: list[_Waiting]) -> None:
        """Write events in one transaction, and end their futures."""
        # An event is written even where its future was cancelled: an answer that nobody waits for
        # any more has been paid for all the same.
        events = [waiting.event for waiting in batch]
        futures = [
            waiting.written for waiting in batch if waiting.written.set_running_or_notify_cancel()
        ]
        try:
            if self._broken:
                raise self._broken
            with self._lock:
                self._insert(events)
        except Exception as error:  # whatever it is, those who wait must get it
            # Numbers are given in order: after a transaction that failed, none may follow.
            is_sqlite = isinstance(error, sqlite3.Error)
            self._broken = self._write_error(error) if is_sqlite else error
            for future in futures:
                future.set_exception(self._broken)
            return
        for event in events:
            if event.kind == "answer":
                self.answered[event.key] = event.n
        for future in futures:
            future.set_result(None)

    def _report_copy_failure(self, error: Exception) -> None:
        self._say(
            f"the journal could not be copied to {self._copies} ({error}); {self.file} has all "
            "of it"
        )
