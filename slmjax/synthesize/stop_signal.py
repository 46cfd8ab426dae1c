"""Lets a run end in good order when it is interrupted."""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """Inside, the first SIGINT or SIGTERM calls `stop(number)`; a second one has its usual effect.

    `stop` runs in the event loop that runs now. In another thread than the main one, as in a
    notebook, Python handles no signals, and nothing is changed.
    """

    def __init__(self, stop: Callable[[int], None]):
        self._stop = stop
        self._earlier: dict[signal.Signals, Any] = {}  # handlers, restored at the end

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            # A handler may interrupt the loop anywhere, so that only the loop itself may act.
            loop.call_soon_threadsafe(self._first, number)

        for number in SIGNALS:
            self._earlier[number] = signal.getsignal(number)
            signal.signal(number, handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _first(self, number: int) -> None:
        self._stop(number)
        self.__exit__()
