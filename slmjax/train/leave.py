"""How a run is asked to stop: signals save and leave, a second Ctrl-C leaves at once."""

import os
import signal

import jax


class Leave:
    """Context manager: SIGTERM and Ctrl-C in its block only ask the loop to save and leave.

    A second Ctrl-C leaves at once.

    asked: whether a signal has come.
    status: the exit status for it, 128 + the signal's number.
    """

    def __init__(self):
        self.asked = False
        self.status = 128 + signal.SIGTERM
        self._handlers = {}  # {signal: its handler before the block}

    def __enter__(self):
        numbers = [signal.SIGINT]
        # Several processes agree through JAX's preemption service, which catches SIGTERM in C++.
        if jax.process_count() == 1:
            numbers.append(signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        self.asked = True
        self.status = 128 + number
        # The next Ctrl-C raises KeyboardInterrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            # Ctrl-C becomes the signal that JAX's service catches.
            os.kill(os.getpid(), signal.SIGTERM)
