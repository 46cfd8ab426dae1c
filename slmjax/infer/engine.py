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
    """A model ready to generate, in one process. Compiled programs are shared by all engines of one architecture.

    Args:
      tokenizer: see data/tokenizer.py; used are encode, token_bytes, vocab_size and eot.
      max_batch: most prompts decoded at once; more are taken in turns.
    Raises: UserError where the tokenizer has more tokens than the model.
    """

    def __init__(self, arch: Architecture, params: dict, buffers: dict, tokenizer: Any, *, max_batch: int = 64):
        if tokenizer.vocab_size > arch.vocab_size:
            raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {arch.vocab_size}; it is not this model's.")
        self.arch, self.params = unrolled(arch), _unrolled_params(arch, params)
        self.buffers, self.tokenizer, self.max_batch = buffers, tokenizer, max_batch
        self.token_bytes = tokenizer.token_bytes()
        self._table = ((), jnp.asarray(stopping.token_automaton((), self.token_bytes)))

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
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
        ids, out, stop = [self.encode(prompt) for prompt in prompts], [], [stop] if isinstance(stop, str) else stop
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
        lengths, last = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
        lengths[:rows], last[:rows] = [len(row) - 1 for row in ids], [row[-1] for row in ids]
        tokens = np.zeros((batch, bucket(int(lengths.max()), LENGTHS)), np.int32)
        for i, row in enumerate(ids):
            tokens[i, : len(row) - 1] = row[:-1]
        room = bucket(max_tokens, LENGTHS)
        cache = prefill(self.arch, tokens.shape[1] + room, self.params, self.buffers, tokens, lengths)
        request = _Request(
            np.arange(batch) < rows, lengths, last, Sampling(*(np.pad(a, (0, batch - rows)) for a in drawing)), self._stop_table(stop),
            np.int32(max_tokens), np.int32(self.tokenizer.eot), np.int32(self.tokenizer.vocab_size),
        )  # fmt: skip
        state, _ = decode_loop(self.arch, room, self.params, self.buffers, cache, request)
        state = jax.device_get(state)
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
    """The same model with a group of its own for each layer: a decode loop then reads weights in place, not slices of a stack."""
    return dataclasses.replace(arch, stack=tuple((pattern, 1) for pattern, repeats in arch.stack for _ in range(repeats)))


@functools.partial(jax.jit, static_argnums=0)
def _unrolled_params(arch: Architecture, params: dict) -> dict:
    layers = [
        jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], params["stack"][str(g)])
        for g, (_, repeats) in enumerate(arch.stack)
        for r in range(repeats)
    ]
    return params | {"stack": {str(i): layer for i, layer in enumerate(layers)}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(arch: Architecture, size: int, params: dict, buffers: dict, tokens: Int[Array, "B P"], lengths: Int[Array, "B"]) -> tuple:
    """A cache with room for `size` tokens that holds the first `lengths` of `tokens`; the rest of a row is padding."""
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    batch = {"tokens": tokens, "segments": (position < lengths[:, None]).astype(jnp.int32), "positions": position}
    return lm.forward(arch, params, buffers, batch, cache=init_cache(arch, len(tokens), size))[2]


class _Request(NamedTuple):
    real: Any  # [B]; false: the row only fills the batch bucket and is born stopped
    lengths: Any  # [B] tokens of each prompt that are in the cache: all but the last
    last: Any  # [B] last token of each prompt
    drawing: Sampling
    stop_table: Any  # see stops.token_automaton
    max_tokens: Any
    eot: Any
    vocab_size: Any


class _State(NamedTuple):
    step: Any  # tokens drawn so far
    token: Any  # [B] the newest
    tokens: Any  # [B, room]
    logprobs: Any  # [B, room]
    counts: Any  # [B]
    finish: Any  # [B]
    stop_state: Any  # [B]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def decode_loop(arch: Architecture, room: int, params: dict, buffers: dict, cache: tuple, request: _Request) -> tuple[_State, tuple]:
    """Draw tokens, one a row and step, until every row has finished. `cache` is given up: its memory becomes the returned cache's."""
    B = len(request.last)
    start = _State(
        jnp.int32(0), request.last, jnp.zeros((B, room), jnp.int32), jnp.zeros((B, room), jnp.float32), jnp.zeros(B, jnp.int32),
        jnp.where(request.real, RUNNING, LENGTH), jnp.full(B, stopping.START, request.stop_table.dtype),
    )  # fmt: skip

    def step(carry):
        state, cache = carry
        running = (state.finish == RUNNING).astype(jnp.int32)  # a finished row is padding, which changes nothing in its cache
        batch = {"tokens": state.token, "segments": running, "positions": request.lengths + state.step}
        hidden, _, cache = lm.forward(arch, params, buffers, {name: of[:, None] for name, of in batch.items()}, cache=cache)
        return _draw(state, lm.logits(arch, params, hidden)[:, 0], request), cache

    return jax.lax.while_loop(lambda carry: jnp.any(carry[0].finish == RUNNING), step, (start, cache))


def _draw(state: _State, logits: Float[Array, "B V"], request: _Request) -> _State:
    logits = jnp.where(jnp.arange(logits.shape[1]) < request.vocab_size, logits, -jnp.inf)  # rows that only round up the embedding
    token = sample(logits, request.drawing, state.step)
    running = state.finish == RUNNING
    ended = token == request.eot
    written = running & ~ended
    stop_state = jnp.where(written, request.stop_table[state.stop_state, token], state.stop_state)
    finish = jnp.where(state.step + 1 >= request.max_tokens, LENGTH, RUNNING)
    finish = jnp.where(ended, END, jnp.where(stop_state == stopping.STOPPED, STOP, finish))
    logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)
    return _State(
        state.step + 1,
        token,
        jax.lax.dynamic_update_slice_in_dim(state.tokens, jnp.where(written, token, 0)[:, None], state.step, axis=1),
        jax.lax.dynamic_update_slice_in_dim(state.logprobs, jnp.where(written[:, None], logprob, 0.0), state.step, axis=1),
        state.counts + written,
        jnp.where(running, finish, state.finish),
        stop_state,
    )
