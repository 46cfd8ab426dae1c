"""Generation: prompts prefilled in length buckets, then one compiled loop that decodes until every row has stopped."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from slmjax.errors import UserError
from slmjax.infer import stops as stopping
from slmjax.infer.sampling import Sampling, sample, settings
from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.cache import init_cache

LENGTHS = 16  # smallest bucket of prompt and completion lengths; they double from here
FINISH = ("", "stop", "length", "end")
RUNNING, STOP, LENGTH, END = range(4)


@dataclasses.dataclass(frozen=True)
class Completion:
    """What followed a prompt.

    text ends before the stop string; tokens are all that were drawn, those of the stop string too, without the final end of text.
    finish: "stop" (a stop string), "length" (max_tokens) or "end" (the model ended its text).
    """

    text: str
    tokens: list[int]
    finish: str


class Decoded(NamedTuple):
    """What the loop returns, as numpy arrays; row i is meaningful up to counts[i]."""

    tokens: np.ndarray  # [B, max_tokens] int32
    logprobs: np.ndarray  # [B, max_tokens] float32: under the model as it is, whatever the temperature
    counts: np.ndarray  # [B]
    finish: np.ndarray  # [B], index of FINISH
    steps: int  # tokens drawn one after the other: the longest row's


class Engine:
    """A model ready to generate. Compiled programs are shared by all engines of one architecture.

    Args:
      tokenizer: see data/tokenizer.py; used are encode, token_bytes, vocab_size and eot.
      max_batch: most prompts decoded at once; more are taken in turns.
    Raises: UserError where the tokenizer has more tokens than the model.
    """

    def __init__(self, arch: Architecture, params: dict, buffers: dict, tokenizer: Any, *, max_batch: int = 64):
        if tokenizer.vocab_size > arch.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, but the model only {arch.vocab_size}; it is not this model's.")
        self.arch, self.params = unrolled(arch), _unrolled_params(arch, params)
        self.buffers, self.tokenizer, self.max_batch = buffers, tokenizer, max_batch
        self.token_bytes = tokenizer.token_bytes()
        self._table = ((), jnp.asarray(stopping.token_automaton((), self.token_bytes)))

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float | int = 0.0,
        top_k: int = 0,
        top_p: float | int = 1.0,
        stop: Sequence[str] = (),
        seed: int | Sequence[int] = 0,
    ) -> list[Completion]:
        """A completion of each prompt; a row's result does not depend on the prompts beside it.

        Prompts of the same length and batch buckets, and any other temperature, top_k, top_p, stop strings and seed, compile nothing new.

        Args:
          prompts: texts or token ids; the end-of-text token, with which every document begins, is put before each.
          max_tokens: of a completion, at least 1.
          temperature, top_k, top_p, seed: see sampling.settings.
          stop: strings that end a completion; only generated text counts, and the text is cut before the one that is complete first.
        Raises: UserError naming the argument that makes no sense.
        """
        drawing = settings(len(prompts), temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        ids = [self.encode(prompt) for prompt in prompts]
        out = []
        for first in range(0, len(ids), self.max_batch):
            part = slice(first, first + self.max_batch)
            out += self._completions(self.decode(ids[part], Sampling(*(a[part] for a in drawing)), max_tokens, stop), stop)
        return out

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens that the model is given: end-of-text, then the prompt's.

        Raises: UserError for a token id that the tokenizer does not have.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        if bad := [token for token in ids if not 0 <= token < self.tokenizer.vocab_size]:
            raise UserError(f"a prompt has the token {bad[0]}; the tokenizer has tokens 0 to {self.tokenizer.vocab_size - 1}.")
        return [self.tokenizer.eot, *ids]

    def decode(self, ids: Sequence[Sequence[int]], drawing: Sampling, max_tokens: int, stop: Sequence[str] = ()) -> Decoded:
        """Prefill and decode one batch of token ids, the first of which is already end-of-text; see generate."""
        if max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens}; it must be at least 1.")
        rows, batch = len(ids), bucket(len(ids), 1)
        lengths = np.zeros(batch, np.int32)
        lengths[:rows] = [len(row) for row in ids]
        tokens = np.zeros((batch, bucket(int(lengths.max()), LENGTHS)), np.int32)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = row
        room = bucket(max_tokens, LENGTHS)
        logits, cache = prefill(self.arch, tokens.shape[1] + room, self.params, self.buffers, tokens, lengths)
        request = _Request(
            lengths, Sampling(*(np.pad(a, (0, batch - rows)) for a in drawing)), self._stop_table(stop),
            np.int32(max_tokens), np.int32(self.tokenizer.eot), np.int32(self.tokenizer.vocab_size),
        )  # fmt: skip
        state, _ = decode_loop(self.arch, room, self.params, self.buffers, cache, logits, request)
        state = jax.tree.map(_on_host, state)
        cut = (slice(rows), slice(max_tokens))
        return Decoded(state.tokens[cut], state.logprobs[cut], state.counts[:rows], state.finish[:rows], int(state.step))

    def _completions(self, decoded: Decoded, stop: Sequence[str]) -> list[Completion]:
        out = []
        for tokens, count, finish in zip(decoded.tokens, decoded.counts, decoded.finish):
            drawn = [int(token) for token in tokens[:count]]
            text = b"".join(self.token_bytes[token] for token in drawn)
            text = stopping.cut(text, stop) if finish == STOP else text
            out.append(Completion(text.decode("utf-8", "replace"), drawn, FINISH[finish]))
        return out

    def _stop_table(self, stop: Sequence[str]) -> Array:
        if tuple(stop) != self._table[0]:
            self._table = (tuple(stop), jnp.asarray(stopping.token_automaton(stop, self.token_bytes)))
        return self._table[1]


def bucket(n: int, smallest: int) -> int:
    """The smallest power of two that is at least n and `smallest`."""
    return max(smallest, 1 << (n - 1).bit_length())


def unrolled(arch: Architecture) -> Architecture:
    """The same model with a group of its own for each layer: a loop over decode steps then reads weights in place, not slices of a stack."""
    return dataclasses.replace(arch, stack=tuple((pattern, 1) for pattern, repeats in arch.stack for _ in range(repeats)))


@functools.partial(jax.jit, static_argnums=0)
def _unrolled_params(arch: Architecture, params: dict) -> dict:
    layers = [
        jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], params["stack"][str(g)]) for g, (_, repeats) in enumerate(arch.stack) for r in range(repeats)
    ]  # fmt: skip
    return params | {"stack": {str(i): layer for i, layer in enumerate(layers)}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(
    arch: Architecture, size: int, params: dict, buffers: dict, tokens: Int[Array, "B P"], lengths: Int[Array, "B"]
) -> tuple[Float[Array, "B V"], tuple]:
    """Logits after each row's last token, and a cache with room for `size` tokens. Rows are padded on the right; length 0 is no row."""
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    batch = {"tokens": tokens, "segments": (position < lengths[:, None]).astype(jnp.int32), "positions": position}
    hidden, _, cache = lm.forward(arch, params, buffers, batch, cache=init_cache(arch, len(tokens), size))
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
    return lm.logits(arch, params, last)[:, 0], cache


class _Request(NamedTuple):
    lengths: Any  # [B] int32 tokens of each prompt; 0: a row that only fills the batch bucket, born stopped
    drawing: Sampling
    stop_table: Any  # see stops.token_automaton
    max_tokens: Any
    eot: Any
    vocab_size: Any


class _State(NamedTuple):
    step: Any  # tokens drawn so far
    tokens: Any  # [B, room]
    logprobs: Any  # [B, room]
    counts: Any  # [B]
    finish: Any  # [B]
    stop_state: Any  # [B]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def decode_loop(
    arch: Architecture, room: int, params: dict, buffers: dict, cache: tuple, logits: Float[Array, "B V"], request: _Request
) -> tuple[_State, tuple]:
    """Draw tokens, one a row and step, until every row has finished. `cache` is given up: its memory becomes the returned cache's."""
    B = len(logits)
    filled = jnp.full(B, RUNNING)
    state = _State(
        jnp.int32(0), jnp.zeros((B, room), jnp.int32), jnp.zeros((B, room), jnp.float32), jnp.zeros(B, jnp.int32),
        jnp.where(request.lengths > 0, filled, LENGTH), jnp.full(B, stopping.START, request.stop_table.dtype),
    )  # fmt: skip

    def step(carry):
        state, cache = carry
        running = (state.finish == RUNNING).astype(jnp.int32)[:, None]  # a finished row is padding, which changes nothing in its cache
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        batch = {"tokens": last, "segments": running, "positions": (request.lengths + state.step - 1)[:, None]}
        hidden, _, cache = lm.forward(arch, params, buffers, batch, cache=cache)
        return _draw(state, lm.logits(arch, params, hidden)[:, 0], request), cache

    return jax.lax.while_loop(lambda carry: jnp.any(carry[0].finish == RUNNING), step, (_draw(state, logits, request), cache))


def _draw(state: _State, logits: Float[Array, "B V"], request: _Request) -> _State:
    token = sample(logits, request.drawing, state.step, request.vocab_size)
    running = state.finish == RUNNING
    ended = token == request.eot
    written = running & ~ended
    stop_state = jnp.where(written, request.stop_table[state.stop_state, token], state.stop_state)
    finish = jnp.where(state.step + 1 >= request.max_tokens, LENGTH, RUNNING)
    finish = jnp.where(ended, END, jnp.where(stop_state == stopping.STOPPED, STOP, finish))
    known = jnp.where(jnp.arange(logits.shape[1]) < request.vocab_size, logits, -jnp.inf)
    logprob = jnp.take_along_axis(jax.nn.log_softmax(known), token[:, None], axis=1)
    return _State(
        state.step + 1,
        jax.lax.dynamic_update_slice_in_dim(state.tokens, jnp.where(written, token, 0)[:, None], state.step, axis=1),
        jax.lax.dynamic_update_slice_in_dim(state.logprobs, jnp.where(written[:, None], logprob, 0.0), state.step, axis=1),
        state.counts + written,
        jnp.where(running, finish, state.finish),
        stop_state,
    )


def _on_host(x: Array) -> np.ndarray:
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
