"""The pieces of a training step, with the least that each of them costs.

Pieces are nested. Product, attention and mlp lie inside a layer, layers and embedding inside the
stack; stack, head and optimizer make the step.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slmjax.bench.timing import both
from slmjax.models import lm, sizes
from slmjax.models.layers import Context
from slmjax.models.mlp import MLP
from slmjax.ops.cross_entropy import weighted_nats
from slmjax.ops.embedding import embed
from slmjax.ops.softmax_attention import attention
from slmjax.train.optimizer import Optimizer
from slmjax.train.program import Program


class Piece(NamedTuple):
    """A part of the step and the least that one run of it costs."""

    name: str
    times: int  # in a step
    run: Callable
    arguments: tuple
    flops: float
    bytes: float


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
        self.program = program
        self.arch = arch = program.arch
        self.batch = batch
        self.shape = batch["tokens"].shape  # [B,T]
        self.tokens = batch["tokens"].size
        self.item_bytes = jnp.dtype(arch.compute).itemsize
        self.places = None
        if "places" in batch:
            self.places = len(batch["places"])
        self.context = Context(batch["segments"], batch["positions"], places=self.places)
        self.keys = iter(jax.random.split(jax.random.key(1), 16))
        self.x = self.normal(*self.shape, arch.width)  # residual stream [B,T,D]
        _, length = self.shape
        step_flops = sizes.train_flops_per_token(arch, length) * self.tokens
        # The head's product forward, and two backward, of 2 FLOPs each.
        self.head_flops = 6 * self.tokens * arch.width * arch.vocab_size
        self.stack_flops = step_flops - self.head_flops

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
            if own.ndim > 1:
                own = own.astype(self.arch.compute)
            return own

        layers = self.state.params["stack"]["0"]["0"]  # the pattern's first block
        return jax.tree.map(first_layer, layers)

    def product(self) -> Piece:
        """Return one product of the MLP: [B T, D] times [D, F], forward only."""
        D = self.arch.width
        F = self.arch.ff_width
        tokens = self.tokens

        def multiply(x: Float[Array, "B T D"], matrix: Float[Array, "D F"]) -> Array:
            return x.reshape(tokens, D) @ matrix

        return Piece(
            "product",
            6 * self.arch.layers,  # gate and up: one product forward, two backward
            multiply,
            (self.x, self.normal(D, F)),
            flops=2 * tokens * D * F,
            bytes=self.item_bytes * tokens * (D + F),  # the matrix is small next to x
        )

    def attention(self) -> Piece:
        """Return attention of one layer, without its projections."""
        arch = self.arch
        segments = self.batch["segments"]
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
            bytes=self.item_bytes * self.tokens * H * (8 * N + 6 * K),
        )

    def mlp(self) -> Piece:
        """Return the MLP of one layer."""
        D = self.arch.width
        F = self.arch.ff_width

        def run(weights, x):
            y, *_ = MLP(self.arch).apply({"params": weights}, x, ctx=self.context)
            return y

        # Inputs and outputs of the three products, and gate, up and hidden once more for the
        # activation.
        forward_numbers = self.tokens * (3 * D + 6 * F)
        inputs = (self.layer_params["channel"], self.x)
        return Piece(
            "mlp",
            self.arch.layers,
            both(run),
            (inputs, self.x),
            flops=18 * self.tokens * D * F,  # three matrices, each 2 forward and 4 backward
            bytes=3 * self.item_bytes * forward_numbers,  # the backward pass moves twice as much
        )

    def embedding(self) -> Piece:
        """Return the look-up in the embedding, and the sum of its gradient."""
        D = self.arch.width
        V = self.arch.vocab_size
        forward = self.item_bytes * self.tokens * D
        # Reads the cotangents, adds them up, writes the table.
        backward = self.item_bytes * D * (2 * self.tokens + V)

        def look_up(table):
            return embed(table, self.batch["tokens"])

        table = self.normal(V, D)
        return Piece(
            "embedding",
            1,
            both(look_up),
            ((table,), self.x),
            flops=0.0,
            bytes=forward + backward,
        )

    def layer(self) -> Piece:
        """Return the first layer as a whole."""
        arch = self.arch
        block = arch.blocks[0]
        # Next to the MLP's: norms, projections, attention and the residual stream.
        forward_numbers = self.tokens * (10 * arch.width + 6 * arch.ff_width)

        def run(params, x):
            y, *_ = lm.apply_block(arch, block, {"params": params}, x, self.context)
            return y

        return Piece(
            "layer",
            arch.layers,
            both(run),
            ((self.layer_params, self.x), self.x),
            flops=self.stack_flops / arch.layers,
            bytes=3 * self.item_bytes * forward_numbers,
        )

    def head(self) -> Piece:
        """Return the loss from hidden states, with the gradients of both its inputs."""
        D = self.arch.width
        V = self.arch.vocab_size
        matrix = self.normal(D, V)
        targets = self.batch["targets"]
        weights = self.batch["weights"]

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
            # Logits and their gradient, hidden states and theirs: each written and read.
            bytes=self.item_bytes * self.tokens * (4 * V + 4 * D),
        )

    def stack(self) -> Piece:
        """Return everything from tokens to hidden states, with the gradient of all parameters."""
        arch = self.arch
        x = self.x

        def run(params):
            hidden, _ = lm.forward(arch, params, {}, self.batch)
            # Any scalar that depends on all layers will do. One token's is cheap.
            last = hidden[:, -1].astype(jnp.float32)  # [B,D]
            cotangent = x[:, -1].astype(jnp.float32)
            return jnp.vdot(last, cotangent)

        def cast(known, parameter):
            if known.in_compute_type:
                return parameter.astype(arch.compute)
            return parameter

        params = jax.tree.map(cast, lm.declare(arch), self.state.params)
        # Bound by its products: no bytes are counted.
        return Piece("stack", 1, jax.grad(run), (params,), flops=self.stack_flops, bytes=0.0)

    def optimizer(self) -> Piece:
        """Return the update of all parameters."""
        config = self.program.config
        state = self.state
        optimizer = Optimizer(
            config.train,
            config.model.multipliers,
            lm.declare(self.arch),
            config.precision.optimizer,
        )

        def run(gradients, optimizer_state, params):
            return optimizer.update(gradients, optimizer_state, params, jnp.float32(1))

        gradients = jax.tree.map(lambda parameter: 1e-3 * parameter, state.params)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        # All in float32: reads gradient, parameter and two moments, writes all but the gradient.
        update_bytes = 28.0 * count
        return Piece(
            "optimizer",
            1,
            run,
            (gradients, state.optimizer, state.params),
            flops=0.0,
            bytes=update_bytes,
        )
