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

# State of a row: it is running, or has finished with a stop string, max_tokens or an id that ends.
RUNNING, STOP, LENGTH, END = range(4)


class Request(NamedTuple):
    """What the decode loop is asked for: arrays for B rows, Q stop states and V tokens."""

    real: Any  # [B] bool; False for a row that only fills the batch, and has finished at the start
    lengths: Any  # [B] tokens of each prompt that are in the cache: all but the last
    last: Any  # [B] last token of each prompt
    sampling: Sampling
    stop_table: Any  # [Q,V], see stops.token_automaton
    max_tokens: Any
    ends: Any  # [V] bool: the ids that end a row
    vocab_size: Any  # of the tokenizer; the embedding may have more rows


class State(NamedTuple):
    """The decode loop's tokens so far."""

    step: Any  # tokens drawn so far in each running row
    token: Any  # [B] the newest token, or the prompt's last at the start
    tokens: Any  # [B, room]: after a row's counted tokens comes the id that ended it, if one did
    logprobs: Any  # [B, room], of `tokens`
    counts: Any  # [B] tokens of each completion, without the id that ended it
    finish: Any  # [B] RUNNING, STOP, LENGTH or END
    stop_state: Any  # [B] state of the automaton of stop strings


class Programs(NamedTuple):
    """The jitted programs of a platform, which all engines share.

    JAX compiles them once for each architecture and each size of their arguments.
    """

    prefill: Callable  # as prefill below
    decode: Callable  # as decode_loop below; its cache is donated
    # Rows of the smallest batch. XLA compiles matrix products of a single row to multiplications
    # and sums, which are 7 more kernels a layer on a GPU.
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
    # Arguments 0 and 1 are static: the architecture, and the cache's size or the room for
    # completions. Argument 4 of the decode loop is the cache.
    compiled_prefill = jax.jit(prefill, static_argnums=(0, 1), compiler_options=options["prefill"])
    compiled_decode = jax.jit(
        decode_loop,
        static_argnums=(0, 1),
        donate_argnums=4,
        compiler_options=options["decode"],
    )
    return Programs(compiled_prefill, compiled_decode, rows=2 if platform == "gpu" else 1)


def unrolled(arch: Architecture) -> Architecture:
    """Return the same model with each repeat of the pattern as a group of its own.

    A decode loop then reads each layer's weights in place; a group's repeats are one stacked array,
    of which it would copy slices.
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
    """Return the buffers of `unrolled(arch)` that a forward pass reads; training has others."""
    kept = keep_channel(lm.declare_buffers(arch), buffers, "forward")
    if not kept:
        return {}
    return {"stack": _unrolled_stack(arch, kept["stack"])}


def _unrolled_stack(arch: Architecture, stack: dict) -> dict:
    """Return the groups of one repeat, by number, from groups of leaves [repeats, ...]."""
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
    """Draw one token a step for each running row until all have finished; return state and cache.

    Args:
      room: columns of the returned tokens.
      cache: of the prompts. It is donated: the returned cache takes its memory.
      start: the state to go on from, whose cache this is; None: nothing is drawn yet.
      bound: return once each running row has so many tokens; None: without such a bound.
    """
    if start is None:
        start = first_state(room, request)

    def any_running(carry):
        state, _ = carry
        running = jnp.any(state.finish == RUNNING)
        if bound is None:
            return running
        return running & (state.step < bound)

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
    # Ids beyond the tokenizer's, which only round up the embedding, are never drawn.
    known = jnp.arange(logits.shape[1]) < request.vocab_size
    logits = jnp.where(known, logits, -jnp.inf)
    token = sample(logits, request.sampling, state.step)
    running = state.finish == RUNNING
    ended = request.ends[token]
    # The id that ends a row is no part of its completion.
    belongs = running & ~ended
    next_state = request.stop_table[state.stop_state, token]
    stop_state = jnp.where(belongs, next_state, state.stop_state)

    # Of several reasons in one step the last one assigned here counts.
    next_step = state.step + 1
    finish = jnp.where(next_step >= request.max_tokens, LENGTH, RUNNING)
    finish = jnp.where(stop_state == stopping.STOPPED, STOP, finish)
    finish = jnp.where(ended, END, finish)

    # [B,1] each: this step's column of `tokens` and of `logprobs`.
    drawn = jnp.take_along_axis(logits, token[:, None], axis=1)
    logprob = drawn - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    token_column = jnp.where(running, token, 0)[:, None]
    logprob_column = jnp.where(running[:, None], logprob, 0.0)
    write_column = functools.partial(
        jax.lax.dynamic_update_slice_in_dim, start_index=state.step, axis=1
    )
    return State(
        step=next_step,
        token=token,
        tokens=write_column(state.tokens, token_column),
        logprobs=write_column(state.logprobs, logprob_column),
        counts=state.counts + belongs,
        finish=jnp.where(running, finish, state.finish),
        stop_state=stop_state,
    )
