"""Where the lines of metrics lie: a local file that grows, or numbered objects of a bucket."""

import concurrent.futures
import os
import time

from etils import epath

LOCAL_FILE = "metrics.jsonl"
SEGMENTS_FOLDER = "metrics"


class LocalFile:
    """A local file, opened to append and not buffered: one line is one write call."""

    def __init__(self, path: epath.Path):
        self.path = path
        # Open for the life of the writer.
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        if self._file.seek(0, os.SEEK_END) == 0:
            # A new file has no last line.
            return
        self._file.seek(-1, os.SEEK_END)
        if self._file.read(1) != b"\n":
            # A kill tore the last line: end it, or it would swallow the next one.
            self._file.write(b"\n")

    def put(self, line: str) -> None:
        """Append a line, which ends with a newline."""
        self._file.write(line.encode())

    def flush(self) -> None:
        """Return once all lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; each line is written already."""
        self._file.close()


class Segments:
    """A folder of an object store, where an object can be replaced but not appended to.

    A thread uploads the newest segment whole, again and again: every PAUSE seconds or later, and
    at `flush`. Once it has LIMIT characters, the segment of the next number begins. A restart
    begins a new segment too, so nothing is read back.
    """

    # Characters after which a segment is full.
    LIMIT = 256 * 1024
    # Seconds between two uploads: a store takes about one write a second of the same object.
    PAUSE = 10.0

    def __init__(self, path: epath.Path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        numbers = [int(segment.stem) for segment in path.glob("*.jsonl")]
        self._number = 1 + max(numbers, default=-1)
        # Lines of the newest segment, and how many characters they have.
        self._segment: list[str] = []
        self._size = 0
        # Whether the store has all of these lines, or an upload of all is under way.
        self._uploaded = True
        self._last_upload = time.monotonic()
        # One thread, so that uploads of one segment cannot overtake each other.
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._pending: concurrent.futures.Future | None = None

    def put(self, line: str) -> None:
        """Append a line; it is uploaded later."""
        self._segment.append(line)
        self._size += len(line)
        self._uploaded = False
        if self._size >= self.LIMIT:
            # The last upload of a full segment: later lines go to the next one.
            self.flush()
            self._segment = []
            self._size = 0
            self._number += 1
            return
        idle = self._pending is None or self._pending.done()
        if idle and time.monotonic() - self._last_upload > self.PAUSE:
            self._upload()

    def flush(self) -> None:
        """Return once all lines are in the store."""
        if not self._uploaded:
            self._upload()
        self._wait()

    def close(self) -> None:
        """Upload the lines that the store lacks, and end the thread."""
        self.flush()
        self._thread.shutdown()

    def _upload(self) -> None:
        self._wait()
        target = self.path / f"{self._number:05d}.jsonl"
        self._pending = self._thread.submit(target.write_text, "".join(self._segment))
        self._uploaded = True
        self._last_upload = time.monotonic()

    def _wait(self) -> None:
        """Wait for the upload that is under way. Raises: its error, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def read_texts(folder: epath.Path) -> list[str]:
    """Return the text of every file of metrics in a work directory, oldest first."""
    paths = []
    if (folder / LOCAL_FILE).exists():
        paths.append(folder / LOCAL_FILE)
    segments = folder / SEGMENTS_FOLDER
    if segments.is_dir():
        paths += sorted(segments.glob("*.jsonl"), key=lambda path: int(path.stem))
    texts = []
    for path in paths:
        # A damaged character damages its line, not the file.
        texts.append(path.read_bytes().decode("utf-8", "replace"))
    return texts
