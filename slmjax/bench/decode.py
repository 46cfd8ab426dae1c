"""How fast the generation engine decodes, next to the memory's limit and to transformers.

python -m slmjax.bench decode --config=configs/300m.py --batch=1,64,256 --peers

Times the engine's own programs (infer/programs.py) on random weights: prefill of `prompt` tokens a
row, then `tokens` more, one a step, without an early stop. Each figure is the median of `runs`
after the first, which compiles.
"""

import argparse
import ast
import contextlib
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from slmjax.bench import shell
from slmjax.bench.peers import generation as decode_peers
from slmjax.errors import UserError
from slmjax.infer.engine import Batch, Engine
from slmjax.infer.sampling import sampling_of
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.parallel import devices
from slmjax.parallel.compiling import use_compile_cache
from slmjax.parallel.mesh import make_mesh

LEAST = {"prompt": 1, "tokens": 2, "runs": 1}  # smallest values of these flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench decode`."""
    add = parser.add_argument
    add(
        "--batch",
        type=shell.numbers(1),
        default="1,64,256",
        help="rows decoded at once, comma-separated (default: %(default)s)",
    )
    add(
        "--prompt",
        type=int,
        default=896,
        help="tokens of each prompt, end-of-text included (default: %(default)s)",
    )
    add("--tokens", type=int, default=128, help="tokens drawn after it (default: %(default)s)")
    add("--runs", type=int, default=5, help="timed runs of each batch (default: %(default)s)")
    add("--peers", action="store_true", help="transformers' generate too, with the same shape")
    add(
        "--peer-seconds",
        type=float,
        default=600.0,
        help="time for the peers; what they have not measured by then is left out",
    )
    add(
        "--xla",
        action="append",
        default=[],
        metavar="[prefill.]NAME=VALUE,...",
        help="compiler options to try on the decode program",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each batch.

    Returns: {"rows": [...], ...}; for the columns of a row see measure. The peers' rows come last.
      A batch that does not fit has a message instead of a row.
    Raises: UserError for options out of range, and for compiler options that XLA does not have.
    """
    config = arguments.config
    prompt = arguments.prompt
    tokens = arguments.tokens
    xla = parse_xla(arguments.xla)
    for name, least in LEAST.items():
        value = getattr(arguments, name)
        if value < least:
            raise UserError(f"--{name}={value}: expected at least {least}.")
    peer_rows, messages = [], []
    if arguments.peers:
        # Before our own runs: JAX takes most of a GPU's memory once it has begun.
        peer_rows, messages = decode_peers.measure_peer(
            config, arguments.batch, prompt, tokens, arguments.runs, arguments.peer_seconds
        )
    use_compile_cache()
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    arch, reasons = resolve(config.model, config.precision, mesh, config.data.vocab_size)
    # Random weights: speed does not depend on them.
    params = jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(config.seed))
    engine = Engine(arch, params, {}, BareIds(arch), xla=xla)
    ours = []
    for batch in arguments.batch:
        try:
            ours.append(measure(engine, batch, prompt, tokens, arguments.runs))
        except UserError as error:  # the engine foresees that its cache does not fit
            messages.append(f"slmjax, batch {batch}: {error}")
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" in str(error):
                _, _, reason = str(error).partition(": ")
                raise UserError(f"--xla: {reason}.") from None
            # Such as too little memory: other batches keep their rows.
            messages.append(f"slmjax, batch {batch}: {str(error).splitlines()[0]}")
    return {
        "bench": "decode",
        "rows": ours + peer_rows,
        "model": sizes.describe(arch),
        "choices": reasons,
        "xla": xla,
        "runs": arguments.runs,
        "tokens": tokens,
        "messages": messages,
    }


def measure(engine: Engine, rows: int, prompt: int, tokens: int, runs: int) -> dict[str, Any]:
    """Return the table's row of one batch.

    Args:
      rows: decoded at once.
      prompt, tokens: tokens of each prompt, and tokens drawn after it.
      runs: timed runs that the medians are of; another one before them compiles.
    Returns: a dict with these columns.
      prefill ms, ms a token: of the whole batch; all rows draw a token in one step.
      tokens/s: drawn by all rows together.
      state MB: the cache of one row, with room for its tokens.
      floor ms: the bytes of a step (sizes.decode_bytes, in the middle of the loop) over the
        memory's bandwidth; None where the bandwidth is not known.
      compile s: how much longer the first run took than the others. It is short if an earlier
        process has left the compiled programs on disk.
      peak GiB: most memory of the device that this process has taken so far; None where JAX does
        not report it.
    """
    random = np.random.default_rng(0)
    ids = random.integers(0, engine.arch.vocab_size, (rows, prompt)).tolist()
    batch = engine.prepare(ids, sampling_of(rows), tokens)
    # The first run compiles: the medians leave it out.
    first = _timed_run(engine, batch, rows, tokens)
    later_runs = [_timed_run(engine, batch, rows, tokens) for _ in range(runs)]
    prefill = statistics.median(run.prefill for run in later_runs)
    loop = statistics.median(run.loop for run in later_runs)
    device = next(iter(engine.params["embedding"].devices()))
    # Not every platform reports its memory: a CPU gives None.
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "who": "slmjax",
        "batch": rows,
        "prompt": prompt,
        "prefill ms": 1e3 * prefill,
        "ms a token": 1e3 * loop / tokens,
        "tokens/s": rows * tokens / loop,
        "state MB": first.row_bytes / 1e6,
        "floor ms": _floor_ms(engine.arch, device.device_kind, rows, prompt + tokens / 2),
        "compile s": max(0.0, first.prefill + first.loop - prefill - loop),
        "peak GiB": peak and peak / 2**30,
    }


class _Run(NamedTuple):
    """One run of the engine's two programs."""

    prefill: float  # seconds
    loop: float  # seconds that decoding took
    row_bytes: float  # size of the cache of one row


def _timed_run(engine: Engine, batch: Batch, rows: int, tokens: int) -> _Run:
    """Prefill and decode a batch once.

    Raises: RuntimeError where a row stopped early; its times would mean nothing.
    """
    began = time.perf_counter()
    cache = jax.block_until_ready(engine.prefill(batch))
    filled = time.perf_counter()
    # The loop takes over the cache's memory, so its size is read before.
    cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))
    row_bytes = cache_bytes / cache.length.size  # there is a length for each row
    started = time.perf_counter()
    state = jax.device_get(engine.loop(batch, cache))
    ended = time.perf_counter()
    counts = state.counts[:rows]  # of drawn tokens; a batch is padded to a power of two rows
    if not (counts == tokens).all():
        raise RuntimeError(f"rows drew {counts.tolist()} tokens, not {tokens} each")
    return _Run(filled - began, ended - started, row_bytes)


def _floor_ms(arch: Architecture, device_kind: str, rows: int, context: float) -> float | None:
    """Return the least milliseconds of a decode step: the bytes that it reads over the bandwidth.

    None where the device's bandwidth is not known.

    Args:
      context: tokens in each row's cache.
    """
    bandwidth = devices.memory_bandwidth(device_kind)
    if bandwidth is None:
        return None
    # A step reads all matrices once, and each row's cache. Arithmetic is not counted.
    return 1e3 * sizes.decode_bytes(arch, rows, context) / bandwidth


class BareIds:
    """A tokenizer of bare token ids, none of which ends a completion: no row stops early."""

    ends = ()

    def __init__(self, arch: Architecture):
        self.vocab_size = arch.vocab_size

    def token_bytes(self) -> list[bytes]:
        """Return an empty text for every id."""
        return [b""] * self.vocab_size


def parse_xla(words: list[str]) -> dict[str, dict[str, Any]]:
    """Return the compiler options of both programs, {"prefill": {name: value}, "decode": {...}}.

    Args:
      words: the values of --xla, such as "name=value,prefill.name=value". An option's value may
        hold commas itself (lists of names).

    Raises: UserError for a word without a name or without "=".
    """
    options: dict[str, dict[str, Any]] = {"prefill": {}, "decode": {}}
    for assignment in _assignments(words):
        name, equals, text = assignment.partition("=")
        if not (name and equals):
            raise UserError(
                f"--xla={assignment}: expected NAME=VALUE,"
                " such as xla_gpu_enable_triton_gemm=False."
            )
        program = "prefill" if name.startswith("prefill.") else "decode"
        value: Any = text
        # True, False and numbers get their types; any other text stays a text.
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text)
        options[program][name.removeprefix("prefill.")] = value
    return options


def _assignments(words: Sequence[str]) -> Iterator[str]:
    """Yield each "name=value" of the words."""
    for word in words:
        # A comma ends an assignment only where the next one, "name=", follows it.
        yield from re.split(r",(?=[\w.]+=)", word)
