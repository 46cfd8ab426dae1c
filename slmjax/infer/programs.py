"""The device programs of generation: weights made ready once, prefill of a padded batch, the loop that decodes until all rows stopped."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slmjax.infer import stops as stopping
from slmjax.infer.sampling import Sampling, sample
from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.cache import Cache
from slmjax.models.declare import keep_channel
from slmjax.parallel.compiling import compiler_options

RUNNING, STOP, LENGTH, END = range(4)  # how a row stands


class Request(NamedTuple):
    """What a batch asks for."""

    real: Any  # [B]; false: the row only fills the batch bucket and is born stopped
    lengths: Any  # [B] tokens of each prompt that are in the cache: all but the last
    last: Any  # [B] last token of each prompt
    drawing: Sampling
    stop_table: Any  # see stops.token_automaton
    max_tokens: Any
    ends: Any  # [V] bool: the ids that end a row
    vocab_size: Any


class State(NamedTuple):
    """What the loop has drawn."""

    step: Any  # tokens drawn so far
    token: Any  # [B] the newest
    tokens: Any  # [B, room]: behind a row's counted tokens is the id that ended it, if one did
    logprobs: Any  # [B, room]
    counts: Any  # [B]
    finish: Any  # [B]
    stop_state: Any  # [B]


class Programs(NamedTuple):
    """Compiled once for each architecture and each size of their arguments, shared by all engines."""

    prefill: Callable  # as prefill below
    decode: Callable  # as decode_loop below; gives up its cache
    rows: int  # smallest batch: XLA turns products of a single row into multiplications and sums, on a GPU 7 more kernels a layer


@functools.cache
def programs(
    platform: str, tuned: bool = True, more: tuple[tuple[str, str, Any], ...] = ()
) -> Programs:
    """The programs for a platform; `more` are (program, XLA option, value) beside or instead of those of `compiler_options`."""
    options = {
        "prefill": compiler_options(platform, tuned=False),
        "decode": compiler_options(platform, tuned=tuned, triton=tuned),
    }
    for program, name, value in more:
        options[program][name] = value
    return Programs(
        jax.jit(prefill, static_argnums=(0, 1), compiler_options=options["prefill"]),
        jax.jit(
            decode_loop, static_argnums=(0, 1), donate_argnums=4, compiler_options=options["decode"]
        ),
        2 if platform == "gpu" else 1,
    )


def unrolled(arch: Architecture) -> Architecture:
    """The same model with a group of its own for each layer: a decode loop then reads weights in place, not slices of a stack."""
    return dataclasses.replace(
        arch, stack=tuple((pattern, 1) for pattern, repeats in arch.stack for _ in range(repeats))
    )


@functools.partial(jax.jit, static_argnums=0)
def ready_params(arch: Architecture, params: dict) -> dict:
    """The parameters of `unrolled(arch)`: matrices in the compute type, so that no step casts them; scales of norms as they are."""
    params = params | {"stack": _unrolled_stack(arch, params["stack"])}

    def cast(known, leaf):
        return leaf.astype(arch.compute) if known.in_compute_type else leaf

    return jax.tree.map(cast, lm.declare(unrolled(arch)), params)


def ready_buffers(arch: Architecture, buffers: dict) -> dict:
    """The buffers of `unrolled(arch)` that generation reads."""
    kept = keep_channel(lm.declare_buffers(arch), buffers, "forward")
    return {"stack": _unrolled_stack(arch, kept["stack"])} if kept else {}


def _unrolled_stack(arch: Architecture, stack: dict) -> dict:
    layers = []
    for g, (_, repeats) in enumerate(arch.stack):
        group = stack.get(str(g), {})
        layers += [jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], group) for r in range(repeats)]
    return {str(i): layer for i, layer in enumerate(layers)}


def prefill(
    arch: Architecture,
    size: int,
    params: dict,
    buffers: dict,
    tokens: Int[Array, "B P"],
    lengths: Int[Array, "B"],
) -> Cache:
    """A cache with room for `size` tokens that holds the first `lengths` of `tokens`; the rest of a row is padding."""
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    batch = {
        "tokens": tokens,
        "segments": (position < lengths[:, None]).astype(jnp.int32),
        "positions": position,
    }
    return lm.forward(arch, params, buffers, batch, cache=lm.init_cache(arch, len(tokens), size))[
        1
    ].cache


def decode_loop(
    arch: Architecture, room: int, params: dict, buffers: dict, cache: Cache, request: Request
) -> tuple[State, Cache]:
    """Draw tokens, one a row and step, until every row has finished. `cache` is given up: its memory becomes the returned cache's."""
    B = len(request.last)
    start = State(
        jnp.int32(0),
        request.last,
        jnp.zeros((B, room), jnp.int32),
        jnp.zeros((B, room), jnp.float32),
        jnp.zeros(B, jnp.int32),
        jnp.where(request.real, RUNNING, LENGTH),
        jnp.full(B, stopping.START, request.stop_table.dtype),
    )

    def step(carry):
        state, cache = carry
        running = (state.finish == RUNNING).astype(
            jnp.int32
        )  # a finished row is padding, which changes nothing in its cache
        batch = {
            "tokens": state.token,
            "segments": running,
            "positions": request.lengths + state.step,
        }
        hidden, out = lm.forward(
            arch, params, buffers, {name: of[:, None] for name, of in batch.items()}, cache=cache
        )
        return _draw(state, lm.logits(arch, params, hidden)[:, 0], request), out.cache

    return jax.lax.while_loop(
        lambda carry: jnp.any(carry[0].finish == RUNNING), step, (start, cache)
    )


def _draw(state: State, logits: Float[Array, "B V"], request: Request) -> State:
    logits = jnp.where(
        jnp.arange(logits.shape[1]) < request.vocab_size, logits, -jnp.inf
    )  # rows that only round up the embedding
    token = sample(logits, request.drawing, state.step)
    running = state.finish == RUNNING
    ended = request.ends[token]
    written = running & ~ended
    stop_state = jnp.where(written, request.stop_table[state.stop_state, token], state.stop_state)
    finish = jnp.where(state.step + 1 >= request.max_tokens, LENGTH, RUNNING)
    finish = jnp.where(ended, END, jnp.where(stop_state == stopping.STOPPED, STOP, finish))
    logprob = jnp.take_along_axis(logits, token[:, None], axis=1) - jax.nn.logsumexp(
        logits, axis=1, keepdims=True
    )
    return State(
        state.step + 1,
        token,
        jax.lax.dynamic_update_slice_in_dim(
            state.tokens, jnp.where(running, token, 0)[:, None], state.step, axis=1
        ),
        jax.lax.dynamic_update_slice_in_dim(
            state.logprobs, jnp.where(running[:, None], logprob, 0.0), state.step, axis=1
        ),
        state.counts + written,
        jnp.where(running, finish, state.finish),
        stop_state,
    )
