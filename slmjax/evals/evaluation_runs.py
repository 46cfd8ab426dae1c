"""Measure a model on one evaluation set: figures, and a record of every item for people to read."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from slmjax.errors import UserError
from slmjax.evals import question_answers as asking
from slmjax.evals.choice_scores import choice_figures, choice_hits, split_by_item
from slmjax.evals.continuation_scores import ContinuationScorer, EncodedPair
from slmjax.evals.development_set import nats_per_token
from slmjax.evals.equation_nats import equation_nats, equation_pairs
from slmjax.evals.evaluation_items import (
    CHOICES,
    CONTINUATIONS,
    GSM8K_DEV,
    QUESTIONS,
    TEXTBOOK,
    EvaluationSet,
    QuestionItem,
)
from slmjax.evals.intervals import Figure, mean_of, share_of
from slmjax.evals.question_answers import Answers, AnswerSettings
from slmjax.evals.text_bits import text_figures, text_losses
from slmjax.infer.dialogue import trained_on_dialogues
from slmjax.infer.engine import Engine
from slmjax.infer.load import Loaded
from slmjax.models.lm import Model
from slmjax.parallel.mesh import DeviceKind

LARGEST_EXPONENT = 700  # of nats, whose exponential is a float
# Rows that are decoded at once.
DECODED_ROWS = {"cpu": 32}
MOST_DECODED_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a model does on a set.

    Attributes:
      figures: the first one is the set's headline.
      records: one for each item, see evaluation_page.items_page; "right" is the headline's verdict.
      notes: sentences on what was cut.
    """

    figures: dict[str, Figure]
    records: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Examined:
    """A model in the forms in which evaluations use it."""

    loaded: Loaded
    scorer: ContinuationScorer
    engine: Engine
    chat: bool  # whether it has learned to answer in turns

    @property
    def longest(self) -> int:
        """Tokens of a row of training."""
        return self.loaded.config.data.seq_len


def examined(loaded: Loaded, device: DeviceKind) -> Examined:
    """Return a loaded model, ready to be measured on its device."""
    tokenizer = loaded.tokenizer
    scorer = ContinuationScorer(
        loaded.arch,
        loaded.params,
        loaded.buffers,
        tokenizer,
        device,
        loaded.config.data.seq_len,
    )
    # Not tuned: an evaluation decodes a few batches of each shape, and compiles in a third of the
    # time.
    engine = Engine(
        loaded.arch,
        loaded.params,
        loaded.buffers,
        tokenizer,
        max_batch=DECODED_ROWS.get(device.platform, MOST_DECODED_ROWS),
        tuned=False,
    )
    return Examined(loaded, scorer, engine, trained_on_dialogues(loaded.config))


def planned_set(
    model: Examined,
    of: EvaluationSet,
    examples: Sequence[QuestionItem],
    settings: AnswerSettings,
    seed: int,
) -> Callable[[], Measured]:
    """Return the function that measures a set. What the model cannot read is refused beforehand.

    Args:
      examples: worked examples before each word problem.
      settings: for questions; other sets need none.
      seed: of sampled answers.
    Raises: UserError where an item is longer than the rows of training allow.
    """
    try:
        if of.kind == CHOICES:
            encoded = model.scorer.encode([pair for item in of.items for pair in item.pairs])
            return functools.partial(_measure_choices, model, of, encoded)
        if of.kind == CONTINUATIONS:
            encoded = model.scorer.encode([(item.context, item.continuation) for item in of.items])
            return functools.partial(_measure_continuations, model, of, encoded)
        if of.kind == QUESTIONS:
            return _plan_questions(model, of, examples, settings, seed)
        return functools.partial(_measure_texts, model, of)
    except UserError as error:
        raise UserError(f"the task {of.name}: {error}") from error


def _measure_choices(
    model: Examined, of: EvaluationSet, encoded: Sequence[EncodedPair]
) -> Measured:
    scores = model.scorer(encoded)
    log_p = split_by_item(scores.log_p, of.items)
    hits = choice_hits(of.items, log_p)["acc"]
    records = []
    for item, values, right in zip(of.items, log_p, hits, strict=True):
        options = []
        for choice, value in zip(item.choices, values, strict=True):
            options.append({"text": choice, "log_p": float(value)})
        context, continuation = item.pairs[0]
        if context != item.pairs[1][0]:
            # The contexts are the choices.
            context = f"... {continuation.strip()}"
        records.append(
            {
                "prompt": context,
                "options": options,
                "gold": item.gold,
                "chosen": int(np.argmax(values)),
                "right": bool(right),
                "group": item.group,
            }
        )
    return Measured(choice_figures(of.items, log_p), records, _cut_note(scores.cut))


def _measure_continuations(
    model: Examined, of: EvaluationSet, encoded: Sequence[EncodedPair]
) -> Measured:
    """Greedy match of the continuations, mean nats of a whole continuation, and their exponential.

    Source: EleutherAI's lm-evaluation-harness 0.4.13, lambada_openai (acc and perplexity).
    """
    scores = model.scorer(encoded)
    nats = mean_of(-scores.log_p)
    figures = {"acc": share_of(scores.greedy), "nats": nats}
    if nats.high < LARGEST_EXPONENT:
        ends = [math.exp(end) for end in (nats.value, nats.low, nats.high)]
        figures["perplexity"] = Figure(*ends, nats.count)
    records = []
    for item, value, greedy in zip(of.items, scores.log_p, scores.greedy, strict=True):
        records.append(
            {
                "prompt": item.context,
                "gold": item.continuation.strip(),
                "log_p": float(value),
                "right": bool(greedy),
            }
        )
    return Measured(figures, records, _cut_note(scores.cut))


def _plan_questions(
    model: Examined,
    of: EvaluationSet,
    examples: Sequence[QuestionItem],
    settings: AnswerSettings,
    seed: int,
) -> Callable[[], Measured]:
    items = tuple(of.items[place] for place in asking.asked_places(of.items, examples))
    if not items:
        raise UserError("all of its items are among the worked examples; take more of them.")
    tokenizer = model.loaded.tokenizer
    if of.name == TEXTBOOK:
        rules = asking.textbook_rules()
        prompts = tokenizer.encode_batch([item.question for item in items])
    else:
        rules = asking.number_rules()
        prompts = asking.question_prompts(tokenizer, items, examples, settings.chat)
    asking.check_length(prompts, len(examples), settings.max_tokens, model.longest)
    equations = []
    if of.name == GSM8K_DEV:
        for item, prompt in zip(items, prompts, strict=True):
            equations.append(equation_pairs(tokenizer, prompt, item.answer, settings.chat))

    def measure_questions() -> Measured:
        answers = asking.answer_prompts(model.engine, prompts, settings, seed)
        figures = asking.answer_figures(items, answers, rules)
        if equations:
            # The finer measure comes first.
            found = equation_nats(model.scorer, equations)
            figures = {"equation_nats": nats_per_token(*found, _neighbours(items)), **figures}
        records = []
        for item, given in zip(items, answers, strict=True):
            records.append(_question_record(item, given, rules))
        notes = ()
        if len(items) < len(of.items):
            left_out = len(of.items) - len(items)
            notes = (f"{left_out} items are left out, as they are among the worked examples",)
        return Measured(figures, records, notes)

    return measure_questions


def _neighbours(items: Sequence[QuestionItem]) -> Int[np.ndarray, " items"]:
    """Return the group that each item is resampled with; one of its own where it has none."""
    alone = itertools.count(-1, -1)
    numbers = (item.neighbours for item in items)
    return np.array([next(alone) if number is None else number for number in numbers])


def _question_record(
    item: QuestionItem, given: Answers, rules: Mapping[str, asking.Rule]
) -> dict[str, Any]:
    """Return what people read of a question: its answer, and what each rule makes of it."""
    verdicts = {name: judge(given.greedy, item) for name, judge in rules.items()}
    first_name, judge = next(iter(rules.items()))
    sampled = []
    for text in given.sampled:
        extracted, right = judge(text, item)
        sampled.append({"text": text, "extracted": extracted, "right": right})
    return {
        "prompt": item.question,
        "gold": item.answer,
        "answer": given.greedy,
        "verdicts": verdicts,
        "right": verdicts[first_name][1],
        "sampled": sampled,
        "group": item.group,
    }


def _measure_texts(model: Examined, of: EvaluationSet) -> Measured:
    loaded = model.loaded
    losses = text_losses(
        Model(model.scorer.arch),
        loaded.params,
        model.scorer.buffers,
        loaded.tokenizer,
        of.items,
        model.longest,
    )
    records = []
    for document, nats, size in zip(losses.document, losses.nats, losses.bytes, strict=True):
        bits = float(nats / np.log(2) / size)
        records.append({"prompt": of.items[document], "bits_per_byte": bits})
    return Measured(text_figures(losses), records)


def _cut_note(cut: np.ndarray) -> tuple[str, ...]:
    if not cut.any():
        return ()
    sentence = "the beginning of the context was left out, as it is longer than a row of training"
    return (f"in {cut.sum()} of {len(cut)} sequences {sentence}",)
