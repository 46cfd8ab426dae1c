"""Benches that print the documentation's figures: `python -m slmjax.bench --help` lists them."""

import argparse
import importlib
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from slmjax import cli
from slmjax import config as configs
from slmjax.errors import UserError, nearest

BENCHES = {
    "train": "the launcher's compiled train step, next to PyTorch",
    "attention": "one layer's attention, by kernel and documents in a row",
    "recurrence": "the linear recurrence alone, next to attention",
    "memory": "memory, state and speed of every token mixer at equal parameters",
    "copying": "GSM8K answered by copying equations, and a model next to it",
    "data": "batches of packed rows from mixed sources",
    "decontaminate": "evaluation items hidden in training text, found",
    "contamination": "evaluation items in the training text of a recipe or a run",
    "decode": "generation, next to transformers",
    "dedup": "near-duplicate search, next to datasketch, rensa and datatrove",
    "orpo": "preferences learned from pairs, next to TRL",
    "regmix": "losses of mixtures predicted from RegMix's proxies, next to LightGBM",
    "probe": "the reasoning probe on solvers of known kinds",
}
# The module of a bench that does not have the bench's own name.
MODULES = {
    "attention": "attention_speed",
    "recurrence": "recurrence_speed",
    "contamination": "mixture_contamination",
    "copying": "gsm8k_copying",
    "decontaminate": "find_contamination",
    "dedup": "find_duplicates",
    "orpo": "orpo_comparison",
}
WITHOUT_RECIPE = (
    "copying",
    "decontaminate",
    "dedup",
    "regmix",
    "probe",
)  # they measure neither a model nor a recipe's text
RECIPE = "configs/304m.py"
# Keys of a bench's result whose rows are printed as a table.
TABLES = ("rows", "curve", "ladder", "kernels", "clean", "sets", "rates", "runs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one bench, print its table and write its JSON; returns the exit status, see cli.entry."""
    return cli.entry(_run, arguments)


def _run(arguments: list[str]) -> int:
    # The first word that is not a flag names the bench.
    name = next((word for word in arguments if not word.startswith("-")), "")
    if name not in BENCHES:
        # Each bench has its own parser. Without a bench, --help is answered here.
        if "-h" in arguments or "--help" in arguments:
            print(f"{__doc__}\n")
            for known_name, meaning in BENCHES.items():
                print(f"  {known_name:14}{meaning}")
            return 0
        near = nearest(name, BENCHES)
        raise UserError(f"expected one of {', '.join(BENCHES)}, found '{name}'.{near}")
    # Only the bench that runs is imported: the others may need packages that are missing here.
    bench = importlib.import_module(f"slmjax.bench.{MODULES.get(name, name)}")
    bench_arguments, assignments = _split_off_fields(arguments)
    bench_arguments.remove(name)
    if assignments and name in WITHOUT_RECIPE:
        field, _, _ = assignments[0].partition("=")
        raise UserError(f"{name} reads no recipe; it takes no --config.{field}.")
    options = _parser(name, bench).parse_args(bench_arguments)
    if name not in WITHOUT_RECIPE:
        # Only a bench whose recipe goes on from another run has the option.
        init_from = getattr(options, "init_from", "")
        recipe = configs.load_recipe(options.config, options.trust, init_from)
        # The config itself takes the place of the recipe's path.
        options.config = configs.freeze(cli.apply_overrides(recipe, assignments))
    result = bench.run(options)
    # Figures mean nothing without the machine and the command that they come from.
    result["machine"] = machine()
    result["command"] = cli.shell_command(["python", "-m", "slmjax.bench", *arguments])
    for key in TABLES:
        if result.get(key):
            print(table(result[key]), end="\n\n")
    for message in result.get("messages", ()):
        print(message)
    print(", ".join(f"{fact} {value}" for fact, value in result["machine"].items()))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1, default=str) + "\n", "utf-8")
    return 0


def _parser(name: str, bench: Any) -> cli.Parser:
    """Return a bench's parser, with the options that all benches share and its own."""
    parser = cli.Parser(
        prog=f"python -m slmjax.bench {name}",
        description=bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if name not in WITHOUT_RECIPE:
        use = "data.sources are read" if name == "data" else "model is measured"
        default = getattr(bench, "RECIPE", RECIPE)
        parser.add_argument(
            "--config", default=default, help=f"recipe whose {use} (default {default})"
        )
    parser.add_argument("--out", default="", help="write the figures to this JSON file")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        help="code that a config.json may name and that may be imported",
    )
    bench.add_arguments(parser)
    return parser


def _split_off_fields(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return (the bench's own arguments, the FIELD=VALUE of each --config.FIELD=VALUE)."""
    bench_arguments, assignments = [], []
    for argument in arguments:
        if argument.startswith("--config."):
            assignments.append(argument.removeprefix("--config."))
        else:
            bench_arguments.append(argument)
    return bench_arguments, assignments


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as text, with every column that any of them has.

    The first column is left-aligned, the others are right-aligned.
    """
    # A dict as an ordered set: the first row that has a column decides its place.
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
    grid = [[column.replace("_", " ") for column in columns]]  # the heading, then the rows
    for row in rows:
        grid.append([_cell(row.get(column)) for column in columns])
    widths = []
    for column_cells in zip(*grid):
        widths.append(max(map(len, column_cells)))
    lines = []
    for first, *others in grid:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def machine() -> dict[str, Any]:
    """Return facts about the machine that the figures were measured on."""
    import jax  # late: --help must not wait for it

    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu cores": os.cpu_count(),
        "jax": metadata.version("jax"),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    from slmjax.launch import keep_freed_memory

    keep_freed_memory()  # before JAX starts its threads
    cli.script(main)
