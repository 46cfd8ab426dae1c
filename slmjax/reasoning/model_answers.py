"""What a model says to the instances of a probe: its answers, and the nats of right solutions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from slmjax.errors import UserError
from slmjax.evals.continuation_scores import EncodedPair
from slmjax.evals.evaluation_items import QuestionItem
from slmjax.evals.evaluation_runs import Examined
from slmjax.evals.question_answers import AnswerSettings, answer_prompts, question_prompts
from slmjax.reasoning.probe_scores import ProbeInstance


class SolutionNats(NamedTuple):
    """-log p of each instance's right solution, and its tokens."""

    nats: Float[np.ndarray, " instances"]
    tokens: Int[np.ndarray, " instances"]


class ProbedModel:
    """A model that is asked the questions of instances and nothing else, greedily.

    A run that was trained on dialogues is asked in its chat template, others by "Question: ...
    Answer:", without worked examples.

    Args:
      max_tokens: of an answer.
    """

    def __init__(self, model: Examined, max_tokens: int):
        self.model = model
        self.settings = AnswerSettings(
            chat=model.chat, samples=0, temperature=0.0, calculator=False, max_tokens=max_tokens
        )

    def check(self, instances: Sequence[ProbeInstance]) -> None:
        """Raises: UserError where a question and its answer, or its right solution, do not fit."""
        prompts, solutions = self._prompts(instances), self._solutions(instances)
        longest = max(map(len, prompts)) + self.settings.max_tokens
        for prompt, solution in zip(prompts, solutions, strict=True):
            longest = max(longest, len(prompt) + len(solution))
        # End-of-text stands before each.
        if 1 + longest > self.model.longest:
            raise UserError(
                f"a question of the probe and its answer take up to {1 + longest} tokens; the "
                f"model was trained on {self.model.longest} and knows no positions beyond; lower "
                "config.reasoning.max_tokens, or probe a model of longer rows."
            )

    def answers(self, instances: Sequence[ProbeInstance]) -> list[str]:
        """Return the model's text for each instance."""
        given = answer_prompts(self.model.engine, self._prompts(instances), self.settings, seed=0)
        return [each.greedy for each in given]

    def solution_nats(self, instances: Sequence[ProbeInstance]) -> SolutionNats:
        """Return how surprising the right solution of each instance is, after its question."""
        pairs = []
        for prompt, solution in zip(
            self._prompts(instances), self._solutions(instances), strict=True
        ):
            pairs.append(EncodedPair(prompt, solution))
        scores = self.model.scorer(pairs)
        return SolutionNats(-scores.log_p, scores.tokens)

    def _prompts(self, instances: Sequence[ProbeInstance]) -> list[list[int]]:
        items = [QuestionItem(each.problem.question, "", "") for each in instances]
        tokenizer = self.model.loaded.tokenizer
        return question_prompts(tokenizer, items, (), self.settings.chat)

    def _solutions(self, instances: Sequence[ProbeInstance]) -> list[list[int]]:
        # A turn begins with its content, and "Answer:" is followed by a blank.
        before = "" if self.settings.chat else " "
        texts = [f"{before}{each.problem.solution.strip()}" for each in instances]
        return self.model.loaded.tokenizer.encode_batch(texts)
