"""One writer for a folder: locks and claims that end with the process that holds them."""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from slmjax.errors import UserError
from slmjax.text.files import check_writable, process_runs, write_atomic

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

LOCK = ".lock"
WORKERS_END = 10.0  # seconds within which the workers of a killed process notice it and end
POLL = 0.05  # seconds between two attempts at a lock whose owner has just been killed


@contextlib.contextmanager
def claimed(
    workdir: str,
    *,
    field: str = "--workdir",
    first: bool = True,
    agree: Callable[[bool], bool] = bool,
) -> Iterator["Claim"]:
    """Hold a work directory, or another folder, so that a second start does not write into it.

    A local folder is locked by the system, which releases it when the process ends, however it
    ends. A bucket has no locks, and some file systems have none between hosts. There the file
    `.lock` names the newest start, which owns the folder; an earlier start notices at its next
    checkpoint (`Claim.mine`).

    Args:
      field: the option that named the folder, for messages.
      first: whether this process takes the folder; of several in one run only the first does.
      agree: called with whether this process succeeded; returns whether all processes of the run
        did.
    Yields: the claim; of a process that is not the first, one that is always valid.
    Raises: UserError where another process holds it, or the folder cannot be made or written.
    """
    claim = Claim(field)
    refusal = ""
    if first:
        try:
            claim.take(workdir)
        except UserError as error:
            refusal = str(error)
    try:
        # Raised only after `agree`, in which the other processes wait for this one.
        if not agree(not refusal):
            raise UserError(refusal or f"{field}={workdir}: the first process could not take it.")
        yield claim
    finally:
        claim.release()


class Claim:
    """A folder that this process holds; before `take` a claim to nothing, which is always valid."""

    def __init__(self, field: str = "--workdir") -> None:
        self._field = field
        self._path: epath.Path | None = None
        # The locked file; None where there are no locks.
        self._file: Any = None
        # Folders that `take` created, innermost first.
        self._made: list[epath.Path] = []
        # The system uses process numbers again; the random part makes every start unique.
        owner = {"host": socket.gethostname(), "process": os.getpid(), "start": uuid.uuid4().hex}
        self._record = json.dumps(owner)

    def take(self, workdir: str) -> None:
        """Hold a folder, and create it where it is missing.

        Raises: UserError where another process holds it, or it cannot be made or written.
        """
        check_writable(workdir, self._field)
        folder = epath.Path(workdir)
        in_bucket = "://" in workdir
        if not in_bucket:
            folder = folder.absolute()
            self._made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK
        may_lock = fcntl is not None and not in_bucket
        if may_lock and self._lock(path, workdir):
            _remove_leftovers(folder)
        else:
            # Without locks: the record alone says whose the folder is.
            self._refuse_living_owner(path, workdir)
            write_atomic(path, self._record)
        self._path = path

    def mine(self) -> bool:
        """Whether this process still owns the folder; asked before each checkpoint.

        False once another start has taken the folder, or it was deleted.
        """
        if self._path is None:
            return True
        if not self._path.exists():
            # With a lock, somebody deleted the folder. Without one, a newer owner may have removed
            # its record as it ended: then nobody else owns the folder.
            return self._file is None
        return self._path.read_text() == self._record

    def release(self) -> None:
        """Leave the folder as if it had never been held; remove those of `take` that are empty."""
        if self._path is not None and self.mine():
            self._path.unlink(missing_ok=True)
        self._path = None
        if self._file is not None:
            self._file.close()
            self._file = None
        # The first folder that holds something ends the loop: those around it are not empty either.
        with contextlib.suppress(OSError):
            for folder in self._made:
                os.rmdir(folder)
        self._made = []

    def _lock(self, path: epath.Path, workdir: str) -> bool:
        """Lock the file and name this process in it; False where the file system has no locks.

        Raises: UserError where another process holds the lock.
        """
        deadline = time.monotonic() + WORKERS_END
        while True:
            file = open(path, "a+")  # noqa: SIM115 (held until release)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = _owner(file.read())
                file.close()
                # Workers of a killed process hold its lock until they notice, a moment later.
                if _is_gone(owner) and time.monotonic() < deadline:
                    time.sleep(POLL)
                    continue
                raise _taken_error(workdir, self._field, owner) from None
            except OSError:
                file.close()
                return False
            # An owner removes the file when it ends. If it did so between `open` and `flock`, the
            # lock is on a file that the folder no longer has, and the next attempt makes a new one.
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
            file.close()
        file.truncate(0)
        file.write(self._record)
        file.flush()
        self._file = file
        return True

    def _refuse_living_owner(self, path: epath.Path, workdir: str) -> None:
        """Refuse a folder that a living process of this machine has written its name into.

        Raises: UserError. An owner on another host cannot be asked and is replaced.
        """
        owner = _owner(path.read_text()) if path.exists() else {}
        if _is_here(owner) and owner["process"] != os.getpid() and not _is_gone(owner):
            raise _taken_error(workdir, self._field, owner)


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Wait for an exclusive lock on a file, and hold it; yields False where there are no locks.

    The system releases the lock when this process ends, however it ends. On a file system without
    locks several processes may do the same work, which is safe: every write is atomic, and all of
    them write the same.

    Args:
      say: called with a message when this process has to wait, or finds no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield False
        return
    held = True
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            say(f"waiting for {holder}, which prepares the same text in {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            say(f"{path.parent} has no file locks ({error.strerror}); continuing without")
            held = False
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield held


def _remove_leftovers(folder: epath.Path) -> None:
    """Remove unfinished files that killed processes left in a folder and in the folders in it."""
    # pathlib, since epath's glob would take a * or [ in the folder's own name for a pattern.
    local_folder = Path(folder)
    for leftover in (*local_folder.glob(".tmp-*"), *local_folder.glob("*/.tmp-*")):
        leftover.unlink(missing_ok=True)


def _owner(text: str) -> dict:
    """Return the owner in a lock file's text; {} where it is not readable."""
    try:
        owner = json.loads(text)
    except ValueError:
        # The owner is writing it at this moment.
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_here(owner: dict) -> bool:
    """Whether an owner names a process of this machine."""
    return owner.get("host") == socket.gethostname() and isinstance(owner.get("process"), int)


def _is_gone(owner: dict) -> bool:
    """Whether an owner was a process of this machine that has ended."""
    return _is_here(owner) and not process_runs(owner["process"])


def _taken_error(workdir: str, field: str, owner: dict) -> UserError:
    who = "another process"
    if owner:
        who = f"process {owner['process']} on {owner['host']}"
    advice = f"wait until it has ended, or use another {field}"
    return UserError(f"{field}={workdir}: {who} is writing there; {advice}.")
