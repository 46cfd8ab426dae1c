"""Generation: prompts are prefilled in length buckets, then one compiled loop decodes all rows."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt16

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
from slmjax.parallel.mesh import DeviceKind, device_kind, device_memory, make_mesh

# Why a row has finished, indexed by RUNNING, STOP, LENGTH and END.
FINISH = ("", "stop", "length", "end")
TILE = 128  # tokens in a tile of fused attention


@dataclasses.dataclass(frozen=True)
class Completion:
    """The completion of one prompt.

    text: ends before the stop string.
    tokens: all that were drawn, also those of the stop string, but not the id of `end`.
    finish: why it ended: "stop" (a stop string), "length" (max_tokens) or "end" (a token id that
      ends completions).
    end: that token id, where finish is "end".
    """

    text: str
    tokens: list[int]
    finish: str
    end: int | None = None


class Decoded(NamedTuple):
    """The decode loop's output as numpy arrays; row i has counts[i] tokens.

    Where a token id ended the row, that id and its log-probability follow, at counts[i].
    """

    tokens: np.ndarray  # [B, max_tokens] int32
    # [B, max_tokens] float32: of the model's own distribution, at temperature 1
    logprobs: np.ndarray
    counts: np.ndarray  # [B]
    finish: np.ndarray  # [B], index of FINISH
    steps: int  # steps of the loop: tokens of the longest row


class Batch(NamedTuple):
    """Prompts as the programs take them, padded to B rows and P columns."""

    tokens: np.ndarray  # [B, P] int32: all but each prompt's last token
    room: int  # tokens of a completion for which the cache has slots
    request: Request


class Engine:
    """A model ready to generate, in one process.

    Compiled programs are shared by all engines of one architecture.

    Args:
      tokenizer: has encode, token_bytes, vocab_size, eot and ends, see text/tokenizer.py.
      max_batch: most prompts decoded at once; more prompts make several batches.
      tuned: compile for speed; False compiles three times as fast on a GPU, for a few prompts.
      xla: {"prefill": {name: value}, "decode": {...}}, compiler options to try besides those of
        slmjax/parallel/compiling.py.
    Raises: UserError if the tokenizer has more tokens than the model.
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
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {arch.vocab_size}; "
                "it is not this model's."
            )
        self.arch = unrolled(arch)
        self.params = ready_params(arch, params)
        self.buffers = ready_buffers(arch, buffers)
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        self.token_bytes = tokenizer.token_bytes()
        self._device = _device_of(params)
        xla_options = []
        for program, options in (xla or {}).items():
            xla_options += [(program, name, value) for name, value in options.items()]
        self.programs = programs(self._device.platform, tuned, tuple(xla_options))
        # The newest stop strings with their automaton on the device.
        no_stops = stopping.token_automaton((), self.token_bytes)
        self._stop_automaton = ((), jnp.asarray(no_stops))

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
        """Return a completion of each prompt. A row's result does not depend on other prompts.

        Nothing is compiled anew for prompts in the same buckets of length and number, nor for
        other sampling or stop_ids. Other stop strings compile only where their table becomes
        larger, which is seldom (stops.LEAST_ROWS).

        Args:
          prompts: texts or token ids. The end-of-text token, with which every document begins, is
            put before each.
          max_tokens: of a completion, at least 1.
          temperature, top_k, top_p, seed: see sampling.sampling_of.
          stop: strings that end a completion. Only generated text counts, and the text is cut
            before the one that is complete first.
          stop_ids: token ids, any of which ends a completion and is no part of the text. None takes
            those that end a document or a turn, see Tokenizer.ends.
        Raises: UserError naming the argument that makes no sense.
        """
        sampling = sampling_of(
            len(prompts),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        ids = [self.encode(prompt) for prompt in prompts]
        if isinstance(stop, str):
            stop = [stop]
        completions = []
        for first in range(0, len(ids), self.max_batch):
            rows = slice(first, first + self.max_batch)
            rows_sampling = Sampling(*(settings[rows] for settings in sampling))
            decoded = self.decode(ids[rows], rows_sampling, max_tokens, stop, stop_ids)
            completions += self._completions(decoded, stop)
        return completions

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Return the token ids that the model reads: end-of-text, then those of the prompt.

        Raises: UserError for a token id that the tokenizer does not have.
        """
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        else:
            ids = [int(token) for token in prompt]
        self._check_ids(ids, "a prompt has the token")
        return [self.tokenizer.eot, *ids]

    def decode(
        self,
        ids: Sequence[Sequence[int]],
        sampling: Sampling,
        max_tokens: int,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
    ) -> Decoded:
        """Return completions of one batch of prompts as token ids.

        Args:
          ids: of each prompt, beginning with end-of-text, see `encode`.
          sampling: the settings of each row.
          max_tokens, stop, stop_ids: see `generate`.
        Raises: UserError, see `prepare`.
        """
        batch = self.prepare(ids, sampling, max_tokens, stop, stop_ids)
        cache = self.prefill(batch)
        state = jax.device_get(self.loop(batch, cache))
        # Cut off the rows and columns that only fill the buckets.
        rows = len(ids)
        return Decoded(
            tokens=state.tokens[:rows, :max_tokens],
            logprobs=state.logprobs[:rows, :max_tokens],
            counts=state.counts[:rows],
            finish=state.finish[:rows],
            steps=int(state.step),
        )

    def prepare(
        self,
        ids: Sequence[Sequence[int]],
        sampling: Sampling,
        max_tokens: int,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
    ) -> Batch:
        """Return the arguments of `decode` as the programs take them, padded to their buckets.

        Raises: UserError if max_tokens is not positive, its cache is larger than the device's
          memory, the tokenizer lacks one of stop_ids, or `stop` has an empty string or too many
          bytes.
        """
        if max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens}; it must be at least 1.")
        rows = len(ids)
        power = 1 << (rows - 1).bit_length()  # the next power of two
        least_rows = self.programs.rows  # of a batch, on this platform
        batch_rows = max(least_rows, power)
        # The last token of a prompt is the loop's first: its logits draw the first new token.
        lengths = np.zeros(batch_rows, np.int32)
        last = np.zeros(batch_rows, np.int32)
        for i, row in enumerate(ids):
            lengths[i] = len(row) - 1
            last[i] = row[-1]
        columns = bucket(int(lengths.max()))
        self._check_memory(batch_rows, columns, max_tokens)
        tokens = np.zeros((batch_rows, columns), np.int32)
        for i, row in enumerate(ids):
            tokens[i, : len(row) - 1] = row[:-1]
        # Rows that only fill the batch have temperature 0, so they need no random bits.
        filling = batch_rows - rows
        padded = Sampling(*(np.pad(settings, (0, filling)) for settings in sampling))
        request = Request(
            real=np.arange(batch_rows) < rows,
            lengths=lengths,
            last=last,
            sampling=padded,
            stop_table=self._stop_table(stop),
            max_tokens=np.int32(max_tokens),
            ends=self._ends(stop_ids),
            vocab_size=np.int32(self.tokenizer.vocab_size),
        )
        return Batch(tokens, bucket(max_tokens), request)

    def prefill(self, batch: Batch) -> Cache:
        """Return the cache of a batch's prompts, with room for completions.

        It does not wait for the device.
        """
        size = batch.tokens.shape[1] + batch.room
        return self.programs.prefill(
            self.arch,
            size,
            self.params,
            self.buffers,
            batch.tokens,
            batch.request.lengths,
        )

    def loop(self, batch: Batch, cache: Cache) -> State:
        """Return the decode loop's last state, on the device; `cache` is donated.

        It does not wait for the device.
        """
        state, _ = self.programs.decode(
            self.arch,
            batch.room,
            self.params,
            self.buffers,
            cache,
            batch.request,
        )
        return state

    def _completions(self, decoded: Decoded, stop: Sequence[str]) -> list[Completion]:
        """Return each row of the decode loop's output as a completion with its text."""
        completions = []
        for tokens, count, finish in zip(decoded.tokens, decoded.counts, decoded.finish):
            drawn = [int(token) for token in tokens[:count]]
            text = b"".join(self.token_bytes[token] for token in drawn)
            if finish == STOP:
                text = stopping.cut(text, stop)
            end = int(tokens[count]) if finish == END else None
            readable = text.decode("utf-8", "replace")
            completions.append(Completion(readable, drawn, FINISH[finish], end))
        return completions

    def _check_memory(self, rows: int, columns: int, max_tokens: int) -> None:
        """Raise UserError if the cache does not fit this device.

        Args:
          rows, columns: the shape of the padded prompts.
        """
        advice = "Ask for fewer tokens."
        size = columns + bucket(max_tokens)
        if size >= 2**31:
            raise UserError(f"max_tokens is {max_tokens}; positions are 32-bit numbers. {advice}")
        # Shapes only: nothing is allocated.
        cache = jax.eval_shape(lambda: lm.init_cache(self.arch, rows, size))
        needed = 0  # bytes
        for leaf in jax.tree.leaves(cache):
            needed += math.prod(leaf.shape) * leaf.dtype.itemsize
        memory = device_memory(self._device)  # None where it is not known
        if memory and needed > memory:
            raise UserError(
                f"max_tokens is {max_tokens}; its cache takes {needed / 1e9:,.1f} GB, more than "
                f"the {memory / 1e9:,.1f} GB of this device. {advice}"
            )

    def _ends(self, stop_ids: Sequence[int] | None) -> Bool[np.ndarray, "V"]:
        """Return, for each id of the model's vocabulary, whether it ends a completion."""
        if stop_ids is None:
            stop_ids = self.tokenizer.ends
        ids = [int(token) for token in stop_ids]
        self._check_ids(ids, "stop_ids has")
        ends = np.zeros(self.arch.vocab_size, bool)
        ends[ids] = True
        return ends

    def _check_ids(self, ids: Sequence[int], where: str) -> None:
        """Raise UserError for the first id that the tokenizer does not have."""
        size = self.tokenizer.vocab_size
        for token in ids:
            if not 0 <= token < size:
                known = f"the tokenizer has tokens 0 to {size - 1}"
                raise UserError(f"{where} {token}; {known}.")

    def _stop_table(self, stop: Sequence[str]) -> UInt16[Array, "Q V"]:
        """Return the automaton of the stop strings, kept for calls that repeat the last ones."""
        strings, table = self._stop_automaton
        if tuple(stop) != strings:
            table = jnp.asarray(stopping.token_automaton(stop, self.token_bytes))
            self._stop_automaton = (tuple(stop), table)
        return table


def bucket(n: int) -> int:
    """Return the length that `n` tokens are padded to.

    It is a power of two from 16 to 256, then 384, 512, and above that one of four equal steps in
    each octave: 640, 768, 896, 1024, 1280, ... From 8 to 256 tokens at most half of the result is
    padding: so short a cache is read quickly, next to the weights. Up to 512 tokens at most a third
    is, and above that at most a fifth.
    """
    power = 1 << (n - 1).bit_length()  # the next power of two
    if n <= 256:
        return max(16, power)
    step = max(TILE, power // 8)  # a quarter of the octave from power / 2 to power
    return -(-n // step) * step  # rounded up


def _device_of(params: dict) -> DeviceKind:
    """Return the kind of the first device that holds the parameters."""
    devices = params["embedding"].devices()
    first = min(devices, key=lambda device: device.id)
    return device_kind(make_mesh({"data": 1}, [first]))
