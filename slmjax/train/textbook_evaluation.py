"""The embedded textbook's held-out questions: the model's exact answers, and n-gram models'."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from slmjax.data import prepare_stage as stage
from slmjax.data.prepare import Prepared
from slmjax.evals import kneser_ney
from slmjax.evals.answers import exact_answers
from slmjax.evals.perplexity import DocumentLosses
from slmjax.infer.engine import Engine
from slmjax.models.lm import Model
from slmjax.readable import said_if_long
from slmjax.record.progress import answer_table
from slmjax.tasks.task import Evaluated
from slmjax.textbook import passages as textbook
from slmjax.train.evaluation import HeldOut

# Questions of each kind: a share of exact answers has a standard error of at most 0.1.
QUESTIONS = 25
# Most tokens of an answer.
ANSWER_TOKENS = 128
# Orders of the n-gram models.
ORDERS = (2, 3, 4, 5)


class TextbookAnswers:
    """Exact answers to the textbook's held-out questions; only a single process can ask them."""

    at_end = True

    def __init__(self, prepared: Prepared, compared: bool):
        """Args: compared: whether a TextbookBaseline follows, which prints these answers too."""
        self.prepared, self.compared = prepared, compared

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """Nothing is compiled before the end."""

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
        if jax.process_count() > 1:
            return Evaluated()
        # A killed session may have asked already; the answers would be the same.
        answers = there.get("answers", {}).get("kinds")
        events = {}
        if not answers:
            with said_if_long("asking the textbook's held-out questions", say=note):
                engine = Engine(model.arch, params, buffers, self.prepared.tokenizer, tuned=False)
                answers = textbook_answers(engine, stage.SEED)
            events = {"answers": {"kinds": answers}}
        if not self.compared:
            note(answer_table(answers, {}))
        scores = {f"eval/{kind}/accuracy": answer["accuracy"] for kind, answer in answers.items()}
        return Evaluated(scores, events=events)


class TextbookBaseline:
    """N-gram models of the same text, to compare the model's answers and bits per byte with."""

    at_end = True

    def __init__(self, heldout: HeldOut):
        self.heldout = heldout

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """Nothing is compiled before the end."""

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
        if jax.process_count() > 1:
            return Evaluated()
        # A killed session may have trained the models already.
        baseline = there.get("baseline")
        events = {}
        if baseline is None:
            with said_if_long("training n-gram models on the same text, for comparison", say=note):
                losses = self.heldout.losses(params, buffers)
                baseline = textbook_baseline(
                    self.heldout.prepared, losses, model.arch.vocab_size, stage.SEED
                )
            events = {"baseline": baseline}
        note(answer_table(there["answers"]["kinds"], baseline["answers"]))
        return Evaluated(events=events)


def textbook_answers(engine: Engine, seed: int) -> dict[str, dict]:
    """Ask the model the textbook's held-out questions, at temperature 0; see `exact_answers`.

    Args:
      seed: chooses the questions.
    Returns: {kind of question: {"accuracy", "chance", "count"}}.
    """

    def complete(prompts: list[str]) -> list[str]:
        completions = engine.generate(prompts, max_tokens=ANSWER_TOKENS)
        return [completion.text for completion in completions]

    return exact_answers(complete, _questions(seed), extract=textbook.extract_answer)


def textbook_baseline(
    prepared: Prepared, losses: Mapping[str, DocumentLosses], vocab_size: int, seed: int
) -> dict[str, dict]:
    """Train Kneser-Ney models of several orders on the training tokens, and score them.

    Args:
      losses: the model's, whose documents are scored.
      seed: chooses the questions.
    Returns: {"kneser_ney": {order: {source or "total": bits per byte on these documents}},
      "answers": {kind: share of exact answers of the order with the fewest bits per byte}}.
    """
    tokenizer, eot = prepared.tokenizer, prepared.tokenizer.eot
    # All orders learn from the same tokens, without the end-of-text tokens around documents.
    training = [tokens[1:-1] for shards in prepared.train.values() for tokens in shards]
    # By source: the tokens of each document, and the bytes of all.
    documents, sizes = {}, {}
    for name, loss in losses.items():
        documents[name] = [
            _document(prepared.heldout[name], int(number)) for number in loss.document
        ]
        sizes[name] = int(loss.bytes.sum())
    bits: dict[str, dict[str, float]] = {}
    models = {}
    for order in ORDERS:
        models[order] = kneser_ney.fit(training, vocab_size, order, eot)
        nats = {}
        for name, source_documents in documents.items():
            nats[name] = -float(models[order].log_probabilities(source_documents).sum())
        bits[str(order)] = _bits_per_byte(nats, sizes)
    best = models[min(ORDERS, key=lambda order: bits[str(order)]["total"])]

    def complete(prompts: list[str]) -> list[str]:
        texts = []
        for prompt in prompts:
            tokens = best.complete(tokenizer.encode(prompt), ANSWER_TOKENS, eot)
            texts.append(tokenizer.decode(tokens))
        return texts

    answers = exact_answers(complete, _questions(seed), extract=textbook.extract_answer)
    accuracies = {kind: answer["accuracy"] for kind, answer in answers.items()}
    return {"kneser_ney": bits, "answers": accuracies}


def _bits_per_byte(nats: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Return the bits per byte of each source and of all, as "total"."""
    bits = {name: nats[name] / sizes[name] / math.log(2) for name in nats}
    bits["total"] = sum(nats.values()) / sum(sizes.values()) / math.log(2)
    return bits


def _questions(seed: int) -> dict[str, list]:
    """Return the held-out questions of each kind."""
    return {kind: textbook.questions(kind, QUESTIONS, seed) for kind in textbook.KINDS}


def _document(shards: Any, number: int) -> np.ndarray:
    """Return a document's tokens without the end-of-text tokens around it."""
    return shards.read(number, 0, int(shards.lengths[number]))[1:-1]
