"""Generation: prompts prefilled in length buckets, then one compiled loop that decodes until every row has stopped."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slmjax.errors import UserError
from slmjax.infer import stops as stopping
from slmjax.infer.programs import (
    END,
    STOP,
    Request,
    State,
    programs,
    ready_buffers,
    ready_params,
    unrolled,
)
from slmjax.infer.sampling import Sampling, sampling_of
from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.cache import Cache
from slmjax.parallel.mesh import device_kind, device_memory, make_mesh

FINISH = ("", "stop", "length", "end")


@dataclasses.dataclass(frozen=True)
class Completion:
    """What followed a prompt.

    text ends before the stop string; tokens are all that were drawn, those of the stop string too,
    without the id that ended it.
    finish: "stop" (a stop string), "length" (max_tokens) or "end" (an id that ends completions).
    """

    text: str
    tokens: list[int]
    finish: str
    end: int | None = None  # the id, where finish is "end"


class Decoded(NamedTuple):
    """What the loop returns, as numpy arrays; row i is meaningful up to counts[i].

    Where an id ended the row, that id and its log-probability are at counts[i].
    """

    tokens: np.ndarray  # [B, max_tokens] int32
    logprobs: (
        np.ndarray
    )  # [B, max_tokens] float32: under the model as it is, whatever the temperature
    counts: np.ndarray  # [B]
    finish: np.ndarray  # [B], index of FINISH
    steps: int  # tokens drawn one after the other: the longest row's


class Batch(NamedTuple):
    """Prompts as the programs take them."""

    tokens: np.ndarray  # [B, P] int32: all but each prompt's last token
    room: int  # slots for completions
    request: Request


class Engine:
    """A model ready to generate, in one process. Compiled programs are shared by all engines of one architecture.

    Args:
      tokenizer: see data/tokenizer.py; used are encode, token_bytes, vocab_size, eot and ends.
      max_batch: most prompts decoded at once; more are taken in turns.
      tuned: compile for speed; False compiles three times as fast on a GPU, for a few prompts.
      xla: {"prefill": {name: value}, "decode": {...}}, compiler options to try beside those of slmjax/parallel/compiling.py.
    Raises: UserError where the tokenizer has more tokens than the model.
    """

    def __init__(
        self,
        arch: Architecture,
        params: dict,
        buffers: dict,
        tokenizer: Any,
        *,
        max_batch: int = 64,
        tuned: bool = True,
        xla: Mapping | None = None,
    ):
        if tokenizer.vocab_size > arch.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {arch.vocab_size}; it is not this model's."
            )
        self.arch, self.params = unrolled(arch), ready_params(arch, params)
        self._device = device_kind(
            make_mesh({"data": 1}, [min(params["embedding"].devices(), key=lambda d: d.id)])
        )
        platform = self._device.platform
        self.programs = programs(
            platform,
            tuned,
            tuple((p, name, value) for p, of in (xla or {}).items() for name, value in of.items()),
        )
        self.buffers, self.tokenizer, self.max_batch = (
            ready_buffers(arch, buffers),
            tokenizer,
            max_batch,
        )
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
        stop_ids: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
    ) -> list[Completion]:
        """A completion of each prompt; a row's result does not depend on the prompts beside it.

        Prompts of the same length and batch buckets compile nothing new, nor does any other sampling,
        stop string or stop_ids.

        Args:
          prompts: texts or token ids; the end-of-text token, with which every document begins, is put before each.
          max_tokens: of a completion, at least 1.
          temperature, top_k, top_p, seed: see sampling.settings.
          stop: strings that end a completion; only generated text counts, and the text is cut before the one that is complete first.
          stop_ids: token ids, any of which ends a completion; it is no part of the text. None takes
            those that end a document or a turn, see Tokenizer.ends.
        Raises: UserError naming the argument that makes no sense.
        """
        drawing = sampling_of(
            len(prompts), temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        )
        ids, out, stop = (
            [self.encode(prompt) for prompt in prompts],
            [],
            [stop] if isinstance(stop, str) else stop,
        )
        for first in range(0, len(ids), self.max_batch):
            part = slice(first, first + self.max_batch)
            sampling = Sampling(*(a[part] for a in drawing))
            decoded = self.decode(ids[part], sampling, max_tokens, stop, stop_ids)
            out += self._completions(decoded, stop)
        return out

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens that the model is given: end-of-text, then the prompt's.

        Raises: UserError for a token id that the tokenizer does not have.
        """
        ids = (
            self.tokenizer.encode(prompt)
            if isinstance(prompt, str)
            else [int(token) for token in prompt]
        )
        if bad := [token for token in ids if not 0 <= token < self.tokenizer.vocab_size]:
            raise UserError(
                f"a prompt has the token {bad[0]}; the tokenizer has tokens 0 to {self.tokenizer.vocab_size - 1}."
            )
        return [self.tokenizer.eot, *ids]

    def decode(
        self,
        ids: Sequence[Sequence[int]],
        drawing: Sampling,
        max_tokens: int,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
    ) -> Decoded:
        """Prefill and decode one batch of token ids, the first of which is already end-of-text; see generate."""
        batch = self.prepare(ids, drawing, max_tokens, stop, stop_ids)
        state = jax.device_get(self.loop(batch, self.prefill(batch)))
        rows, cut = len(ids), (slice(len(ids)), slice(max_tokens))
        return Decoded(
            state.tokens[cut],
            state.logprobs[cut],
            state.counts[:rows],
            state.finish[:rows],
            int(state.step),
        )

    def prepare(
        self,
        ids: Sequence[Sequence[int]],
        drawing: Sampling,
        max_tokens: int,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
    ) -> "Batch":
        """The arguments of `decode`, padded to their buckets.

        Raises: UserError where max_tokens is not positive, its cache is larger than the device's
          memory, or the tokenizer lacks one of stop_ids.
        """
        if max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens}; it must be at least 1.")
        rows, batch = len(ids), max(self.programs.rows, 1 << (len(ids) - 1).bit_length())
        self._check_memory(batch, bucket(max(map(len, ids))), max_tokens)
        lengths, last = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
        lengths[:rows], last[:rows] = [len(row) - 1 for row in ids], [row[-1] for row in ids]
        tokens = np.zeros((batch, bucket(int(lengths.max()))), np.int32)
        for i, row in enumerate(ids):
            tokens[i, : len(row) - 1] = row[:-1]
        request = Request(
            np.arange(batch) < rows,
            lengths,
            last,
            Sampling(*(np.pad(a, (0, batch - rows)) for a in drawing)),
            self._stop_table(stop),
            np.int32(max_tokens),
            self._ends(stop_ids),
            np.int32(self.tokenizer.vocab_size),
        )
        return Batch(tokens, bucket(max_tokens), request)

    def prefill(self, batch: "Batch") -> Cache:
        """The cache of a batch's prompts, with room for their completions; not waited for."""
        size = batch.tokens.shape[1] + batch.room
        return self.programs.prefill(
            self.arch, size, self.params, self.buffers, batch.tokens, batch.request.lengths
        )

    def loop(self, batch: "Batch", cache: Cache) -> State:
        """What the decode loop draws, on the device; not waited for. `cache` is given up."""
        return self.programs.decode(
            self.arch, batch.room, self.params, self.buffers, cache, batch.request
        )[0]

    def _completions(self, decoded: Decoded, stop: Sequence[str]) -> list[Completion]:
        out = []
        for tokens, count, finish in zip(decoded.tokens, decoded.counts, decoded.finish):
            drawn = [int(token) for token in tokens[:count]]
            text = b"".join(self.token_bytes[token] for token in drawn)
            text = stopping.cut(text, stop) if finish == STOP else text
            end = int(tokens[count]) if finish == END else None
            out.append(Completion(text.decode("utf-8", "replace"), drawn, FINISH[finish], end))
        return out

    def _check_memory(self, batch: int, prompt: int, max_tokens: int) -> None:
        size = prompt + bucket(max_tokens)
        memory = device_memory(self._device)
        if size < 2**31:
            cache = jax.eval_shape(lambda: lm.init_cache(self.arch, batch, size))
            needed = sum(
                math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)
            )
            if not memory or needed <= memory:
                return
            why = f"its cache takes {needed / 1e9:,.1f} GB, more than the {memory / 1e9:,.1f} GB of this device"
        else:
            why = "positions are 32-bit numbers"
        raise UserError(f"max_tokens is {max_tokens}; {why}. Ask for fewer tokens.")

    def _ends(self, stop_ids: Sequence[int] | None) -> np.ndarray:
        """Whether each row of the model's vocabulary ends a completion."""
        size = self.tokenizer.vocab_size
        ids = [int(token) for token in (self.tokenizer.ends if stop_ids is None else stop_ids)]
        if bad := [token for token in ids if not 0 <= token < size]:
            raise UserError(f"stop_ids has {bad[0]}; the tokenizer has tokens 0 to {size - 1}.")
        ends = np.zeros(self.arch.vocab_size, bool)
        ends[ids] = True
        return ends

    def _stop_table(self, stop: Sequence[str]) -> Array:
        if tuple(stop) != self._table[0]:
            self._table = (
                tuple(stop),
                jnp.asarray(stopping.token_automaton(stop, self.token_bytes)),
            )
        return self._table[1]


def bucket(n: int) -> int:
    """The length that `n` tokens are padded to: a power of two from 16 to 256, above that the next of four steps an octave.

    Steps are multiples of 128, the tiles of fused attention. Padding is at most half up to 256 tokens, where weights and not the cache are
    what a step reads, and less than a quarter from 512.
    """
    step = max(128, 1 << (n - 1).bit_length() >> 3)
    return max(16, 1 << (n - 1).bit_length()) if n <= 256 else -(-n // step) * step
