"""The sentences of a probe's report: what its statistics support, and no more."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.evals.word_problems import WordProblem, data_flow, operator_skeleton
from slmjax.reasoning.arms import ARMS
from slmjax.reasoning.probe_columns import TRAINED_ON
from slmjax.reasoning.probe_scores import Scores
from slmjax.reasoning.probe_statistics import (
    FEWEST_TEMPLATES,
    LEAST_ACCURACY,
    LEVEL,
    ArmResult,
    judge_arms,
    mean_interval,
    two_sample_test,
)

# Arms that leave what is to be computed, so that whoever understood the baseline would not fall.
HARMLESS = (
    "p0",
    "names",
    "control_none",
    "noop_none",
    "control_other",
    "noop_other",
    "control_same",
    "noop_same",
)
# Arms that ask for more. Whoever does one step after the other falls as slips add up.
DEMANDING = ("p1", "p2", "longer", "operators", "units")
CHANGES = ("falls", "rises")  # verdicts
# By what training has of a template: its operators and data flow, its operators, or neither.
NOVELTIES = ("seen flow", "seen skeleton, unseen flow", "unseen skeleton")


class ColumnResult(NamedTuple):
    """One column of a probe: held-out or trained-on templates.

    Attributes:
      name: such as "held-out".
      p0: accuracy on P0 of each template.
      p0_interval: low and high of the 95 % interval of its mean over templates.
      arms: every arm's comparison with its baseline.
    """

    name: str
    p0: Float[np.ndarray, " templates"]
    p0_interval: tuple[float, float]
    arms: list[ArmResult]


def column_result(
    name: str, scores: Scores, steps: Mapping[str, Float[np.ndarray, " templates"]]
) -> ColumnResult:
    """Return the results of one column; see `judge_arms`. Raises: UserError without P0."""
    arms = judge_arms(scores, steps)
    p0 = np.nanmean(scores["p0"], 1)
    return ColumnResult(name, p0, mean_interval(p0), arms)


def novelties(problems: Sequence[WordProblem], trained_on: Sequence[WordProblem]) -> list[str]:
    """Return for each problem which of NOVELTIES it is to these training problems."""
    flows = {data_flow(problem) for problem in trained_on}
    skeletons = {operator_skeleton(problem) for problem in trained_on}
    kinds = []
    for problem in problems:
        if data_flow(problem) in flows:
            kinds.append(NOVELTIES[0])
        elif operator_skeleton(problem) in skeletons:
            kinds.append(NOVELTIES[1])
        else:
            kinds.append(NOVELTIES[2])
    return kinds


def probe_sentences(held_out: ColumnResult, trained_on: ColumnResult | None = None) -> list[str]:
    """Return what a probe says about a solver, one sentence for each finding.

    A change is said only where its adjusted p value is below LEVEL. "No change seen" comes with the
    interval, which may hold a drop. Of the trained-on column only changes are said. The last
    sentence answers whether the solver reasons, as far as the findings do. Nothing here says that
    it does: agreement is no proof.
    """
    sentences = [_p0_sentence(held_out)]
    if held_out.p0.mean() >= LEAST_ACCURACY:
        sentences += [_arm_sentence(result) for result in held_out.arms]
    is_better = False
    if trained_on is not None:
        sentence, is_better = _gap_sentence(held_out, trained_on)
        # What the run is not known to have read says nothing about learned patterns.
        is_better = is_better and trained_on.name == TRAINED_ON
        sentences += [_p0_sentence(trained_on), sentence]
        for result in trained_on.arms:
            if result.verdict in CHANGES:
                sentences.append(f"{trained_on.name}, {_arm_sentence(result)}")
    sentences.append(_answer(held_out, is_better))
    return sentences


def _p0_sentence(column: ColumnResult) -> str:
    low, high = np.clip(column.p0_interval, 0, 1)
    sentence = (
        f"{column.name}: it solves {_percent(column.p0.mean())} of P0 "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f}, {len(column.p0)} templates)."
    )
    if column.p0.mean() < LEAST_ACCURACY:
        sentence += f" Below {100 * LEAST_ACCURACY:.0f} % no arm is judged."
    return sentence


def _arm_sentence(result: ArmResult) -> str:
    name = f"{result.arm}, {ARMS[result.arm].meaning}"
    if result.verdict == "cannot be told":
        return (
            f"{name}: cannot be told; its baseline {result.baseline} is solved "
            f"{_percent(result.baseline_accuracy)} of the time on {result.templates} templates, "
            f"expected at least {100 * LEAST_ACCURACY:.0f} % on {FEWEST_TEMPLATES}."
        )
    interval = f"95 % interval {100 * result.low:+.1f} to {100 * result.high:+.1f}"
    facts = f"({interval}, {result.templates} templates, adjusted p = {result.adjusted:.2g})"
    if result.verdict == "no change seen":
        return f"{name}: no change seen {facts}."
    points = 100 * abs(result.difference)
    sentence = f"{name}: accuracy {result.verdict} by {points:.1f} points {facts}."
    if result.verdict == "falls" and np.isfinite(result.expected):
        sentence += f" That is {_against_slips(result)} independent slips in every step would give"
        sentence += f" ({_percent(result.expected)} right)."
    return sentence


def _against_slips(result: ArmResult) -> str:
    """Return whether a fall is "as", "more than" or "less than" expected from slips."""
    if result.expected > result.baseline_accuracy + result.high:
        return "more than"
    if result.expected < result.baseline_accuracy + result.low:
        return "less than"
    return "as"


def _gap_sentence(held_out: ColumnResult, trained_on: ColumnResult) -> tuple[str, bool]:
    """Return (the sentence that compares the columns, whether the trained-on one is better)."""
    gap = trained_on.p0.mean() - held_out.p0.mean()
    p = two_sample_test(trained_on.p0, held_out.p0)
    if p >= LEVEL:
        sentence = f"{trained_on.name} and {held_out.name} cannot be told apart (p = {p:.2g})."
        return sentence, False
    word = "more" if gap > 0 else "less"
    sentence = (
        f"It solves {trained_on.name} templates, with new numbers, {100 * abs(gap):.1f} points "
        f"{word} often than {held_out.name} ones (p = {p:.2g})."
    )
    return sentence, bool(gap > 0)


def _answer(held_out: ColumnResult, is_better: bool) -> str:
    """Return the last sentence: does it reason?

    Args:
      is_better: whether trained-on templates are solved more often.
    """
    judged = [result for result in held_out.arms if result.verdict != "cannot be told"]
    falling = [result for result in judged if result.verdict == "falls"]
    harmless = [result.arm for result in judged if result.arm in HARMLESS]
    misled = [result.arm for result in falling if result.arm in HARMLESS]
    if misled:
        return (
            f"Its answers depend on what does not matter ({', '.join(misled)}): it does not "
            "reason reliably, and matching of patterns would look like this."
        )
    if is_better:
        return (
            "It does better on what it was trained on: learned patterns explain at least that part "
            "of its score, and the probe does not show that it reasons."
        )
    if held_out.p0.mean() < LEAST_ACCURACY:
        return f"Whether it reasons cannot be told: it solves too few {held_out.name} problems."
    if not harmless:
        return "Whether it reasons cannot be told: no harmless change could be judged."
    slipping, unexplained = [], []
    for result in falling:
        explained = np.isfinite(result.expected) and _against_slips(result) != "more than"
        if explained:
            slipping.append(result.arm)
        elif result.arm in DEMANDING:
            unexplained.append(result.arm)
    sentence = f"No harmless change that was judged ({', '.join(harmless)}) is seen to lower it."
    if unexplained:
        return (
            f"{sentence} But {', '.join(unexplained)} cost more than slips in each step would: "
            "what it does is not carried over to them."
        )
    if slipping:
        sentence += f" It loses on {', '.join(slipping)} no more than slips in each step explain."
    return f"{sentence} That agrees with reasoning, and does not prove it."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
