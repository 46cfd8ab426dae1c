"""How fast the generation engine decodes, beside what the device's memory allows and what transformers does.

python -m slmjax.bench decode --config=configs/300m.py --batch=1,64,256 --peers

Times the engine's own programs (infer/programs.py) on random weights: prefill of `prompt` tokens a row, then `tokens` more, one a step,
without an early stop. Each figure is the median of `runs` after the first, which compiles.
"""

import argparse
import ast
import re
import statistics
import time
from typing import Any

import jax
import numpy as np

from slmjax.bench import shell
from slmjax.bench.peers import generation as decode_peers
from slmjax.errors import UserError
from slmjax.infer.engine import Engine
from slmjax.infer.sampling import sampling_of
from slmjax.models import lm, sizes
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.parallel import devices
from slmjax.parallel.compiling import use_compile_cache
from slmjax.parallel.mesh import make_mesh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The bench's own options."""
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
    """One row for each batch: prefill ms, ms a token (of the loop, the same for all rows), tokens/s of all rows together.

    floor ms: a step's bytes (sizes.decode_bytes in the middle of the loop) over the memory's bandwidth, where the device is known.
    state MB: what is kept of one row, with room for its tokens.
    compile s: by how much the first run took longer (less where an earlier process left its programs on disk).
    peak GiB: most device memory that the process had taken by then, where the device tells.
    Raises: UserError for options that make no sense.
    """
    config, prompt, tokens, runs = (
        arguments.config,
        arguments.prompt,
        arguments.tokens,
        arguments.runs,
    )
    batches, xla = arguments.batch, parse_xla(arguments.xla)
    for name, value, least in (("prompt", prompt, 1), ("tokens", tokens, 2), ("runs", runs, 1)):
        if value < least:
            raise UserError(f"--{name}={value}: expected at least {least}.")
    rows, messages = [], []
    if (
        arguments.peers
    ):  # first, and in a process of its own: JAX takes most of a GPU's memory once it has begun
        rows, messages = decode_peers.measure_peer(
            config, batches, prompt, tokens, runs, arguments.peer_seconds
        )
    use_compile_cache()
    arch, reasons = resolve(
        config.model,
        config.precision,
        make_mesh({"data": 1}, jax.local_devices()[:1]),
        config.data.vocab_size,
    )
    engine = Engine(
        arch,
        jax.jit(lm.init, static_argnums=0)(arch, jax.random.key(config.seed)),
        {},
        Numbers(arch),
        xla=xla,
    )
    ours = []
    for batch in batches:
        try:
            ours.append(measure(engine, batch, prompt, tokens, runs))
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" in str(error):
                raise UserError(f"--xla: {str(error).partition(': ')[2]}.") from None
            messages.append(f"slmjax, batch {batch}: {str(error).splitlines()[0]}")
    told = {
        "model": sizes.describe(arch),
        "choices": reasons,
        "xla": xla,
        "runs": runs,
        "tokens": tokens,
        "messages": messages,
    }
    return {"bench": "decode", "rows": ours + rows, **told}


def measure(engine: Engine, rows: int, prompt: int, tokens: int, runs: int) -> dict[str, Any]:
    """The row of one batch."""
    ids = np.random.default_rng(0).integers(0, engine.arch.vocab_size, (rows, prompt)).tolist()
    batch, times = engine.prepare(ids, sampling_of(rows), tokens), []
    for _ in range(1 + runs):
        start = time.perf_counter()
        cache = jax.block_until_ready(engine.prefill(batch))
        filled = time.perf_counter()
        state = jax.device_get(engine.loop(batch, cache))
        times.append((filled - start, time.perf_counter() - filled))
        if not (state.counts[:rows] == tokens).all():
            raise RuntimeError(
                f"rows drew {state.counts[:rows].tolist()} tokens, not {tokens} each"
            )
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers)) / cache.length.size
    prefill, loop = (statistics.median(of) for of in zip(*times[1:], strict=True))
    device = next(iter(engine.params["embedding"].devices()))
    bandwidth = devices.memory_bandwidth(device.device_kind)
    floor = (
        bandwidth and 1e3 * sizes.decode_bytes(engine.arch, rows, prompt + tokens / 2) / bandwidth
    )
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "who": "slmjax",
        "batch": rows,
        "prompt": prompt,
        "prefill ms": 1e3 * prefill,
        "ms a token": 1e3 * loop / tokens,
        "tokens/s": rows * tokens / loop,
        "state MB": held / 1e6,
        "floor ms": floor,
        "compile s": max(0.0, sum(times[0]) - prefill - loop),
        "peak GiB": peak and peak / 2**30,
    }


class Numbers:
    """A tokenizer of numbers only, none of which ends a completion, so that none stops early."""

    ends = ()

    def __init__(self, arch: Architecture):
        self.vocab_size = arch.vocab_size

    def token_bytes(self) -> list[bytes]:
        return [b""] * self.vocab_size


def parse_xla(words: list[str]) -> dict[str, dict[str, Any]]:
    """{"prefill": {name: value}, "decode": {...}} of ["name=value,prefill.name=value", ...]; a value may hold commas (lists of names).

    Raises: UserError for a word without a value.
    """
    out: dict[str, dict[str, Any]] = {"prefill": {}, "decode": {}}
    for assignment in (part for word in words for part in re.split(r",(?=[\w.]+=)", word)):
        name, equals, value = assignment.partition("=")
        if not (name and equals):
            raise UserError(
                f"--xla={assignment}: expected NAME=VALUE, such as xla_gpu_enable_triton_gemm=False."
            )
        program = "prefill" if name.startswith("prefill.") else "decode"
        try:
            out[program][name.removeprefix("prefill.")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[program][name.removeprefix("prefill.")] = value
    return out
