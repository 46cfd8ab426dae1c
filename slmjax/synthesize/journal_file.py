"""The SQLite file of a journal: locked by one process, with all checks and error messages."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.synthesize import journal_events
from slmjax.synthesize.journal_events import Event

FILE = "journal.sqlite"


class JournalFile:
    """The table of events in a folder on a local disk, locked until the process ends.

    Several threads may use it; `_lock` is held while one of them uses the connection. `_insert`
    leaves the lock to its caller.

    Args:
      restorable: whether the events have copies, which an error about damage then mentions.
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
        """Open and lock the file, and create the table if it is missing."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: transactions begin and end where the code says so.
            # check_same_thread False: self._lock lets one thread at a time use the connection.
            # timeout 0: a file that another process holds is an error at once.
            database = sqlite3.connect(
                self.file, isolation_level=None, check_same_thread=False, timeout=0
            )
            # The exclusive lock on the file keeps a second writer out. The system takes the lock
            # away when the process ends.
            database.execute("PRAGMA locking_mode=EXCLUSIVE")
            # A write-ahead log is flushed once for each transaction; FULL waits for the disk.
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.executescript(journal_events.TABLES)
        except (sqlite3.Error, OSError) as error:
            raise self._user_error(error) from error
        return database

    def _last_number(self) -> int:
        """Return the number of the last event; 0 where there is none."""
        return self._query("SELECT COALESCE(MAX(n), 0) FROM events")[0][0]

    def _verify(self) -> None:
        """Raise UserError for a file that SQLite finds damaged, and for an invalid event."""
        verdict = self._query("PRAGMA integrity_check(1)")[0][0]
        if verdict != "ok":
            raise self._damaged(verdict.replace("\n", " "))
        invalid = self._query(journal_events.INVALID)
        if invalid:
            raise self._damaged(f"event {invalid[0][0]} is invalid")
        for n, checksum, *fields in self._query(journal_events.CHECKED):
            # The first version of the journal wrote no checksums.
            if checksum is not None and checksum != journal_events.fields_checksum(*fields):
                raise self._damaged(f"event {n} is not what was written")

    def _query(self, sql: str, *values: Any) -> list[tuple]:
        """Return the rows of a SELECT or PRAGMA. Raises: UserError for an error of SQLite."""
        try:
            with self._lock:
                return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._user_error(error) from error

    def _open_body(self, event: Event) -> dict[str, Any]:
        """Return an event's body without the checksums. Raises: UserError where it is damaged."""
        try:
            return journal_events.open_body(event)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _insert(self, events: list[Event], copied: bool = False) -> None:
        """Write events in one transaction, all or none. The caller holds `_lock`, or is alone.

        Raises: ValueError where the events are `copied` and the journal then has an invalid one;
          sqlite3.Error where SQLite refuses them.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(journal_events.INSERT, events)
            if copied:
                invalid = self._db.execute(journal_events.INVALID).fetchone()
                if invalid:
                    raise ValueError(f"event {invalid[0]} is invalid")
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _damaged(self, damage: str) -> UserError:
        """Return the error for a damaged file."""
        advice = "name another folder"
        if self._restorable:
            advice = "move it away, and it is restored from config.synthesize.copies"
        return UserError(f"config.synthesize.journal: {self.file} is damaged ({damage}); {advice}.")

    def _user_error(self, error: Exception) -> UserError:
        """Return the error for the user that an error of SQLite or of the system means."""
        text = str(error)
        if "locked" in text:
            return UserError(
                f"config.synthesize.journal: another process writes {self.file}; wait for it, or "
                "choose another work directory."
            )
        # Python has no exception for a damaged file: it raises a plain DatabaseError, or one of its
        # usual subclasses with such words.
        usual = (sqlite3.OperationalError, sqlite3.IntegrityError)
        unusual = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, usual)
        if unusual or any(words in text for words in ("decode", "no such column", "malformed")):
            return self._damaged(text)
        if "full" in text or "disk I/O" in text:
            advice = "free some space and start again: nothing that was answered before is lost"
        else:
            advice = "choose another folder"
        return UserError(
            f"config.synthesize.journal: cannot write {self.file} ({error}); {advice}."
        )
