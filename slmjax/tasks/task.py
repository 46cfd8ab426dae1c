"""The contract between the training loop and what it trains. See DESIGN, "Task"."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from slmjax.data.rows import Arrays, Rows
from slmjax.models.lm import Model

Totals = Mapping[str, Array]


class Loss(NamedTuple):
    """The loss of a microbatch.

    sum: in units of totals["main"]; divided by it once, when all microbatches are added up. A part
      with another denominator enters as coefficient * part * totals["main"] / totals[its name].
    weight: this microbatch's share of totals["main"].
    terms: {metric name: (sum, weight)}, logged as "train/<name>". "loss" is what the progress line
      and the report show.
    seen: observations of buffers with a forward channel, as the model's `Out.seen`.
    """

    sum: Array
    weight: Array
    terms: dict[str, tuple[Array, Array]]
    seen: dict


class Evaluated(NamedTuple):
    """What an evaluation found.

    metrics: {name: value} for metrics.jsonl.
    documents: {source: {"keys", "nats", "bytes", "tokens": one value for each document}} for
      heldout.npz, which `slmjax.compare` reads.
    events: {name: facts} for metrics.jsonl.
    """

    metrics: Mapping[str, float] = {}
    documents: Mapping[str, Arrays] = {}
    events: Mapping[str, Mapping[str, Any]] = {}


@runtime_checkable
class Evaluation(Protocol):
    """Something that a run looks at.

    at_end: it runs once, after the last step.
    events: names of the events that it writes.
    """

    at_end: bool
    events: Sequence[str]

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """Compile what it needs, before the first step."""

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
        """Run it after `step` steps.

        Args:
          note: prints a line for the person at the terminal.
          there: {name: facts} of the events that the run's records hold already after this step.
        """


@runtime_checkable
class Task(Protocol):
    """What a run trains.

    A task whose rows depend on the model may have `prepare(step, params, buffers) -> rows`: it is
    called before each step, its Rows are read without prefetch or workers, and what it returns for
    a step is recorded before the update, so that a killed run repeats it exactly.
    """

    rows: Rows
    evaluations: Sequence[Evaluation]

    def totals(self, batch: dict) -> Totals:
        """Denominators of the whole batch, "main" among them; computed once, without parameters."""

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
        """The loss of a microbatch."""


def auxiliary(terms: dict, totals: Totals) -> tuple[Float[Array, ""], dict[str, tuple[Array, int]]]:
    """Return (what layers add to the loss, {name: (the term's sum over all layers, number of layers)}).

    Args:
      terms: of the model's Out: {group: {position: {name: Term with leaves [repeats]}}}.
      totals: has "main" and "tokens", the number of real tokens of the whole batch. A layer's term
        is a sum over the real tokens of the microbatch.
    """
    added, sums, layers = jnp.zeros(()), {}, {}
    for group in terms.values():
        for position in group.values():
            for name, term in position.items():
                added += (term.coefficient * term.sum).sum()
                sums[name] = sums.get(name, 0.0) + term.sum.sum()
                layers[name] = layers.get(name, 0) + len(term.sum)
    return added * totals["main"] / totals["tokens"], {name: (total, layers[name]) for name, total in sums.items()}
