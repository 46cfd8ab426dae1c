"""Print and plot what a run will read, without training.

python -m slmjax.mixture --config=RECIPE.py [--workdir=DIR] [--config.FIELD=VALUE ...]

The options are the launcher's. Prints how often each source is read, and draws the planned shares
into figures/shares.svg of the work directory. Prepares text that is not prepared yet; needs no
accelerator.
"""

from collections.abc import Sequence
from pathlib import Path

from slmjax import cli
from slmjax.cli import make_config, read_options
from slmjax.data.prepare_stage import batch_plan, prepared_text
from slmjax.errors import UserError
from slmjax.record import figures, shares
from slmjax.text.files import check_writable, write_atomic


def main(argv: Sequence[str] | None = None) -> int:
    """Print and plot a recipe's mixture and return the exit status, see cli.entry."""
    return cli.entry(_run, argv)


def _run(argv: list[str]) -> int:
    if "--help" in argv or "-h" in argv or not argv:
        print(__doc__)
        return 0
    options, assignments = read_options(argv)
    config = make_config(options, assignments)
    # Other stages read no mixture.
    if config.stage not in ("train", "prepare"):
        raise UserError(
            f"--config: the stage of this recipe is '{config.stage}'; "
            "expected a recipe that trains."
        )
    workdir = Path(cli.work_directory(options))
    # Before the text is prepared, which may take hours.
    check_writable(str(workdir))
    prepared = prepared_text(config.data, str(workdir), init_from=cli.parent(options))
    # The rows that training would read, in the same order.
    plan = batch_plan(config.data, config.train, prepared, seed=config.seed)
    for name, sentence in shares.reading_sentences(plan).items():
        print(f"{name}: {sentence}")
    picture = workdir / "figures" / "shares.svg"
    write_atomic(picture, figures.standalone(shares.figure(plan.shares())))
    print(f"planned and realised shares: {picture}")
    return 0


if __name__ == "__main__":
    cli.script(main)
