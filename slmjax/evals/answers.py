"""Exact-answer accuracy of anything that completes prompts, on questions that can be checked."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class ExactQuestion(Protocol):
    """A prompt, its one right answer, and the chance of guessing it."""

    prompt: str
    answer: str
    chance: float


def exact_answers(
    generate: Callable[[list[str]], list[str]],
    questions_by_kind: Mapping[str, Sequence[ExactQuestion]],
    *,
    extract: Callable[[str], str | None],
) -> dict[str, dict[str, float | int]]:
    """Ask every question and compare each completion's answer with the right one, exactly.

    Args:
      generate: returns one completion for each prompt, in order and without the prompt. It is
        called once with all prompts, so that it can batch.
      questions_by_kind: {kind: its questions}; accuracies are reported for each kind.
      extract: returns the answer that a completion gives; None where it gives none.
    Returns: kind -> {"accuracy": share of exact answers, "chance": mean chance of guessing,
      "count": questions}; a kind without questions is left out.
    Raises: ValueError where the number of completions is not the number of prompts.
    """
    prompts = []
    for questions in questions_by_kind.values():
        prompts += [question.prompt for question in questions]
    completions = list(generate(prompts)) if prompts else []
    # One completion too few would shift all later answers to other questions.
    if len(completions) != len(prompts):
        problem = f"{len(prompts)} prompts were given, {len(completions)} completions came back"
        raise ValueError(problem)
    remaining = iter(completions)
    results: dict[str, dict[str, float | int]] = {}
    for kind, questions in questions_by_kind.items():
        if not questions:
            continue
        # Takes one completion for each question, in the order of the prompts.
        right = sum(extract(next(remaining)) == question.answer for question in questions)
        chance = sum(question.chance for question in questions)
        count = len(questions)
        results[kind] = {
            "accuracy": right / count,
            "chance": chance / count,
            "count": count,
        }
    return results
