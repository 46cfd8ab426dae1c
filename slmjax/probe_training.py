"""Write dialogues with worked problems for the reasoning probe, without what it holds out.

python -m slmjax.probe_training --out=runs/worked
"""

from collections.abc import Sequence

from slmjax import cli

USAGE = (
    "Write dialogues with worked word problems to train on before the stage reasoning, none of "
    "them held out: python -m slmjax.probe_training --out=FOLDER."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, see cli.entry."""
    return cli.entry(_write, argv)


def probe_training_parser() -> cli.Parser:
    """Return the options of the command line."""
    parser = cli.Parser(prog="python -m slmjax.probe_training", description=USAGE)
    add = parser.add_argument
    default = "(default: %(default)s)"
    add("--out", required=True, metavar="FOLDER", help="folder for dialogues.jsonl")
    add(
        "--problems",
        default="",
        metavar="FILE",
        help="as config.reasoning.problems: a .jsonl in GSM8K's format, or 'examples' for the "
        "package's own; empty: GSM8K train in $SLMJAX_SHARED",
    )
    add(
        "--variants",
        type=int,
        default=20,
        help=f"of each trained-on template, with other numbers {default}",
    )
    return parser


def _write(words: list[str]) -> None:
    options = probe_training_parser().parse_args(words)
    # Late: --help needs none of it.
    from slmjax.reasoning.probe_columns import read_probe_problems
    from slmjax.reasoning.training_dialogues import DIALOGUES, write_probe_training

    of = read_probe_problems(options.problems)
    counts = write_probe_training(of, options.out, options.variants)
    print(
        f"{counts['dialogues']:,} dialogues: {counts['problems']:,} problems and "
        f"{counts['variants']:,} variants of {len(of.split.trained_on)} templates. "
        f"{len(of.split.forbidden):,} questions are held out."
    )
    searched = ", ".join(counts["searched for"]) or "none, as the problems are the package's own"
    print(f"Left out as in evaluation sets: {counts['in evaluation sets']}. Searched: {searched}.")
    path = f"{options.out}/{DIALOGUES}"
    print(
        "\nnext:\n  python -m slmjax.launch --config=configs/sft.py --init_from=runs/tiny "
        f"--workdir=runs/solver --config.data.sources=worked={path} "
        "--config.data.sources.worked.kind=chat"
    )


if __name__ == "__main__":
    cli.script(main)
