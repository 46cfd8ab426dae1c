"""Add up the closing lines of pytest's logs and print one: python .ci/closing.py LOG [LOG ...]."""

import re
import sys
from collections import Counter
from pathlib import Path


def total(logs: list[str]) -> str:
    """Return a line such as "=== 120 passed, 3 skipped in 81.20s ===".

    Raises: SystemExit for a log without a closing line.
    """
    counts: Counter[str] = Counter()
    seconds = 0.0
    for name in logs:
        lines = re.findall(
            r"^=*\s*((?:\d+ \w+(?:, )?)+) in ([\d.]+)s", Path(name).read_text(), re.MULTILINE
        )
        if not lines:
            raise SystemExit(f"{name} has no closing line of pytest.")
        outcomes, took = lines[-1]
        seconds += float(took)
        for number, what in re.findall(r"(\d+) (\w+)", outcomes):
            counts[what] += int(number) * (what != "deselected")
    words = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    return f"=== {words} in {seconds:.2f}s ==="


if __name__ == "__main__":
    print(total(sys.argv[1:]))
