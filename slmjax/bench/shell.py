"""Parts that the benches share: options, random tokens, peers in their own process, progress.

It imports no JAX, so that a peer may use it on a GPU that JAX must leave alone.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def numbers(least: int) -> Callable[[str], list[int]]:
    """Return an argparse type that reads "1,64" as [1, 64]; each number is at least `least`."""

    def parse(text: str) -> list[int]:
        values = [int(part) for part in text.split(",")]
        if min(values) < least:
            raise ValueError  # without a message: argparse writes one
        return values

    # argparse's message names the type: "invalid comma-separated list of ... value: '0'".
    parse.__name__ = f"comma-separated list of whole numbers of {least} or more"
    return parse


def random_tokens(shape: tuple[int, ...], vocab: int, seed: int) -> np.ndarray:
    """Return random int64 token ids that are as unequally frequent as words.

    The share of the r-th most frequent token is proportional to 1 / (r + 2.7).

    Source: Mandelbrot 1953, the law of Zipf with an offset.
    """
    # A GPU adds the gradients of one row of the embedding one after the other, so a frequent token
    # costs time. Equally frequent tokens would hide that cost.
    shares = 1 / (np.arange(1, vocab + 1) + 2.7)
    return np.random.default_rng(seed).choice(vocab, shape, p=shares / shares.sum())


def ask(
    module: str, question: Any, *, seconds: float | None = None, **environment: str
) -> tuple[list[Any], str]:
    """Ask `python -m module` a question, in a process of its own.

    The process reads the question as JSON and prints answers as JSON, one a line.

    Args:
      seconds: time limit. The process is ended then, and the answers that it has printed count.
      environment: environment variables, added to those of this process.
    Returns: (answers, fault); fault is "" or one line that says how the process failed.
    """
    # A process of its own, since JAX takes most of a GPU's memory once it has begun.
    command = [sys.executable, "-m", module]
    try:
        process = subprocess.run(
            command,
            input=json.dumps(question).encode(),
            capture_output=True,
            env={**os.environ, **environment},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as timeout:
        return _answers(timeout.stdout or b""), f"not finished after {seconds:.0f} s"
    return _answers(process.stdout), _fault(process)


def _answers(printed: bytes) -> list[Any]:
    """Return the values of the printed lines that begin like a JSON object or string.

    Libraries may print other lines too.
    """
    answers = []
    for line in printed.decode().splitlines():
        if line.startswith(("{", '"')):
            answers.append(json.loads(line))
    return answers


def _fault(process: subprocess.CompletedProcess) -> str:
    """Return how an ended process failed, in one line; "" where it succeeded."""
    if process.returncode == 0:
        return ""
    lines = process.stderr.decode(errors="replace").strip().splitlines()
    if not lines:
        return f"ended with status {process.returncode}"
    return lines[-1]  # the last line of a traceback names the error


def print_row(row: dict[str, Any]) -> None:
    """Print a row on stderr as soon as it is measured.

    The table is printed at the end. If a bench is stopped earlier, these lines remain.
    """
    cells = []
    for name, value in row.items():
        if isinstance(value, float):
            value = f"{value:.4g}"
        cells.append(f"{name} {value}")
    print(", ".join(cells), file=sys.stderr, flush=True)
