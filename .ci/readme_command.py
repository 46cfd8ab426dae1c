"""Print a command of the README, so that CI runs it: python .ci/readme_command.py run|test."""

import re
import sys
from pathlib import Path


def command(name: str) -> str:
    """Return the bash block that follows the line `<!-- command: NAME -->`.

    Raises: SystemExit where there is not exactly one.
    """
    text = (Path(__file__).parent.parent / "README.md").read_text()
    found = re.findall(rf"<!-- command: {re.escape(name)} -->\n+```bash\n(.*?)```", text, re.DOTALL)
    if len(found) != 1:
        raise SystemExit(f"README.md has {len(found)} commands named '{name}'; expected one.")
    return found[0].strip()


if __name__ == "__main__":
    print(command(sys.argv[1]))
