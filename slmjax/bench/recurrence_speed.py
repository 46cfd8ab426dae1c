"""The linear recurrence alone, next to attention, on the same tokens cut into rows of each length.

python -m slmjax.bench recurrence --lengths=4096,16384 --tokens=65536

Projections, convolutions and the computation of gates are left out. Values are as wide as the
config's attention (heads x head_dim; 1024 for configs/304m.py). ssm has heads of 64 that share keys
of 128; gla has heads of 256 with keys half as wide; gdn and kda have heads of 128. If the config's
attention is narrower than such a head, the head is as wide as attention. A row is one document.
`gib` is the memory of the compiled program of both passes, without its arguments.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slmjax.bench import shell
from slmjax.bench.timing import forward_and_backward, wall_ms
from slmjax.errors import UserError
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.ops.recurrence import recurrence
from slmjax.ops.softmax_attention import attention
from slmjax.parallel.mesh import make_mesh


class RecurrentHeads(NamedTuple):
    """Head sizes and gates of a recurrent mixer, as published."""

    value_dim: int
    key_dim: int
    shared_keys: bool  # one query/key head serves all value heads
    decays: str  # "number": a decay for each head; "channels": for each channel of a head's key
    erases: str | None  # the same of the gate that erases old values; None: there is no such gate


KINDS = {
    "ssm": RecurrentHeads(64, 128, shared_keys=True, decays="number", erases=None),
    "gla": RecurrentHeads(256, 128, shared_keys=False, decays="channels", erases=None),
    "gdn": RecurrentHeads(128, 128, shared_keys=False, decays="number", erases="number"),
    "kda": RecurrentHeads(128, 128, shared_keys=False, decays="channels", erases="number"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench recurrence`."""
    add = parser.add_argument
    add(
        "--lengths",
        type=shell.numbers(2),
        default="4096,16384",
        help="tokens of a row, comma-separated (default: %(default)s)",
    )
    add(
        "--tokens",
        type=int,
        default=65_536,
        help="tokens of all rows together (default: %(default)s)",
    )
    add(
        "--chunks",
        type=shell.numbers(16),
        default="64",
        help="tokens of a chunk, powers of two (default: %(default)s)",
    )
    add("--kinds", default=",".join(KINDS), help="comma-separated (default: %(default)s)")
    add("--runs", type=int, default=5, help="timed programs, of which the median counts")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure attention, and each kind of recurrence with each chunk size, at each length.

    Returns: {"rows": [...], ...}; `times attention` is the time of both passes divided by that of
      attention.
    Raises: UserError for an unknown kind, a chunk that is not a power of two, and rows longer than
      the tokens.
    """
    kinds = arguments.kinds.split(",")
    _check_arguments(arguments, kinds)
    config = arguments.config
    # One device: communication is not what is measured.
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    arch, _ = resolve(config.model, config.precision, mesh, config.data.vocab_size)
    rows = []
    for length in arguments.lengths:
        # Rows become fewer as they become longer, so the tokens stay about the same.
        shape = (arguments.tokens // length, length)
        rows += _rows_of_shape(arch, shape, kinds, arguments.chunks, arguments.runs)
    return {"bench": "recurrence", "rows": rows}


def _check_arguments(arguments: argparse.Namespace, kinds: list[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kinds={arguments.kinds}: '{kind}' is not among {', '.join(KINDS)}.")
    for chunk in arguments.chunks:
        # A power of two has one bit.
        if chunk & (chunk - 1):
            raise UserError(f"--chunks: {chunk} is not a power of two.")
    longest = max(arguments.lengths)
    if longest > arguments.tokens:
        raise UserError(
            f"--lengths: a row of {longest} tokens is longer than --tokens={arguments.tokens}."
        )


def _rows_of_shape(
    arch: Architecture, shape: tuple[int, int], kinds: list[str], chunks: list[int], runs: int
) -> list[dict[str, Any]]:
    """Return the row of attention and those of all recurrences, on tokens of this shape [B,T]."""
    batch, length = shape
    size = {"rows": batch, "length": length}
    attention_costs = _costs(*attention_case(arch, batch, length), runs)
    rows = [{"who": "attention", "how": arch.attention, **attention_costs, **size}]
    shell.print_row(rows[-1])
    for kind in kinds:
        for chunk in chunks:
            costs = _costs(*recurrence_case(arch, kind, chunk, batch, length), runs)
            how = f"{arch.recurrence}, chunks of {chunk}"
            row = {"who": kind, "how": how, **costs, **size}
            row["times attention"] = costs["both ms"] / attention_costs["both ms"]
            rows.append(row)
            shell.print_row(row)
    return rows


def attention_case(arch: Architecture, batch: int, length: int) -> tuple[Callable, tuple]:
    """Return (f, arguments) of causal attention over random rows, each of one document."""
    segments = jnp.ones((batch, length), jnp.int32)
    attend = functools.partial(
        attention,
        query_segments=segments,
        key_segments=segments,
        kernel=arch.attention,
        places=batch,  # a place for each row's one document
    )
    query_shape = (batch, length, arch.heads, arch.head_dim)  # [B,T,N,H]
    key_shape = (batch, length, arch.kv_heads, arch.head_dim)  # [B,T,K,H], of values too
    arguments = []
    for seed, shape in enumerate((query_shape, key_shape, key_shape)):
        arguments.append(_normal(seed, shape, arch.compute))
    return attend, tuple(arguments)


def recurrence_case(
    arch: Architecture, kind: str, chunk: int, batch: int, length: int
) -> tuple[Callable, tuple]:
    """Return (f, arguments) of a recurrence over random rows, with gates as in a new mixer."""
    heads = KINDS[kind]
    width = arch.heads * arch.head_dim
    V = min(heads.value_dim, width)
    K = min(heads.key_dim, width)
    H = width // V  # value heads
    G = 1 if heads.shared_keys else H  # query/key heads
    # Keys have a norm of about 1, as in a mixer: for larger ones the delta rule diverges.
    key_shape = (batch, length, G, K)
    query = _normal(0, key_shape, arch.compute) * K**-0.5
    key = _normal(1, key_shape, arch.compute) * K**-0.5
    value = _normal(2, (batch, length, H, V), arch.compute)
    gate_shapes = {"number": (batch, length, H), "channels": (batch, length, H, K)}
    decay_shape = gate_shapes[heads.decays]
    log_rates = jax.random.uniform(jax.random.key(3), decay_shape, minval=-7.0, maxval=-2.0)
    # The logarithm of a decay. Half of the memory is lost after log(2) / rate, 5 to 760 tokens.
    decay = -jnp.exp(log_rates)
    erase = None
    if heads.erases:
        erase = jax.nn.sigmoid(_normal(4, gate_shapes[heads.erases], jnp.float32))
    segments = jnp.ones((batch, length), jnp.int32)

    # The gates are arguments too, so that the backward pass computes their gradients as well.
    def outputs(query, key, value, decay, erase) -> Float[Array, "B T H V"]:
        out, _ = recurrence(
            query,
            key,
            value,
            decay,
            erase=erase,
            segments=segments,
            chunk=chunk,
            kernel=arch.recurrence,
        )
        return out

    return outputs, (query, key, value, decay, erase)


def _costs(f: Callable, arguments: tuple, runs: int) -> dict[str, Any]:
    """Return the milliseconds of the forward pass and of both passes, and the memory of both."""
    out = jax.eval_shape(f, *arguments)
    cotangent = _normal(9, out.shape, out.dtype)
    # One call a program, unlike timing.device_ms: a call takes milliseconds, so launching it hardly
    # counts, and a program of many calls would take long to compile.
    forward = jax.jit(f).lower(*arguments).compile()
    both_passes = jax.jit(forward_and_backward(f)).lower(arguments, cotangent).compile()
    return {
        "forward ms": wall_ms(lambda: forward(*arguments), runs=runs),
        "both ms": wall_ms(lambda: both_passes(arguments, cotangent), runs=runs),
        "gib": both_passes.memory_analysis().temp_size_in_bytes / 2**30,
    }


def _normal(seed: int, shape: tuple, dtype: Any) -> Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)
