"""What a run will read: `python -m slmjax.mixture --config=RECIPE.py [--workdir=DIR] [--config.FIELD=VALUE ...]`, as for the launcher.

Prints epochs and caps of each source and writes `figures/shares.svg`. Prepares text where it is not yet; needs no accelerator.
"""

from collections.abc import Sequence
from pathlib import Path

from slmjax import cli, figures
from slmjax.data.stage import batch_plan, prepared_text
from slmjax.data.work import write_atomic
from slmjax.launch import make_config, parent, parse, work_directory
from slmjax.train import shares


def main(argv: Sequence[str] | None = None) -> int:
    """Print a recipe's mixture; returns the exit status, see cli.entry."""
    return cli.entry(_run, argv)


def _run(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv or not argv:
        print(__doc__)
        return 0
    options, assignments = parse(argv)
    config = make_config(options, assignments)
    workdir = Path(work_directory(options))
    plan = batch_plan(config, prepared_text(config, str(workdir), init_from=parent(options)))
    for name, sentence in shares.told(plan).items():
        print(f"{name}: {sentence}")
    picture = workdir / "figures" / "shares.svg"
    write_atomic(picture, figures.standalone(shares.figure(plan.shares())))
    print(f"planned and realised shares: {picture}")
    return 0


if __name__ == "__main__":
    cli.script(main)
