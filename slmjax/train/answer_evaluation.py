"""Whether answers end, and how long they are: held-out questions answered at the end of a run."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from slmjax.data.answer_mask import answer_mask
from slmjax.data.prepare import Prepared
from slmjax.data.shards import ShardSet
from slmjax.infer.engine import Completion, Engine
from slmjax.models.lm import Model
from slmjax.readable import said_if_long
from slmjax.tasks.task import Evaluated
from slmjax.text.records import CHAT
from slmjax.train.program import Program

# Most tokens of an answer, in multiples of the longest reference.
ROOM = 4
# Seed of the draws: the same for all runs, so that they can be compared.
SEED = 0


class HeldOutQuestion(NamedTuple):
    """The first question of a held-out dialogue.

    Attributes:
      ids: of the prompt, without the leading end-of-text.
      reference_tokens: length of the dialogue's own answer, its end not counted.
    """

    ids: list[int]
    reference_tokens: int


class AnswerLengths:
    """Answers held-out questions, at temperature 1 and greedily. See Evaluation.

    Its metrics, under "eval/answers/" and for greedy decoding "eval/answers/greedy/": ended (share
    that ended by themselves within four times the longest reference), empty (share), and length
    (median tokens of an answer over the median of the references).
    """

    at_end = True

    def __init__(self, program: Program, prepared: Prepared, count: int):
        """Args: count: most questions; the sources of dialogues take turns to give one."""
        self.prepared = prepared
        sources = [shards for shards in prepared.heldout.values() if shards.kind == CHAT]
        self.questions = questions_in_turn(sources, count, program.config.data.seq_len)

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
        """See Evaluation. Where several processes share the model, nothing is asked."""
        if jax.process_count() > 1 or not self.questions:
            return Evaluated()
        # A killed session may have asked already; the answers would be the same.
        facts = dict(there.get("answer_lengths", {}).get("answers", {}))
        if not facts:
            with said_if_long("answering held-out questions", say=note):
                facts = self._ask(model, params, buffers)
        drawn, greedy = facts["drawn"], facts["greedy"]
        note(
            f"step {step}: of {len(self.questions)} answers at temperature 1, {drawn['ended']:.1%} "
            f"end, {drawn['empty']:.1%} are empty, and the median length is {drawn['length']:.2f} "
            f"of the references'; greedy {greedy['ended']:.1%}, {greedy['empty']:.1%}, "
            f"{greedy['length']:.2f}"
        )
        metrics = {f"eval/answers/{name}": value for name, value in drawn.items()}
        for name, value in greedy.items():
            metrics[f"eval/answers/greedy/{name}"] = value
        return Evaluated(metrics, events={"answer_lengths": {"answers": facts}})

    def _ask(self, model: Model, params: dict, buffers: dict) -> dict[str, Any]:
        """Return {"drawn" (at temperature 1) or "greedy": `answer_scores` of the answers}."""
        engine = Engine(model.arch, params, buffers, self.prepared.tokenizer, tuned=False)
        references = [question.reference_tokens for question in self.questions]
        prompts = [question.ids for question in self.questions]
        most = ROOM * max(references)
        facts = {}
        for name, temperature in (("drawn", 1.0), ("greedy", 0.0)):
            answers = engine.generate(prompts, max_tokens=most, temperature=temperature, seed=SEED)
            facts[name] = answer_scores(answers, references)
        return facts


def questions_in_turn(
    sources: Sequence[ShardSet], count: int, seq_len: int
) -> list[HeldOutQuestion]:
    """Return at most `count` questions: the first of each source, then the second of each, ...

    A source with few questions leaves its places to the others.
    """
    questions = [held_out_questions(shards, count, seq_len) for shards in sources]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*questions))
    return [question for question in rounds if question is not None][:count]


def held_out_questions(shards: ShardSet, most: int, seq_len: int) -> list[HeldOutQuestion]:
    """Return the first question of each of a source's first dialogues that fit into a row.

    Args:
      shards: the source's held-out dialogues.
      most: questions.
      seq_len: tokens of a row.
    """
    questions = []
    for document, length in enumerate(shards.lengths.tolist()):
        if len(questions) == most:
            break
        if length > seq_len:
            continue
        tokens = shards.read(document, 0, length)[:-1]
        is_answer = answer_mask(tokens[None], shards.chat)[0]
        begin = int(is_answer.argmax())
        # Up to the end of the first answer, which belongs to the mask.
        end = begin + int((tokens[begin:] == shards.chat.end).argmax())
        # Without the end-of-text that leads the dialogue.
        questions.append(HeldOutQuestion(tokens[1:begin].tolist(), end - begin))
    return questions


def answer_scores(answers: Sequence[Completion], references: Sequence[int]) -> dict[str, float]:
    """Return how answers ended, in the three scores of `AnswerLengths`: ended, empty, length.

    Args:
      references: tokens of the dialogues' own answers.
    """
    lengths = [len(answer.tokens) for answer in answers]
    ended = [answer.finish == "end" for answer in answers]
    empty = [not answer.text.strip() for answer in answers]
    return {
        "ended": float(np.mean(ended)),
        "empty": float(np.mean(empty)),
        "length": float(np.median(lengths) / np.median(references)),
    }
