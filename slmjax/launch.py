"""Run a stage of a recipe, such as training, on this host; several hosts each start this command.

python -m slmjax.launch --config=configs/tiny.py [--config.model.layers=12]
"""

import contextlib
import ctypes
import importlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from slmjax import cli
from slmjax import config as configs
from slmjax.cli import make_config, read_options
from slmjax.errors import UserError
from slmjax.text.claims import claimed

# Each stage of config.STAGES, and the function that runs it.
STAGES = {
    "train": "slmjax.train.run:run_train",
    "prepare": "slmjax.data.prepare_stage:run_prepare",
    "synthesize": "slmjax.synthesize.synthesize_stage:run_synthesize",
    "curate": "slmjax.curate.curate_stage:run_curate",
    "recall": "slmjax.studies.recall_study:run_recall",
    "mixture": "slmjax.studies.mixture_study:run_mixture",
    "forecast": "slmjax.studies.forecast_study:run_forecast",
    "evaluate": "slmjax.evals.evaluate_stage:run_evaluate",
    "reasoning": "slmjax.reasoning.reasoning_stage:run_reasoning",
}
# The stage train where config.train.minutes chooses the size and the steps.
MINUTES = "slmjax.studies.minutes_run:run_minutes"

USAGE = """\
usage: python -m slmjax.launch --config=RECIPE.py [--workdir=DIR] [--config.FIELD=VALUE ...]

  --config=PATH          a recipe, for example configs/tiny.py (PATH:WORD hands WORD to it), or a
                         run's config.json
  --workdir=DIR          where the run lives, local or gs:// (default: runs/<recipe's name>)
  --init_from=DIR        start from the parameters and buffers of another run's work directory, or
                         of its export; DIR,DIR,...: from the mean of several
  --trust=NAME           code of this name (MODULE:CLASS) may be imported, though a config.json or
                         a teacher's checkpoint names it
  --params=50m           a model of this many parameters, deep and thin, instead of the recipe's
                         shape; initial scales, learning rates and weight decay follow from the
                         recipe's own (config.model.multipliers, config.train.decay_lr); with
                         config.train.minutes the size is not chosen but this one
  --coordinator=H:P --processes=N --process=I
                         for several processes where they do not learn of each other otherwise

Fields, with their defaults; a recipe changes some, --config.FIELD=VALUE any:
"""

# Numbers of mallopt's parameters in glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# Bytes. Smaller blocks come from the heap, and free memory at its end is kept up to this size.
KEPT_BYTES = 1 << 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run a stage and return the exit status, see cli.entry."""
    return cli.entry(_run, argv)


def _run(argv: list[str]) -> int:
    began = time.time()
    if "--help" in argv or "-h" in argv or not argv:
        print(USAGE + configs.help_text())
        return 0
    options, assignments = read_options(argv)
    config = make_config(options, assignments)
    process = int(options.get("process", -1))  # -1 and 0: the options are not given
    processes = int(options.get("processes", 0))
    # Keyword arguments of the stage's function, and of `claimed`.
    stage_arguments: dict[str, Any] = {}
    claim_arguments: dict[str, Any] = {}
    if config.stage == "train":
        keep_freed_memory()
        from slmjax.parallel import hosts

        # Before anything asks JAX for its devices.
        hosts.start_processes(options.get("coordinator", ""), processes, process)
        claim_arguments = {"first": hosts.is_first(), "agree": hosts.all_agree}
    elif processes or process >= 0:
        _check_processes(process, processes, config.stage)
        stage_arguments |= {"process": process, "processes": processes}
    if config.stage in ("synthesize", "evaluate", "reasoning"):
        # A teacher, or the model that is evaluated, may be somebody else's checkpoint.
        stage_arguments["trust"] = cli.trusted(options)
    run_stage = _stage_function(STAGES[config.stage])
    if config.train.minutes and config.stage == "train":
        run_stage = _stage_function(MINUTES)
        stage_arguments["began"] = began
    stage_arguments["command"] = cli.shell_command(["python", "-m", "slmjax.launch", *argv])
    stage_arguments["init_from"] = cli.parent(options)
    workdir = cli.work_directory(options)
    with contextlib.ExitStack() as claims:
        # A second start must not write into the work directory. Preparation does not write there:
        # the folder of prepared text has a lock of its own. A bucket has no locks, so there a claim
        # helps only training, which asks it again before each save.
        trains = config.stage == "train"
        is_local = "://" not in workdir
        if trains or (is_local and config.stage != "prepare"):
            claim = claims.enter_context(claimed(workdir, **claim_arguments))
            check_stage(workdir, config.stage)
            if trains:
                stage_arguments["claim"] = claim
        return run_stage(config, workdir, **stage_arguments) or 0


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, in one arena; must come before JAX starts its threads.

    On a CPU, XLA frees a step's buffers after every step. If glibc gives them back to the system,
    the next step has to fault their pages in again: a step of configs/tiny.py took 242 to 262 ms
    without this and 185 to 264 with it. The system time of 15 steps fell from 1.7 s to between 0.1
    and 0.4 s (two cores).
    """
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # a C library other than glibc
        return
    libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    libc.mallopt(M_ARENA_MAX, 1)


def check_stage(workdir: str, stage: str) -> None:
    """Raises: UserError where the work directory holds another stage's files."""
    from etils import epath

    try:
        config = json.loads((epath.Path(workdir) / "config.json").read_text())
        earlier_stage = config.get("stage", stage)
    except (OSError, ValueError, AttributeError):  # no config.json, or a damaged one
        return
    if earlier_stage != stage:
        raise UserError(
            f"--workdir={workdir} holds what the stage {earlier_stage} wrote; "
            f"use another for the stage {stage}."
        )


def _check_processes(process: int, processes: int, stage: str) -> None:
    """Raises: UserError for options that do not fit a stage whose processes share only a folder."""
    if not 0 <= process < processes:
        raise UserError("--processes=N and --process=0..N-1 go together.")
    if stage in ("recall", "mixture", "forecast", "evaluate", "reasoning"):
        raise UserError(f"the stage {stage} is one process; it takes no --processes.")


def _stage_function(name: str) -> Any:
    """Return the function "module:name", imported only now: most stages import JAX."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    cli.script(main)
