"""Answers of a model to word problems: prompts, generation, extraction, votes and pass@k."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

from slmjax.errors import UserError
from slmjax.evals import number_answers
from slmjax.evals.calculator import generate_with_calculator
from slmjax.evals.development_set import mean_over_problems
from slmjax.evals.evaluation_items import QuestionItem
from slmjax.evals.intervals import Figure, mean_of, share_of
from slmjax.infer.engine import Completion, Engine
from slmjax.text.chat_template import prompt_parts
from slmjax.text.conversations import ASSISTANT, USER, Turn
from slmjax.text.tokenizer import Tokenizer
from slmjax.textbook.passages import extract_answer

# Where lm-eval ends an answer (gsm8k, version 3).
STOPS = ("Question:", "</s>", "<|im_end|>")
# Samples of a question have consecutive seeds; config.evaluate.samples is at most this.
_SEEDS_OF_A_QUESTION = 1 << 12


@dataclasses.dataclass(frozen=True)
class AnswerSettings:
    """How questions are asked.

    Attributes:
      chat: in the chat template, instead of "Question: ... Answer:".
      samples: sampled answers of a question, besides the greedy one.
      max_tokens: of an answer.
    """

    chat: bool
    samples: int
    temperature: float
    calculator: bool
    max_tokens: int


@dataclasses.dataclass(frozen=True)
class Answers:
    """A model's answers to one question: the greedy one, and the samples."""

    greedy: str
    sampled: tuple[str, ...]


# {rule: function from a completion and an item to (what it extracts, whether that is right)}.
# What is extracted is "" where the rule finds nothing.
Rule = Callable[[str, QuestionItem], tuple[str, bool]]


def number_rules() -> dict[str, Rule]:
    """Return the rules by which answers of word problems are judged, ours first."""
    return {
        "exact": _judge_number,
        "lm-eval strict-match": _harness_rule(number_answers.lm_eval_strict),
        "lm-eval flexible-extract": _harness_rule(number_answers.lm_eval_flexible),
    }


def textbook_rules() -> dict[str, Rule]:
    """Return the rule by which answers to the embedded textbook's questions are judged."""
    return {"exact": _judge_textbook}


def question_prompts(
    tokenizer: Tokenizer,
    items: Sequence[QuestionItem],
    examples: Sequence[QuestionItem],
    chat: bool,
) -> list[list[int]]:
    """Return the prompt of each question, in token ids without the leading end-of-text.

    Args:
      examples: questions with their worked answers, which stand before each question.
      chat: as turns of a dialogue; otherwise "Question: ...\\nAnswer:", as lm-eval has it.
    """
    if chat:
        turns = []
        for example in examples:
            turns += [Turn(USER, example.question), Turn(ASSISTANT, example.answer)]
        prompts = []
        for item in items:
            asked = prompt_parts([*turns, Turn(USER, item.question)])
            prompts.append(tokenizer.sequence(*asked))
        return prompts
    before = "".join(f"Question: {item.question}\nAnswer: {item.answer}\n\n" for item in examples)
    return tokenizer.encode_batch([f"{before}Question: {item.question}\nAnswer:" for item in items])


def drawn_examples(items: Sequence[QuestionItem], shots: int, seed: int) -> list[QuestionItem]:
    """Return `shots` items for the beginning of prompts, the same for every question.

    Raises: UserError where there are not so many.
    """
    if shots > len(items):
        raise UserError(f"config.evaluate.shots is {shots}; there are {len(items)} examples.")
    drawn = np.random.default_rng(seed).choice(len(items), shots, replace=False)
    return [items[i] for i in drawn.tolist()]


def asked_places(items: Sequence[QuestionItem], examples: Sequence[QuestionItem]) -> list[int]:
    """Return the places of the items that are asked: examples would answer themselves."""
    shown = {example.question for example in examples}
    return [place for place, item in enumerate(items) if item.question not in shown]


def check_length(
    prompts: Sequence[Sequence[int]], shots: int, max_tokens: int, longest: int
) -> None:
    """Raise UserError where a prompt and its answer are longer than the rows of training."""
    needed = 1 + max(map(len, prompts)) + max_tokens
    if needed > longest:
        raise UserError(
            f"with {shots} examples a question and its answer take up to {needed} tokens; the "
            f"model was trained on {longest} and knows no positions beyond; lower "
            "config.evaluate.shots or config.evaluate.max_tokens."
        )


def answer_prompts(
    engine: Engine, prompts: Sequence[Sequence[int]], settings: AnswerSettings, seed: int
) -> list[Answers]:
    """Return the answers to each prompt. They do not depend on the other prompts.

    Prompts are decoded in the order of their lengths, so that little of a batch is padding.
    """
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    greedy = _generate(engine, [prompts[i] for i in order], settings, 0.0, [0] * len(order))
    repeated, seeds = [], []
    for number in order:
        for sample in range(settings.samples):
            repeated.append(prompts[number])
            seeds.append(seed + number * _SEEDS_OF_A_QUESTION + sample)
    sampled = _generate(engine, repeated, settings, settings.temperature, seeds)
    answers: list[Answers | None] = [None] * len(prompts)
    for place, number in enumerate(order):
        first = place * settings.samples
        texts = [completion.text for completion in sampled[first : first + settings.samples]]
        answers[number] = Answers(greedy[place].text, tuple(texts))
    return answers


def answer_figures(
    items: Sequence[QuestionItem], answers: Sequence[Answers], rules: Mapping[str, Rule]
) -> dict[str, Figure]:
    """Return the figures of a set of questions.

    <rule>: share of greedy answers that are right.
    <rule>, no answer: share of greedy answers in which the rule finds none.
    vote of n: share of questions whose most frequent sampled answer is right, by the first rule.
    pass@k: chance that one of k sampled answers is right, by the first rule; pass@1 is the mean
      accuracy of a sample.
    <first rule>, and the name of a group: of each group.
    """
    figures = {}
    for name, judge in rules.items():
        verdicts = [judge(given.greedy, item) for item, given in zip(items, answers, strict=True)]
        figures[name] = share_of([right for _, right in verdicts])
        figures[f"{name}, no answer"] = share_of([extracted == "" for extracted, _ in verdicts])
    name, judge = next(iter(rules.items()))
    hits = np.array([judge(given.greedy, item)[1] for item, given in zip(items, answers)])
    groups = np.array([item.group for item in items])
    for group in sorted(set(groups) - {""}):
        figures[f"{name}, {group}"] = share_of(hits[groups == group])
    samples = len(answers[0].sampled)
    if samples:
        votes, rights = [], []
        for item, given in zip(items, answers, strict=True):
            verdicts = [judge(text, item) for text in given.sampled]
            votes.append(vote(verdicts))
            rights.append(sum(right for _, right in verdicts))
        figures[f"vote of {samples}"] = share_of(votes)
        for k in _powers_up_to(samples):
            chances = pass_at(k, samples, np.array(rights))
            figures[f"pass@{k}"] = _mean_over(items, chances)
    return figures


def _mean_over(items: Sequence[QuestionItem], values: np.ndarray) -> Figure:
    """Return the mean; where items have groups of neighbours, its interval resamples these."""
    if items[0].neighbours is None:
        return mean_of(values)
    return mean_over_problems(values, np.array([item.neighbours for item in items]))


def vote(verdicts: Sequence[tuple[str, bool]]) -> bool:
    """Return whether the most frequent extracted answer is right; of equals, the earliest counts.

    Answers without anything extracted have no vote.
    Source: Wang et al. 2022 (self-consistency).
    """
    counts = collections.Counter(extracted for extracted, _ in verdicts if extracted)
    if not counts:
        return False
    # Counter keeps the order of first votes, and max takes the first of equals.
    winner = max(counts, key=lambda extracted: counts[extracted])
    return dict(verdicts)[winner]


def pass_at(k: int, n: int, right: Int[np.ndarray, " questions"]) -> np.ndarray:
    """Return each question's chance that k of its n samples, drawn without replacement, hold a
    right one.

    Args:
      right: right samples of each question.
    Source: Chen et al. 2021, section 2.1; unbiased.
    """
    missed = [math.comb(n - int(count), k) / math.comb(n, k) for count in right]
    return 1 - np.array(missed)


def _generate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    settings: AnswerSettings,
    temperature: float,
    seeds: Sequence[int],
) -> list[Completion]:
    if not prompts:
        return []
    generate = generate_with_calculator if settings.calculator else _generate_plainly
    return generate(
        engine,
        prompts,
        max_tokens=settings.max_tokens,
        temperature=temperature,
        stop=STOPS,
        seeds=seeds,
    )


def _generate_plainly(
    engine: Engine, prompts: Sequence[Sequence[int]], *, seeds: Sequence[int], **settings
) -> list[Completion]:
    return engine.generate(prompts, seed=seeds, **settings)


def _powers_up_to(n: int) -> list[int]:
    """Return 1, 2, 4, ... and n."""
    powers = [1 << i for i in range(n.bit_length()) if 1 << i < n]
    return [*powers, n]


def _harness_rule(extract: Callable[[str], str]) -> Rule:
    def judge(text: str, item: QuestionItem) -> tuple[str, bool]:
        extracted = extract(text)
        right = number_answers.lm_eval_match(extracted, item.answer)
        return ("" if extracted == number_answers.NO_NUMBER else extracted), right

    return judge


def _judge_number(text: str, item: QuestionItem) -> tuple[str, bool]:
    value = number_answers.number_answer(text)
    if value is None:
        return "", False
    gold: Fraction | None = number_answers.number_answer(item.answer)
    return number_answers.number_text(value), value == gold


def _judge_textbook(text: str, item: QuestionItem) -> tuple[str, bool]:
    extracted = extract_answer(text) or ""
    return extracted, extracted == item.answer
