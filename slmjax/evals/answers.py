"""Exact-answer accuracy of anything that completes prompts, on questions whose answers can be checked."""

from collections.abc import Callable, Mapping, Sequence

from slmjax.textbook.passages import Question, extract_answer


def exact_answers(
    generate: Callable[[list[str]], list[str]], questions_by_kind: Mapping[str, Sequence[Question]]
) -> dict[str, dict[str, float | int]]:
    """Ask every question and compare the answer line of each completion with the answer, character by character.

    Args:
      generate: prompts to completions, one each and in order, without the prompts; called once with all of them, so that it can batch.
      questions_by_kind: as `slmjax.textbook.passages.questions` makes them.
    Returns: kind -> {"accuracy": share of exact answers, "chance": mean chance of guessing, "count": questions}; a kind without questions
      is left out.
    Raises: ValueError where the number of completions is not the number of prompts.
    """
    asked = {kind: list(questions) for kind, questions in questions_by_kind.items() if questions}
    prompts = [question.prompt for questions in asked.values() for question in questions]
    completions = list(generate(prompts)) if prompts else []
    if len(completions) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts were given, {len(completions)} completions came back"
        )
    remaining = iter(completions)
    return {
        kind: {
            "accuracy": sum(
                extract_answer(next(remaining)) == question.answer for question in questions
            )
            / len(questions),
            "chance": sum(question.chance for question in questions) / len(questions),
            "count": len(questions),
        }
        for kind, questions in asked.items()
    }
