"""The SQLite file of a journal: held by one process, checked when it is opened, written whole."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.synthesize import journal_events as stored
from slmjax.synthesize.journal_events import Event

FILE = "journal.sqlite"


class JournalFile:
    """The table of events in a folder on a local disk, locked until the process ends.

    Several threads may use it; `_lock` is held while one of them uses the connection.

    Args:
      restorable: the events have copies, which an error about damage points to.
    Raises: UserError for a remote folder, a journal that another process holds, or a full disk.
    """

    def __init__(self, folder: str | Path, *, restorable: bool):
        if "://" in str(folder):
            raise UserError(
                f"config.synthesize.journal is '{folder}'; SQLite needs a local disk: name a local "
                "folder (its closed segments can be copied to a remote one, "
                "config.synthesize.copies)."
            )
        self.file = Path(folder).expanduser() / FILE
        self._restorable = restorable
        self._lock = threading.Lock()
        self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # check_same_thread: self._lock lets one thread at a time use the connection.
            database = sqlite3.connect(
                self.file, isolation_level=None, check_same_thread=False, timeout=0
            )
            # The exclusive lock on the file keeps a second writer out. The system takes the lock
            # away when the process ends.
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
            # A write-ahead log is flushed once for each transaction; FULL waits for the disk.
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.executescript(stored.TABLES)
        except (sqlite3.Error, OSError) as error:
            raise self._write_error(error) from error
        return database

    def _last_number(self) -> int:
        """Return the number of the last event; 0 where there is none."""
        return self._query("SELECT COALESCE(MAX(n), 0) FROM events")[0][0]

    def _verify(self) -> None:
        """Raise UserError for a file that SQLite finds damaged, and for an invalid event."""
        verdict = self._query("PRAGMA integrity_check(1)")[0][0]
        if verdict != "ok":
            raise self._damaged(verdict.replace("\n", " "))
        invalid = self._query(stored.INVALID)
        if invalid:
            raise self._damaged(f"event {invalid[0][0]} is invalid")
        for n, checksum, *fields in self._query(stored.CHECKED):
            # The first version of the journal wrote no checksums.
            if checksum is not None and checksum != stored.fields_checksum(*fields):
                raise self._damaged(f"event {n} is not what was written")

    def _query(self, question: str, *values: Any) -> list[tuple]:
        """Return the rows of a question. Raises: UserError where the file is damaged."""
        try:
            with self._lock:
                return self._db.execute(question, values).fetchall()
        except sqlite3.Error as error:
            raise self._write_error(error) from error

    def _opened(self, event: Event) -> dict[str, Any]:
        """Return an event's body without the checksums. Raises: UserError where it is damaged."""
        try:
            return stored.open_body(event)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _insert(self, events: list[Event], copied: bool = False) -> None:
        """Write events, all or none.

        Raises: ValueError where they come from a copy and one of them is invalid.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(stored.INSERT, events)
            if copied:
                invalid = self._db.execute(stored.INVALID).fetchone()
                if invalid:
                    raise ValueError(f"event {invalid[0]} is invalid")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _damaged(self, damage: str) -> UserError:
        advice = "name another folder"
        if self._restorable:
            advice = "move it away, and it is restored from config.synthesize.copies"
        return UserError(f"config.synthesize.journal: {self.file} is damaged ({damage}); {advice}.")

    def _write_error(self, error: Exception) -> UserError:
        """Return what an error of SQLite means for the user."""
        text = str(error)
        if "locked" in text:
            return UserError(
                f"config.synthesize.journal: another process writes {self.file}; wait for it, or "
                "choose another work directory."
            )
        # SQLite has no error of its own for damage: it is what none of the usual errors explains.
        usual = (sqlite3.OperationalError, sqlite3.IntegrityError)
        unusual = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, usual)
        if unusual or any(word in text for word in ("decode", "no such column", "malformed")):
            return self._damaged(text)
        if "full" in text or "disk I/O" in text:
            advice = "free some space and start again: nothing that was answered before is lost"
        else:
            advice = "choose another folder"
        return UserError(
            f"config.synthesize.journal: cannot write {self.file} ({error}); {advice}."
        )
