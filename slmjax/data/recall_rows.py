"""Rows that show what a token mixer can remember: recall, selective copying, induction heads.

A pure function of the seed. numpy only: worker processes read these rows.
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
# Of the fingerprint: raised when the same settings give other rows than before.
FORMAT = 1
# Numbers behind the kind of a puzzle: a length, and pairs or tokens.
NUMBERS = {"recall": 2, "copy": 2, "induction": 1}
FORMS = "recall:LENGTH:PAIRS, copy:LENGTH:TOKENS, induction:LENGTH"
# Vocabulary of copying and induction, from the paper (see `selective_copy`).
SMALL_VOCAB = 16


class Questions(NamedTuple):
    """Rows of tokens, the places in them where something is asked, and the answers.

    What it takes to answer precedes each place. Every row asks equally many.
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
    """Return rows of multi-query associative recall: keys with values, then each key once more.

    The question at the second key is its value. Keys are of the lower half of the vocabulary and
    values of the upper, none twice in a row. A key comes again at an even distance from the end of
    the pairs. Distances are drawn without repetition with weights n ** (power - 1): most soon, a
    few late. All other tokens are random.

    Source: Arora et al. 2023 (Zoology), section 4; figure 2 has (length, pairs) = (64, 4),
      (128, 8), (256, 16) of a vocabulary of 8,192.
    Raises: ValueError where the pairs and their queries do not fit into the length or the
      vocabulary.
    """
    if length % 2 or 4 * pairs > length:
        needed = f"need an even length of at least {4 * pairs}; it is {length}"
        raise ValueError(f"{pairs} pairs and {pairs} queries {needed}.")
    # Keys are 1 to half - 1, values from half on.
    half = vocab // 2
    if pairs > half - 1:
        raise ValueError(
            f"{pairs} pairs need a vocabulary of at least {2 * pairs + 2} tokens; it is {vocab}."
        )
    random = np.random.default_rng(seed)
    keys = 1 + _distinct(random, rows, pairs, half - 1)  # [rows, pairs]
    values = half + _distinct(random, rows, pairs, vocab - half)
    end_of_pairs = 2 * pairs
    # A key comes again `gap` pairs of places behind the end of the pairs.
    places = np.arange(1, (length - end_of_pairs) // 2 + 1)
    log_weights = np.log(places) * (power - 1)
    gaps = _weighted(random, rows, pairs, log_weights)
    shape = (rows, length)
    tokens = random.integers(0, vocab, shape, dtype=np.int32)
    tokens[:, 0:end_of_pairs:2] = keys
    tokens[:, 1:end_of_pairs:2] = values
    asked = end_of_pairs + 2 * gaps
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
    """Return rows with `copied` tokens scattered among noise, then as many marks.

    The questions at the marks are the tokens in their order. Token 0 is noise and vocab - 1 the
    mark.

    Source: Gu and Dao 2023 (Mamba), section 4.1.1: 16 of 4,096 tokens, a vocabulary of 16.
    Raises: ValueError where they do not fit.
    """
    if 2 * copied > length:
        needed = f"need a length of at least {2 * copied}; it is {length}"
        raise ValueError(f"{copied} tokens and {copied} marks {needed}.")
    random = np.random.default_rng(seed)
    first_mark = length - copied
    places = _distinct(random, rows, copied, first_mark)
    places = np.sort(places, axis=1)
    shape = (rows, copied)
    drawn = random.integers(1, vocab - 1, shape, dtype=np.int32)
    tokens = np.zeros((rows, length), np.int32)
    np.put_along_axis(tokens, places, drawn, axis=1)
    tokens[:, first_mark:] = vocab - 1
    marks = np.arange(first_mark, length, dtype=np.int32)
    asked = np.tile(marks, (rows, 1))
    return Questions(tokens, asked, drawn)


def induction(
    rows: int,
    length: int,
    *,
    seed: Seed,
    vocab: int = SMALL_VOCAB,
) -> Questions:
    """Return rows of random tokens with one special token twice, the second time at the end.

    The question is what followed the first. The special token is vocab - 1.

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
    """A task of the study, such as "recall:64:4".

    draw: draw(rows, seed=) -> Questions.
    length, answers: tokens and questions of a row.
    vocab: tokens of the vocabulary.
    """

    name: str
    draw: functools.partial
    length: int
    answers: int
    vocab: int


def parse_puzzle(name: str, vocab: int, field: str = "config.study.tasks") -> Puzzle:
    """Return the puzzle of a name.

    Args:
      name: "recall:LENGTH:PAIRS", "copy:LENGTH:TOKENS" or "induction:LENGTH".
      vocab: of recall; the others have 16 tokens.
      field: of the config, for errors.
    Raises: UserError for another name, and for rows that cannot be made.
    """
    kind, *words = name.split(":")
    numbers = []
    for word in words:
        if word.isdecimal() and int(word) > 0:
            numbers.append(int(word))
    has_all = NUMBERS.get(kind) == len(words)
    if not has_all or len(numbers) != len(words):
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
    # Whether the numbers fit shows in the first row.
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
    # The questions say what the loss is of.
    del fields["targets"], fields["weights"]
    shape = (batch, puzzle.answers)
    asked = Field(shape, "int32", ("batch", None))
    return fields | {"asked": asked, "answers": asked}


def puzzle_batch(questions: Questions) -> Arrays:
    """Return the arrays of `puzzle_fields`: each row is one document."""
    # One document a row, without padding.
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
    """Rows of a puzzle: `examples` of them, read over and over, each time in another order.

    See Rows.

    Args:
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
        """The puzzle that the name describes."""
        return parse_puzzle(self.name, self.vocab)

    @functools.cached_property
    def questions(self) -> Questions:
        """All examples; each process draws them for itself."""
        return self.puzzle.draw(self.examples, seed=[self.seed, 0])

    @functools.cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        """The order of the examples in the latest epochs."""
        return {}

    def shapes(self, step: int) -> Fields:
        """See Rows."""
        return puzzle_fields(self.puzzle, self.batch, self.places)

    def read(self, step: int, rows: Sequence[int]) -> Questions:
        """See Rows."""
        # Rows of the run are numbered on over steps, and over epochs.
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
        decides = {}
        if step:
            settings = [self.name, self.vocab, self.examples, self.batch, self.seed]
            decides = {"format": FORMAT, "rows": settings}
        content = json.dumps(decides)
        return hashlib.sha256(content.encode()).hexdigest()

    def _example(self, number: int) -> int:
        """Return the example that is row `number` of the run."""
        epoch, place = divmod(number, self.examples)
        if epoch not in self._orders:
            # A batch lies in two epochs at most, unless they are short.
            while len(self._orders) > 1:
                del self._orders[min(self._orders)]
            random = np.random.default_rng([self.seed, 1, epoch])
            self._orders[epoch] = random.permutation(self.examples)
        return int(self._orders[epoch][place])

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone: what is drawn is large, and follows from them."""
        drawn = ("puzzle", "questions", "_orders")
        return {name: value for name, value in self.__dict__.items() if name not in drawn}


def _distinct(
    random: np.random.Generator,
    rows: int,
    count: int,
    choices: int,
) -> Int[np.ndarray, "rows count"]:
    """Return numbers below `choices`, none twice in a row, in random order.

    Source: Floyd's algorithm (Bentley and Floyd 1987).
    """
    drawn = np.zeros((rows, count), np.int64)
    first_largest = choices - count
    for i in range(count):
        largest = first_largest + i
        number = random.integers(0, largest + 1, rows)
        # A number that is drawn already makes room for the one that was not possible before.
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
    """Return numbers as `_distinct` does, in the order of a draw by weights."""
    # Gumbel's trick: the largest sums of log weight and noise are such a draw.
    shape = (rows, len(log_weights))
    sums = random.gumbel(size=shape) + log_weights
    largest_first = np.argsort(-sums, axis=1)
    return largest_first[:, :count]
