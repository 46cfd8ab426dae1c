"""Complete prompts with a trained model.

python -m slmjax.generate --checkpoint=WORKDIR --prompt="Once upon a time"
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmjax import cli
from slmjax.errors import UserError
from slmjax.readable import said_if_long
from slmjax.text.remote import existing_work_place

USAGE = (
    "Complete prompts with a trained model: "
    'python -m slmjax.generate --checkpoint=WORKDIR --prompt="Once upon a time".'
)
DIM, PLAIN = "\x1b[2m", "\x1b[0m"  # escape codes of terminals
BYTE_ORDER_MARK = "\ufeff"  # some editors put it before a text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, see cli.entry."""
    return cli.entry(lambda words: generate_texts(parse_options(words)), argv)


def generate_texts(options: argparse.Namespace) -> None:
    """Print each prompt with its completion to stdout; speed and warnings go to stderr.

    Raises: UserError for a value that makes no sense, a missing work directory, or a model that
      cannot be read.
    """
    prompts = read_prompts(options)
    workdir = existing_work_place(options.checkpoint, "--checkpoint")
    # These modules import jax, which takes seconds: --help and the errors above do not need it.
    from slmjax.infer import sampling

    # Wrong values are refused before a model is loaded.
    settings = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    sampling.check_sampling(**settings)
    from slmjax.infer.engine import Engine
    from slmjax.infer.load import load_model
    from slmjax.parallel.compiling import use_compile_cache

    # A later run with this model then compiles nothing.
    use_compile_cache()
    with said_if_long("reading the model", active=sys.stderr.isatty(), say=_say):
        model = load_model(workdir, options.step, options.trust)
    engine = Engine(model.arch, model.params, model.buffers, model.tokenizer, tuned=False)
    step = model.step
    trained_length = model.config.data.seq_len
    del model  # the engine has its own copy of the weights
    # Measured from here: loading the model is not a matter of the prompts.
    compile_times = _record_compile_times()
    start = time.perf_counter()
    with said_if_long("compiling and generating", active=sys.stderr.isatty(), say=_say):
        completions = engine.generate(
            prompts,
            max_tokens=options.max_tokens,
            stop=options.stop,
            seed=options.seed,
            **settings,
        )
    seconds = time.perf_counter() - start
    _print_texts(prompts, completions)
    _warn_if_longer(engine, prompts, completions, trained_length)
    token_count = sum(len(completion.tokens) for completion in completions)
    # Compilation would hide the speed of a short run.
    compile_seconds = sum(compile_times)
    speed = token_count / max(seconds - compile_seconds, 1e-9)
    rate = f"{speed:.0f} tokens/s after {compile_seconds:.1f} s of compilation"
    _say(f"step {step}: {token_count} tokens, {rate}")


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Return the prompts of --prompt, then the lines of --prompts that are not empty.

    Without both options it returns the lines of stdin, unless stdin is a terminal.
    Raises: UserError if there is no prompt, or the file is missing or not UTF-8.
    """
    prompts = list(options.prompt)
    source = options.prompts
    # stdin is None for a program without a console; a terminal would wait for somebody to type.
    stdin_has_text = sys.stdin is not None and not sys.stdin.isatty()
    if not source and not prompts and stdin_has_text:
        source = "-"
    if source:
        text = _text_of(source).removeprefix(BYTE_ORDER_MARK)
        # splitlines would also split at characters that a prompt may hold, such as U+2028.
        for line in text.replace("\r\n", "\n").split("\n"):
            if line.strip():
                prompts.append(line)
    if not prompts:
        expected = "give --prompt=TEXT, --prompts=FILE with one a line, or lines on stdin"
        raise UserError(f"there is no prompt; {expected}.")
    return prompts


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line.

    Raises: UserError for an unknown option (with the nearest name) or a value of another type.
    """
    return make_parser().parse_args(argv)


def make_parser() -> cli.Parser:
    """Return the parser of the command line."""
    parser = cli.Parser(
        may_be_empty=("--prompt", "--stop"), prog="python -m slmjax.generate", description=USAGE
    )
    add = parser.add_argument
    workdir_help = "work directory of a training run, or its export"
    add("--checkpoint", required=True, metavar="WORKDIR", help=workdir_help)
    add("--step", type=int, help="checkpoint of this step (default: the newest)")
    repeatable = {"action": "append", "default": []}
    add("--prompt", metavar="TEXT", help="text to complete; repeatable", **repeatable)
    add("--prompts", default="", metavar="FILE", help="file with a prompt on each line; - is stdin")
    default = "(default: %(default)s)"
    add("--max_tokens", type=int, default=128, help=f"longest completion in tokens {default}")
    add("--temperature", type=float, default=0.8, help=f"0 takes the likeliest token {default}")
    top_k_help = "draw among the k likeliest tokens; 0: all"
    add("--top_k", type=int, default=0, help=f"{top_k_help} {default}")
    top_p_help = "draw among the likeliest tokens that hold this share; 1: all"
    add("--top_p", type=float, default=1.0, help=f"{top_p_help} {default}")
    stop_help = "end before this text; repeatable; $'\\n' is a newline in most shells"
    add("--stop", metavar="TEXT", help=stop_help, **repeatable)
    seed_help = "of the draws: the same seed, prompts and model give the same text"
    add("--seed", type=int, default=0, help=f"{seed_help} {default}")
    trust_help = "a mixer that the checkpoint names and that may be imported"
    add("--trust", metavar="MODULE:CLASS", help=trust_help, **repeatable)
    return parser


def _record_compile_times() -> list[float]:
    """Return a list to which JAX adds the seconds of each compilation from now on."""
    import jax

    compile_times = []

    def note_compilation(event: str, seconds: float, **_) -> None:
        # Such as "/jax/core/compile/backend_compile_duration".
        if "/compile/" in event:
            compile_times.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note_compilation)
    return compile_times


def _text_of(source: str) -> str:
    """Return the text of a file, or of stdin for "-". Raises: UserError if it cannot be read."""
    name = "stdin" if source == "-" else f"'{source}'"
    try:
        if source == "-":
            return _stdin()
        return Path(source).expanduser().read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--prompts: {name} is not UTF-8 (byte {error.start}).") from None
    except OSError as error:
        raise UserError(f"--prompts: '{source}' cannot be read: {error.strerror}.") from None


def _stdin() -> str:
    """Return the text of stdin, which is UTF-8 in every locale."""
    raw = getattr(sys.stdin, "buffer", None)
    if raw is None:
        # A replacement without bytes, as tests and notebooks set it.
        return sys.stdin.read()
    return raw.read().decode("utf-8")


def _print_texts(prompts: Sequence[str], completions: Sequence) -> None:
    """Print each prompt, dim on a terminal, followed by its completion."""
    dim, plain = "", ""
    # NO_COLOR is a convention, see no-color.org.
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        dim, plain = DIM, PLAIN
    for prompt, completion in zip(prompts, completions):
        print(f"{dim}{prompt}{plain}{completion.text}", flush=True)


def _warn_if_longer(
    engine: Any,
    prompts: Sequence[str],
    completions: Sequence,
    trained_length: int,
) -> None:
    """Warn on stderr about a text of more tokens than the model was trained on."""
    longest = 0
    for prompt, completion in zip(prompts, completions):
        longest = max(longest, len(engine.encode(prompt)) + len(completion.tokens))
    if longest > trained_length:
        reason = f"the model was trained on {trained_length} and knows no positions beyond"
        _say(f"warning: a text has {longest} tokens; {reason}.")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    cli.script(main)
