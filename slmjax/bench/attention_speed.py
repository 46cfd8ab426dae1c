"""One layer's attention alone, forward and with its backward pass, by kernel and by documents.

python -m slmjax.bench attention --config=configs/304m.py --documents=1,3,8 --kernels=cudnn

Shapes are the config's: train.batch rows of data.seq_len tokens, model.heads over model.kv_heads of
model.head_dim. A row of one document needs no mask but the causal one. `gib` is the memory of the
compiled program, without its arguments.
"""

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slmjax.bench import shell
from slmjax.bench.step_pieces import attention_flops
from slmjax.bench.timing import device_ms, forward_and_backward
from slmjax.bench.train import random_batch
from slmjax.errors import UserError
from slmjax.models.architecture import Architecture
from slmjax.models.resolve import resolve
from slmjax.ops.softmax_attention import attention
from slmjax.parallel.mesh import make_mesh

KERNELS = ("cudnn", "splash", "blockwise", "reference")
# All the ways in which kernels say that they do not run on a device or with a shape.
FAULTS = (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError)


class _Inputs(NamedTuple):
    """What attention takes: N query heads and K key/value heads of H channels."""

    query: Float[Array, "B T N H"]
    key: Float[Array, "B T K H"]
    value: Float[Array, "B T K H"]
    cotangent: Float[Array, "B T N H"]  # of the output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m slmjax.bench attention`."""
    add = parser.add_argument
    known = ", ".join(KERNELS)
    add(
        "--documents",
        type=shell.numbers(1),
        default="1,4",
        help="documents in a row, comma-separated (default: %(default)s)",
    )
    add(
        "--kernels",
        default="",
        help=f"among {known}, comma-separated; empty: the one that training takes here",
    )
    add(
        "--runs",
        type=int,
        default=7,
        help="timed programs of eight calls, of which the median counts",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each kernel with each number of documents.

    Returns: {"rows": [...], ...}; a row has the milliseconds of the forward pass and of both
      passes, TFLOP/s of both, and memory.
    Raises: UserError for an unknown kernel, or one that does not run here.
    """
    config = arguments.config
    # One device: communication is not what is measured.
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    arch, _ = resolve(config.model, config.precision, mesh, config.data.vocab_size)
    batch = config.train.batch
    length = config.data.seq_len
    inputs = _random_inputs((batch, length), arch)  # the same for all kernels
    heads = f"{arch.heads}/{arch.kv_heads} heads of {arch.head_dim}"
    kernels = [arch.attention]  # what training takes here
    if arguments.kernels:
        kernels = arguments.kernels.split(",")
    rows = []
    for kernel in kernels:
        if kernel not in KERNELS:
            raise UserError(
                f"--kernels={arguments.kernels}: '{kernel}' is not among {', '.join(KERNELS)}."
            )
        for documents in arguments.documents:
            # Only the segments of this batch are used, so any vocabulary will do, such as 2.
            segments = random_batch(batch, length, 2, documents, 0)["segments"]
            row = {
                "kernel": kernel,
                "shape": f"{batch} x {length}, {heads}",
                "documents": documents,
            }
            rows.append(row | _measure(inputs, segments, documents, kernel, arguments.runs))
    return {"bench": "attention", "rows": rows}


def _random_inputs(shape: tuple[int, int], arch: Architecture) -> _Inputs:
    """Return queries, keys, values and the output's cotangent for rows of this shape [B,T]."""
    random_keys = jax.random.split(jax.random.key(0), 4)
    # Heads of query, key, value and cotangent.
    heads = (arch.heads, arch.kv_heads, arch.kv_heads, arch.heads)
    arrays = []
    for random_key, count in zip(random_keys, heads):
        arrays.append(jax.random.normal(random_key, (*shape, count, arch.head_dim), arch.compute))
    return _Inputs(*arrays)


def _measure(
    inputs: _Inputs, segments: np.ndarray, documents: int, kernel: str, runs: int
) -> dict[str, Any]:
    """Time one kernel on rows with these segments [B,T]; return the columns that `run` names.

    Raises: UserError if the kernel does not run here.
    """
    device_segments = jnp.asarray(segments)
    attend = functools.partial(
        attention,
        query_segments=device_segments,
        key_segments=device_segments,
        kernel=kernel,
        places=len(segments) * documents,  # cudnn reserves a place for each document
    )
    both_passes = forward_and_backward(attend)
    forward_arguments = inputs[:3]
    try:
        compiled = jax.jit(both_passes).lower(forward_arguments, inputs.cotangent).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        forward_ms = device_ms(attend, *forward_arguments, runs=runs)
        both_ms = device_ms(both_passes, forward_arguments, inputs.cotangent, runs=runs)
    except FAULTS as error:
        # The first line names the reason; XLA may add pages of its program.
        lines = str(error).splitlines() or [""]
        raise UserError(f"--kernels: {kernel} does not run here: {lines[0][:200]}") from error
    _, _, heads, head_dim = inputs.query.shape
    flops = attention_flops(segments, heads, head_dim)
    return {
        "forward ms": forward_ms,
        "both ms": both_ms,
        "TFLOP/s": flops / both_ms / 1e9,  # FLOP/ms is 1e3 FLOP/s, or 1e-9 TFLOP/s
        "gib": memory / 2**30,
    }
