"""Log-likelihoods of continuations, in batches of few shapes sorted by length."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from slmjax.errors import UserError
from slmjax.infer.engine import bucket
from slmjax.models import lm
from slmjax.models.architecture import Architecture
from slmjax.models.declare import keep_channel
from slmjax.ops.cross_entropy import chunks_for
from slmjax.parallel.compiling import compiler_options
from slmjax.parallel.mesh import DeviceKind
from slmjax.text.tokenizer import Tokenizer

# Tokens of a batch: enough for a GPU to be busy, and few enough for a CPU's caches.
BATCH_TOKENS = {"cpu": 1 << 12}
MOST_BATCH_TOKENS = 1 << 16

Pair = tuple[str, str]  # context and continuation


class EncodedPair(NamedTuple):
    """Token ids of a context and its continuation.

    Attributes:
      from_start: whether the context is the beginning of a document, which end-of-text precedes.
    """

    context: list[int]
    continuation: list[int]
    from_start: bool = True


class ContinuationScores(NamedTuple):
    """Scores of continuations, as arrays of one length.

    Attributes:
      log_p: sum of log p over the continuation's tokens, in nats.
      greedy: whether each token of the continuation is the likeliest one.
      tokens: of the continuation.
      cut: whether the beginning of the context was left out, since the model knows no positions so
        far behind.
    """

    log_p: Float[np.ndarray, " n"]
    greedy: Bool[np.ndarray, " n"]
    tokens: Int[np.ndarray, " n"]
    cut: Bool[np.ndarray, " n"]


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[EncodedPair]:
    """Return the ids of contexts and continuations, split as the lm-eval harness does.

    Blanks at the end of a context move to its continuation. The two are encoded together, and the
    continuation has the tokens behind as many as the context has alone.

    Raises: UserError for a continuation without a token of its own.
    Source: EleutherAI's lm-evaluation-harness 0.4.13, TemplateLM._encode_pair.
    """
    contexts, wholes = [], []
    for context, continuation in pairs:
        contexts.append(context.rstrip())
        wholes.append(context + continuation)
    encoded = []
    all_ids = zip(tokenizer.encode_batch(contexts), tokenizer.encode_batch(wholes), strict=True)
    for (context_ids, whole_ids), whole in zip(all_ids, wholes, strict=True):
        continuation_ids = whole_ids[len(context_ids) :]
        if not continuation_ids:
            raise UserError(f"no token of '{whole[-40:]}' belongs to its continuation alone.")
        encoded.append(EncodedPair(context_ids, continuation_ids))
    return encoded


class ContinuationScorer:
    """Scores continuations with a model on one device.

    Every sequence begins with end-of-text, as documents do in training.

    Args:
      longest: tokens of a row that the model was trained on.
    """

    def __init__(
        self,
        arch: Architecture,
        params: dict,
        buffers: dict,
        tokenizer: Tokenizer,
        device: DeviceKind,
        longest: int,
    ):
        # Rows hold one sequence each: fused kernels for packed rows have nothing to skip.
        self.arch = dataclasses.replace(arch, attention="blockwise")
        self.params = params
        self.buffers = keep_channel(lm.declare_buffers(arch), buffers, "forward")
        self.tokenizer = tokenizer
        self.device = device
        self.longest = longest
        self.batch_tokens = BATCH_TOKENS.get(device.platform, MOST_BATCH_TOKENS)
        self._score = _compiled_score(device.platform)

    def encode(self, pairs: Sequence[Pair]) -> list[EncodedPair]:
        """Return `encode_pairs`.

        Raises: UserError for a continuation that is longer than the rows of training.
        """
        encoded = encode_pairs(self.tokenizer, pairs)
        most = max(len(pair.continuation) for pair in encoded)
        if most > self.longest:
            raise UserError(
                f"a continuation has {most} tokens; the model was trained on {self.longest} and "
                "knows no positions beyond; leave the task out."
            )
        return encoded

    def __call__(self, encoded: Sequence[EncodedPair]) -> ContinuationScores:
        """Return the scores of continuations, in order.

        The result does not depend on which pairs are scored together. Where a context is too long,
        its last tokens are kept, as the lm-eval harness does.
        """
        sequences = [self._sequence(pair) for pair in encoded]
        log_p = np.zeros(len(encoded))
        greedy = np.zeros(len(encoded), bool)
        # One batch is read back while the device computes the next one.
        pending: list[tuple[list[int], tuple[Array, Array]]] = []
        for numbers in self._batches([len(sequence) for sequence in sequences]):
            rows = [sequences[number] for number in numbers]
            counts = [len(encoded[number].continuation) for number in numbers]
            pending.append((numbers, self._dispatch(rows, counts)))
            if len(pending) > 1:
                _read_back(*pending.pop(0), log_p, greedy)
        for numbers, scores in pending:
            _read_back(numbers, scores, log_p, greedy)
        tokens = np.array([len(pair.continuation) for pair in encoded], int)
        whole = np.array([sum(map(len, pair[:2])) + pair.from_start for pair in encoded], int)
        lengths = np.array([len(sequence) for sequence in sequences], int)
        return ContinuationScores(log_p, greedy, tokens, lengths < whole)

    def alone(self, pair: EncodedPair) -> tuple[float, bool]:
        """Return (log p, greedy) of one pair from the logits of its own unpadded sequence.

        It is the slow reference of `__call__`.
        """
        ids = np.array(self._sequence(pair), np.int32)
        inputs, targets = ids[None, :-1], ids[1:]
        segments = np.ones_like(inputs)
        positions = np.arange(inputs.shape[1])[None]
        arrays = {"tokens": inputs, "segments": segments, "positions": positions}
        batch = jax.tree.map(jnp.asarray, arrays)
        forward = jax.jit(lm.forward, static_argnums=0)
        hidden, _ = forward(self.arch, self.params, self.buffers, batch)
        logits = np.asarray(lm.logits(self.arch, self.params, hidden)[0], np.float64)
        log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        scored = np.arange(len(targets) - len(pair.continuation), len(targets))
        likeliest = log_p[scored, : self.tokenizer.vocab_size].argmax(1)
        is_greedy = bool((likeliest == targets[scored]).all())
        return float(log_p[scored, targets[scored]].sum()), is_greedy

    def _sequence(self, pair: EncodedPair) -> list[int]:
        """Return end-of-text, the context's last tokens that fit, and the continuation."""
        start = [self.tokenizer.eot] if pair.from_start else []
        # The last token is only predicted, so a row of `longest` tokens has one target more.
        room = self.longest + 1 - len(start) - len(pair.continuation)
        context = pair.context[max(0, len(pair.context) - room) :]
        return [*start, *context, *pair.continuation]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the numbers of the sequences of each batch, the longest first.

        So a lack of memory shows in the first batch.
        """
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        while order:
            columns = bucket(lengths[order[0]] - 1)
            rows = max(1, self.batch_tokens // columns)
            # All of the same bucket.
            numbers = [n for n in order[:rows] if bucket(lengths[n] - 1) == columns]
            yield numbers
            order = order[len(numbers) :]

    def _dispatch(
        self, sequences: Sequence[Sequence[int]], counts: Sequence[int]
    ) -> tuple[Array, Array]:
        """Start scoring a batch; return (log p [B], greedy [B]), which the device computes."""
        columns = bucket(max(map(len, sequences)) - 1)
        # Powers of two, so that few shapes are compiled.
        batch_rows = 1 << (len(sequences) - 1).bit_length()
        shape = (batch_rows, columns)
        tokens, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        segments, scored = np.zeros(shape, np.int32), np.zeros(shape, bool)
        for row, (ids, count) in enumerate(zip(sequences, counts, strict=True)):
            length = len(ids) - 1
            tokens[row, :length] = ids[:-1]
            targets[row, :length] = ids[1:]
            segments[row, :length] = 1
            scored[row, length - count : length] = True
        positions = np.broadcast_to(np.arange(columns, dtype=np.int32), shape)
        batch = {"tokens": tokens, "segments": segments, "positions": positions}
        chunks = chunks_for(batch_rows, columns, self.arch.vocab_size, self.device.memory)
        vocab_size = self.tokenizer.vocab_size
        return self._score(
            self.arch, chunks, vocab_size, self.params, self.buffers, batch, targets, scored
        )


def _read_back(
    numbers: Sequence[int],
    scores: tuple[Array, Array],
    log_p: Float[np.ndarray, " n"],
    greedy: Bool[np.ndarray, " n"],
) -> None:
    """Write a batch's scores to the places of its sequences."""
    batch_log_p, batch_greedy = jax.device_get(scores)
    log_p[numbers] = batch_log_p[: len(numbers)]
    greedy[numbers] = batch_greedy[: len(numbers)]


@functools.cache
def _compiled_score(platform: str) -> Any:
    options = compiler_options(platform, tuned=False)
    return jax.jit(_score_rows, static_argnums=(0, 1, 2), compiler_options=options)


def _score_rows(
    arch: Architecture,
    chunks: int,
    vocab_size: int,
    params: dict,
    buffers: dict,
    batch: dict,
    targets: Int[Array, "B T"],
    scored: Bool[Array, "B T"],
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Return the sum of log p over the scored tokens, and whether all of them are the likeliest.

    Args:
      chunks: pieces along T whose logits exist at once.
      vocab_size: of the tokenizer; later rows of the head are no tokens.
    """
    hidden, _ = lm.forward(arch, params, buffers, batch)
    # [B,T] -> [chunks,B,T/chunks], and hidden likewise.
    pieces = [jnp.stack(jnp.split(array, chunks, axis=1)) for array in (hidden, targets)]

    def score_piece(piece: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden, targets = piece
        logits = lm.logits(arch, params, hidden)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        log_p = chosen - jax.nn.logsumexp(logits, axis=-1)
        likeliest = jnp.argmax(logits[..., :vocab_size], axis=-1)
        return log_p, likeliest == targets

    log_p, is_likeliest = jax.lax.map(score_piece, tuple(pieces))
    # [chunks,B,T/chunks] -> [B,T]
    log_p = jnp.moveaxis(log_p, 0, 1).reshape(targets.shape)
    is_likeliest = jnp.moveaxis(is_likeliest, 0, 1).reshape(targets.shape)
    return jnp.sum(log_p * scored, axis=1), jnp.all(is_likeliest | ~scored, axis=1)
