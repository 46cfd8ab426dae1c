"""Work that survives: atomic files, a lock per folder, processes that end with their parent, and waiting for other hosts."""

import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from etils import epath

from slmjax.errors import UserError
from slmjax.readable import duration

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

Progress = Callable[[str, int, int], None]
FIRST_LINE, NEXT_LINE = (
    5.0,
    60.0,
)  # seconds of waiting for others: until a line says so, and from line to line
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
)


@contextlib.contextmanager
def writable(folder: str | Path, field: str = "data.cache") -> Iterator[None]:
    """Inside, a full disk or a folder that cannot be written is a UserError that names the folder; so is a file that cannot be read."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"{field}: no space left while writing to {folder}; free some, or choose another folder."
            ) from error
        name = (
            os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(folder)
        )
        if not _beside(name, str(folder)):
            raise UserError(f"cannot read {name}: {error.strerror}.") from error
        if error.errno in _DENIED and (error.errno != errno.ENOENT or not os.path.isdir(folder)):
            raise UserError(
                f"{field}: cannot write to {folder} ({error.strerror}); choose a folder that you may write to."
            ) from error
        raise


def _beside(name: str, folder: str) -> bool:
    """Whether a path is in a folder, or one of the folders around it."""
    name, folder = os.path.abspath(name), os.path.abspath(folder)
    return os.path.commonpath((name, folder)) in (name, folder)


def write_atomic(path: Path | epath.Path, content: bytes | str | dict | list) -> None:
    """Write under another name, then rename: a reader sees all of it or nothing, whoever else writes the same. A bucket does so itself."""
    if isinstance(content, (dict, list)):
        readable = json.dumps(content, indent=1, ensure_ascii=False)
        # Half a surrogate pair, of a name that is not UTF-8 or of a record's field, can only be written as an escape.
        content = (
            readable
            if readable.isascii() or _is_unicode(readable)
            else json.dumps(content, indent=1)
        )
    if isinstance(content, str):
        content = _encoded(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in os.fspath(path) or (path.exists() and not path.is_file()):  # a pipe, a device
        path.write_bytes(content)
        return
    beside = temporary(path.parent)
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_tidied: set[str] = set()  # folders in which this process has looked for leftovers


def temporary(folder: Path | epath.Path) -> Any:
    """The path of a new file in a local folder, to be renamed once it is whole.

    What killed processes of this machine left in the folder is removed.
    """
    if os.fspath(folder) not in _tidied and fcntl is not None and folder.is_dir():
        _tidied.add(os.fspath(folder))
        with contextlib.suppress(OSError):  # of a folder that can be written but not listed
            for leftover in filter(_is_of_the_dead, os.listdir(folder)):
                (folder / leftover).unlink(missing_ok=True)
    return folder / f".tmp-{_HOST}-{os.getpid()}-{uuid.uuid4().hex}"


def _is_of_the_dead(name: str) -> bool:
    """Whether a file has the temporary name of a process of this machine that has ended."""
    mark, _, rest = name.partition("-")
    host, _, process = rest.partition("-")
    process = process.partition("-")[0]
    return mark == ".tmp" and host == _HOST and process.isdecimal() and not _runs(int(process))


class DamagedPart(UserError):
    """An intermediate result that is not what was written."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} is damaged; delete {self.path.parent.parent} and start again."


def write_part(path: Path, content: bytes | str | dict) -> None:
    """Write an intermediate result whole or not at all, with its checksum behind it."""
    text = json.dumps(content) if isinstance(content, dict) else content
    data = text.encode() if isinstance(text, str) else text
    write_atomic(path, data + hashlib.sha256(data).digest())


def read_part(path: Path) -> bytes:
    """What `write_part` wrote. Raises: DamagedPart where it is not."""
    data = path.read_bytes()
    content, checksum = data[:-32], data[-32:]
    if hashlib.sha256(content).digest() != checksum:
        raise DamagedPart(path)
    return content


def _encoded(text: str) -> bytes:
    """UTF-8, with the bytes of names that are not UTF-8; half a surrogate pair that is none of these is an escape."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sealed(content: dict) -> dict:
    """`content` as JSON has it, with a hash of itself, so that a changed value is noticed."""
    plain = json.loads(json.dumps(content))
    return plain | {"seal": _seal(plain)}


def seal_is_broken(content: dict) -> bool:
    """Whether a value has changed since `sealed`; False for files of versions without seals."""
    return "seal" in content and content["seal"] != _seal(content)


def _seal(content: dict) -> str:
    others = {name: value for name, value in content.items() if name != "seal"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Hold an exclusive lock that the system releases when this process ends, however it ends; False where there are no locks.

    File systems without locks are used without: every write is atomic and every unit's content is the same whoever makes it.
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


LOCK = ".lock"
LAST_WORKER = 10.0  # seconds that workers of a killed process have to notice it


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
    ends. A bucket has no locks, and some file systems have none between hosts. There `.lock` names
    the newest start, which owns the folder; an earlier one finds out at its next checkpoint
    (`Claim.mine`).

    Args:
      field: what the user named the folder with, for messages.
      first: whether this is the process that takes it, of several of one run.
      agree: True where every process of the run says True.
    Raises: UserError where another process holds it, or the folder cannot be made or written.
    """
    claim, refusal = Claim(field), ""
    if first:
        try:
            claim.take(workdir)
        except UserError as error:
            refusal = str(error)
    try:
        if not agree(not refusal):
            raise UserError(refusal or f"{field}={workdir}: the first process could not take it.")
        yield claim
    finally:
        claim.release()


class Claim:
    """A work directory that this process holds; of a process that takes none, a claim to nothing."""

    def __init__(self, field: str = "--workdir") -> None:
        self._field = field
        self._path: epath.Path | None = None
        self._file: Any = None  # the locked file; None where there are no locks
        self._made: list[epath.Path] = []
        owner = {"host": socket.gethostname(), "process": os.getpid(), "start": uuid.uuid4().hex}
        self._record = json.dumps(owner)

    def take(self, workdir: str) -> None:
        """Raises: UserError where another process holds it, or it cannot be made or written."""
        check_writable(workdir, self._field)
        folder = epath.Path(workdir)
        if "://" not in workdir:
            folder = folder.absolute()
            self._made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK
        locks = fcntl is not None and "://" not in workdir
        if locks and self._lock(path, workdir):
            place = Path(
                folder
            )  # epath's glob reads a pattern's characters in the folder's own name
            for leftover in (*place.glob(".tmp-*"), *place.glob("*/.tmp-*")):  # of a kill
                leftover.unlink(missing_ok=True)
        else:
            self._refuse_living_owner(path, workdir)
            write_atomic(path, self._record)
        self._path = path

    def mine(self) -> bool:
        """False once another start has taken the folder, or it was deleted; asked before each checkpoint."""
        if self._path is None:
            return True
        if not self._path.exists():
            return self._file is None
        return self._path.read_text() == self._record

    def release(self) -> None:
        """Leave the folder as if it had never been held; folders that are still empty go too."""
        if self._path is not None and self.mine():
            self._path.unlink(missing_ok=True)
        self._path = None
        if self._file is not None:
            self._file.close()
            self._file = None
        with contextlib.suppress(OSError):  # of the first that holds something
            for place in self._made:
                os.rmdir(place)
        self._made = []

    def _lock(self, path: epath.Path, workdir: str) -> bool:
        """Lock the file; False where the file system has no locks."""
        patience = time.monotonic() + LAST_WORKER
        while True:
            file = open(path, "a+")  # noqa: SIM115 (held until release)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = _owner(file.read())
                file.close()
                # Workers of a process that was killed end a moment later, and hold its lock until then.
                if _is_gone(owner) and time.monotonic() < patience:
                    time.sleep(0.05)
                    continue
                raise _taken(workdir, self._field, owner) from None
            except OSError:
                file.close()
                return False
            # An owner that leaves removes the file: then the lock is on a file without a name.
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
            file.close()
        file.truncate(0)
        file.write(self._record)
        file.flush()
        self._file = file
        return True

    def _refuse_living_owner(self, path: epath.Path, workdir: str) -> None:
        owner = _owner(path.read_text()) if path.exists() else {}
        if _is_here(owner) and owner["process"] != os.getpid() and not _is_gone(owner):
            raise _taken(workdir, self._field, owner)


def _owner(text: str) -> dict:
    try:
        owner = json.loads(text)
    except ValueError:  # it is being written at this moment
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_here(owner: dict) -> bool:
    """Whether an owner names a process of this machine."""
    return owner.get("host") == socket.gethostname() and isinstance(owner.get("process"), int)


def _is_gone(owner: dict) -> bool:
    """Whether an owner was a process of this machine that has ended."""
    return _is_here(owner) and not _runs(owner["process"])


def _taken(workdir: str, field: str, owner: dict) -> UserError:
    who = f"process {owner['process']} on {owner['host']}" if owner else "another process"
    return UserError(
        f"{field}={workdir}: {who} is writing there; wait until it has ended, or use another {field}."
    )


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def check_writable(workdir: str, field: str = "--workdir") -> None:
    """Raises: UserError where a work directory cannot be made or written.

    It is asked before minutes of work, not after.
    """
    if "\\" in workdir and field == "--workdir":  # which the checkpoint storage reads as "/"
        raise UserError(
            f"--workdir={workdir}: checkpoints cannot be kept in a folder with a backslash in its name; choose another one."
        )
    if "://" in workdir:
        return
    place = Path(workdir).absolute()
    while not os.path.lexists(place):  # a link that leads nowhere is there
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{field}={workdir}: '{place}' is not a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{field}={workdir}: '{place}' cannot be written; choose a folder that you may write to."
        )


def run_units(
    function: Callable[..., None],
    tasks: Sequence[tuple[int, tuple]],
    processes: int,
    *,
    stage: str,
    progress: Progress,
    fork: bool = False,
) -> None:
    """Call `function(*arguments)` for each (size, arguments), the largest first, in `processes` processes (1: in this one).

    fork: start them as copies of this one, with all that it has loaded, where that is safe: without JAX and other threads.

    Raises: whatever a call raises, after the others have stopped; UserError if a process was killed.
    """
    done, total = 0, sum(size for size, _ in tasks)
    tasks = sorted(tasks, key=lambda task: -task[0])
    progress(stage, 0, total)
    if processes <= 1 or len(tasks) <= 1:
        for size, arguments in tasks:
            function(*arguments)
            done += size
            progress(stage, done, total)
        return
    fork = (
        fork
        and "fork" in multiprocessing.get_all_start_methods()
        and "jax" not in sys.modules
        and threading.active_count() == 1
    )
    context = multiprocessing.get_context("fork" if fork else "spawn")
    stop = context.Event()
    threads = max(1, processes // len(tasks))
    with ProcessPoolExecutor(
        min(processes, len(tasks)), context, _start_worker, (stop, threads)
    ) as pool:
        futures = {pool.submit(function, *arguments): size for size, arguments in tasks}
        try:
            for future in as_completed(futures):
                future.result()
                done += futures[future]
                progress(stage, done, total)
        except BrokenProcessPool as error:
            raise UserError(
                f"data: a process that prepares text was killed ({stage}; out of memory?); run again to continue."
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Stopped(Exception):
    """Another unit has failed; this one need not go on."""


_stop: Any = None


def go_on() -> None:
    """Call now and then inside a unit. Raises: Stopped once another unit has failed."""
    if _stop is not None and _stop.is_set():
        raise Stopped


def _start_worker(stop: Any, threads: int) -> None:
    global _stop
    import signal

    _stop = stop
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the parent, which stops the workers
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    parent = multiprocessing.parent_process()

    def follow() -> None:  # a worker waits for work for ever, even when its parent was killed
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def wait_for(
    paths: Mapping[Path, int],
    *,
    timeout: float,
    what: str,
    say: Callable[[str], None],
    unless: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until other hosts have written `paths` into the shared folder; the clock starts again whenever one appears.

    Args:
      paths: each file with the number of the process that writes it.
    Raises: UserError naming what is missing after `timeout` seconds without any progress; FileNotFoundError once `unless()` says
      that the rest will not come.
    """
    missing = [path for path in paths if not path.exists()]
    progressed, next_line = time.monotonic(), time.monotonic() + FIRST_LINE
    while missing:
        if unless():
            raise FileNotFoundError(str(missing[0]))
        time.sleep(0.1)
        left = [path for path in missing if not path.exists()]
        now = time.monotonic()
        if len(left) < len(missing):
            progressed = now
        missing = left
        if missing and now - progressed > timeout:
            names = ", ".join(path.name for path in missing[:3])
            whom = _processes({paths[path] for path in missing})
            raise UserError(
                f"data.cache: waited {timeout:.0f} s for {whom} to {what} ({len(missing)} files missing: {names}); "
                f"does every host see {missing[0].parent}?"
            )
        if missing and now >= next_line:
            next_line = now + NEXT_LINE
            whom = _processes({paths[path] for path in missing})
            say(
                f"waiting in {missing[0].parent} for {whom} to {what}: {len(missing)} of their files missing, "
                f"nothing new for {duration(now - progressed)}"
            )


def _processes(numbers: set[int]) -> str:
    """Numbers in words: "process 3", "2 processes (1, 3)"."""
    if len(numbers) == 1:
        return f"process {min(numbers)}"
    return f"{len(numbers)} processes ({', '.join(map(str, sorted(numbers)))})"


@contextlib.contextmanager
def terminal_progress() -> Iterator[Progress]:
    """A progress line of rich where a person watches, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if not total:
                return
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield update
