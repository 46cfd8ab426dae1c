"""Work that survives: atomic files, a lock per folder, processes that end with their parent, and waiting for other hosts."""

import contextlib
import errno
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
FIRST_LINE, NEXT_LINE = 5.0, 60.0  # seconds of waiting for others: until a line says so, and from line to line
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT)


@contextlib.contextmanager
def writable(folder: str | Path, field: str = "data.cache") -> Iterator[None]:
    """Inside, a full disk or a folder that cannot be written is a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"{field}: no space left while writing to {folder}; free some, or choose another folder.") from error
        if error.errno in _DENIED and (error.errno != errno.ENOENT or not os.path.isdir(folder)):
            raise UserError(f"{field}: cannot write to {folder} ({error.strerror}); choose a folder that you may write to.") from error
        raise


def write_atomic(path: Path | epath.Path, content: bytes | str | dict | list) -> None:
    """Write under another name, then rename: a reader sees all of it or nothing, whoever else writes the same. A bucket does so itself."""
    if isinstance(content, (dict, list)):
        content = json.dumps(content, indent=1, ensure_ascii=False)
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in os.fspath(path):
        path.write_bytes(content)
        return
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    fork = fork and "fork" in multiprocessing.get_all_start_methods() and "jax" not in sys.modules and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if fork else "spawn")
    stop = context.Event()
    threads = max(1, processes // len(tasks))
    with ProcessPoolExecutor(min(processes, len(tasks)), context, _start_worker, (stop, threads)) as pool:
        futures = {pool.submit(function, *arguments): size for size, arguments in tasks}
        try:
            for future in as_completed(futures):
                future.result()
                done += futures[future]
                progress(stage, done, total)
        except BrokenProcessPool as error:
            raise UserError(f"data: a process that prepares text was killed ({stage}; out of memory?); run again to continue.") from error
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops the workers
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    parent = multiprocessing.parent_process()

    def follow() -> None:  # a worker waits for work for ever, even when its parent was killed
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def wait_for(
    paths: Mapping[Path, int], *, timeout: float, what: str, say: Callable[[str], None], unless: Callable[[], bool] = lambda: False
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
