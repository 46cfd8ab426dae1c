"""What the benches share at the shell: comma-separated numbers, and a peer in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def numbers(least: int) -> Callable[[str], list[int]]:
    """An argparse type: [1, 64] of "1,64", each number at least `least`."""

    def whole(text: str) -> list[int]:
        found = [int(part) for part in text.split(",")]
        if min(found) < least:
            raise ValueError
        return found

    whole.__name__ = f"comma-separated list of whole numbers of {least} or more"  # argparse names it in its message
    return whole


def ask(module: str, question: Any, *, seconds: float | None = None, **environment: str) -> tuple[list[Any], str]:
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
        printed, fault = done.stdout, (words or [f"ended with status {done.returncode}"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        printed, fault = late.stdout or b"", f"not finished after {seconds:.0f} s"
    return [json.loads(line) for line in printed.decode().splitlines() if line.startswith(("{", '"'))], fault
