"""Run units of work in processes that end with their parent, and wait for units of other hosts."""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.readable import duration

# Called with (stage, done, total); done and total in the same unit, usually bytes.
Progress = Callable[[str, int, int], None]

# Seconds of waiting for other hosts until the first line about it, and from line to line.
FIRST_LINE = 5.0
NEXT_LINE = 60.0
POLL = 0.1  # seconds between two looks at the shared folder

# The event that is set once another unit has failed; None outside of worker processes.
_stop: Any = None


def run_units(
    function: Callable[..., None],
    tasks: Sequence[tuple[int, tuple]],
    processes: int,
    *,
    stage: str,
    progress: Progress,
    fork: bool = False,
) -> None:
    """Call `function(*arguments)` for each task, the largest first.

    Args:
      tasks: (size, arguments) of each call; the size in the unit of `progress`.
      processes: how many work at once; 1 runs everything in this process.
      fork: start workers as copies of this process, with all that it has loaded, where that is
        safe: without JAX and without other threads.
    Raises: whatever a call raises, after the others have stopped; UserError if a process was
      killed by the system.
    """
    # The largest first, so that no worker begins a long task while the others are done.
    tasks = sorted(tasks, key=lambda task: -task[0])
    total = sum(size for size, _ in tasks)
    progress(stage, 0, total)
    if processes > 1 and len(tasks) > 1:
        _run_in_workers(function, tasks, processes, stage, progress, fork)
        return
    done = 0
    for size, arguments in tasks:
        function(*arguments)
        done += size
        progress(stage, done, total)


class Stopped(Exception):
    """Another unit has failed; this one need not go on."""


def go_on() -> None:
    """Return unless the work has been stopped; call it now and then inside a unit.

    Raises: Stopped once another unit has failed.
    """
    if _stop is not None and _stop.is_set():
        raise Stopped


def cores() -> int:
    """Return the number of cores that this process may use."""
    # A container or a scheduler may allow fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wait_for(
    paths: Mapping[Path, int],
    *,
    timeout: float,
    what: str,
    say: Callable[[str], None],
    unless: Callable[[], bool] = lambda: False,
) -> None:
    """Wait until other hosts have written `paths` into the shared folder.

    Args:
      paths: each file with the number of the process that writes it.
      timeout: seconds; the clock starts again whenever a file appears.
      what: what the others do, for messages ("hash the text").
      say: called now and then with a line about what is missing.
      unless: returns True once it is known that the missing files will not come.
    Raises: UserError naming what is missing after `timeout` seconds without progress;
      FileNotFoundError once `unless()` is true.
    """
    missing = [path for path in paths if not path.exists()]
    progressed = time.monotonic()
    next_line = time.monotonic() + FIRST_LINE
    while missing:
        # Asked first: a failure elsewhere should not cost the time-out.
        if unless():
            raise FileNotFoundError(str(missing[0]))
        time.sleep(POLL)
        still_missing = [path for path in missing if not path.exists()]
        now = time.monotonic()
        if len(still_missing) < len(missing):
            progressed = now
        missing = still_missing
        if not missing:
            return
        writers = _describe_processes({paths[path] for path in missing})
        if now - progressed > timeout:
            names = ", ".join(path.name for path in missing[:3])
            raise UserError(
                f"data.cache: waited {timeout:.0f} s for {writers} to {what} "
                f"({len(missing)} files missing: {names}); "
                f"does every host see {missing[0].parent}?"
            )
        if now >= next_line:
            next_line = now + NEXT_LINE
            say(
                f"waiting in {missing[0].parent} for {writers} to {what}: "
                f"{len(missing)} of their files missing, "
                f"nothing new for {duration(now - progressed)}"
            )


@contextlib.contextmanager
def terminal_progress() -> Iterator[Progress]:
    """Yield a function that draws a progress bar, or does nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    # transient: the bar disappears at its end, and leaves no gap between the lines around it.
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        bar_of_stage: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if not total:
                return
            if stage not in bar_of_stage:
                bar_of_stage[stage] = bar.add_task(stage, total=total)
            bar.update(bar_of_stage[stage], completed=done, total=total)

        yield update


def _run_in_workers(
    function: Callable[..., None],
    tasks: Sequence[tuple[int, tuple]],
    processes: int,
    stage: str,
    progress: Progress,
    fork: bool,
) -> None:
    """Do what run_units does, in worker processes."""
    method = "fork" if fork and _fork_is_safe() else "spawn"
    context = multiprocessing.get_context(method)
    stop = context.Event()
    # With fewer tasks than processes, each worker may use several threads.
    threads = max(1, processes // len(tasks))
    workers = min(processes, len(tasks))
    total = sum(size for size, _ in tasks)
    done = 0
    # `with` waits for the workers, so that none writes after an error has been reported.
    with ProcessPoolExecutor(workers, context, _start_worker, (stop, threads)) as pool:
        size_of_future = {pool.submit(function, *arguments): size for size, arguments in tasks}
        try:
            for future in as_completed(size_of_future):
                future.result()
                done += size_of_future[future]
                progress(stage, done, total)
        except BrokenProcessPool as error:
            problem = f"a process that prepares text was killed ({stage}; out of memory?)"
            raise UserError(f"data: {problem}; run again to continue.") from error
        # Every other error, and Ctrl-C, which the workers ignore: they look for this event.
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fork_is_safe() -> bool:
    """Whether a forked copy of this process works; with JAX or other threads it could hang."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return False
    return "jax" not in sys.modules and threading.active_count() == 1


def _start_worker(stop: Any, threads: int) -> None:
    """Prepare a worker process, before its first task.

    Args:
      threads: how many threads the tokenizers library may use.
    """
    global _stop
    import signal

    _stop = stop
    # Ctrl-C reaches the parent too, which then sets `stop`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    # Else a worker whose parent was killed would wait for work forever.
    threading.Thread(target=end_with_parent, daemon=True).start()


def _describe_processes(numbers: set[int]) -> str:
    """Return process numbers in words: "process 3", "2 processes (1, 3)"."""
    if len(numbers) == 1:
        return f"process {min(numbers)}"
    return f"{len(numbers)} processes ({', '.join(map(str, sorted(numbers)))})"
