"""Parts that the benches share: options, random tokens, peers in their own process, progress.

Imports no JAX, so that a peer may use it on a GPU that JAX must leave alone.
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

    def whole(text: str) -> list[int]:
        values = [int(part) for part in text.split(",")]
        # argparse makes the message of a ValueError itself.
        if min(values) < least:
            raise ValueError
        return values

    # argparse prints the name of the type: "invalid comma-separated list of ... value: '0'".
    whole.__name__ = f"comma-separated list of whole numbers of {least} or more"
    return whole


def random_tokens(shape: tuple[int, ...], vocab: int, seed: int) -> np.ndarray:
    """Return random int64 token ids, as unequally frequent as words are.

    The r-th most frequent one has a share proportional to 1 / (r + 2.7).

    Source: Mandelbrot 1953, the law of Zipf with an offset.
    """
    # A GPU adds the gradients of one row of the embedding one after the other. Equally frequent
    # tokens would hide that.
    shares = 1 / (np.arange(1, vocab + 1) + 2.7)
    return np.random.default_rng(seed).choice(vocab, shape, p=shares / shares.sum())


def ask(
    module: str, question: Any, *, seconds: float | None = None, **environment: str
) -> tuple[list[Any], str]:
    """Ask `python -m module` a question, in a process of its own.

    The process reads the question as JSON and prints answers as JSON, one a line.

    Args:
      seconds: the process is ended after them; its answers until then count.
      environment: variables in addition to this process's.
    Returns: (answers, fault); fault is "" or one line on how the process failed.
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
    except subprocess.TimeoutExpired as late:
        return _answers(late.stdout or b""), f"not finished after {seconds:.0f} s"
    return _answers(process.stdout), _fault(process)


def _answers(printed: bytes) -> list[Any]:
    """Return the objects and strings among printed lines; libraries may print other lines too."""
    answers = []
    for line in printed.decode().splitlines():
        if line.startswith(("{", '"')):
            answers.append(json.loads(line))
    return answers


def _fault(process: subprocess.CompletedProcess) -> str:
    if not process.returncode:
        return ""
    lines = process.stderr.decode(errors="replace").strip().splitlines()
    if not lines:
        return f"ended with status {process.returncode}"
    return lines[-1]  # the last line of a traceback names the error


def print_row(row: dict[str, Any]) -> None:
    """Print a row on stderr as soon as it is measured.

    The table comes at the end; this is what a bench that is stopped leaves behind.
    """
    cells = []
    for name, value in row.items():
        if isinstance(value, float):
            value = f"{value:.4g}"
        cells.append(f"{name} {value}")
    print(", ".join(cells), file=sys.stderr, flush=True)
