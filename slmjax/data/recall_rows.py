"""Synthetic rows that test what a token mixer remembers: recall, selective copying, induction.

They are pure functions of the seed. This file needs numpy only, because worker processes that read
the rows must not import jax.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from slmjax.data.rows import Arrays, Field, Fields, text_fields
from slmjax.errors import UserError

Seed = int | Sequence[int]
# Version of the fingerprint: raised when the same settings give other rows than before.
FORMAT = 1
# How many numbers follow the kind in a puzzle's name, see FORMS.
NUMBER_COUNTS = {"recall": 2, "copy": 2, "induction": 1}
FORMS = "recall:LENGTH:PAIRS, copy:LENGTH:TOKENS, induction:LENGTH"
# Vocabulary of copying and induction, from the paper (see `selective_copy`).
SMALL_VOCAB = 16


class Questions(NamedTuple):
    """Rows of tokens with questions at some of their places.

    tokens: the rows. What a model needs to know for an answer is at or before its question.
    asked: places of the questions in each row; all rows have equally many.
    answers: the token that is the right answer to each.
    """

    tokens: Int[np.ndarray, "rows length"]
    asked: Int[np.ndarray, "rows answers"]
    answers: Int[np.ndarray, "rows answers"]


def associative_recall(
    rows: int,
    length: int,
    pairs: int,
    *,
    seed: Seed,
    vocab: int = 8192,
    power: float = 0.01,
) -> Questions:
    """Return rows of multi-query associative recall: pairs of key and value, then each key again.

    The answer at a key's second place is its value. Keys are from the lower half of the vocabulary
    and values from the upper half; a row has no key and no value twice. The second place of a key
    is 2 (n - 1) tokens after the pairs. The n of a row differ, and are drawn with weights
    n ** (power - 1): most keys come again soon, a few late. All other tokens are random.

    Source: Arora et al. 2023 (Zoology), section 4; figure 2 has (length, pairs) = (64, 4),
      (128, 8), (256, 16) of a vocabulary of 8,192.
    Raises: ValueError for an odd length, and where the pairs and the second keys do not fit into
      the length or the vocabulary.
    """
    if length % 2 or 4 * pairs > length:
        needed = f"need an even length of at least {4 * pairs}; it is {length}"
        raise ValueError(f"{pairs} pairs and {pairs} queries {needed}.")
    # Keys are from 1 to half - 1, values from half to vocab - 1.
    half = vocab // 2
    if pairs > half - 1:
        raise ValueError(
            f"{pairs} pairs need a vocabulary of at least {2 * pairs + 2} tokens; it is {vocab}."
        )
    random = np.random.default_rng(seed)
    keys = 1 + _distinct(random, rows, pairs, half - 1)  # [rows, pairs], as `values`
    values = half + _distinct(random, rows, pairs, vocab - half)
    end_of_pairs = 2 * pairs
    n = np.arange(1, (length - end_of_pairs) // 2 + 1)
    log_weights = np.log(n) * (power - 1)
    # Indices into n, one for each key: [rows, pairs].
    n_minus_1 = _weighted(random, rows, pairs, log_weights)
    shape = (rows, length)
    tokens = random.integers(0, vocab, shape, dtype=np.int32)
    tokens[:, 0:end_of_pairs:2] = keys
    tokens[:, 1:end_of_pairs:2] = values
    asked = end_of_pairs + 2 * n_minus_1
    np.put_along_axis(tokens, asked, keys, axis=1)
    return Questions(tokens, asked.astype(np.int32), values.astype(np.int32))


def selective_copy(
    rows: int,
    length: int,
    copied: int = 16,
    *,
    seed: Seed,
    vocab: int = SMALL_VOCAB,
) -> Questions:
    """Return rows with `copied` random tokens scattered among noise, then as many marks.

    The answers at the marks are these tokens, in their order. Noise is token 0, a mark is token
    vocab - 1.

    Source: Gu and Dao 2023 (Mamba), section 4.1.1: 16 of 4,096 tokens, a vocabulary of 16.
    Raises: ValueError where tokens and marks do not fit into the length.
    """
    if 2 * copied > length:
        needed = f"need a length of at least {2 * copied}; it is {length}"
        raise ValueError(f"{copied} tokens and {copied} marks {needed}.")
    random = np.random.default_rng(seed)
    first_mark = length - copied
    places = _distinct(random, rows, copied, first_mark)
    places = np.sort(places, axis=1)
    shape = (rows, copied)
    answers = random.integers(1, vocab - 1, shape, dtype=np.int32)
    tokens = np.zeros((rows, length), np.int32)
    np.put_along_axis(tokens, places, answers, axis=1)
    tokens[:, first_mark:] = vocab - 1
    marks = np.arange(first_mark, length, dtype=np.int32)
    asked = np.tile(marks, (rows, 1))
    return Questions(tokens, asked, answers)


def induction(
    rows: int,
    length: int,
    *,
    seed: Seed,
    vocab: int = SMALL_VOCAB,
) -> Questions:
    """Return rows of random tokens with one special token twice, the second time at the end.

    The answer at the end is the token after the first special one. The special token is vocab - 1.

    Source: Gu and Dao 2023 (Mamba), section 4.1.2: trained on 256 tokens of a vocabulary of 16.
    Raises: ValueError for rows that are too short.
    """
    if length < 3:
        raise ValueError(f"induction needs a length of at least 3; it is {length}.")
    random = np.random.default_rng(seed)
    special = vocab - 1
    shape = (rows, length)
    tokens = random.integers(0, special, shape, dtype=np.int32)
    # A token has to follow the first special one before the second comes.
    first = random.integers(0, length - 2, (rows, 1))
    np.put_along_axis(tokens, first, special, axis=1)
    tokens[:, -1] = special
    answers = np.take_along_axis(tokens, first + 1, axis=1)
    asked = np.full((rows, 1), length - 1, np.int32)
    return Questions(tokens, asked, answers)


class Puzzle(NamedTuple):
    """One of the three kinds of rows with its numbers, such as "recall:64:4".

    draw: function (rows, seed=...) -> Questions.
    length, answers: number of tokens and of questions in a row.
    vocab: size of the vocabulary.
    """

    name: str
    draw: functools.partial
    length: int
    answers: int
    vocab: int


def parse_puzzle(name: str, vocab: int, field: str = "config.study.tasks") -> Puzzle:
    """Return the puzzle that a name describes.

    Args:
      name: "recall:LENGTH:PAIRS", "copy:LENGTH:TOKENS" or "induction:LENGTH".
      vocab: size of the vocabulary for recall; the other kinds have 16 tokens.
      field: the name's field in the config, for errors.
    Raises: UserError for another name, and for numbers with which no row can be made.
    """
    kind, *words = name.split(":")
    numbers = []
    for word in words:
        if word.isdecimal() and int(word) > 0:
            numbers.append(int(word))
    right_count = NUMBER_COUNTS.get(kind) == len(words)
    all_are_numbers = len(numbers) == len(words)
    if not (right_count and all_are_numbers):
        raise UserError(f"{field}: '{name}' is none of {FORMS}.")
    length = numbers[0]
    answers = 1
    if kind == "induction":
        vocab = SMALL_VOCAB
        draw = functools.partial(induction, length=length)
    elif kind == "copy":
        answers = numbers[1]
        vocab = SMALL_VOCAB
        draw = functools.partial(selective_copy, length=length, copied=answers)
    else:
        answers = numbers[1]
        draw = functools.partial(associative_recall, length=length, pairs=answers, vocab=vocab)
    # Drawing a row shows whether the numbers fit together.
    try:
        draw(1, seed=0)
    except ValueError as error:
        raise UserError(f"{field}: '{name}' cannot be made: {str(error).rstrip('.')}.") from error
    return Puzzle(name, draw, length, answers, vocab)


def puzzle_fields(puzzle: Puzzle, batch: int, places: int | None = None) -> Fields:
    """Return the fields of a batch: tokens, segments, positions [B,T]; asked, answers [B,A].

    See `text_fields` for places.
    """
    fields = dict(text_fields(batch, puzzle.length, places))
    # The loss is of the answers, not of the next token.
    del fields["targets"], fields["weights"]
    shape = (batch, puzzle.answers)
    asked = Field(shape, "int32", ("batch", None))
    return fields | {"asked": asked, "answers": asked}


def puzzle_batch(questions: Questions) -> Arrays:
    """Return the arrays of `puzzle_fields`: each row is one document without padding."""
    tokens = questions.tokens
    positions = np.arange(tokens.shape[1], dtype=np.int32)
    return {
        "tokens": tokens,
        "asked": questions.asked,
        "answers": questions.answers,
        "segments": np.ones_like(tokens),
        "positions": np.broadcast_to(positions, tokens.shape),
    }


class PuzzleRows:
    """Training data from a puzzle, see `Rows`: its examples in another order in every epoch.

    Args:
      name, vocab: of the puzzle, see `parse_puzzle`.
      examples: number of rows in an epoch.
      batch: rows of a step.
      places: see `text_fields`.
    """

    def __init__(
        self,
        name: str,
        vocab: int,
        *,
        examples: int,
        batch: int,
        seed: int,
        places: int | None = None,
    ):
        self.name = name
        self.vocab = vocab
        self.examples = examples
        self.batch = batch
        self.seed = seed
        self.places = places

    @functools.cached_property
    def puzzle(self) -> Puzzle:
        """The parsed name."""
        return parse_puzzle(self.name, self.vocab)

    @functools.cached_property
    def questions(self) -> Questions:
        """All examples. Each process draws them again, see `__getstate__`."""
        return self.puzzle.draw(self.examples, seed=[self.seed, 0])

    @functools.cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        """{epoch: order of the examples}, for the latest two epochs."""
        return {}

    def shapes(self, step: int) -> Fields:
        """See Rows."""
        return puzzle_fields(self.puzzle, self.batch, self.places)

    def read(self, step: int, rows: Sequence[int]) -> Questions:
        """See Rows."""
        # Rows are numbered over the whole run.
        first = step * self.batch
        picked = np.array([self._example(first + row) for row in rows])
        questions = self.questions
        return Questions(
            tokens=questions.tokens[picked],
            asked=questions.asked[picked],
            answers=questions.answers[picked],
        )

    def unpack(self, compact: Questions) -> Arrays:
        """See Rows."""
        return puzzle_batch(compact)

    def fingerprint(self, step: int) -> str:
        """See Rows."""
        # Nothing has been read before step 0, so any rows may begin there.
        content = {}
        if step:
            settings = [self.name, self.vocab, self.examples, self.batch, self.seed]
            content = {"format": FORMAT, "rows": settings}
        text = json.dumps(content)
        return hashlib.sha256(text.encode()).hexdigest()

    def _example(self, number: int) -> int:
        """Return the example that is row `number` of the run."""
        epoch, place = divmod(number, self.examples)
        if epoch not in self._orders:
            # Two are kept: a batch lies in at most two epochs, unless these are shorter than it.
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            random = np.random.default_rng([self.seed, 1, epoch])
            self._orders[epoch] = random.permutation(self.examples)
        return int(self._orders[epoch][place])

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings for a pickle: what is drawn is large and follows from them."""
        drawn = ("puzzle", "questions", "_orders")
        return {name: value for name, value in self.__dict__.items() if name not in drawn}


def _distinct(
    random: np.random.Generator,
    rows: int,
    count: int,
    choices: int,
) -> Int[np.ndarray, "rows count"]:
    """Return rows of `count` different random numbers below `choices`, in random order.

    Source: Floyd's algorithm (Bentley and Floyd 1987).
    """
    drawn = np.zeros((rows, count), np.int64)
    first_largest = choices - count
    for i in range(count):
        largest = first_largest + i
        number = random.integers(0, largest + 1, rows)
        # A row that has the number already gets `largest`, which no earlier draw could give.
        is_equal = drawn[:, :i] == number[:, None]
        is_drawn = is_equal.any(1)
        drawn[:, i] = np.where(is_drawn, largest, number)
    return random.permuted(drawn, axis=1)


def _weighted(
    random: np.random.Generator,
    rows: int,
    count: int,
    log_weights: Float[np.ndarray, "choices"],
) -> Int[np.ndarray, "rows count"]:
    """Return rows of `count` different indices into `log_weights`, drawn with these weights."""
    # The Gumbel-top-k trick: the k largest sums of log weight and Gumbel noise are such a draw.
    shape = (rows, len(log_weights))
    sums = random.gumbel(size=shape) + log_weights
    largest_first = np.argsort(-sums, axis=1)
    return largest_first[:, :count]
