"""The nats of the equations in worked solutions: a finer measure than right answers.

Source: the idea of scoring gold solutions is that of Cobbe et al. 2021's test loss; only the
annotated equations count here, since their words differ less between writers.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from slmjax.evals.continuation_scores import ContinuationScorer, EncodedPair
from slmjax.evals.development_set import equation_spans
from slmjax.text.tokenizer import Tokenizer


def equation_pairs(
    tokenizer: Tokenizer, prompt: Sequence[int], solution: str, chat: bool
) -> list[EncodedPair]:
    """Return each annotated equation of a solution, after its prompt and the solution so far.

    The tokens of an equation are those that hold any of its characters.

    Args:
      prompt: token ids, see `question_prompts`.
      chat: whether the solution is a turn; otherwise a blank stands between "Answer:" and it.
    """
    text = solution if chat else f" {solution}"
    ids = tokenizer.encode_batch([text])[0]
    token_bytes = tokenizer.token_bytes()
    ends = np.cumsum([len(token_bytes[number]) for number in ids])
    pairs = []
    for start, end in equation_spans(text):
        first_byte, last_byte = len(text[:start].encode()), len(text[:end].encode()) - 1
        first = int(np.searchsorted(ends, first_byte, "right"))
        last = int(np.searchsorted(ends, last_byte, "right"))
        pairs.append(EncodedPair([*prompt, *ids[:first]], ids[first : last + 1]))
    return pairs


def equation_nats(
    scorer: ContinuationScorer, pairs: Sequence[Sequence[EncodedPair]]
) -> tuple[Float[np.ndarray, " problems"], Int[np.ndarray, " problems"]]:
    """Return the nats of each problem's equations, and how many tokens these are."""
    flat = [pair for of_problem in pairs for pair in of_problem]
    problem = np.repeat(np.arange(len(pairs)), [len(of_problem) for of_problem in pairs])
    scores = scorer(flat)
    nats = np.bincount(problem, -scores.log_p, len(pairs))
    tokens = np.bincount(problem, scores.tokens, len(pairs)).astype(int)
    return nats, tokens
