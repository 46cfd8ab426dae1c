"""What the benches share: comma-separated numbers at the shell, a peer in a process of its own, and random tokens. Imports no JAX."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def numbers(least: int) -> Callable[[str], list[int]]:
    """An argparse type: [1, 64] of "1,64", each number at least `least`."""

    def whole(text: str) -> list[int]:
        found = [int(part) for part in text.split(",")]
        if min(found) < least:
            raise ValueError
        return found

    whole.__name__ = f"comma-separated list of whole numbers of {least} or more"  # argparse names it in its message
    return whole


def random_tokens(shape: tuple[int, ...], vocab: int, seed: int) -> np.ndarray:
    """int64 token ids, as unequally frequent as words are (Zipf and Mandelbrot: the r-th has a share proportional to 1 / (r + 2.7)).

    A GPU adds gradients of one row of the embedding one after the other: with equally frequent tokens a bench would not see it.
    """
    shares = 1 / (np.arange(1, vocab + 1) + 2.7)
    return np.random.default_rng(seed).choice(vocab, shape, p=shares / shares.sum())


def ask(
    module: str, question: Any, *, seconds: float | None = None, **environment: str
) -> tuple[list[Any], str]:
    """(answers, fault): what `python -m module` prints for the question, which it reads as JSON: JSON values, one a line.

    A process of its own, because JAX takes most of a GPU's memory once it has begun.
    Args:
      seconds: after which the process is ended; what it has answered by then counts.
      environment: variables beside this process's.
    Returns: fault is "" or one line on how the process failed.
    """
    command = [sys.executable, "-m", module]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(question).encode(),
            capture_output=True,
            env={**os.environ, **environment},
            timeout=seconds,
            check=False,
        )
        words = done.stderr.decode(errors="replace").strip().splitlines()
        printed, fault = (
            done.stdout,
            (words or [f"ended with status {done.returncode}"])[-1] if done.returncode else "",
        )
    except subprocess.TimeoutExpired as late:
        printed, fault = late.stdout or b"", f"not finished after {seconds:.0f} s"
    return [
        json.loads(line) for line in printed.decode().splitlines() if line.startswith(("{", '"'))
    ], fault


def tell(row: dict[str, Any]) -> None:
    """A row as it is found, on stderr: the table comes at the end, and a bench that is stopped had better have said something."""
    cells = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
    )
    print(", ".join(cells), file=sys.stderr, flush=True)
