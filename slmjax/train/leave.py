"""How a run is asked to stop: signals save and leave, a second Ctrl-C leaves at once."""

import os
import signal

import jax


class Leave:
    """Inside, SIGTERM and Ctrl-C ask the loop to save and leave; a second Ctrl-C leaves at once.

    asked: whether a signal has come; status: the exit status that it asks for.
    """

    def __init__(self):
        self.asked = False
        self.status = 128 + signal.SIGTERM
        self._handlers = {}

    def __enter__(self):
        numbers = [signal.SIGINT]
        # Several processes agree through JAX's own service, which catches SIGTERM below Python.
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
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:  # Ctrl-C becomes the signal that JAX's service catches
            os.kill(os.getpid(), signal.SIGTERM)
