"""The pieces of a training step bottom up, each against its own ceiling, so that a loss of speed can be located.

The ceiling of a piece is the larger of two times: its matrix products at the rate of a large product on this device, and the bytes that it
must at least read and write at the rate of a copy. `times` says how often the piece stands in a step: product, attention and mlp lie inside
a layer, layers and embedding inside the stack, and stack, head and optimizer make the step.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from slmjax.bench.timing import both, copy_bytes, device_ms, matmul_flops
from slmjax.models import lm, sizes
from slmjax.models.layers import Context
from slmjax.models.mlp import MLP
from slmjax.ops.cross_entropy import weighted_nats
from slmjax.ops.embedding import embed
from slmjax.ops.softmax_attention import attention
from slmjax.train.optimizer import Optimizer
from slmjax.train.program import Program


class Piece(NamedTuple):
    """A part of the step: how often it stands there, what to run, and the least FLOPs and bytes of one run."""

    name: str
    times: int
    run: Callable
    arguments: tuple
    flops: float
    bytes: float


def ladder(program: Program, batch: dict) -> list[dict[str, Any]]:
    """One row for each piece: ms of one run, ms in a step, ceiling ms, and the share of the ceiling that is reached.

    For one device; batch as the train step takes it.
    """
    size, copied = (512, 1 << 24) if program.device.platform == "cpu" else (8192, 1 << 30)
    rate, bandwidth = matmul_flops(program.arch.compute, size), copy_bytes(copied)
    rows = [{"piece": f"ceilings: {rate / 1e12:.3g} TFLOP/s, {bandwidth / 1e12:.3g} TB/s"}]
    for piece in step_pieces(program, batch):
        ms = device_ms(
            piece.run, *piece.arguments, repeats=1 if piece.name in ("stack", "optimizer") else 8
        )
        least = 1e3 * max(piece.flops / rate, piece.bytes / bandwidth)
        rows.append(
            {
                "piece": piece.name,
                "times": piece.times,
                "ms": ms,
                "step_ms": ms * piece.times,
                "ceiling_ms": least,
                "reached": least / ms,
            }
        )
    return rows


def step_pieces(program: Program, batch: dict) -> Iterator[Piece]:
    """Forward and backward of each part, on random activations."""
    arch, c = program.arch, program.config
    keys = iter(jax.random.split(jax.random.key(1), 16))
    B, T = batch["tokens"].shape
    places = batch["places"].shape[0] if "places" in batch else None
    D, F, N, K, H, V, L = (
        arch.width,
        arch.ff_width,
        arch.heads,
        arch.kv_heads,
        arch.head_dim,
        arch.vocab_size,
        arch.layers,
    )
    tokens, size = B * T, jnp.dtype(arch.compute).itemsize

    def normal(*shape):
        return jax.random.normal(next(keys), shape, arch.compute)

    x = normal(B, T, D)
    yield Piece(
        "product",
        6 * L,
        lambda a, b: a.reshape(tokens, D) @ b,
        (x, normal(D, F)),
        2 * tokens * D * F,
        size * tokens * (D + F),
    )

    qkv = normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, H)
    pairs = sum(n * (n + 1) // 2 for n in _segment_lengths(batch["segments"]))

    def attend(q, k, v):
        return attention(
            q,
            k,
            v,
            query_segments=batch["segments"],
            key_segments=batch["segments"],
            kernel=arch.attention,
            places=places,
        )

    yield Piece(
        "attention",
        L,
        both(attend),
        (qkv, normal(B, T, N, H)),
        3.5 * 4 * pairs * N * H,
        size * tokens * H * (8 * N + 6 * K),
    )

    state = program.init()
    params = jax.tree.map(
        lambda p: p[0].astype(arch.compute) if p.ndim > 2 else p[0], state.params["stack"]["0"]["0"]
    )
    ctx = Context(batch["segments"], batch["positions"], places=places)
    block = arch.blocks[0]

    def mlp(weights, x):
        return MLP(arch).apply({"params": weights}, x, ctx=ctx)[0]

    # Bytes: the products' inputs and outputs, and gate, up and hidden once more for the activation; three times that with the backward.
    yield Piece(
        "mlp",
        L,
        both(mlp),
        ((params["channel"], x), x),
        18 * tokens * D * F,
        3 * size * tokens * (3 * D + 6 * F),
    )
    table = normal(V, D)
    once = (
        size * D * (2 * tokens + V)
    )  # backward: reads the cotangents, adds them up, writes the table
    yield Piece(
        "embedding",
        1,
        both(lambda table: embed(table, batch["tokens"])),
        ((table,), x),
        0.0,
        once + size * tokens * D,
    )
    flops = sizes.train_flops_per_token(arch, T) * tokens
    head_flops = 6 * tokens * D * V
    layer_flops = (flops - head_flops) / L

    def layer(params, x):
        return lm.apply_block(arch, block, {"params": params}, x, ctx)[0]

    yield Piece(
        "layer", L, both(layer), ((params, x), x), layer_flops, 3 * size * tokens * (10 * D + 6 * F)
    )
    head, target = normal(D, V), batch["targets"]
    loss = jax.grad(
        lambda h, w: weighted_nats(h, w, target, batch["weights"], chunks=program.model.chunks)[0],
        argnums=(0, 1),
    )
    yield Piece("head and loss", 1, loss, (x, head), head_flops, size * tokens * (4 * V + 4 * D))

    declared = lm.declare(arch)
    whole = jax.tree.map(
        lambda known, p: p.astype(arch.compute) if known.in_compute_type else p,
        declared,
        state.params,
    )

    def stack(params):
        hidden = lm.forward(arch, params, {}, batch)[0]
        return jnp.vdot(hidden[:, -1].astype(jnp.float32), x[:, -1].astype(jnp.float32))

    yield Piece("stack", 1, jax.grad(stack), (whole,), flops - head_flops, 0.0)
    optimizer = Optimizer(c.train, c.model.multipliers, declared, c.precision.optimizer)
    gradients = jax.tree.map(lambda p: 1e-3 * p, state.params)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    update = (
        lambda g, s, p: optimizer.update(g, s, p, jnp.float32(1)),
        (gradients, state.optimizer, state.params),
    )
    yield Piece("optimizer", 1, *update, 0.0, 28.0 * count)


def _segment_lengths(segments: jax.Array) -> list[int]:
    rows = jax.device_get(segments)
    return [int((row == number).sum()) for row in rows for number in range(1, row.max() + 1)]
