"""Compare runs: how their configs differ, and whether their scores do by more than chance.

python -m slmjax.compare RUN RUN [...]
"""

import argparse
import os
from collections.abc import Sequence

from slmjax import cli
from slmjax.errors import UserError
from slmjax.record.comparison import (
    ComparedRun,
    Comparison,
    compare,
    differences,
    group,
    load_run,
)
from slmjax.record.comparison_page import config_table, score_table, write_page
from slmjax.record.paired import bits_per_byte
from slmjax.record.verdicts import coverage_sentence, verdicts, warning

# A notebook compares with `from slmjax import compare` alone.
__all__ = [
    "ComparedRun",
    "Comparison",
    "bits_per_byte",
    "compare",
    "differences",
    "group",
    "load_run",
    "main",
    "print_comparison",
    "verdicts",
    "warning",
    "write_page",
]

DESCRIPTION = (
    "Compare runs: `python -m slmjax.compare RUN RUN [...]` shows how their configs differ and "
    "whether the difference is more than chance."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, see cli.entry."""
    return cli.entry(_run, argv)


def print_comparison(comparison: Comparison) -> None:
    """Print config differences, bits per byte with intervals, verdicts and a warning."""
    # Imported late, so that --help is quick.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Plain: names of runs may look like markup or emoji.
    console = Console(highlight=False, markup=False, emoji=False)
    tables = {
        "Config": config_table(comparison),
        "Held-out bits per byte": score_table(comparison),
    }
    for title, (head, rows) in tables.items():
        if not rows:  # as when all configs are equal
            continue
        table = Table(*head, title=title, title_justify="left", box=None, pad_edge=False)
        table.title_style = "bold"
        for row in rows:
            # As Text, since names and values may look like rich's markup.
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    for line in [*verdicts(comparison), warning(comparison), coverage_sentence(comparison)]:
        if line:
            console.print(line)


def _run(argv: list[str]) -> int:
    options = _read_options(argv)
    # Names of sources cannot be empty: "a,,b" is "a,b".
    sources = tuple(filter(None, options.sources.split(",")))
    comparison = compare(options.runs, sources=sources, seed=options.seed)
    # First the terminal, in case the page cannot be written.
    print_comparison(comparison)
    write_page(comparison, options.out)
    print(f"\n{options.out}")
    return 0


def _read_options(argv: list[str]) -> argparse.Namespace:
    """Return the options of a command line.

    Raises: UserError for an unknown option, a value that makes no sense, or an --out whose folder
      is missing, which is checked before the runs are read.
    """
    parser = cli.Parser(prog="python -m slmjax.compare", description=DESCRIPTION)
    add = parser.add_argument
    add(
        "runs",
        nargs="*",
        metavar="RUN",
        help="work directories, local or gs://; the first is what the others are compared with",
    )
    add("--out", default="compare.html", help="where to write the page (default: %(default)s)")
    add(
        "--sources",
        default="",
        help="held-out text to compare on, for example books,math (default: all, added up)",
    )
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}; it must be 0 or more.")
    # A path without a folder lies in the current one.
    folder = os.path.dirname(options.out)
    if "://" not in options.out and not os.path.isdir(folder or "."):
        raise UserError(f"Cannot write {options.out}: there is no folder '{folder}'.")
    return options


if __name__ == "__main__":
    cli.script(main)
