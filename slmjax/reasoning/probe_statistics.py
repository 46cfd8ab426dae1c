"""Statistics of the reasoning probe: paired tests over templates, and their power."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.errors import UserError
from slmjax.evals.preferences import cluster_interval
from slmjax.reasoning.arms import ARMS
from slmjax.reasoning.probe_scores import ProbeInstance, Scores

FLIPS = 5000  # of signs, for one test
LEVEL = 0.05
MATCHED = 0.2  # least p value at which two samples of numbers count as of one distribution
LEAST_ACCURACY = 0.10  # of P0; below it too little can be lost for an arm to be judged
FEWEST_TEMPLATES = 20  # that both arms of a pair have
# Standard deviations of the simulated solvers' log-odds: between templates, and between the arms of
# one template.
TEMPLATE_SPREAD, ARM_SPREAD = 1.5, 0.5
POWER_ACCURACIES = (0.10, 0.30)
POWER_DROPS = (0.02, 0.03, 0.05)


class ArmResult(NamedTuple):
    """An arm compared with its baseline, on the templates that both have.

    Attributes:
      templates: how many these are.
      accuracy, baseline_accuracy: means over templates.
      difference: accuracy - baseline_accuracy; low, high: its 95 % interval over templates.
      p: of the sign-flip test; adjusted: the same by Holm, over the arms that are judged.
      expected: accuracy if every step of a solution slipped independently, as often as explains the
        baseline; nan where the arm has no more steps than its baseline.
      verdict: "falls", "rises", "no change seen" or "cannot be told".
    """

    arm: str
    baseline: str
    templates: int
    accuracy: float
    baseline_accuracy: float
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    expected: float
    verdict: str


def judge_arms(
    scores: Scores, steps: Mapping[str, Float[np.ndarray, " templates"]]
) -> list[ArmResult]:
    """Return the comparison of every arm that has a baseline among the scores.

    An arm is judged where P0 and its own baseline are solved at least LEAST_ACCURACY of the time,
    on FEWEST_TEMPLATES or more; elsewhere its verdict is "cannot be told".

    Args:
      steps: steps of each template's solution in every arm, see `step_counts`.
    Raises: UserError where there is no P0.
    """
    if "p0" not in scores:
        raise UserError(f"the scores have the arms {', '.join(scores)}; expected p0 among them.")
    pairs = paired_means(scores)
    p0_accuracy = float(np.nanmean(scores["p0"]))
    p_values, judged = {}, []
    for arm, (arm_means, base) in pairs.items():
        p_values[arm] = sign_flip_test(arm_means - base)
        enough = min(p0_accuracy, base.mean()) >= LEAST_ACCURACY
        if enough and len(base) >= FEWEST_TEMPLATES:
            judged.append(arm)
    adjusted = dict(zip(judged, holm([p_values[arm] for arm in judged]), strict=True))
    results = []
    for arm, (arm_means, base) in pairs.items():
        differences = arm_means - base
        low, high = mean_interval(differences)
        baseline = ARMS[arm].baseline
        result = ArmResult(
            arm=arm,
            baseline=baseline,
            templates=len(differences),
            accuracy=float(arm_means.mean()),
            baseline_accuracy=float(base.mean()),
            difference=float(differences.mean()),
            low=low,
            high=high,
            p=p_values[arm],
            adjusted=adjusted.get(arm, np.nan),
            expected=expected_accuracy(base, steps.get(baseline), steps.get(arm)),
            verdict=_verdict(differences.mean(), adjusted.get(arm)),
        )
        results.append(result)
    return results


def mean_interval(values: Float[np.ndarray, " templates"]) -> tuple[float, float]:
    """Return (low, high) of the 95 % interval of a mean over templates.

    Equal values have no spread to resample. Then at most 3 in n templates may be different ones,
    and by 1 (Hanley & Lippman-Hand 1983).
    """
    if np.ptp(values) == 0:
        margin = 3 / len(values)
        return float(values[0] - margin), float(values[0] + margin)
    return cluster_interval(values, np.arange(len(values)))


def paired_means(
    scores: Scores,
) -> dict[str, tuple[Float[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]]:
    """Return {arm: (its accuracy, its baseline's)} on each template that both arms have."""
    means = {}
    for arm, values in scores.items():
        # A template without instances has no mean.
        counts = np.isfinite(values).sum(1)
        sums = np.nansum(values, 1)
        means[arm] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    pairs = {}
    for arm, arm_means in means.items():
        baseline = ARMS[arm].baseline
        if baseline not in means:
            continue
        both = np.isfinite(arm_means) & np.isfinite(means[baseline])
        if both.any():
            pairs[arm] = (arm_means[both], means[baseline][both])
    return pairs


def sign_flip_test(
    differences: Float[np.ndarray, " templates"], *, flips: int = FLIPS, seed: int = 0
) -> float:
    """Return the two-sided p value of a mean of paired differences.

    Under the null hypothesis each difference is as likely to have the other sign, so random signs
    give the distribution of the mean. The p value is exact: the data as they are count as one of
    the flips. Source: Fisher 1935, section 21; Phipson & Smyth 2010 for the count.
    """
    observed = abs(differences.sum())
    sums = np.abs(_signs(len(differences), flips, seed) @ differences)
    # A flip that gives the same sum in another order counts as equal.
    as_large = int((sums >= observed - 1e-9).sum())
    return (1 + as_large) / (1 + flips)


def two_sample_test(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " m"],
    *,
    shuffles: int = FLIPS,
    seed: int = 0,
) -> float:
    """Return the two-sided p value of a difference of means, by permutation of the templates."""
    values = np.concatenate([first, second])
    observed = abs(first.mean() - second.mean())
    rng = np.random.default_rng(seed)
    as_large = 0
    for _ in range(shuffles):
        shuffled = rng.permutation(values)
        difference = shuffled[: len(first)].mean() - shuffled[len(first) :].mean()
        as_large += abs(difference) >= observed - 1e-12
    return (1 + as_large) / (1 + shuffles)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for the number of tests, in the same order. Source: Holm 1979."""
    count = len(p_values)
    adjusted = [0.0] * count
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (count - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def expected_accuracy(
    base: Float[np.ndarray, " pairs"],
    base_steps: Float[np.ndarray, " templates"] | None,
    arm_steps: Float[np.ndarray, " templates"] | None,
) -> float:
    """Return the accuracy of longer solutions whose steps slip as often as the baseline's do.

    One rate of right steps r explains the baseline: its accuracy is the mean of r ** steps. nan
    where the arm has no more steps.
    """
    if base_steps is None or arm_steps is None:
        return float("nan")
    both = np.isfinite(base_steps) & np.isfinite(arm_steps)
    before, after = base_steps[both], arm_steps[both]
    if not (after > before).all():
        return float("nan")
    low, high = 0.0, 1.0
    for _ in range(60):  # bisection
        rate = (low + high) / 2
        if np.mean(rate**before) < base.mean():
            low = rate
        else:
            high = rate
    return float(np.mean(high**after))


def probe_power(
    accuracy: float,
    drop: float,
    *,
    templates: int,
    variants: int,
    arms: int = 1,
    simulations: int = 400,
    seed: int = 0,
) -> float:
    """Return how often a probe would find a drop, simulated before anything is scored.

    Solvers are logistic-normal: the log-odds of a template vary with TEMPLATE_SPREAD, those of its
    two arms with ARM_SPREAD around them.

    Args:
      accuracy: of the baseline; the arm's is accuracy - drop.
      arms: tests that Holm adjusts for; the drop must survive the strictest of its levels.
    Raises: UserError where accuracy - drop is no share.
    """
    if not 0 < accuracy - drop < 1 or not 0 < accuracy < 1:
        raise UserError(f"accuracy {accuracy} with a drop of {drop}: expected shares in (0, 1).")
    rng = np.random.default_rng(seed)
    centres = [_centre(accuracy), _centre(accuracy - drop)]
    found = 0
    for _ in range(simulations):
        common = rng.normal(0, TEMPLATE_SPREAD, templates)
        means = []
        for centre in centres:
            log_odds = centre + common + rng.normal(0, ARM_SPREAD, templates)
            means.append(rng.binomial(variants, _logistic(log_odds)) / variants)
        found += sign_flip_test(means[1] - means[0], flips=1000) < LEVEL / arms
    return found / simulations


def power_rows(templates: int, variants: int) -> list[dict[str, Any]]:
    """Return the power of a probe by accuracy and drop, alone and among all arms: one row each.

    It is stated before anything is scored. See `probe_power`.
    """
    rows = []
    for accuracy in POWER_ACCURACIES:
        row: dict[str, Any] = {
            "accuracy": accuracy,
            "templates x variants": f"{templates} x {variants}",
        }
        for drop in POWER_DROPS:
            for words, arms in (("", 1), (", Holm", len(ARMS) - 1)):
                row[f"drop {100 * drop:.0f} points{words}"] = probe_power(
                    accuracy, drop, templates=templates, variants=variants, arms=arms
                )
        rows.append(row)
    return rows


def matched_magnitudes(instances: Sequence[ProbeInstance]) -> dict[str, float]:
    """Return {"operands", "results": p value} of originals against first variants of P0.

    The test is Kolmogorov and Smirnov's. Above MATCHED the new numbers count as distributed as the
    old ones are. Below it, a difference between P0 and the originals may be one of magnitude.
    """
    from scipy.stats import ks_2samp  # late: it takes a second; it comes with jax

    samples: dict[str, dict[str, list[float]]] = {
        "operands": {"original": [], "p0": []},
        "results": {"original": [], "p0": []},
    }
    for instance in instances:
        if instance.arm not in samples["results"] or instance.variant:
            continue
        for step in instance.problem.steps:
            samples["operands"][instance.arm].extend(map(float, step.operands))
            samples["results"][instance.arm].append(float(step.result))
    p_values = {}
    for kind, by_arm in samples.items():
        p_values[kind] = float(ks_2samp(by_arm["original"], by_arm["p0"]).pvalue)
    return p_values


def _verdict(difference: float, adjusted: float | None) -> str:
    if adjusted is None:
        return "cannot be told"
    if adjusted >= LEVEL:
        return "no change seen"
    return "falls" if difference < 0 else "rises"


@lru_cache(maxsize=32)
def _signs(count: int, flips: int, seed: int) -> Float[np.ndarray, "flips count"]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (flips, count)).astype(np.float64) * 2 - 1


def _centre(accuracy: float) -> float:
    """Return the mean log-odds of a logistic-normal solver with this accuracy."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = np.hypot(TEMPLATE_SPREAD, ARM_SPREAD)
    low, high = -20.0, 20.0
    for _ in range(60):  # bisection
        centre = (low + high) / 2
        mean = weights @ _logistic(centre + spread * nodes) / weights.sum()
        if mean < accuracy:
            low = centre
        else:
            high = centre
    return high


def _logistic(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return 1 / (1 + np.exp(-values))
