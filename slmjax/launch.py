"""Start a stage on this host (of one or many): `python -m slmjax.launch --config=configs/tiny.py [--config.model.layers=12]`."""

import contextlib
import ctypes
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from slmjax import cli
from slmjax import config as configs
from slmjax.errors import UserError
from slmjax.text.claims import claimed

# Each stage of config.STAGES, and the function that runs it.
STAGES = {
    "train": "slmjax.train.run:run_train",
    "prepare": "slmjax.data.prepare_stage:run_prepare",
    "synthesize": "slmjax.synthesize.synthesize_stage:run_synthesize",
    "curate": "slmjax.curate.curate_stage:run_curate",
    "recall": "slmjax.studies.recall_study:run_recall",
}

USAGE = """usage: python -m slmjax.launch --config=RECIPE.py [--workdir=DIR] [--config.FIELD=VALUE ...]

  --config=PATH          a recipe, for example configs/tiny.py (PATH:WORD hands WORD to it), or a run's config.json
  --workdir=DIR          where the run lives, local or gs:// (default: runs/<recipe's name>)
  --init_from=DIR        start from the parameters and buffers of another run's work directory
  --trust=NAME           code of this name (MODULE:CLASS) may be imported, though a config.json or a teacher's checkpoint names it
  --params=50m           a model of this many parameters, deep and thin, instead of the recipe's shape
  --coordinator=H:P --processes=N --process=I   for several processes where nothing tells them of each other

Fields, with their defaults; a recipe changes some, --config.FIELD=VALUE any:
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage; returns the exit status, see cli.entry."""
    return cli.entry(_run, argv)


def _run(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv or not argv:
        print(USAGE + configs.help_text())
        return 0
    options, assignments = cli.read_options(argv)
    config = cli.make_config(options, assignments)
    process, processes = int(options.get("process", -1)), int(options.get("processes", 0))
    share: dict[str, Any] = {}
    together: dict[str, Any] = {}
    if config.stage == "train":
        keep_freed_memory()
        from slmjax.parallel import hosts

        hosts.start_processes(options.get("coordinator", ""), processes, process)
        together = {"first": hosts.is_first(), "agree": hosts.all_agree}
    elif (
        processes or process >= 0
    ):  # preparation meets in the folder of prepared text and needs no coordinator
        if not 0 <= process < processes:
            raise UserError("--processes=N and --process=0..N-1 go together.")
        if config.stage == "recall":
            raise UserError("the stage recall is one process; it takes no --processes.")
        share = {"process": process, "processes": processes}
    if config.stage == "synthesize":
        share["trust"] = cli.trusted(options)  # a teacher may be somebody else's checkpoint
    module, _, function = STAGES[config.stage].partition(":")
    stage = getattr(importlib.import_module(module), function)
    command = cli.shown(["python", "-m", "slmjax.launch", *argv])
    init_from = cli.parent(options)
    workdir = cli.work_directory(options)
    with contextlib.ExitStack() as door:
        # Preparation writes only where the prepared text is, under a lock of its own. A bucket has no
        # locks, so there the claim helps only training, which asks again before it saves.
        if config.stage == "train" or (config.stage != "prepare" and "://" not in workdir):
            claim = door.enter_context(claimed(workdir, **together))
            check_stage(workdir, config.stage)
            share |= {"claim": claim} if config.stage == "train" else {}
        return stage(config, workdir, init_from=init_from, command=command, **share) or 0


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed, in one arena; must come before JAX starts its threads.

    XLA frees a CPU step's buffers after every step; given back to the system, their pages are faulted in again: a step of configs/tiny.py
    took 242 to 262 ms without this and 185 to 264 with it, and system time fell from 1.7 s to 0.1 to 0.4 s in 15 steps (two cores).
    """
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
        except OSError:  # another C library, which this is not about
            return
        for parameter, value in (
            (-3, 1 << 30),
            (-1, 1 << 30),
            (-8, 1),
        ):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
            libc.mallopt(parameter, value)


def check_stage(workdir: str, stage: str) -> None:
    """Raises: UserError where the work directory holds what another stage wrote."""
    from etils import epath

    try:
        config = json.loads((epath.Path(workdir) / "config.json").read_text())
        earlier = config.get("stage", stage)
    except (OSError, ValueError, AttributeError):  # no config, or none that can be read
        return
    if earlier != stage:
        raise UserError(
            f"--workdir={workdir} holds what the stage {earlier} wrote; use another for the stage {stage}."
        )


if __name__ == "__main__":
    cli.script(main)
