"""Preference accuracy on the held-out pairs of every source, while a run trains."""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from slmjax.data.folding import fold, unfold
from slmjax.data.prepare import Prepared
from slmjax.data.shards import ShardSet
from slmjax.data.spans import DocumentSpan
from slmjax.evals.perplexity import DocumentLosses
from slmjax.evals.preferences import AnswerPairs, PreferenceScore, preference_score
from slmjax.models.lm import Model
from slmjax.readable import said_if_long
from slmjax.tasks.task import Evaluated
from slmjax.text.records import PAIRS
from slmjax.train.evaluation import HeldoutScorer
from slmjax.train.program import Program

# Scores of a set of pairs that become metrics, see PreferenceScore.
LOGGED_SCORES = (
    "accuracy",
    "low",
    "high",
    "margin",
    "longer",
    "chosen_tokens",
    "rejected_tokens",
)
ALL_PAIRS = "preferences"  # what the pairs of all sources are called together


class Preferences:
    """How often the model prefers the chosen answers of held-out pairs. See Evaluation.

    Its metrics are LOGGED_SCORES of each source, and of all pairs together under
    "eval/preferences/".
    """

    at_end = False

    def __init__(self, program: Program, prepared: Prepared, max_segments: int):
        """Args: max_segments: most documents in a row."""
        sources = {}
        for name, shards in prepared.heldout.items():
            if shards.kind == PAIRS and len(shards):
                sources[name] = shards
        # All pairs: an interval over few prompts would be wide.
        self.scorer = HeldoutScorer(program, sources, max_segments, max_tokens=None)
        self.prompts = {name: _prompts(shards) for name, shards in sources.items()}

    def warm(self, model: Model, params: dict, buffers: dict) -> None:
        """See Evaluation."""
        self.scorer.warm(params, buffers)

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
        with said_if_long("comparing the answers of held-out pairs", say=note):
            losses = self.scorer.losses(params, buffers)
        if not losses:
            return Evaluated()
        answers = {}
        scores = {}
        for name, scored in losses.items():
            answers[name] = answer_pairs(scored, self.prompts[name])
            scores[name] = preference_score(answers[name])
        # Prompts have the same number in every source, so one that two sources share is one.
        fields = zip(*answers.values(), strict=True)
        overall = preference_score(AnswerPairs(*map(np.concatenate, fields)))
        scores[ALL_PAIRS] = overall
        note(
            f"step {step}: prefers the chosen of {overall.pairs:,} held-out pairs in "
            f"{overall.accuracy:.1%} ({overall.low:.1%} to {overall.high:.1%})"
        )
        facts = {name: score._asdict() for name, score in scores.items()}
        return Evaluated(_metrics(scores), events={"preferences": {"sources": facts}})


def answer_pairs(scored: DocumentLosses, prompts: np.ndarray) -> AnswerPairs:
    """Return the answers of the pairs that were read.

    Args:
      scored: documents 2i (chosen) and 2i + 1 (rejected) of each pair i that was read, in order.
      prompts: a number for the prompt of each pair of the source, also of those not read.
    """
    pairs = scored.document[::2] // 2
    return AnswerPairs(
        nats=scored.nats.reshape(-1, 2),
        tokens=scored.tokens.reshape(-1, 2),
        prompts=prompts[pairs],
    )


def _metrics(scores: Mapping[str, PreferenceScore]) -> dict[str, float]:
    """Return {"eval/NAME/SCORE": value}."""
    metrics = {}
    for name, score in scores.items():
        for field in LOGGED_SCORES:
            metrics[f"eval/{name}/{field}"] = getattr(score, field)
    return metrics


def _prompts(shards: ShardSet) -> np.ndarray:
    """Return a number for the prompt of each pair; equal prompts have equal numbers."""
    numbers = []
    for pair, length in enumerate(shards.lengths.tolist()):
        folded = fold([(shards, [DocumentSpan(pair, 0, length)])], length)
        batch = unfold(folded, shards.chat)
        # The prompt ends where the first target has a weight: there the answer begins.
        begin = int(batch["weights"][0].argmax()) + 1
        prompt = batch["tokens"][0, :begin].tobytes()
        digest = hashlib.blake2b(prompt, digest_size=8).digest()
        numbers.append(int.from_bytes(digest, "little", signed=True))
    return np.array(numbers, np.int64)
