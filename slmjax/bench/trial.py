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
    """A program's compiled step and its state, which every window of steps goes on with."""

    def __init__(self, program: Program, task: Task, batch: dict):
        self.program = program
        began = time.perf_counter()
        self.step = program.compile(task)
        compiled = time.perf_counter()
        self.state = jax.block_until_ready(program.init())
        started = time.perf_counter()
        self.state, metrics = self.step(self.state, batch)
        loss = float(metrics["loss"])  # waits for the step
        ended = time.perf_counter()
        # By the compiler: a device's own peak would hold what other programs took before.
        memory = self.step.memory_analysis()
        peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        self.facts = {
            "peak_gib": peak / 2**30,
            "compile_s": compiled - began,
            "first_step_s": ended - started,
            "first_loss": loss,
        }

    def window(self, batches: Iterator, count: int) -> float:
        """Return the seconds of a step, over `count` steps.

        As in training, the host waits for the last one only.
        """
        began = time.perf_counter()
        self._go(batches, count)
        return (time.perf_counter() - began) / count

    def kernels(self, batches: Iterator) -> list[dict[str, Any]]:
        """See bench/device_kernels.py."""
        return kernels(lambda: self._go(batches, WINDOW), WINDOW)

    def row(self, who: str, documents: int, times: list[float]) -> dict[str, Any]:
        """Return the table's row for these windows' times, with the times themselves."""
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

    def _go(self, batches: Iterator, count: int) -> None:
        for batch in itertools.islice(batches, count):
            # The step takes over the old state's memory, so the new one is kept.
            self.state, metrics = self.step(self.state, batch)
        jax.block_until_ready((self.state, metrics))


def known_values(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the values that are not known here."""
    return {name: value for name, value in row.items() if value is not None}
