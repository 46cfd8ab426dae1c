"""One layer's attention alone, forward and with its backward pass, by kernel and by documents in a row.

python -m slmjax.bench attention --config=configs/304m.py --documents=1,3,8 --kernels=cudnn,blockwise

Shapes are the config's: train.batch rows of data.seq_len tokens, model.heads over model.kv_heads of model.head_dim. A row of one document
asks for nothing but causality. `gib` is what the compiled programs take beside their arguments.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.bench import shell
from slmjax.bench.timing import both, device_ms
from slmjax.bench.train import random_batch
from slmjax.errors import UserError
from slmjax.models.resolve import resolve
from slmjax.ops.softmax_attention import attention
from slmjax.parallel.mesh import make_mesh

KERNELS = ("cudnn", "splash", "blockwise", "reference")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `python -m slmjax.bench attention`."""
    parser.add_argument(
        "--documents",
        type=shell.numbers(1),
        default="1,4",
        help="documents in a row, comma-separated (default: %(default)s)",
    )
    parser.add_argument(
        "--kernels",
        default="",
        help=f"among {', '.join(KERNELS)}, comma-separated; empty: the one that training takes here",
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=7,
        help="timed programs of eight calls, of which the median counts",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """A row for each kernel and number of documents: ms forward, ms with the backward, TFLOP/s of the second, and memory.

    Raises: UserError for a kernel that is none or does not run here.
    """
    c = arguments.config
    arch, _ = resolve(
        c.model, c.precision, make_mesh({"data": 1}, jax.local_devices()[:1]), c.data.vocab_size
    )
    B, T, N, K, H = c.train.batch, c.data.seq_len, arch.heads, arch.kv_heads, arch.head_dim
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (
        jax.random.normal(key, (B, T, n, H), arch.compute) for key, n in zip(keys, (N, K, K, N))
    )
    rows = []
    for kernel in arguments.kernels.split(",") if arguments.kernels else [arch.attention]:
        if kernel not in KERNELS:
            raise UserError(
                f"--kernels={arguments.kernels}: '{kernel}' is not among {', '.join(KERNELS)}."
            )
        for documents in arguments.documents:
            segments = jnp.asarray(random_batch(B, T, 2, documents, 0)["segments"])
            pairs = sum(n * (n + 1) / 2 for n in np.bincount(np.asarray(segments[0]))[1:])
            attend = functools.partial(
                attention,
                query_segments=segments,
                key_segments=segments,
                kernel=kernel,
                places=B * documents,
            )
            whole_pass = both(attend)
            try:
                memory = (
                    jax.jit(whole_pass)
                    .lower((q, k, v), g)
                    .compile()
                    .memory_analysis()
                    .temp_size_in_bytes
                    / 2**30
                )
                forward, whole = (
                    device_ms(f, *of, runs=arguments.runs)
                    for f, of in ((attend, (q, k, v)), (whole_pass, ((q, k, v), g)))
                )
            except (
                jax.errors.JaxRuntimeError,
                NotImplementedError,
                RuntimeError,
                ValueError,
            ) as error:
                raise UserError(
                    f"--kernels: {kernel} does not run here: {(str(error).splitlines() or [''])[0][:200]}"
                ) from error
            flops = 3.5 * 4 * B * pairs * N * H  # two products forward, five backward
            rows.append(
                {
                    "kernel": kernel,
                    "shape": f"{B} x {T}, {N}/{K} heads of {H}",
                    "documents": documents,
                    "forward ms": forward,
                    "both ms": whole,
                    "TFLOP/s": flops / whole / 1e9,
                    "gib": memory,
                }
            )
    return {"bench": "attention", "rows": rows}
