"""The pieces of a training step, with the FLOPs and bytes that each of them needs at least.

Pieces are nested: product, attention and mlp are parts of a layer, layers and the embedding are
parts of the stack, and stack, head and optimizer together are the step.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slmjax.bench.timing import forward_and_backward
from slmjax.models import lm, sizes
from slmjax.models.layers import Context
from slmjax.models.mlp import MLP
from slmjax.ops.cross_entropy import weighted_nats
from slmjax.ops.embedding import embed
from slmjax.ops.softmax_attention import attention
from slmjax.train.optimizer import Optimizer
from slmjax.train.program import Program
from slmjax.train.schedule import scaled_rates


class Piece(NamedTuple):
    """A part of the step, and what one run of it needs at least."""

    name: str
    times: int  # runs in a step
    run: Callable
    arguments: tuple  # of `run`
    flops: float  # of matrix products
    bytes: float  # read and written


def step_pieces(program: Program, batch: dict) -> Iterator[Piece]:
    """Yield the parts of a step, on random activations.

    All but the product and the optimizer are a forward with its backward pass.
    """
    pieces = _Pieces(program, batch)
    # One after the other: next to a large model there is no room for the arrays of several pieces.
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

    Each pair of a query and a visible key takes part in two products forward (scores and values)
    and in five backward, one of which computes the scores again.
    """
    pairs = 0  # (query, visible key)
    for row in segments:
        lengths = np.bincount(row)[1:]  # segment 0 is padding
        pairs += sum(n * (n + 1) // 2 for n in lengths.tolist())
    product_flops = 2 * pairs * heads * head_dim
    return 7.0 * product_flops


class _Pieces:
    """The pieces of one program's step on one batch, and the arrays that several of them share."""

    def __init__(self, program: Program, batch: dict):
        self.program = program
        self.arch = arch = program.arch
        self.batch = batch
        self.shape = batch["tokens"].shape  # [B,T]
        self.tokens = batch["tokens"].size
        self.item_bytes = jnp.dtype(arch.compute).itemsize
        # For the cudnn kernel: how many documents it reserves places for.
        self.places = None
        if "places" in batch:
            self.places = len(batch["places"])
        self.context = Context(batch["segments"], batch["positions"], places=self.places)
        # 16 are more than all pieces take.
        self.random_keys = iter(jax.random.split(jax.random.key(1), 16))
        # The residual stream [B,T,D]; it also serves as the cotangent of pieces that return one.
        self.x = self.normal(*self.shape, arch.width)
        _, length = self.shape
        step_flops = sizes.train_flops_per_token(arch, length) * self.tokens
        # One product forward and two backward, with 2 FLOPs for a multiplication and its addition.
        self.head_flops = 6 * self.tokens * arch.width * arch.vocab_size
        self.stack_flops = step_flops - self.head_flops

    def normal(self, *shape: int) -> Array:
        """Return random numbers in the compute type."""
        return jax.random.normal(next(self.random_keys), shape, self.arch.compute)

    # Created at first use, so that the earlier pieces have the device's memory to themselves.
    @functools.cached_property
    def state(self) -> Any:
        """The train state, of which parameters and optimizer state are used."""
        return self.program.init()

    @functools.cached_property
    def layer_params(self) -> dict:
        """Parameters of the first layer, in the types of the step's forward pass."""

        def first_layer(stacked: Array) -> Array:
            # The first axis counts layers. Matrices are cast; vectors (norms) stay float32.
            parameter = stacked[0]
            if parameter.ndim > 1:
                parameter = parameter.astype(self.arch.compute)
            return parameter

        # ["stack"][group][position in the group's pattern]: the first block of the first group.
        layers = self.state.params["stack"]["0"]["0"]
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
            6 * self.arch.layers,  # (gate, up) x (one forward, two backward)
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
            forward_and_backward(attend),
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

        # Inputs and outputs of the three products (3 D + 3 F). The activation reads gate and up and
        # writes its output (3 F).
        forward_numbers = self.tokens * (3 * D + 6 * F)
        inputs = (self.layer_params["channel"], self.x)
        return Piece(
            "mlp",
            self.arch.layers,
            forward_and_backward(run),
            (inputs, self.x),
            flops=18 * self.tokens * D * F,  # three matrices, each with 2 forward and 4 backward
            bytes=3 * self.item_bytes * forward_numbers,  # the backward pass moves twice as much
        )

    def embedding(self) -> Piece:
        """Return the look-up in the embedding, with the gradient of the table."""
        D = self.arch.width
        V = self.arch.vocab_size
        forward_bytes = self.item_bytes * self.tokens * D
        # Reads the cotangents and the sums that they are added to, and writes the table's gradient.
        backward_bytes = self.item_bytes * D * (2 * self.tokens + V)

        def look_up(table):
            return embed(table, self.batch["tokens"])

        table = self.normal(V, D)
        return Piece(
            "embedding",
            1,
            forward_and_backward(look_up),
            ((table,), self.x),
            flops=0.0,
            bytes=forward_bytes + backward_bytes,
        )

    def layer(self) -> Piece:
        """Return the first layer as a whole."""
        arch = self.arch
        block = arch.blocks[0]
        # 3 D + 6 F of the MLP, and 7 D of norms, projections, attention and the residual stream.
        forward_numbers = self.tokens * (10 * arch.width + 6 * arch.ff_width)

        def run(params, x):
            y, *_ = lm.apply_block(arch, block, {"params": params}, x, self.context)
            return y

        return Piece(
            "layer",
            arch.layers,
            forward_and_backward(run),
            ((self.layer_params, self.x), self.x),
            flops=self.stack_flops / arch.layers,
            bytes=3 * self.item_bytes * forward_numbers,  # the backward pass moves twice as much
        )

    def head(self) -> Piece:
        """Return the loss from hidden states, with the gradients of hidden states and matrix."""
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
            # Logits, hidden states, and the gradients of both: each is written and read once.
            bytes=self.item_bytes * self.tokens * (4 * V + 4 * D),
        )

    def stack(self) -> Piece:
        """Return everything from tokens to hidden states, with the gradient of all parameters."""
        arch = self.arch
        x = self.x

        def scalar(params):
            hidden, _ = lm.forward(arch, params, {}, self.batch)
            # Any scalar that depends on all layers will do. That of each row's last token is cheap.
            last = hidden[:, -1].astype(jnp.float32)  # [B,D]
            cotangent = x[:, -1].astype(jnp.float32)
            return jnp.vdot(last, cotangent)

        def cast(declaration, parameter):
            if declaration.in_compute_type:
                return parameter.astype(arch.compute)
            return parameter

        params = jax.tree.map(cast, lm.declare(arch), self.state.params)
        # Its matrix products decide its time, so no bytes are counted.
        return Piece("stack", 1, jax.grad(scalar), (params,), flops=self.stack_flops, bytes=0.0)

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

        peak = scaled_rates(config.train, 1)

        def run(gradients, optimizer_state, params):
            return optimizer.update(gradients, optimizer_state, params, peak)

        # Any gradients will do that have the parameters' shapes and types.
        gradients = jax.tree.map(lambda parameter: 1e-3 * parameter, state.params)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        # Reads gradient, parameter and two moments, and writes all but the gradient: 7 numbers of
        # float32.
        update_bytes = 28.0 * count
        return Piece(
            "optimizer",
            1,
            run,
            (gradients, state.optimizer, state.params),
            flops=0.0,
            bytes=update_bytes,
        )
