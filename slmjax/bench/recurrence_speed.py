"""The linear recurrence alone beside attention: forward, and with its backward pass, on the same tokens cut into rows of other lengths.

python -m slmjax.bench recurrence --lengths=4096,16384 --tokens=65536

Projections, convolutions and gates are apart. Shapes have the value width of the config's attention (heads x head_dim; 1024 for
configs/304m.py): ssm has heads of 64 that share keys of 128, gla half as wide keys as values in heads of 256, gdn and kda heads of 128; all
of them narrower where the width is. Rows are one document each. `gib` is what the compiled programs take beside their arguments.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from slmjax.bench import shell
from slmjax.bench.timing import both, wall_ms
from slmjax.errors import UserError
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.ops.recurrence import recurrence
from slmjax.ops.softmax_attention import attention
from slmjax.parallel.mesh import make_mesh

# value head, key head, one query/key head for all, decays and erasing: a number or one for each channel of a key
KINDS = {
    "ssm": (64, 128, True, "number", None),
    "gla": (256, 128, False, "channels", None),
    "gdn": (128, 128, False, "number", "number"),
    "kda": (128, 128, False, "channels", "number"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m slmjax.bench recurrence`."""
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
    """A row for attention and for each kind and chunk at each length; `times attention` is of the whole, less is better.

    Raises: UserError for a kind that is none, a chunk that is no power of two, and rows longer than the tokens.
    """
    kinds = arguments.kinds.split(",")
    if bad := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--kinds={arguments.kinds}: '{bad[0]}' is not among {', '.join(KINDS)}.")
    if bad := [chunk for chunk in arguments.chunks if chunk & (chunk - 1)]:
        raise UserError(f"--chunks: {bad[0]} is not a power of two.")
    if max(arguments.lengths) > arguments.tokens:
        raise UserError(
            f"--lengths: a row of {max(arguments.lengths)} tokens is longer than --tokens={arguments.tokens}."
        )
    c = arguments.config
    arch, _ = resolve(
        c.model, c.precision, make_mesh({"data": 1}, jax.local_devices()[:1]), c.data.vocab_size
    )
    rows = []
    for length in arguments.lengths:
        shape = (arguments.tokens // length, length)
        first = _timed("attention", arch.attention, *attention_case(arch, *shape), arguments.runs)
        rows.append({**first, "rows": shape[0], "length": length})
        shell.tell(rows[-1])
        for kind in kinds:
            for chunk in arguments.chunks:
                row = _timed(
                    kind,
                    f"{arch.recurrence}, chunks of {chunk}",
                    *recurrence_case(arch, kind, chunk, *shape),
                    arguments.runs,
                )
                rows.append(
                    {
                        **row,
                        "rows": shape[0],
                        "length": length,
                        "times attention": row["both ms"] / first["both ms"],
                    }
                )
                shell.tell(rows[-1])
    return {"bench": "recurrence", "rows": rows}


def attention_case(arch: Architecture, batch: int, length: int) -> tuple[Callable, tuple]:
    """(f, arguments) of causal attention."""
    N, K, H = arch.heads, arch.kv_heads, arch.head_dim
    segments = jnp.ones((batch, length), jnp.int32)
    call = functools.partial(
        attention,
        query_segments=segments,
        key_segments=segments,
        kernel=arch.attention,
        places=batch,
    )
    return call, tuple(
        _normal(i, (batch, length, n, H), arch.compute) for i, n in enumerate((N, K, K))
    )


def recurrence_case(
    arch: Architecture, kind: str, chunk: int, batch: int, length: int
) -> tuple[Callable, tuple]:
    """(f, arguments) of a recurrence with gates as a fresh mixer has them: decays that forget half in some ten to a thousand tokens."""
    V, K, shared, decays, erases = KINDS[kind]
    width = arch.heads * arch.head_dim
    V, K = min(V, width), min(K, width)
    H = width // V
    G = 1 if shared else H
    query, key = (_normal(i, (batch, length, G, K), arch.compute) * K**-0.5 for i in (0, 1))
    gate = {"number": (batch, length, H), "channels": (batch, length, H, K)}
    decay = -jnp.exp(jax.random.uniform(jax.random.key(3), gate[decays], minval=-7.0, maxval=-2.0))
    erase = jax.nn.sigmoid(jax.random.normal(jax.random.key(4), gate[erases])) if erases else None
    segments = jnp.ones((batch, length), jnp.int32)

    def call(query, key, value, decay, erase):
        return recurrence(
            query,
            key,
            value,
            decay,
            erase=erase,
            segments=segments,
            chunk=chunk,
            kernel=arch.recurrence,
        )[0]

    return call, (query, key, _normal(2, (batch, length, H, V), arch.compute), decay, erase)


def _timed(who: str, how: str, f: Callable, arguments: tuple, runs: int) -> dict[str, Any]:
    """One program a call, not many calls in one program as elsewhere in the bench: these take milliseconds, and compile long."""
    out = jax.eval_shape(f, *arguments)
    cotangent = _normal(9, out.shape, out.dtype)
    forward, whole = (
        jax.jit(f).lower(*arguments).compile(),
        jax.jit(both(f)).lower(arguments, cotangent).compile(),
    )
    return {
        "who": who,
        "how": how,
        "forward ms": wall_ms(lambda: forward(*arguments), runs=runs),
        "both ms": wall_ms(lambda: whole(arguments, cotangent), runs=runs),
        "gib": whole.memory_analysis().temp_size_in_bytes / 2**30,
    }


def _normal(seed: int, shape: tuple, dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)
