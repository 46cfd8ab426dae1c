"""The contract between the training loop and what it trains: rows, a loss and evaluations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array

from slmjax.data.rows import Arrays, Rows
from slmjax.models.block import Out
from slmjax.models.lm import Model
from slmjax.text.tokenizer import Tokenizer

# Denominators of a whole batch by name, such as the number of its tokens. See Task.totals.
Totals = Mapping[str, Array]


class Loss(NamedTuple):
    """The loss of a microbatch.

    sum: the losses of all rows or tokens, added up. The step adds up the sums of all microbatches
      and divides once by totals["main"]; a term with another denominator is rescaled for that, see
      `plus`.
    weight: this microbatch's part of totals["main"]: the weights of all microbatches add up to it.
    terms: {name: (sum, weight)}; the mean sum / weight is logged as "train/<name>". The progress
      line and the report show the term "loss".
    seen: the model's `Out.seen`, observations of its forward buffers (models/declare.py).
    """

    sum: Array
    weight: Array
    terms: dict[str, tuple[Array, Array]]
    seen: dict

    def plus(
        self,
        name: str,
        coefficient: float,
        part: tuple[Array, Array],
        totals: Totals,
    ) -> "Loss":
        """Return the loss with coefficient * (the batch's mean of another term) added.

        The result is exact however a batch is cut into microbatches.

        Args:
          name: of the term in the metrics, and of its denominator in `totals`.
          part: (sum, weight) of the term over this microbatch; the weights of all microbatches add
            up to totals[name].
        """
        # The step will divide by totals["main"]: multiplied by it here, the two cancel.
        total, _ = part
        added = coefficient * total * totals["main"] / jnp.maximum(totals[name], 1)
        return self._replace(sum=self.sum + added, terms=self.terms | {name: part})


class Evaluated(NamedTuple):
    """The result of an evaluation.

    metrics: {name: value} for metrics.jsonl.
    documents: {source: arrays} for heldout.npz, which `slmjax.compare` reads. The arrays "keys",
      "nats", "bytes" and "tokens" have one value for each document.
    events: {name: facts} for metrics.jsonl.
    """

    metrics: Mapping[str, float] = {}
    documents: Mapping[str, Arrays] = {}
    events: Mapping[str, Mapping[str, Any]] = {}


@runtime_checkable
class Evaluation(Protocol):
    """A measurement of the model while it trains.

    at_end: it runs once, after the last step.
    """

    at_end: bool

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """Compile its programs, before the first step."""

    def __call__(
        self,
        model: Model,
        params: dict,
        buffers: dict,
        *,
        step: int,
        note: Callable[[str], None],
        there: Mapping[str, Mapping[str, Any]],
    ) -> Evaluated:
        """Run it after `step` steps, on every process.

        Args:
          params: the master weights, of which each process may hold only a part. The mesh is set:
            `jax.jit(f, out_shardings=PartitionSpec())` gives each process the whole result.
          note: prints a line for the person at the terminal.
          there: {name: facts} of the events of this step that are in metrics.jsonl already, from a
            killed session or from an evaluation before this one.
        """


@runtime_checkable
class Task(Protocol):
    """Rows, a loss and evaluations."""

    rows: Rows
    evaluations: Sequence[Evaluation]

    def totals(self, batch: dict) -> Totals:
        """Return the denominators of the whole batch, "main" among them.

        They are computed once, without parameters.
        """

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
        """Return the loss of a microbatch.

        Args:
          params: in the compute type.
          batch: {name: array [rows, ...]} as `rows.shapes` says, with the rows of this microbatch.
          key: a random key of this step and microbatch.
          step: int32 [], steps done so far.
        """


@runtime_checkable
class DrawingTask(Task, Protocol):
    """A task whose rows depend on the model: `prepare` draws them, and `rows` only has shapes."""

    def prepare(self, step: int, params: dict, buffers: dict) -> Arrays:
        """Draw the global batch of a step: {name: array [B, ...]}, equal on every process.

        It is called before the step, without prefetch or workers. What it returns is on disk before
        the update, so that a killed run repeats it exactly.
        """


class Facts(NamedTuple):
    """Facts about the data of a run, for the terminal and the records.

    lines: {name: sentence}, printed as the run starts.
    record: fields of the event "data" in metrics.jsonl, in JSON's types. The names event, name,
      step and time are reserved.
    """

    lines: Mapping[str, str] = {}
    record: Mapping[str, Any] = {}


@runtime_checkable
class TaskBuilder(Protocol):
    """Makes the task that config.task names: `name(config, workdir, init_from, **options)`.

    A subclass has no tokenizer and no facts unless it says so. The smallest one:

        class Mine(TaskBuilder):
            vocab_size = 256

            def __init__(self, config, workdir, init_from, *, classes=4):
                self.config, self.classes = config, classes

            def task(self, program):
                return MyTask(MyRows(self.config.train.batch, self.config.seed, self.classes))

    Its keyword-only parameters are the task's options: --config.task="mine:Mine classes=10". Every
    process makes one as the run starts.

    Args:
      config: the whole slmjax.config.Config. A batch has config.train.batch rows, and a row counts
        as config.data.seq_len tokens in figures of speed and cost.
      workdir: of the run, a local folder or gs://.
      init_from: the work directory that gives the first parameters; "" for a run that has none.

    vocab_size: tokens that the model knows; the embedding may have more rows.
    tokenizer: the text's, for tokenizer.json; None for a task that has no text.
    """

    vocab_size: int
    tokenizer: Tokenizer | None = None

    def task(self, program: Any) -> Task:
        """Return the task.

        Args:
          program: the train.program.Program, not compiled yet. Of use are its config, mesh, device,
            `declared`, `place_cuts`, model (as `loss` gets it) and `where` (the state's shardings).
        """

    def facts(self, task: Task) -> Facts:
        """Return facts about the task's data."""
        return Facts()


def with_terms_of_layers(
    loss: Loss, out: Out, batch: dict, totals: Totals, applications: int = 1
) -> Loss:
    """Return a loss with the terms that layers add to it.

    Args:
      loss: a loss of a task with "tokens", the number of real tokens, among its totals.
      out: the model's second result, next to the hidden states.
      batch: has segments [B,T], which are above 0 for real tokens.
      applications: times in a row that each block is applied (config.model.share_blocks).
    """
    # Most layers add no terms; the compiled program then has no operations for them.
    if not any(out.terms.values()):
        return loss
    weighted_sum = jnp.zeros(())
    sums: dict[str, Array] = {}
    layer_counts: dict[str, int] = {}
    for group_terms in out.terms.values():
        for block_terms in group_terms.values():
            for name, term in block_terms.items():
                # term.sum [repeats]: one value for each repeat of the pattern, which is a layer. It
                # is the sum over all applications of a shared block.
                weighted_sum += (term.coefficient * term.sum).sum()
                sums[name] = sums.get(name, 0.0) + term.sum.sum()
                layers = len(term.sum) * applications
                layer_counts[name] = layer_counts.get(name, 0) + layers
    tokens = (batch["segments"] > 0).sum()
    # Logged as a mean over tokens and layers, where each application of a block is a layer.
    terms = {name: (total, layer_counts[name] * tokens) for name, total in sums.items()}
    # In the loss a term is a mean over tokens: the same rescaling as in `Loss.plus`.
    rescaled = weighted_sum * totals["main"] / jnp.maximum(totals["tokens"], 1)
    return loss._replace(sum=loss.sum + rescaled, terms=loss.terms | terms)
