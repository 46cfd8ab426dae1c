"""The device programs of generation: ready weights, prefill of a padded batch, the decode loop."""

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
from slmjax.models.declare import Weight, keep_channel
from slmjax.parallel.compiling import compiler_options

RUNNING, STOP, LENGTH, END = range(4)  # a row is running, or why it has finished


class Request(NamedTuple):
    """The arguments of a batch's completions."""

    real: Any  # [B]; false: the row only fills the batch bucket, and has finished at the start
    lengths: Any  # [B] tokens of each prompt that are in the cache: all but the last
    last: Any  # [B] last token of each prompt
    drawing: Sampling
    stop_table: Any  # [Q,V], see stops.token_automaton
    max_tokens: Any
    ends: Any  # [V] bool: the ids that end a row
    vocab_size: Any  # of the tokenizer; the embedding may have more rows


class State(NamedTuple):
    """The decode loop's tokens so far."""

    step: Any  # tokens drawn so far
    token: Any  # [B] the newest
    tokens: Any  # [B, room]: behind a row's counted tokens is the id that ended it, if one did
    logprobs: Any  # [B, room]
    counts: Any  # [B]
    finish: Any  # [B] RUNNING, STOP, LENGTH or END
    stop_state: Any  # [B] of the automaton


class Programs(NamedTuple):
    """Compiled once for each architecture and each size of their arguments, for all engines."""

    prefill: Callable  # as prefill below
    decode: Callable  # as decode_loop below; its cache is donated
    # The smallest batch. XLA turns products of a single row into multiplications and sums: on a GPU
    # 7 more kernels a layer.
    rows: int


@functools.cache
def programs(
    platform: str,
    tuned: bool = True,
    more: tuple[tuple[str, str, Any], ...] = (),
) -> Programs:
    """Return the programs for a platform.

    Args:
      tuned: compile the decode loop for speed.
      more: (program, XLA option, value), which add to those of `compiler_options` or replace them.
    """
    options = {
        "prefill": compiler_options(platform, tuned=False),
        "decode": compiler_options(platform, tuned=tuned, triton=tuned),
    }
    for program, name, value in more:
        options[program][name] = value
    # Static: the architecture, and the cache's size or the room for completions.
    compiled_prefill = jax.jit(prefill, static_argnums=(0, 1), compiler_options=options["prefill"])
    compiled_decode = jax.jit(
        decode_loop,
        static_argnums=(0, 1),
        donate_argnums=4,
        compiler_options=options["decode"],
    )
    return Programs(compiled_prefill, compiled_decode, rows=2 if platform == "gpu" else 1)


def unrolled(arch: Architecture) -> Architecture:
    """Return the same model with a group of its own for each repeat of the pattern.

    A decode loop then reads weights in place, and not slices of a stack.
    """
    stack = []
    for pattern, repeats in arch.stack:
        stack += [(pattern, 1)] * repeats
    return dataclasses.replace(arch, stack=tuple(stack))


@functools.partial(jax.jit, static_argnums=0)
def ready_params(arch: Architecture, params: dict) -> dict:
    """Return the parameters of `unrolled(arch)`.

    Matrices are in the compute type, so that no step casts them; scales of norms stay as they are.
    """
    params = params | {"stack": _unrolled_stack(arch, params["stack"])}

    def cast(known: Weight, leaf: Array) -> Array:
        return leaf.astype(arch.compute) if known.in_compute_type else leaf

    return jax.tree.map(cast, lm.declare(unrolled(arch)), params)


def ready_buffers(arch: Architecture, buffers: dict) -> dict:
    """Return the buffers of `unrolled(arch)` that generation reads."""
    kept = keep_channel(lm.declare_buffers(arch), buffers, "forward")
    if not kept:
        return {}
    return {"stack": _unrolled_stack(arch, kept["stack"])}


def _unrolled_stack(arch: Architecture, stack: dict) -> dict:
    """Return {layer: group of one repeat} from {group: leaves [repeats, ...]}."""
    layers: dict = {}
    for g, (_, repeats) in enumerate(arch.stack):
        group = stack.get(str(g), {})
        for r in range(repeats):
            # [repeats, ...] -> [1, ...]
            layers[str(len(layers))] = jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], group)
    return layers


def prefill(
    arch: Architecture,
    size: int,
    params: dict,
    buffers: dict,
    tokens: Int[Array, "B P"],
    lengths: Int[Array, "B"],
) -> Cache:
    """Return a cache with room for `size` tokens that holds the first `lengths` of `tokens`.

    The rest of a row is padding.
    """
    columns = jnp.arange(tokens.shape[1])
    position = jnp.broadcast_to(columns, tokens.shape)
    segments = (position < lengths[:, None]).astype(jnp.int32)
    batch = {"tokens": tokens, "segments": segments, "positions": position}
    empty = lm.init_cache(arch, len(tokens), size)
    _, out = lm.forward(arch, params, buffers, batch, cache=empty)
    return out.cache


def decode_loop(
    arch: Architecture,
    room: int,
    params: dict,
    buffers: dict,
    cache: Cache,
    request: Request,
    start: State | None = None,
    bound: Int[Array, ""] | None = None,
) -> tuple[State, Cache]:
    """Draw tokens, one a row and step, until every row has finished.

    Args:
      room: columns of the returned tokens.
      cache: of the prompts. It is donated: its memory becomes the returned cache's.
      start: the state to go on from, whose cache this is; None: nothing is drawn yet.
      bound: return when so many tokens are drawn since the prompt; None: without such a bound.
    """
    if start is None:
        start = first_state(room, request)

    def any_running(carry):
        running = jnp.any(carry[0].finish == RUNNING)
        return running if bound is None else running & (carry[0].step < bound)

    def step(carry):
        state, cache = carry
        # A finished row is padding (segment 0), which changes nothing in its cache.
        running = (state.finish == RUNNING).astype(jnp.int32)
        position = request.lengths + state.step
        # [B] -> [B,1]
        batch = {
            "tokens": state.token[:, None],
            "segments": running[:, None],
            "positions": position[:, None],
        }
        hidden, out = lm.forward(arch, params, buffers, batch, cache=cache)
        logits = lm.logits(arch, params, hidden)[:, 0]
        return _draw(state, logits, request), out.cache

    return jax.lax.while_loop(any_running, step, (start, cache))


def first_state(room: int, request: Request) -> State:
    """Return the state of the decode loop before its first token."""
    B = len(request.last)
    return State(
        step=jnp.int32(0),
        token=jnp.asarray(request.last),
        tokens=jnp.zeros((B, room), jnp.int32),
        logprobs=jnp.zeros((B, room), jnp.float32),
        counts=jnp.zeros(B, jnp.int32),
        finish=jnp.where(request.real, RUNNING, LENGTH),
        stop_state=jnp.full(B, stopping.START, request.stop_table.dtype),
    )


def _draw(state: State, logits: Float[Array, "B V"], request: Request) -> State:
    """Return the state with one more token in each running row."""
    # Rows that only round up the embedding are never drawn.
    known = jnp.arange(logits.shape[1]) < request.vocab_size
    logits = jnp.where(known, logits, -jnp.inf)
    token = sample(logits, request.drawing, state.step)
    running = state.finish == RUNNING
    ended = request.ends[token]
    # The id that ends a row is no part of its completion.
    written = running & ~ended
    next_state = request.stop_table[state.stop_state, token]
    stop_state = jnp.where(written, next_state, state.stop_state)

    # An id that ends comes before a stop string, and that before the length.
    last = state.step + 1 >= request.max_tokens
    finish = jnp.where(last, LENGTH, RUNNING)
    stopped = stop_state == stopping.STOPPED
    finish = jnp.where(stopped, STOP, finish)
    finish = jnp.where(ended, END, finish)

    drawn = jnp.take_along_axis(logits, token[:, None], axis=1)
    logprob = drawn - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    next_step = state.step + 1
    column = jnp.where(running, token, 0)[:, None]
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, column, state.step, axis=1)
    column = jnp.where(running[:, None], logprob, 0.0)
    logprobs = jax.lax.dynamic_update_slice_in_dim(state.logprobs, column, state.step, axis=1)
    return State(
        step=next_step,
        token=token,
        tokens=tokens,
        logprobs=logprobs,
        counts=state.counts + written,
        finish=jnp.where(running, finish, state.finish),
        stop_state=stop_state,
    )
