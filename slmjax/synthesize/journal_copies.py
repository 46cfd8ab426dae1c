"""Copies of a journal in another folder, local or remote, as compressed segments of its events.

A segment is a file events-FIRST-LAST.jsonl.zst with one JSON list a line, an event's fields in
order. It is written once and never changed.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable

import zstandard
from etils import epath

from slmjax.errors import UserError
from slmjax.synthesize.journal_events import Event, open_body
from slmjax.text.files import write_atomic

# Errors of zstandard, JSON and Event(...) for the bytes of a damaged segment.
DAMAGE = (zstandard.ZstdError, ValueError, TypeError, RecursionError)


def list_segments(folder: epath.Path) -> list[epath.Path]:
    """Return the segments in a folder, the earliest events first; none where it does not exist."""
    if not folder.exists():
        return []
    names = []
    for file in folder.iterdir():  # not glob: the folder's own name may hold brackets
        if file.name.startswith("events-") and file.name.endswith(".jsonl.zst"):
            names.append(file.name)
    return [folder / name for name in sorted(names)]


def segment_range(segment: epath.Path) -> tuple[int, int]:
    """Return the numbers of a segment's first and last event, which its name has.

    Raises: UserError for a file with another name.
    """
    numbers = re.fullmatch(r"events-(\d+)-(\d+)\.jsonl\.zst", segment.name)
    if not numbers:
        raise UserError(f"config.synthesize.copies: {segment} is no segment of a journal.")
    first, last = numbers.groups()
    return int(first), int(last)


def read_segment(segment: epath.Path) -> list[Event]:
    """Return the events of a segment. Raises: UserError where one is missing or damaged."""
    first, last = segment_range(segment)
    try:
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        lines = decompressor.decompress(segment.read_bytes()).decode().splitlines()
        events = [Event(*json.loads(line)) for line in lines]
        if [event.n for event in events] != list(range(first, last + 1)):
            raise ValueError("events are missing in it")
        for event in events:
            open_body(event)
    except DAMAGE as error:
        raise damaged_segment(segment, error) from error
    return events


def write_segment(folder: epath.Path, events: list[Event]) -> None:
    """Write events with consecutive numbers as one segment."""
    lines = "".join(json.dumps(event) + "\n" for event in events)
    # The checksum lets a reader notice damage that would still decompress.
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    name = f"events-{events[0].n:012d}-{events[-1].n:012d}.jsonl.zst"
    write_atomic(folder / name, compressor.compress(lines.encode()))


def damaged_segment(segment: epath.Path, error: Exception) -> UserError:
    """Return the error for a segment whose events cannot be used."""
    return UserError(f"config.synthesize.copies: {segment} is damaged ({error}).")


class SegmentCopier:
    """A thread that copies new events every `every` seconds, and once more when it is closed.

    Events of a copy that failed are part of the next one.

    Args:
      folder: gets the segments.
      copied: number of the last event that the folder has.
      events_after: called with a number, returns all events with a larger one, in order.
      report_failure: called with the error of a copy that failed: the first of several in a row,
        and that of the last copy, in `close`.
    """

    def __init__(
        self,
        folder: epath.Path,
        copied: int,
        every: float,
        events_after: Callable[[int], Iterable[Event]],
        report_failure: Callable[[Exception], None],
    ):
        self._folder = folder
        self._copied = copied  # number of the last event in the folder
        self._every = every
        self._events_after = events_after
        self._report_failure = report_failure
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._copy_until_closed, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy what is new, and end the thread."""
        self._closing.set()
        self._thread.join()

    def _copy_until_closed(self) -> None:
        closing = False
        failing = False  # whether the copy before failed
        while not closing:
            # Waits for `close`, but only until the next copy is due; then it returns False. This
            # stands before the copy, so that the last copy has all events from before `close`.
            closing = self._closing.wait(self._every)
            try:
                self._copy()
                failing = False
            except Exception as error:  # every kind of store has its own exceptions
                if closing or not failing:
                    failing = True
                    self._report_failure(error)

    def _copy(self) -> None:
        events = list(self._events_after(self._copied))
        if events:
            write_segment(self._folder, events)
            self._copied = events[-1].n
