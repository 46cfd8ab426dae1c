"""What a run will read: `python -m slmjax.mixture --config=RECIPE.py [--workdir=DIR] [--config.FIELD=VALUE ...]`, as for the launcher.

Prints epochs and caps of each source and writes `figures/shares.svg`. Prepares text where it is not yet; needs no accelerator.
"""

import sys
from pathlib import Path

from slmjax import figures
from slmjax.data.stage import batch_plan, prepared_text
from slmjax.data.work import write_atomic
from slmjax.errors import UserError
from slmjax.launch import make_config, parse
from slmjax.train import shares


def main(argv: list[str] | None = None) -> int:
    """Tell of a recipe's mixture; returns the exit status: 0, or 2 for a mistake of the user (one sentence on stderr)."""
    argv = sys.argv[1:] if argv is None else argv
    if "--help" in argv or "-h" in argv or not argv:
        print(__doc__)
        return 0
    try:
        options, assignments = parse(argv)
        config = make_config(options, assignments)
        workdir = Path(options.get("workdir") or f"runs/{Path(options['config'].partition(':')[0]).stem}").expanduser()
        plan = batch_plan(config, prepared_text(config, str(workdir), init_from=options.get("init_from", "")))
        for name, sentence in shares.told(plan).items():
            print(f"{name}: {sentence}")
        picture = workdir / "figures" / "shares.svg"
        write_atomic(picture, figures.standalone(shares.figure(plan.shares())))
        print(f"planned and realised shares: {picture}")
    except UserError as error:
        print(f"slmjax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
