"""The journal of paid requests (SQLite, one writer).

The journal is one growing table of events. A "request" reserves the most that it can cost. An
"answer" or a "fault" ends it and has its actual cost. A request without an end, because the process
was killed, stays counted at its reservation for ever.
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
from slmjax.synthesize import journal_events
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
    """An event that the writer thread will write."""

    event: Event
    written: "Future[None]"  # done once the event is on disk


class Journal(JournalFile):
    """The journal of a run. One process holds it, until `close` or until the process ends.

    Every write is a transaction that is flushed to disk (synchronous=FULL). Events that wait while
    the disk is busy share the next transaction, so that hundreds of requests cost a few flushes.

    Attributes:
      answered: {key of a request: number of its answer's event}, of answers that are on disk.

    Args:
      folder: on a local disk; made if it is missing.
      copies: a folder, local or remote, to which new events are copied, "" for none. If it has
        events that `folder` lacks, because the disk is new, they are restored first. Events that
        were not yet copied are lost with a disk, and with them the record of what they cost.
      every: seconds between two copies.
      say: called with a line where events could not be copied.
    Raises: UserError for a remote folder, a journal that another process holds, a full disk, a
      damaged journal (the file or one of its events), damaged copies, or copies of another journal.
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
        self.answered: dict[str, int] = {}
        self._copies = epath.Path(copies) if copies else None
        self._say = say
        # None asks the writer thread to end.
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._broken: BaseException | None = None  # why nothing can be written any more
        try:
            copied = self._check_and_restore()
        except UserError:
            self._db.close()
            raise
        self._next_number = self._last_number() + 1
        self.answered.update(self._query("SELECT key, n FROM events WHERE kind = 'answer'"))
        self._writer = threading.Thread(target=self._write_until_closed, daemon=True)
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

        Args:
          key: of plan.key.
          tokens, cost: the most that the request can cost; cost in dollars.
        Returns: the number of its event, and a future that is done once it is on disk.
        """
        return self._append("request", key, None, tokens, cost, body)

    def answer(
        self, key: str, request: int, *, tokens: int, cost: float, body: dict
    ) -> "Future[None]":
        """Journal the answer to the request of a number, with what the request cost.

        Returns: a future that is done once the answer is on disk.
        """
        return self._append("answer", key, request, tokens, cost, body)[1]

    def fault(
        self, key: str, request: int, *, tokens: int, cost: float, body: dict
    ) -> "Future[None]":
        """Journal that the request of a number failed, with what it cost.

        Returns: a future that is done once the fault is on disk.
        """
        return self._append("fault", key, request, tokens, cost, body)[1]

    def read(self, key: str) -> Event | None:
        """Return the answer to a key, its body without checksums; None where there is none."""
        if key not in self.answered:
            return None
        rows = self._query("SELECT * FROM events WHERE n = ?", self.answered[key])
        event = Event(*rows[0])
        return event._replace(body=json.dumps(self._open_body(event)))

    def faults(self, key: str) -> list[str]:
        """Return the reasons why requests of a key failed, in order."""
        rows = self._query("SELECT * FROM events WHERE kind = 'fault' AND key = ? ORDER BY n", key)
        return [str(self._open_body(Event(*row)).get("reason")) for row in rows]

    def spent(self) -> tuple[int, float]:
        """Return the tokens and dollars that count as spent, open reservations included."""
        return self._query(journal_events.SPENT)[0]

    def events(self, after: int = 0) -> Iterator[Event]:
        """Return all events with a number larger than `after`, in order."""
        rows = self._query("SELECT * FROM events WHERE n > ? ORDER BY n", after)
        return map(Event._make, rows)

    def close(self) -> None:
        """Write the events that wait, copy them, and close the file."""
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
        self._verify()  # again, with the restored events
        # A last check: all events up to this number should have been restored.
        if copied > self._last_number():
            raise UserError(
                f"config.synthesize.copies: '{self._copies}' ends before its own last event; is a "
                "segment missing?"
            )
        return copied

    def _restore(self, copies: epath.Path) -> int:
        """Insert the events that this journal lacks; return the number of the last copied event."""
        last = self._last_number()  # of this journal's events
        copied = 0
        segments = list_segments(copies)
        for segment in segments:
            first, copied = segment_range(segment)
            # A segment without new events is skipped, but not the last one: comparing its events
            # shows whether these are copies of this journal.
            if copied <= last and segment is not segments[-1]:
                continue
            events = read_segment(segment)
            self._refuse_other_journal(segment, [event for event in events if event.n <= last])
            if first > last + 1:
                raise UserError(
                    f"config.synthesize.copies: the segment before {segment} is missing."
                )
            try:
                self._insert([event for event in events if event.n > last], copied=True)
            # Events whose fields the table does not take, or that `_insert` finds invalid.
            except (
                sqlite3.ProgrammingError,
                sqlite3.IntegrityError,
                ValueError,
                OverflowError,
            ) as error:
                raise damaged_segment(segment, error) from error
            last = max(last, copied)
        return copied

    def _refuse_other_journal(self, segment: epath.Path, events: list[Event]) -> None:
        """Raise UserError where one of a segment's events differs from this journal's."""
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
        """Give an event the next number and hand it to the writer thread.

        Returns: the number, and a future that is done once the event is on disk.
        """
        number = self._next_number
        self._next_number += 1
        checksum = journal_events.fields_checksum(kind, key, request, tokens, cost)
        text = journal_events.seal_body(body, checksum)
        event = Event(number, time.time(), kind, key, request, tokens, cost, text)
        written: Future[None] = Future()
        self._waiting.put(_Waiting(event, written))
        return number, written

    def _write_until_closed(self) -> None:
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
        events = [waiting.event for waiting in batch]
        # An event is written even where its future was cancelled: an answer that nobody waits for
        # any more has been paid for all the same. Only the future is left out.
        futures = [
            waiting.written for waiting in batch if waiting.written.set_running_or_notify_cancel()
        ]
        try:
            if self._broken:
                raise self._broken
            with self._lock:
                self._insert(events)
        except Exception as error:  # whatever it is, those who wait must get it
            # After a failed transaction nothing more is written, since numbers have no gaps.
            is_sqlite = isinstance(error, sqlite3.Error)
            self._broken = self._user_error(error) if is_sqlite else error
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
