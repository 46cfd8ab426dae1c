"""Turns the first interruption of a run into a request to stop, so that it can finish cleanly."""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal:
    """A context in which the first SIGINT or SIGTERM calls `stop(number)`.

    `stop` is called by the event loop in which the context was entered. From then on a signal has
    its usual effect. Only the main thread can handle signals: in any other one, as in a notebook,
    nothing is changed.
    """

    def __init__(self, stop: Callable[[int], None]):
        self._stop = stop
        self._earlier: dict[signal.Signals, Any] = {}  # handlers, restored at the end

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            # A handler may interrupt the loop anywhere, so it only schedules a call.
            loop.call_soon_threadsafe(self._stop_once, number)

        for number in SIGNALS:
            self._earlier[number] = signal.getsignal(number)
            signal.signal(number, handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _stop_once(self, number: int) -> None:
        self._stop(number)
        self.__exit__()
