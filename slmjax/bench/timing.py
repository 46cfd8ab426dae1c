"""Timing on a device: many runs of a function inside one program, so that launching costs nothing, and the median over several programs."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def device_ms(f: Callable, *arguments: Any, repeats: int = 8, runs: int = 7) -> float:
    """Milliseconds of one f(*arguments), all of whose outputs are computed; median over `runs` programs of `repeats` calls each.

    Args:
      arguments: pytrees of arrays; they must be on the device already.
    """

    def many(arguments):
        def once(out, _):
            # Each call waits for the one before it, and all of its outputs are written: else XLA would call f once, or compute a part.
            own, _ = jax.lax.optimization_barrier((arguments, out))
            return f(*own), None

        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(f, *arguments))
        return jax.lax.scan(once, empty, None, length=repeats)[0]

    program = jax.jit(many).lower(arguments).compile()
    return wall_ms(lambda: program(arguments), runs=runs) / repeats


def both(f: Callable) -> Callable:
    """run(arguments, cotangent): f's value and the pull-back of the cotangent, for timing a forward pass with its backward pass."""

    def run(arguments, cotangent):
        out, pull = jax.vjp(f, *arguments)
        return out, pull(cotangent)

    return run


def wall_ms(call: Callable[[], Any], *, runs: int = 7, warm: int = 2) -> float:
    """Milliseconds from a call until its results are there; median over `runs` after `warm` that do not count."""
    times = []
    for _ in range(warm + runs):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times[warm:])


def matmul_flops(dtype: Any = jnp.bfloat16, size: int = 8192) -> float:
    """FLOP/s of a square matrix product of random numbers: what this device gives, beside what its datasheet says."""
    a, b = (
        jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(0))
    )
    return 2 * size**3 / (device_ms(lambda a, b: a @ b, a, b) / 1e3)


def copy_bytes(size: int = 1 << 30) -> float:
    """Bytes/s of an elementwise pass, counting those read and those written."""
    x = jnp.ones(size // 4, jnp.float32)
    return 2 * size / (device_ms(lambda x: x + 1, x) / 1e3)
