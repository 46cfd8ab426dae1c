"""Complete prompts with a trained model: python -m slmjax.generate --checkpoint=WORKDIR --prompt="Once upon a time"."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from slmjax import cli
from slmjax.errors import UserError
from slmjax.readable import said_if_long
from slmjax.text.remote import work_place


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, see cli.entry."""
    return cli.entry(lambda words: generate_texts(parse_options(words)), argv)


def generate_texts(options: argparse.Namespace) -> None:
    """Print each prompt (dim on a terminal) with its completion to stdout; speed and warnings go to stderr."""
    prompts, workdir = read_prompts(options), work_place(options.checkpoint, "--checkpoint")
    if "://" not in workdir and not Path(workdir).is_dir():
        raise UserError(f"--checkpoint: there is no work directory '{workdir}'.")
    import jax

    from slmjax.infer import sampling  # says what is wrong before a model is loaded

    drawing = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    sampling.check_sampling(**drawing)
    from slmjax.infer.engine import Engine
    from slmjax.infer.load import load_model
    from slmjax.parallel.compiling import use_compile_cache

    use_compile_cache()
    with said_if_long("reading the model", active=sys.stderr.isatty(), say=_say):
        model = load_model(workdir, options.step, options.trust)
    engine = Engine(model.arch, model.params, model.buffers, model.tokenizer, tuned=False)
    step, trained = model.step, model.config.data.seq_len
    del model  # the engine has weights of its own
    compiling = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: "/compile/" in event and compiling.append(seconds)
    )
    start = time.perf_counter()
    with said_if_long("compiling and generating", active=sys.stderr.isatty(), say=_say):
        completions = engine.generate(
            prompts, max_tokens=options.max_tokens, stop=options.stop, seed=options.seed, **drawing
        )
    seconds = time.perf_counter() - start
    dim, plain = (
        ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    )
    for prompt, completion in zip(prompts, completions):
        print(f"{dim}{prompt}{plain}{completion.text}", flush=True)
    longest = max(
        len(engine.encode(prompt)) + len(c.tokens) for prompt, c in zip(prompts, completions)
    )
    if longest > trained:
        print(
            f"warning: a text has {longest} tokens; the model was trained on {trained} and knows no positions beyond.",
            file=sys.stderr,
        )
    count, compiled = sum(len(c.tokens) for c in completions), sum(compiling)
    speed = count / max(seconds - compiled, 1e-9)
    print(
        f"step {step}: {count} tokens, {speed:.0f} tokens/s after {compiled:.1f} s of compilation",
        file=sys.stderr,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def read_prompts(options: argparse.Namespace) -> list[str]:
    """The prompts of --prompt, then the lines of --prompts (empty lines are none); of neither, the lines of stdin.

    Raises: UserError where there is no prompt, or the file is missing or not UTF-8.
    """
    prompts = list(options.prompt)
    source = options.prompts or ("" if prompts or sys.stdin is None or sys.stdin.isatty() else "-")
    if source:
        try:
            text = (
                _stdin()
                if source == "-"
                else Path(source).expanduser().read_bytes().decode("utf-8")
            )
        except UnicodeDecodeError as error:
            name = "stdin" if source == "-" else f"'{source}'"
            raise UserError(f"--prompts: {name} is not UTF-8 (byte {error.start}).") from None
        except OSError as error:
            raise UserError(f"--prompts: '{source}' cannot be read: {error.strerror}.") from None
        text = text.removeprefix("\ufeff")  # the byte-order mark of some editors
        lines = text.replace("\r\n", "\n").split("\n")
        prompts += [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(
            "there is no prompt; give --prompt=TEXT, --prompts=FILE with one a line, or lines on stdin."
        )
    return prompts


def _stdin() -> str:
    """The text of stdin, which is UTF-8 whatever the locale says."""
    raw = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if raw is None else raw.read().decode("utf-8")


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line.

    Raises: UserError for an unknown option (with the nearest name) or a value of another type.
    """
    return make_parser().parse_args(argv)


def make_parser() -> cli.Parser:
    """Return the options of the command line."""
    parser = cli.Parser(
        may_be_empty=("--prompt", "--stop"), prog="python -m slmjax.generate", description=__doc__
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="WORKDIR", help="work directory of a training run")
    add("--step", type=int, help="checkpoint of this step (default: the newest)")
    add(
        "--prompt", action="append", default=[], metavar="TEXT", help="text to complete; repeatable"
    )
    add("--prompts", default="", metavar="FILE", help="file with a prompt on each line; - is stdin")
    add(
        "--max_tokens",
        type=int,
        default=128,
        help="longest completion in tokens (default: %(default)s)",
    )
    add(
        "--temperature",
        type=float,
        default=0.8,
        help="0 takes the likeliest token (default: %(default)s)",
    )
    add(
        "--top_k",
        type=int,
        default=0,
        help="draw among the k likeliest tokens; 0: all (default: %(default)s)",
    )
    add(
        "--top_p",
        type=float,
        default=1.0,
        help="draw among the likeliest tokens that hold this share; 1: all (default: %(default)s)",
    )
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; repeatable; $'\\n' is a newline in most shells",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of the draws: the same seed, prompts and model give the same text (default: %(default)s)",
    )
    add(
        "--trust",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="a mixer that the checkpoint names and that may be imported",
    )
    return parser


if __name__ == "__main__":
    cli.script(main)
