"""The pieces of a training step, each next to its own ceiling: they show where speed is lost.

The ceiling of a piece is the larger of two times: its matrix products at the rate of a large
product on this device, and the bytes that it must at least read and write at the rate of a copy.
`times` is how often a step runs the piece. Product, attention and mlp lie inside a layer, layers
and embedding inside the stack; stack, head and optimizer make the step.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slmjax.bench.timing import both, copy_bytes, device_ms, matmul_flops
from slmjax.models import lm, sizes
from slmjax.models.layers import Context
from slmjax.models.mlp import MLP
from slmjax.ops.cross_entropy import weighted_nats
from slmjax.ops.embedding import embed
from slmjax.ops.softmax_attention import attention
from slmjax.train.optimizer import Optimizer
from slmjax.train.program import Program

LONG = ("stack", "optimizer")  # pieces that take so long that one call is enough


class Piece(NamedTuple):
    """A part of the step and the least that one run of it costs."""

    name: str
    times: int  # in a step
    run: Callable
    arguments: tuple
    flops: float
    bytes: float


def ladder(program: Program, batch: dict) -> list[dict[str, Any]]:
    """Time every piece of a program's step on one device.

    Args:
      batch: as the train step takes it.
    Returns: rows with piece, times, ms of one run, step_ms (of all its runs in a step), ceiling_ms,
      and reached, the share of the ceiling. The first row names the device's rates.
    """
    # A CPU would need minutes for the sizes at which a GPU reaches its rate.
    product_size, copied_bytes = 8192, 1 << 30
    if program.device.platform == "cpu":
        product_size, copied_bytes = 512, 1 << 24
    rate = matmul_flops(program.arch.compute, product_size)
    bandwidth = copy_bytes(copied_bytes)
    rows = [{"piece": f"ceilings: {rate / 1e12:.3g} TFLOP/s, {bandwidth / 1e12:.3g} TB/s"}]
    for piece in step_pieces(program, batch):
        repeats = 1 if piece.name in LONG else 8
        ms = device_ms(piece.run, *piece.arguments, repeats=repeats)
        ceiling_ms = 1e3 * max(piece.flops / rate, piece.bytes / bandwidth)
        rows.append(
            {
                "piece": piece.name,
                "times": piece.times,
                "ms": ms,
                "step_ms": ms * piece.times,
                "ceiling_ms": ceiling_ms,
                "reached": ceiling_ms / ms,
            }
        )
    return rows


def step_pieces(program: Program, batch: dict) -> Iterator[Piece]:
    """Yield the parts of a step, forward with backward, on random activations."""
    pieces = _Pieces(program, batch)
    # One after the other: a large model leaves no room for the arrays of several.
    yield pieces.product()
    yield pieces.attention()
    yield pieces.mlp()
    yield pieces.embedding()
    yield pieces.layer()
    yield pieces.head()
    yield pieces.stack()
    yield pieces.optimizer()


def attention_flops(segments: np.ndarray, heads: int, head_dim: int) -> float:
    """Return the FLOPs of causal attention inside segments [B,T], forward with backward.

    Each pair of a query and a key that it sees takes part in two products forward (scores and
    values) and five backward, one of which computes the scores again.
    """
    pairs = 0
    for row in segments:
        lengths = np.bincount(row)[1:]  # segment 0 is padding
        pairs += sum(n * (n + 1) // 2 for n in lengths.tolist())
    forward = 4 * pairs * heads * head_dim  # a product takes 2 FLOPs a pair and channel
    return 3.5 * forward


class _Pieces:
    """The pieces of one program's step on one batch, and the arrays that several of them share."""

    def __init__(self, program: Program, batch: dict):
        self.program, self.arch, self.batch = program, program.arch, batch
        self.shape = batch["tokens"].shape  # [B,T]
        self.tokens = batch["tokens"].size
        self.item = jnp.dtype(self.arch.compute).itemsize  # bytes of a number
        self.places = batch["places"].shape[0] if "places" in batch else None
        self.keys = iter(jax.random.split(jax.random.key(1), 16))
        self.x = self.normal(*self.shape, self.arch.width)  # residual stream [B,T,D]
        self.context = Context(batch["segments"], batch["positions"], places=self.places)
        flops = sizes.train_flops_per_token(self.arch, self.shape[1]) * self.tokens
        self.head_flops = 6 * self.tokens * self.arch.width * self.arch.vocab_size
        self.stack_flops = flops - self.head_flops

    def normal(self, *shape: int) -> Array:
        """Return random numbers in the compute type."""
        return jax.random.normal(next(self.keys), shape, self.arch.compute)

    # Made at first use, so that product and attention have the device to themselves.
    @functools.cached_property
    def state(self) -> Any:
        """The train state: parameters and optimizer."""
        return self.program.init()

    @functools.cached_property
    def layer_params(self) -> dict:
        """Parameters of the first layer, in the types of the step's forward pass."""

        def first_layer(stacked: Array) -> Array:
            # The first axis counts layers. Matrices are cast; vectors (norms) stay float32.
            own = stacked[0]
            return own.astype(self.arch.compute) if stacked.ndim > 2 else own

        return jax.tree.map(first_layer, self.state.params["stack"]["0"]["0"])

    def product(self) -> Piece:
        """Return one product of the MLP: [B T, D] times [D, F], forward only."""
        D, F, tokens = self.arch.width, self.arch.ff_width, self.tokens

        def multiply(x: Float[Array, "B T D"], matrix: Float[Array, "D F"]) -> Array:
            return x.reshape(tokens, D) @ matrix

        return Piece(
            "product",
            6 * self.arch.layers,  # gate and up: one product forward, two backward
            multiply,
            (self.x, self.normal(D, F)),
            flops=2 * tokens * D * F,
            bytes=self.item * tokens * (D + F),  # the matrix is small next to x
        )

    def attention(self) -> Piece:
        """Return attention of one layer, without its projections."""
        arch, segments = self.arch, self.batch["segments"]
        N, K, H = arch.heads, arch.kv_heads, arch.head_dim
        query = self.normal(*self.shape, N, H)
        key = self.normal(*self.shape, K, H)
        value = self.normal(*self.shape, K, H)

        def attend(query, key, value):
            return attention(
                query,
                key,
                value,
                query_segments=segments,
                key_segments=segments,
                kernel=arch.attention,
                places=self.places,
            )

        cotangent = self.normal(*self.shape, N, H)
        return Piece(
            "attention",
            arch.layers,
            both(attend),
            ((query, key, value), cotangent),
            flops=attention_flops(jax.device_get(segments), N, H),
            # Both passes over queries, outputs, keys, values and their gradients; no T x T array.
            bytes=self.item * self.tokens * H * (8 * N + 6 * K),
        )

    def mlp(self) -> Piece:
        """Return the MLP of one layer."""
        D, F = self.arch.width, self.arch.ff_width

        def run(weights, x):
            y, *_ = MLP(self.arch).apply({"params": weights}, x, ctx=self.context)
            return y

        # Inputs and outputs of the three products, and gate, up and hidden once more for the
        # activation.
        forward_numbers = self.tokens * (3 * D + 6 * F)
        return Piece(
            "mlp",
            self.arch.layers,
            both(run),
            ((self.layer_params["channel"], self.x), self.x),
            flops=18 * self.tokens * D * F,  # three matrices, each 2 forward and 4 backward
            bytes=3 * self.item * forward_numbers,  # the backward pass moves twice as much
        )

    def embedding(self) -> Piece:
        """Return the look-up in the embedding, and the sum of its gradient."""
        D, V = self.arch.width, self.arch.vocab_size
        forward = self.item * self.tokens * D
        # Reads the cotangents, adds them up, writes the table.
        backward = self.item * D * (2 * self.tokens + V)

        def look_up(table):
            return embed(table, self.batch["tokens"])

        arguments = ((self.normal(V, D),), self.x)
        return Piece("embedding", 1, both(look_up), arguments, flops=0.0, bytes=forward + backward)

    def layer(self) -> Piece:
        """Return the first layer as a whole."""
        D, F, layers = self.arch.width, self.arch.ff_width, self.arch.layers
        block = self.arch.blocks[0]

        def run(params, x):
            y, *_ = lm.apply_block(self.arch, block, {"params": params}, x, self.context)
            return y

        return Piece(
            "layer",
            layers,
            both(run),
            ((self.layer_params, self.x), self.x),
            flops=self.stack_flops / layers,
            bytes=3 * self.item * self.tokens * (10 * D + 6 * F),  # three times those of forward
        )

    def head(self) -> Piece:
        """Return the loss from hidden states, with the gradients of both its inputs."""
        D, V = self.arch.width, self.arch.vocab_size
        matrix = self.normal(D, V)
        targets, weights = self.batch["targets"], self.batch["weights"]

        def loss(hidden, matrix):
            value, *_ = weighted_nats(
                hidden, matrix, targets, weights, chunks=self.program.model.chunks
            )
            return value

        return Piece(
            "head and loss",
            1,
            jax.grad(loss, argnums=(0, 1)),
            (self.x, matrix),
            flops=self.head_flops,
            bytes=self.item * self.tokens * (4 * V + 4 * D),
        )

    def stack(self) -> Piece:
        """Return everything from tokens to hidden states, with the gradient of all parameters."""
        arch, x = self.arch, self.x

        def run(params):
            hidden, _ = lm.forward(arch, params, {}, self.batch)
            # Any scalar that depends on all layers will do. One token's is cheap.
            last, cotangent = hidden[:, -1], x[:, -1]  # [B,D]
            return jnp.vdot(last.astype(jnp.float32), cotangent.astype(jnp.float32))

        def cast(known, parameter):
            return parameter.astype(arch.compute) if known.in_compute_type else parameter

        params = jax.tree.map(cast, lm.declare(arch), self.state.params)
        # Bound by its products: no bytes are counted.
        return Piece("stack", 1, jax.grad(run), (params,), flops=self.stack_flops, bytes=0.0)

    def optimizer(self) -> Piece:
        """Return the update of all parameters."""
        config, state = self.program.config, self.state
        declared = lm.declare(self.arch)
        optimizer = Optimizer(
            config.train, config.model.multipliers, declared, config.precision.optimizer
        )

        def run(gradients, optimizer_state, params):
            return optimizer.update(gradients, optimizer_state, params, jnp.float32(1))

        gradients = jax.tree.map(lambda parameter: 1e-3 * parameter, state.params)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        # All in float32: reads gradient, parameter and two moments, writes all but the gradient.
        update_bytes = 28.0 * count
        arguments = (gradients, state.optimizer, state.params)
        return Piece("optimizer", 1, run, arguments, flops=0.0, bytes=update_bytes)
