"""Write a run's parameters as a folder that can be shared.

python -m slmjax.export --checkpoint=WORKDIR --out=DIR --dtype=bfloat16 --pieces=16MiB

--init_from=DIR starts another run from it, and generate reads it as it reads a work directory. The
optimizer's state stays behind. The layout is described in exported/read_export.py.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from etils import epath

from slmjax import cli
from slmjax.errors import UserError, nearest
from slmjax.text.claims import claimed
from slmjax.text.files import check_writable, writable
from slmjax.text.pieces import parse_bytes
from slmjax.text.remote import existing_work_place, work_place

USAGE = (
    "Write a run's parameters, and the buffers that belong to the model, in hashed pieces: "
    "python -m slmjax.export --checkpoint=WORKDIR --out=DIR --dtype=bfloat16 --pieces=16MiB."
)
DTYPES = ("float32", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, see cli.entry."""
    return cli.entry(lambda words: export_run(make_export_parser().parse_args(words)), argv)


def make_export_parser() -> cli.Parser:
    """Return the options of the command line."""
    parser = cli.Parser(prog="python -m slmjax.export", description=USAGE)
    add = parser.add_argument
    default = "(default: %(default)s)"
    add("--checkpoint", required=True, metavar="WORKDIR", help="work directory of a training run")
    add("--out", required=True, metavar="DIR", help="new folder, local or gs://")
    dtype_help = "float32 keeps every bit; bfloat16 rounds float32 parameters to half the bytes"
    add("--dtype", default="float32", help=f"{dtype_help} {default}")
    pieces_help = "largest file of parameters, such as 16MiB, 1GB or a number of bytes"
    add("--pieces", default="16MiB", metavar="SIZE", help=f"{pieces_help} {default}")
    add("--step", type=int, help="checkpoint of this step (default: the newest)")
    return parser


def export_run(options: argparse.Namespace) -> None:
    """Write the export that the options ask for and print what it holds.

    Raises: UserError for wrong options, a run that cannot be read, a folder that holds something
      else, and a value that bfloat16 cannot hold. Then the folder is as it was.
    """
    limit = parse_bytes(options.pieces, "--pieces")
    if options.dtype not in DTYPES:
        hint = nearest(options.dtype, DTYPES)
        raise UserError(f"--dtype={options.dtype}: expected {' or '.join(DTYPES)}.{hint}")
    workdir = existing_work_place(options.checkpoint, "--checkpoint")
    out = work_place(options.out, "--out")
    check_writable(out, "--out")
    # jax takes seconds to import: --help and the errors above do not need it.
    from slmjax.checkpoint import checkpoint_hash
    from slmjax.exported.write_export import write_export
    from slmjax.infer.load import checked_tokenizer

    restored = read_run(workdir, options.step)
    tokenizer = None
    # Empty where the task has no tokenizer.
    tokenizer_hash = restored.meta.get("tokenizer")
    if tokenizer_hash:
        tokenizer = checked_tokenizer(epath.Path(workdir), restored.step, tokenizer_hash)
    with claimed(out, field="--out"), writable(out, field="--out"):
        manifest = write_export(epath.Path(out), restored, tokenizer, options.dtype, limit)
    pieces = manifest["pieces"]
    size = sum(piece["bytes"] for piece in pieces)
    run_hash = checkpoint_hash(restored.meta)
    print(f"{out}: step {restored.step} of {workdir} ({run_hash}) as {options.dtype}")
    array_count = len(manifest["arrays"])
    print(f"{array_count} arrays, {size:,} bytes, in {len(pieces)} pieces with their hashes")


def read_run(workdir: str, step: int | None) -> Any:
    """Return parameters and buffers of a run's newest checkpoint, or of that of `step`.

    All buffers are taken. Which of them only training needs, the few scales of float8, is known to
    the code that the checkpoint names, and an export runs none of it.

    Returns: checkpoint.RestoredItems.
    Raises: UserError where no checkpoint can be read, or the folder is an export itself.
    """
    import jax

    from slmjax.checkpoint import Checkpoints
    from slmjax.exported.read_export import is_export
    from slmjax.infer.load import read_newest
    from slmjax.parallel.hosts import check_devices

    if is_export(workdir):
        raise UserError(
            f"--checkpoint={workdir} is an export itself, whose values may be rounded; "
            "export the run that it was made from."
        )
    check_devices()
    checkpoints = Checkpoints(workdir)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def read(candidate: int, meta: dict) -> Any:
        items = ["params"]
        # Before format 1 buffers were stored with the optimizer and are not read without it.
        if "buffers" in meta.get("digests", {}):
            items.append("buffers")
        shapes = {item: checkpoints.shapes(candidate, item, device) for item in items}
        return checkpoints.restore(candidate, shapes)

    return read_newest(checkpoints, workdir, step, read)


if __name__ == "__main__":
    cli.script(main)
