"""What the library's figures are measured with, here: `python -m slmjax.bench --help` lists the benches."""

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
    "train": "the launcher's compiled train step, beside PyTorch",
    "attention": "one layer's attention, by kernel and documents in a row",
    "recurrence": "the linear recurrence alone, beside attention",
    "memory": "memory, state and speed of every token mixer at equal parameters",
    "data": "batches of packed rows from mixed sources",
    "decontaminate": "evaluation items hidden in training text, found",
    "decode": "generation, beside transformers",
    "dedup": "near-duplicate search, beside datasketch, rensa and datatrove",
}
# The module of a bench that has not the bench's own name.
MODULES = {
    "attention": "attention_speed",
    "recurrence": "recurrence_speed",
    "decontaminate": "find_contamination",
    "dedup": "find_duplicates",
}
WITHOUT_RECIPE = ("decontaminate", "dedup")  # they measure neither a model nor a recipe's text
RECIPE = "configs/304m.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one bench, print its table and write its JSON; returns the exit status, see cli.entry."""
    return cli.entry(_run, arguments)


def _run(arguments: list[str]) -> int:
    name = next((word for word in arguments if not word.startswith("-")), "")
    if name not in BENCHES:
        if {"-h", "--help"} & set(arguments):
            print(
                "\n".join(
                    [
                        f"{__doc__}\n",
                        *(f"  {bench:14}{meaning}" for bench, meaning in BENCHES.items()),
                    ]
                )
            )
            return 0
        raise UserError(
            f"expected one of {', '.join(BENCHES)}, found '{name}'.{nearest(name, BENCHES)}"
        )
    bench = importlib.import_module(f"slmjax.bench.{MODULES.get(name, name)}")
    own, fields = _split(arguments)
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
    elif fields:
        raise UserError(
            f"{name} reads no recipe; it takes no --config.{fields[0].partition('=')[0]}."
        )
    parser.add_argument("--out", default="", help="write the figures to this JSON file")
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        help="code that a config.json may name and that may be imported",
    )
    bench.add_arguments(parser)
    own.remove(name)
    parsed = parser.parse_args(own)
    if name not in WITHOUT_RECIPE:
        parsed.config = configs.freeze(
            cli.apply_overrides(configs.load_recipe(parsed.config, parsed.trust), fields)
        )
    found = bench.run(parsed)
    found |= {
        "machine": machine(),
        "command": cli.shown(["python", "-m", "slmjax.bench", *arguments]),
    }
    for name in ("rows", "curve", "ladder", "kernels", "clean", "sets"):
        if found.get(name):
            print(table(found[name]), end="\n\n")
    for message in found.get("messages", ()):
        print(message)
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    if parsed.out:
        Path(parsed.out).write_text(json.dumps(found, indent=1, default=str) + "\n", "utf-8")
    return 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The bench's own arguments, and what stands behind --config. in the others."""
    fields = [
        argument.removeprefix("--config.")
        for argument in arguments
        if argument.startswith("--config.")
    ]
    return [argument for argument in arguments if not argument.startswith("--config.")], fields


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the columns that any of them has, right-aligned."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [
        [column.replace("_", " ") for column in columns],
        *([_cell(row.get(column)) for column in columns] for row in rows),
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths))
        )
        for line in cells
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import jax

    facts = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cpu cores": os.cpu_count(),
    }
    return facts | {"jax": metadata.version("jax"), "python": platform.python_version()}


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
