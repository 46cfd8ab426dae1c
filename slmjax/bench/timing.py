"""Time functions and measure what the device itself gives: FLOP/s and bytes/s."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def device_ms(f: Callable, *arguments: Any, repeats: int = 8, runs: int = 7) -> float:
    """Return the milliseconds that the device takes for f(*arguments) with all of its outputs.

    One program makes `repeats` calls, so that launching it costs next to nothing. It runs `runs`
    times, of which the median counts.

    Args:
      arguments: pytrees of arrays, which are on the device already.
    """

    def repeated_calls(arguments):
        def call_once(previous_outputs, _):
            # Each call depends on all outputs of the one before it. Otherwise XLA would call f
            # once, or leave out the outputs that nobody reads.
            inputs, _ = jax.lax.optimization_barrier((arguments, previous_outputs))
            return f(*inputs), None

        # The first call depends on zeros instead.
        shapes = jax.eval_shape(f, *arguments)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        last_outputs, _ = jax.lax.scan(call_once, zeros, None, length=repeats)
        return last_outputs

    # Compiled beforehand, so that only runs are timed.
    program = jax.jit(repeated_calls).lower(arguments).compile()
    return wall_ms(lambda: program(arguments), runs=runs) / repeats


def forward_and_backward(f: Callable) -> Callable:
    """Return run(arguments, cotangent), which returns (f(*arguments), gradients of the arguments).

    It serves to time a forward pass together with its backward pass.
    """

    def run(arguments, cotangent):
        out, pull_back = jax.vjp(f, *arguments)
        return out, pull_back(cotangent)

    return run


def wall_ms(call: Callable[[], Any], *, runs: int = 7, warm: int = 2) -> float:
    """Return the milliseconds from a call until its results are ready.

    It is the median over `runs` calls. The `warm` calls before them do not count.
    """
    seconds = []
    for _ in range(warm + runs):
        began = time.perf_counter()
        # JAX returns before the device has finished.
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[warm:])


def matmul_flops(dtype: Any = jnp.bfloat16, size: int = 8192) -> float:
    """Return the FLOP/s that a square matrix product reaches on this device."""
    # Random numbers: with zeros a GPU draws less power and clocks higher.
    first_key, second_key = jax.random.split(jax.random.key(0))
    shape = (size, size)
    a = jax.random.normal(first_key, shape, dtype)
    b = jax.random.normal(second_key, shape, dtype)
    ms = device_ms(lambda a, b: a @ b, a, b)
    flops = 2 * size**3
    return flops / (ms / 1e3)


def copy_bytes(size: int = 1 << 30) -> float:
    """Return the bytes/s, read and written, of an elementwise pass over `size` bytes."""
    x = jnp.ones(size // 4, jnp.float32)  # 4 bytes a number
    ms = device_ms(lambda x: x + 1, x)
    return 2 * size / (ms / 1e3)
