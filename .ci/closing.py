"""Print the sum of the closing lines of pytest's logs: python .ci/closing.py LOG [LOG ...]."""

import re
import sys
from collections import Counter
from pathlib import Path

# Such as "=== 120 passed, 3 skipped in 81.20s (0:01:21) ===", with or without the marks.
CLOSING_LINE = re.compile(r"^=*\s*((?:\d+ \w+(?:, )?)+) in ([\d.]+)s", re.MULTILINE)


def total(logs: list[str]) -> str:
    """Return a line such as "=== 120 passed, 3 skipped in 81.20s ===", without deselected tests.

    Raises: SystemExit for a log without a closing line.
    """
    counts: Counter[str] = Counter()
    seconds = 0.0
    for log in logs:
        lines = CLOSING_LINE.findall(Path(log).read_text())
        if not lines:
            raise SystemExit(f"{log} has no closing line of pytest.")
        outcomes, duration = lines[-1]
        seconds += float(duration)
        for number, outcome in re.findall(r"(\d+) (\w+)", outcomes):
            if outcome != "deselected":
                counts[outcome] += int(number)
    words = ", ".join(f"{number} {outcome}" for outcome, number in counts.items() if number)
    return f"=== {words} in {seconds:.2f}s ==="


if __name__ == "__main__":
    print(total(sys.argv[1:]))
