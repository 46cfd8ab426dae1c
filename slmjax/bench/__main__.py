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
    "data": "batches of packed rows from mixed sources",
    "decontaminate": "evaluation items hidden in training text, found",
    "decode": "generation, next to transformers",
    "dedup": "near-duplicate search, next to datasketch, rensa and datatrove",
}
# The module of a bench that does not have the bench's own name.
MODULES = {
    "attention": "attention_speed",
    "recurrence": "recurrence_speed",
    "decontaminate": "find_contamination",
    "dedup": "find_duplicates",
}
WITHOUT_RECIPE = ("decontaminate", "dedup")  # they measure neither a model nor a recipe's text
RECIPE = "configs/304m.py"
TABLES = ("rows", "curve", "ladder", "kernels", "clean", "sets")  # of a bench's result, printed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one bench, print its table and write its JSON; returns the exit status, see cli.entry."""
    return cli.entry(_run, arguments)


def _run(arguments: list[str]) -> int:
    name = next((word for word in arguments if not word.startswith("-")), "")
    # Without a bench there is no parser yet that could answer --help.
    if name not in BENCHES:
        if "-h" in arguments or "--help" in arguments:
            print(f"{__doc__}\n")
            for bench, meaning in BENCHES.items():
                print(f"  {bench:14}{meaning}")
            return 0
        near = nearest(name, BENCHES)
        raise UserError(f"expected one of {', '.join(BENCHES)}, found '{name}'.{near}")
    # Only the bench that runs is imported: each needs other packages.
    bench = importlib.import_module(f"slmjax.bench.{MODULES.get(name, name)}")
    own, fields = _split(arguments)
    own.remove(name)
    if fields and name in WITHOUT_RECIPE:
        field, _, _ = fields[0].partition("=")
        raise UserError(f"{name} reads no recipe; it takes no --config.{field}.")
    options = _parser(name, bench).parse_args(own)
    if name not in WITHOUT_RECIPE:
        recipe = configs.load_recipe(options.config, options.trust)
        options.config = configs.freeze(cli.apply_overrides(recipe, fields))
    result = bench.run(options)
    # Figures mean nothing without the machine and the command that they come from.
    result["machine"] = machine()
    result["command"] = cli.shell_command(["python", "-m", "slmjax.bench", *arguments])
    for part in TABLES:
        if result.get(part):
            print(table(result[part]), end="\n\n")
    for message in result.get("messages", ()):
        print(message)
    print(", ".join(f"{fact} {value}" for fact, value in result["machine"].items()))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1, default=str) + "\n", "utf-8")
    return 0


def _parser(name: str, bench: Any) -> cli.Parser:
    """Return the options of a bench: those that all have, and its own."""
    parser = cli.Parser(
        prog=f"python -m slmjax.bench {name}",
        description=bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if name not in WITHOUT_RECIPE:
        what = "data.sources are read" if name == "data" else "model is measured"
        parser.add_argument(
            "--config", default=RECIPE, help=f"recipe whose {what} (default {RECIPE})"
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


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return (the bench's own arguments, FIELD=VALUE of those that begin with --config.)."""
    own, fields = [], []
    for argument in arguments:
        if argument.startswith("--config."):
            fields.append(argument.removeprefix("--config."))
        else:
            own.append(argument)
    return own, fields


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as text, with the columns that any of them has, right-aligned."""
    # A dict as an ordered set: the first row that has a column decides its place.
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
    lines = [[column.replace("_", " ") for column in columns]]
    for row in rows:
        lines.append([_cell(row.get(column)) for column in columns])
    widths = []
    for cells in zip(*lines):
        widths.append(max(map(len, cells)))
    texts = []
    for first, *others in lines:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        texts.append("  ".join(cells))
    return "\n".join(texts)


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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


if __name__ == "__main__":
    from slmjax.launch import keep_freed_memory

    keep_freed_memory()
    cli.script(main)
