r"""What a learning rate from a small model costs at a larger one, from finished runs of rate grids.

    for lr in 0.0015 0.003 0.006 0.012 0.024; do
        run="python -m slmjax.launch --config=configs/10m.py --config.data.sources=$sources
            --config.data.seq_len=512 --config.train.steps=1526 --config.train.microbatches=1
            --config.eval.every=0 --config.checkpoint.every=1526 --config.train.lr=$lr"
        $run --params=10m --workdir=runs/rates/10m/$lr
        $run --params=50m --workdir=runs/rates/50m-rule/$lr
        $run --params=50m --config.model.multipliers={} --workdir=runs/rates/50m-plain/$lr
    done
    python -m slmjax.bench.rate_transfer --base='runs/rates/10m/*' \
        --transferred='runs/rates/50m-rule/*' --untransferred='runs/rates/50m-plain/*'

$sources: the text, as on the page "studies". All runs read 100M tokens in batches of one size. The
decay is the same at every rate, as --params sets train.decay_lr. About 30 minutes on one H200 at
2.3M and 0.9M tokens/s; not yet run.

A grid is the runs that a pattern matches; they differ in train.lr and the seed alone. A run's loss
is its last held-out bits per byte. The best rate is the vertex of a parabola in log rate, see
record/best_rate.py. The cost is how much higher the larger model's parabola is at the small model's
best rate than at its own.
"""

import argparse
import glob
from collections.abc import Sequence

from slmjax import cli
from slmjax.config import FIELDS
from slmjax.errors import UserError
from slmjax.record import metrics
from slmjax.record.best_rate import RateFit, fit_best_rate
from slmjax.record.comparison import REPETITIONS, load_run

PROGRAM = "python -m slmjax.bench.rate_transfer"
LOSS = "eval/bits_per_byte"
GRIDS = ("base", "transferred", "untransferred")
# Fields in which the runs of one grid may differ.
VARIED = {"train.lr", *REPETITIONS}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status, see cli.entry."""
    return cli.entry(_run, arguments)


def read_grid(pattern: str) -> tuple[list[float], list[float]]:
    """Return (learning rates, last held-out bits per byte) of the runs that a pattern matches.

    Raises: UserError where nothing matches, a run is not finished, or two runs differ in more than
      rate and seed.
    """
    folders = sorted(glob.glob(pattern))
    if not folders:
        raise UserError(f"'{pattern}' matches no work directory.")
    rates, losses, first = [], [], {}
    for folder in folders:
        run = load_run(folder, folder)
        fixed = {name: run.config.get(name) for name in FIELDS if name not in VARIED}
        first = first or fixed
        for name, value in fixed.items():
            if value != first[name]:
                raise UserError(
                    f"'{folder}' has config.{name}={value!r}, '{folders[0]}' has "
                    f"{first[name]!r}; the runs of a grid differ in train.lr and seed alone."
                )
        rates.append(float(run.config["train.lr"]))
        losses.append(_last_loss(run.records, run.config["train.steps"], folder))
    return rates, losses


def table(fits: dict[str, RateFit]) -> str:
    """Return the grids' best rates, and what the base's best rate costs at the larger size.

    Args:
      fits: of each of GRIDS.
    """
    lines = ["| grid | best rate | bits per byte | misfit | cost of the base's rate |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name in GRIDS:
        fit = fits[name]
        cost = f"{fit.cost(fits['base'].rate):.2%}" if name != "base" else ""
        lines.append(f"| {name} | {fit.rate:.3g} | {fit.loss:.4f} | {fit.residual:.4f} | {cost} |")
    return "\n".join(lines)


def _last_loss(records: metrics.Records, steps: int, folder: str) -> float:
    """Return the loss after the last step. Raises: UserError where it was not measured."""
    for record in reversed(records.kept):
        if LOSS in record and record["step"] == steps:
            return float(record[LOSS])
    raise UserError(f"'{folder}' has no {LOSS} at its last step, {steps}; run it to its end.")


def _run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--base", required=True, help="work directories of the small model")
    parser.add_argument("--transferred", required=True, help="of the larger one, with the rule")
    parser.add_argument("--untransferred", required=True, help="of the larger one, without it")
    options = vars(parser.parse_args(words))
    fits = {}
    for name in GRIDS:
        try:
            fits[name] = fit_best_rate(*read_grid(options[name]))
        except UserError as error:
            raise UserError(f"--{name}: {error}") from error
    print(table(fits))
    return 0


if __name__ == "__main__":
    cli.script(main)
