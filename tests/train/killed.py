"""The launcher on a short embedded textbook; it kills itself at a file that it is about to change.

SLMJAX_TEST_KILL=3 is the third change below the folder SLMJAX_TEST_FOLDER: a file that is written,
renamed or removed, or a line of metrics.jsonl, of which half is written. With finish:3 it is the
third one after the last checkpoint.
"""

import os
import signal
import sys
import threading

from slmjax.data import embedded_text
from slmjax.train import textbook_evaluation as evaluation

embedded_text.TRAIN_PER_KIND, embedded_text.HELDOUT_PER_KIND, evaluation.QUESTIONS = 40, 10, 2
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killer:
    """Counts changes below a folder, and ends this process with SIGKILL before the last of them."""

    def __init__(self, folder: str, changes: int):
        self._folder, self._left, self._lock = folder, changes, threading.Lock()

    def __call__(self, event: str, arguments: tuple) -> None:
        """An audit hook of Python."""
        if event in CHANGES or (event == "open" and arguments[2] & WRITING):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike) and self._is_below(os.fsdecode(path)):
                self.counted(f"{event} {os.fsdecode(path)}")

    def counted(self, what: str) -> None:
        """Count a change."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                print(f"killed at {what}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    def put(self, lines, line: str) -> None:
        """Write a line of metrics.jsonl in two halves."""
        lines._file.write(line.encode()[: len(line) // 2])
        self.counted(f"the line {line[:60]}")
        lines._file.write(line.encode()[len(line) // 2 :])

    def start(self) -> None:
        """Count from now on."""
        from slmjax.record import metric_files

        metric_files.LocalFile.put = lambda lines, line: self.put(lines, line)
        sys.addaudithook(self)

    def _is_below(self, path: str) -> bool:
        return os.path.abspath(path).startswith(self._folder)


def kill_at(point: str, folder: str) -> None:
    """Kill this process as SLMJAX_TEST_KILL says."""
    phase, _, number = point.rpartition(":")
    killer = Killer(folder, int(number))
    if not phase:
        killer.start()
        return
    from slmjax.train import loop

    finish = loop._Loop.finish

    def killed(self) -> None:
        killer.start()
        finish(self)

    loop._Loop.finish = killed


if __name__ == "__main__":
    from slmjax import cli
    from slmjax.launch import main

    if "SLMJAX_TEST_KILL" in os.environ:
        kill_at(os.environ["SLMJAX_TEST_KILL"], os.environ["SLMJAX_TEST_FOLDER"])
    cli.script(main)
