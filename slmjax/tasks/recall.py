"""The task "recall": answers to the questions of one puzzle, see data/recall_rows.py."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from slmjax.config import Config
from slmjax.data.recall_rows import (
    Puzzle,
    PuzzleRows,
    Questions,
    parse_puzzle,
    puzzle_batch,
    puzzle_fields,
)
from slmjax.data.rows import Rows
from slmjax.errors import UserError
from slmjax.models.block import Out
from slmjax.models.declare import keep_channel
from slmjax.models.lm import Model
from slmjax.parallel import hosts
from slmjax.parallel.compiling import compiler_options
from slmjax.parallel.rules import field_shardings
from slmjax.tasks.task import (
    Evaluated,
    Evaluation,
    Facts,
    Loss,
    TaskBuilder,
    Totals,
    with_terms_of_layers,
)

# Names of the metrics: while the model trains, and after the last step.
VALIDATION, TEST = "eval/validation/accuracy", "eval/test/accuracy"


class Recall:
    """The task of a puzzle: its loss is the mean cross-entropy of the answers. See Task."""

    def __init__(self, rows: Rows, evaluations: Sequence[Evaluation] = ()):
        self.rows, self.evaluations = rows, evaluations

    def totals(self, batch: dict) -> Totals:
        """Return "main", the number of answers, and "tokens", the number of real tokens."""
        answers = jnp.float32(batch["answers"].size)
        return {"main": answers, "tokens": (batch["segments"] > 0).sum()}

    def loss(
        self,
        model: Model,
        params: dict,
        buffers: dict,
        batch: dict,
        totals: Totals,
        *,
        key: Array,
        step: Array,
    ) -> Loss:
        """Return the loss in nats.

        Terms: "loss", "accuracy" (share of right answers), and those of the layers.
        """
        nats, right, out = score_answers(model, params, buffers, batch)
        count = jnp.float32(batch["answers"].size)
        terms = {"loss": (nats.sum(), count), "accuracy": (right.sum(), count)}
        loss = Loss(sum=nats.sum(), weight=count, terms=terms, seen=out.seen)
        return with_terms_of_layers(loss, out, batch, totals, model.arch.share_blocks)


def score_answers(
    model: Model, params: dict, buffers: dict, batch: dict
) -> tuple[Float[Array, "B A"], Float[Array, "B A"], Out]:
    """Return (nats of each right answer, 1 where the model finds it likeliest else 0, Out).

    Logits are computed only at the A positions of a row where something is asked.
    """
    hidden, out = model.forward(params, buffers, batch)
    # hidden [B,T,D] at batch["asked"] [B,A] gives [B,A,D].
    hidden_asked = jnp.take_along_axis(hidden, batch["asked"][..., None], axis=1)
    logits = model.logits(params, hidden_asked)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["answers"])
    right = logits.argmax(-1) == batch["answers"]
    return nats, right.astype(jnp.float32), out


class Accuracy:
    """An evaluation: the share of right answers to `questions`. See Evaluation."""

    def __init__(
        self, metric: str, questions: Questions, program: Any, puzzle: Puzzle, *, at_end: bool
    ):
        """Take the questions, and set up the program that answers a batch of them.

        Args:
          metric: name of the share in metrics.jsonl.
          program: see TaskBuilder.task.
        """
        config, mesh = program.config, program.mesh
        self.metric = metric
        self.questions = questions
        self.at_end = at_end
        _, self.declared_buffers = program.declared
        # As large as a microbatch, so that it fits where training fits.
        self.batch_size = config.train.batch // config.train.microbatches
        # How many documents a device holds, if the attention kernel asks, see `text_fields`. Here
        # each row is one document.
        documents_per_device = None
        if program.place_cuts:
            _, ways = program.place_cuts  # devices over which each microbatch's rows are split
            documents_per_device = self.batch_size // ways
        self.fields = puzzle_fields(puzzle, self.batch_size, documents_per_device)
        self.shardings = field_shardings(self.fields, mesh)

        def is_right(params: dict, buffers: dict, batch: dict) -> Float[Array, "B A"]:
            _, right, _ = score_answers(program.model, params, buffers, batch)
            return right

        self.compiled = jax.jit(
            is_right,
            in_shardings=(program.where.params, None, self.shardings),
            out_shardings=NamedSharding(mesh, P()),
            compiler_options=compiler_options(
                program.device.platform, deterministic=config.train.deterministic
            ),
        )

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """See Evaluation."""
        # The evaluation at the end has an equal program, which then comes from the compile cache.
        if not self.at_end:
            self._right_answers(params, buffers, 0)

    def __call__(
        self,
        model: Model,
        params: dict,
        buffers: dict,
        *,
        step: int,
        note: Callable,
        there: Mapping,
    ) -> Evaluated:
        """See Evaluation."""
        count = len(self.questions.answers)
        parts = []
        for first in range(0, count, self.batch_size):
            parts.append(self._right_answers(params, buffers, first))
        # The last batch may end with rows that were asked before.
        accuracy = float(np.concatenate(parts)[:count].mean())
        note(f"step {step}: {self.metric} {accuracy:.4f}")
        return Evaluated({self.metric: accuracy})

    def _right_answers(self, params: dict, buffers: dict, first: int) -> Float[np.ndarray, "B A"]:
        """Return which answers of one batch of rows, from `first` on, are right: 1, else 0.

        After the last row comes the first again, so that every batch has one shape.
        """
        rows = np.arange(first, first + self.batch_size) % len(self.questions.answers)
        questions = Questions(*(array[rows] for array in self.questions))
        # This process has all rows of the batch.
        held = np.arange(self.batch_size)
        batch = hosts.global_batch(puzzle_batch(questions), self.fields, self.shardings, held)
        # The other buffers are for gradients, which an evaluation does not compute.
        forward_buffers = keep_channel(self.declared_buffers, buffers, "forward")
        return np.asarray(self.compiled(params, forward_buffers, batch))


class RecallBuilder(TaskBuilder):
    """Makes the task of one puzzle; its rows follow from config.seed. See TaskBuilder.

    Args:
      puzzle: see `parse_puzzle`.
      vocab: size of the vocabulary of "recall"; the other puzzles have their own.
      examples: training rows, read over and over.
      tested: rows of the validation, and as many other ones of the test at the end.
    Raises: UserError for an unknown puzzle, for vocab, examples or tested below 1, and for rows of
      another length than config.data.seq_len.
    """

    def __init__(
        self,
        config: Config,
        workdir: str,
        init_from: str,
        *,
        puzzle: str = "recall:64:4",
        vocab: int = 8192,
        examples: int = 100_000,
        tested: int = 3000,
    ):
        for name, count in (("vocab", vocab), ("examples", examples), ("tested", tested)):
            if type(count) is not int or count < 1:
                raise UserError(
                    f"config.task: {name} is {count!r}; expected a whole number of at least 1."
                )
        self.config = config
        self.vocab = vocab
        self.examples = examples
        self.tested = tested
        self.puzzle = parse_puzzle(puzzle, vocab, "config.task")
        self.vocab_size = self.puzzle.vocab
        length = config.data.seq_len
        if length != self.puzzle.length:
            expected = f"rows of {puzzle} have {self.puzzle.length} tokens"
            raise UserError(f"config.data.seq_len is {length}; {expected}.")

    def task(self, program: Any) -> Recall:
        """See TaskBuilder."""
        config, puzzle = self.config, self.puzzle
        batch = config.train.batch
        # As in Accuracy, for each microbatch.
        documents_per_device = None
        if program.place_cuts:
            documents_per_device = batch // math.prod(program.place_cuts)
        rows = PuzzleRows(
            puzzle.name,
            self.vocab,
            examples=self.examples,
            batch=batch,
            seed=config.seed,
            places=documents_per_device,
        )
        # Seeds that PuzzleRows does not draw from: it has (seed, 0) and (seed, 1, epoch).
        valid = puzzle.draw(self.tested, seed=[config.seed, 2, 0])
        test = puzzle.draw(self.tested, seed=[config.seed, 2, 1])
        evaluations = [
            Accuracy(VALIDATION, valid, program, puzzle, at_end=False),
            Accuracy(TEST, test, program, puzzle, at_end=True),
        ]
        return Recall(rows, evaluations)

    def facts(self, task: Recall) -> Facts:
        """See TaskBuilder."""
        puzzle, rows = self.puzzle, task.rows
        epochs = self.config.train.steps * rows.batch / rows.examples
        size = f"{rows.examples:,} rows of {puzzle.length} tokens"
        line = f"{puzzle.name}: {size}, read {epochs:.2f} times"
        record = {"task": puzzle.name, "examples": rows.examples, "epochs": epochs}
        return Facts(lines={"data": line}, record=record)
