"""The development set: 500 problems of GSM8K train to choose runs by, so that test is seen once.

Small models score a few per cent greedily, and on 500 problems 2 % and 4 % are told apart less than
half of the time. So the measures here are finer: nats per token of the gold equations, and the
share of problems that one of 16 samples solves.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from slmjax.errors import UserError
from slmjax.evals.intervals import QUANTILES, RESAMPLES, Figure
from slmjax.evals.question_neighbours import neighbour_groups
from slmjax.evals.word_problems import ANNOTATION, WordProblem

DEVELOPMENT_PROBLEMS = 500
SEED = 0  # never changed: another development set would have been trained on


def question_id(question: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a question without the blanks around it."""
    return hashlib.sha256(question.strip().encode()).hexdigest()[:16]


def development_groups(
    questions: Sequence[str], count: int = DEVELOPMENT_PROBLEMS
) -> dict[str, int]:
    """Return {question_id: group} of the questions that are held out for development.

    Whole groups of nearest neighbours are drawn until there are `count` questions, see
    `neighbour_groups`: the nearest neighbour of no development question is left to train on, nor
    is a development question the nearest neighbour of one that is. The draw depends on the
    questions alone.

    Args:
      questions: all of GSM8K train.
    Raises: UserError without scikit-learn, and where there are too few questions.
    """
    refusal = UserError(
        f"{len(questions)} questions do not give a development set of {count}; expected all 7,473 "
        "of GSM8K train."
    )
    if 2 * count > len(questions):
        raise refusal
    ids = [question_id(question) for question in questions]
    members: dict[int, list[str]] = {}
    for name, group in zip(ids, neighbour_groups(questions).tolist(), strict=True):
        members.setdefault(group, []).append(name)

    def draw(group: int) -> bytes:
        return hashlib.sha256(f"{SEED} {min(members[group])}".encode()).digest()

    chosen: dict[str, int] = {}
    for group in sorted(members, key=draw):
        names = set(members[group])  # a question may be there twice
        missing = count - len(chosen) - len(names)
        # No group has a single question, so one missing question could not be found.
        if missing >= 0 and missing != 1:
            chosen.update(dict.fromkeys(names, group))
    if len(chosen) != count:
        raise refusal
    return chosen


def development_problems(
    problems: Sequence[WordProblem], count: int = DEVELOPMENT_PROBLEMS
) -> list[WordProblem]:
    """Return the problems of GSM8K train that are for development, in their order."""
    chosen = development_groups([problem.question for problem in problems], count)
    return [problem for problem in problems if question_id(problem.question) in chosen]


def training_problems(
    problems: Sequence[WordProblem], count: int = DEVELOPMENT_PROBLEMS
) -> list[WordProblem]:
    """Return the problems of GSM8K train that may be trained on, in their order."""
    chosen = development_groups([problem.question for problem in problems], count)
    return [problem for problem in problems if question_id(problem.question) not in chosen]


def equation_spans(solution: str) -> list[tuple[int, int]]:
    """Return (start, end) of each annotated equation of a solution, in characters, without << >>.

    The tokens that hold these characters are the gold equations'.
    """
    return [match.span(1) for match in ANNOTATION.finditer(solution)]


def nats_per_token(
    nats: Float[np.ndarray, " problems"],
    tokens: Int[np.ndarray, " problems"],
    groups: Int[np.ndarray, " problems"],
) -> Figure:
    """Return the nats of all problems' gold equations over their tokens.

    Args:
      nats: -log p of each problem's equation tokens, given the question and the solution so far.
      tokens: how many tokens these are.
      groups: of neighbours, see `development_groups`; whole groups are resampled.
    Raises: ValueError without any token.
    """
    if not tokens.sum():
        raise ValueError("no problem has a token of an equation")
    return _ratio(nats, tokens, groups)


def mean_over_problems(
    values: Float[np.ndarray, " problems"], groups: Int[np.ndarray, " problems"]
) -> Figure:
    """Return the mean of a value of each problem, such as its pass@16; see `nats_per_token`."""
    return _ratio(values, np.ones(len(values)), groups)


def _ratio(
    above: Float[np.ndarray, " problems"],
    below: np.ndarray,
    groups: Int[np.ndarray, " problems"],
) -> Figure:
    """Return sum(above) / sum(below) with the interval of a bootstrap over groups."""
    _, group = np.unique(groups, return_inverse=True)
    sums = np.stack([np.bincount(group, above), np.bincount(group, below)])
    # The same draws every time, so that two runs have comparable intervals.
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, sums.shape[1], (RESAMPLES, sums.shape[1]))
    resampled_above, resampled_below = sums[:, drawn].sum(2)
    low, high = np.quantile(resampled_above / np.maximum(resampled_below, 1), QUANTILES)
    value = float(sums[0].sum() / sums[1].sum())
    return Figure(value, float(low), float(high), len(above))
