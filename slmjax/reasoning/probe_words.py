"""The sentences of a probe's report: what its statistics support, and no more."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.evals.preferences import cluster_interval
from slmjax.evals.word_problems import WordProblem, data_flow, operator_skeleton
from slmjax.reasoning.arms import ARMS
from slmjax.reasoning.probe_statistics import (
    LEAST_ACCURACY,
    LEVEL,
    ArmResult,
    Scores,
    judge_arms,
    two_sample_test,
)

# Arms whose answer the baseline's solution gives, so that whoever understood it would not fall.
HARMLESS = ("p0", "names", "noop_none", "noop_other", "noop_same")
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
    return ColumnResult(name, p0, cluster_interval(p0, np.arange(len(p0))), arms)


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
    drop that the interval does not exclude. The last sentence answers whether the solver reasons,
    as far as the findings do. Nothing here says that it does: agreement is not proof.
    """
    sentences = [_p0_sentence(held_out)]
    can_be_judged = held_out.p0.mean() >= LEAST_ACCURACY
    if can_be_judged:
        sentences += [_arm_sentence(result) for result in held_out.arms]
    gap = False
    if trained_on is not None:
        sentence, gap = _gap_sentence(held_out, trained_on)
        sentences += [_p0_sentence(trained_on), sentence]
    sentences.append(_answer(held_out, gap, can_be_judged))
    return sentences


def _p0_sentence(column: ColumnResult) -> str:
    low, high = column.p0_interval
    sentence = (
        f"Of the {column.name} problems it solves {_percent(column.p0.mean())} "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f}, {len(column.p0)} templates)."
    )
    if column.p0.mean() < LEAST_ACCURACY:
        sentence += f" Below {100 * LEAST_ACCURACY:.0f} % no arm is judged."
    return sentence


def _arm_sentence(result: ArmResult) -> str:
    change = ARMS[result.arm].meaning
    points = 100 * abs(result.difference)
    interval = f"95 % interval {100 * result.low:+.1f} to {100 * result.high:+.1f}"
    facts = f"({interval}, {result.templates} templates, adjusted p = {result.adjusted:.2g})"
    name = f"{result.arm}, {change}"
    if result.verdict == "cannot be told":
        return (
            f"{name}: cannot be told; its baseline {result.baseline} is solved "
            f"{_percent(result.baseline_accuracy)} of the time, on {result.templates} templates."
        )
    if result.verdict == "no change seen":
        missed = max(0.0, -100 * result.low)
        return f"{name}: no change seen; a drop of {missed:.1f} points is not excluded {facts}."
    sentence = f"{name}: accuracy {result.verdict} by {points:.1f} points {facts}."
    if np.isfinite(result.expected) and result.verdict == "falls":
        lower = result.baseline_accuracy + result.low
        upper = result.baseline_accuracy + result.high
        kind = "as"
        if result.expected > upper:
            kind = "more than"
        elif result.expected < lower:
            kind = "less than"
        sentence += f" That is {kind} independent slips in every step would give"
        sentence += f" ({_percent(result.expected)} right)."
    return sentence


def _gap_sentence(held_out: ColumnResult, trained_on: ColumnResult) -> tuple[str, bool]:
    """Return (the sentence that compares the columns, whether the trained-on one is better)."""
    gap = trained_on.p0.mean() - held_out.p0.mean()
    p = two_sample_test(trained_on.p0, held_out.p0)
    if p >= LEVEL:
        return f"Trained-on and held-out templates cannot be told apart (p = {p:.2g}).", False
    word = "more" if gap > 0 else "less"
    sentence = (
        f"It solves trained-on templates with new numbers {100 * abs(gap):.1f} points {word} often "
        f"than held-out ones (p = {p:.2g})."
    )
    return sentence, bool(gap > 0)


def _answer(held_out: ColumnResult, gap: bool, can_be_judged: bool) -> str:
    """Return the last sentence: does it reason?"""
    judged = [result for result in held_out.arms if result.verdict != "cannot be told"]
    falls = [each.arm for each in judged if each.arm in HARMLESS and each.verdict == "falls"]
    if falls:
        sentence = (
            f"Its answers depend on things that do not matter ({', '.join(falls)}): it does not "
            "reason reliably here, and matching of patterns would look like this."
        )
        return sentence
    if gap:
        return (
            "It does better on what it was trained on: patterns that were learned explain at least "
            "that part of its score, and the probe does not show that it reasons."
        )
    if not can_be_judged:
        return "Whether it reasons cannot be told: it solves too few of the held-out problems."
    harmless = [each.arm for each in judged if each.arm in HARMLESS]
    if not harmless:
        return "Whether it reasons cannot be told: no harmless change could be judged."
    return (
        f"No harmless change that was judged ({', '.join(harmless)}) lowers its accuracy. That is "
        "what reasoning would look like; it does not prove it."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
