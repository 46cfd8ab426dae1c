"""Timed windows of a program's compiled train step."""

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax

from slmjax.bench.device_kernels import kernels
from slmjax.tasks.task import Task
from slmjax.train.program import Program

WINDOW = 4  # steps between two looks at the clock


class Trial:
    """A program's compiled train step with its state.

    The constructor compiles the step, initialises the state and takes a first step on `batch`.
    Each window of steps then goes on from the state that the window before it left.
    """

    def __init__(self, program: Program, task: Task, batch: dict):
        self.program = program
        began = time.perf_counter()
        self.step = program.compile(task)
        compiled = time.perf_counter()
        self.state = jax.block_until_ready(program.init())
        started = time.perf_counter()
        self.state, metrics = self.step(self.state, batch, program.rates(0))
        loss = float(metrics["loss"])  # waits for the step
        ended = time.perf_counter()
        # From the compiler: the device's own peak would include earlier programs.
        memory = self.step.memory_analysis()
        peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        self.facts = {
            "peak_gib": peak / 2**30,
            "compile_s": compiled - began,
            "first_step_s": ended - started,
            "first_loss": loss,
        }

    def window(self, batches: Iterator, count: int) -> float:
        """Take `count` steps and return the mean seconds of one.

        As in training, the host waits for the last step only.
        """
        began = time.perf_counter()
        self._take_steps(batches, count)
        return (time.perf_counter() - began) / count

    def kernels(self, batches: Iterator) -> list[dict[str, Any]]:
        """Profile WINDOW steps; for the rows see kernels in bench/device_kernels.py."""
        return kernels(lambda: self._take_steps(batches, WINDOW), WINDOW)

    def row(self, who: str, documents: int, times: list[float]) -> dict[str, Any]:
        """Return the table's row, with the time of every window.

        Args:
          documents: in a row of the batch.
          times: seconds a step of each window.
        """
        config = self.program.config
        tokens = config.train.batch * config.data.seq_len
        ms = 1e3 * statistics.median(times)
        speed = 1e3 * tokens / ms
        row = {
            "who": who,
            "documents": documents,
            "step_ms": ms,
            "tokens_per_second": speed,
            "mfu": self.program.mfu(speed),
            **self.facts,
            "fastest_ms": 1e3 * min(times),
            "windows_ms": [1e3 * seconds for seconds in times],
        }
        return known_values(row)

    def _take_steps(self, batches: Iterator, count: int) -> None:
        rates = self.program.rates(0)
        for batch in itertools.islice(batches, count):
            # The step reuses the memory of the old state, so only the new one is valid.
            self.state, metrics = self.step(self.state, batch, rates)
        jax.block_until_ready((self.state, metrics))


def known_values(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its unknown values, which are None."""
    return {name: value for name, value in row.items() if value is not None}
