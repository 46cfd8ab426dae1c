"""Start a stage on this host (of one or many): `python -m slmjax.launch --config=configs/tiny.py [--config.model.layers=12]`."""

import contextlib
import ctypes
import errno
import importlib
import json
import os
import shlex
import signal
import sys
from pathlib import Path

from slmjax import config as configs
from slmjax.data.work import claimed
from slmjax.errors import UserError, nearest

STAGES = {
    "train": "slmjax.train.run:run",
    "prepare": "slmjax.data.stage:run",
    "synthesize": "slmjax.curate.synthesize.stage:run",
    "curate": "slmjax.curate.stage:run",
    "recall": "slmjax.studies.recall:run",
}

USAGE = """usage: python -m slmjax.launch --config=RECIPE.py [--workdir=DIR] [--config.FIELD=VALUE ...]

  --config=PATH          a recipe, for example configs/tiny.py
  --workdir=DIR          where the run lives, local or gs:// (default: runs/<recipe's name>)
  --init_from=DIR        start from the parameters of another run's work directory
  --params=50m           a model of this many parameters, deep and thin, instead of the recipe's shape
  --coordinator=H:P --processes=N --process=I   for several processes where nothing tells them of each other

Fields, with their defaults; a recipe changes some, --config.FIELD=VALUE any:
"""
FLAGS = ("config", "workdir", "init_from", "params", "coordinator", "processes", "process", "help")


def main(argv: list[str] | None = None) -> int:
    """Run a stage; returns the exit status: 0 done, 2 a mistake of the user (one sentence on stderr), 128 + signal when told to leave."""
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv or not argv:
        print(USAGE + configs.help_text())
        return 0
    try:
        options, assignments = parse(argv)
        config = make_config(options, assignments)
        workdir = os.path.expanduser(options.get("workdir") or f"runs/{Path(options['config'].partition(':')[0]).stem}")
        process, processes = int(options.get("process", -1)), int(options.get("processes", 0))
        share, together = {}, {}
        if config.stage == "train":
            keep_freed_memory()
            from slmjax.parallel import hosts

            hosts.start(options.get("coordinator", ""), processes, process)
            together = {"first": hosts.is_first(), "agree": hosts.all_agree}
        elif processes or process >= 0:  # preparation meets in the folder of prepared text and needs no coordinator
            if not 0 <= process < processes:
                raise UserError("--processes=N and --process=0..N-1 go together.")
            share = {"process": process, "processes": processes}
        module, _, function = STAGES[config.stage].partition(":")
        stage = getattr(importlib.import_module(module), function)
        command = shlex.join(["python", "-m", "slmjax.launch", *argv])
        init_from = os.path.expanduser(options.get("init_from", ""))
        with contextlib.ExitStack() as door:
            # Preparation writes only where the prepared text is, under a lock of its own. A bucket has
            # no locks, so there the claim helps only training, which asks again before it saves.
            if config.stage == "train" or (config.stage != "prepare" and "://" not in workdir):
                claim = door.enter_context(claimed(workdir, **together))
                check_stage(workdir, config.stage)
                share |= {"claim": claim} if config.stage == "train" else {}
            return stage(config, workdir, init_from=init_from, command=command, **share) or 0
    except UserError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:  # before or after the training loop, which has its own way to leave
        return 128 + signal.SIGINT
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            return _refuse(f"'{error.filename or 'the work directory'}' cannot be written: {os.strerror(error.errno)}.")
        raise
    except ValueError as error:
        if "No space left on device" in str(error):  # as the checkpoint storage says it
            return _refuse("the work directory cannot be written: No space left on device.")
        raise


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
        for parameter, value in ((-3, 1 << 30), (-1, 1 << 30), (-8, 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX
            libc.mallopt(parameter, value)


def parse(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """({flag: value}, ["model.layers=12", ...]) of command-line words; both --a=b and --a b are read.

    Raises: UserError for an unknown flag or one without a value.
    """
    options, assignments, words = {}, [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"'{word}' is not an option; options begin with --.{nearest('--' + word, ['--' + f for f in FLAGS])}")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"--{name} needs a value: --{name}=VALUE.")
            value = words.pop(0)
        if name.startswith("config."):
            assignments.append(f"{name.removeprefix('config.')}={value}")
        elif name in FLAGS:
            options[name] = value
        else:
            raise UserError(f"there is no option --{name}.{nearest(name, FLAGS)}")
    if "config" not in options:
        raise UserError("--config is missing; for example --config=configs/tiny.py.")
    for name in ("processes", "process"):
        if name in options and not options[name].lstrip("-").isdigit():
            raise UserError(f"--{name}={options[name]}: expected a whole number.")
    return options, assignments


def make_config(options: dict[str, str], assignments: list[str]):
    """The recipe with --params and the overrides applied, checked."""
    config = configs.override(configs.load(options["config"]), assignments)
    if "params" in options:
        from slmjax.models.sizes import parse_params, reshape

        decided = reshape(config, parse_params(options["params"]))
        given = [word.partition("=")[0] for word in assignments]
        if both := [name for name in given if name.removeprefix("model.") in decided]:
            raise UserError(f"--params={options['params']} decides config.{both[0]}, which is given too; leave one of the two out.")
    if config.stage not in STAGES:
        raise UserError(f"config.stage is '{config.stage}'; it can be {', '.join(STAGES)}.{nearest(config.stage, STAGES)}")
    return configs.validate(config)


def check_stage(workdir: str, stage: str) -> None:
    """Raises: UserError where the work directory holds what another stage wrote."""
    from etils import epath

    try:
        config = json.loads((epath.Path(workdir) / "config.json").read_text())
        earlier = config.get("stage", stage)
    except (OSError, ValueError, AttributeError):  # no config, or none that can be read
        return
    if earlier != stage:
        raise UserError(f"--workdir={workdir} holds what the stage {earlier} wrote; use another for the stage {stage}.")


def _refuse(sentence: str) -> int:
    print(f"slmjax: {sentence}", file=sys.stderr)
    return 2


def _unraisable(problem) -> None:
    """Where reading or writing one array fails, tensorstore's callbacks for others find their loop closed; the failure is told."""
    if str(problem.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(problem)


if __name__ == "__main__":
    sys.unraisablehook = _unraisable
    sys.exit(main())
