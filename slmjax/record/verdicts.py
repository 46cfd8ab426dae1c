"""The sentences of a comparison: who is better, what limits that, and how it was measured."""

import numpy as np

from slmjax.readable import count
from slmjax.record.comparison import Comparison, group
from slmjax.record.paired import RESAMPLES, Difference, bits_per_byte

METHOD = (
    "Every document was scored by all runs; bits per byte is total bits over total bytes. The "
    f"interval is the middle 95 % of {RESAMPLES:,} bootstrap resamples: documents are drawn with "
    "replacement within each source, the same ones for all runs (paired; Efron & Tibshirani 1993; "
    "Berg-Kirkpatrick et al. 2012)."
)
METHOD_RUNS = (
    " Where a config has several seeds, its value is their mean ± standard deviation, and its runs "
    "are drawn with replacement too, their spread widened by sqrt(k / (k - 1)) for k runs "
    "(Hesterberg 2015); with two or three seeds the interval is still somewhat too narrow "
    "(simulated: it holds the truth in about 90 % of cases instead of 95 %)."
)


def verdicts(comparison: Comparison) -> list[str]:
    """Return one sentence for each group on how it does against the first.

    The interval over all compared sources decides. "Better" and "worse" are said only where both
    configs have several seeds.
    """
    labels = comparison.labels
    # [runs], over all compared sources together.
    bits = bits_per_byte(comparison.paired)
    baseline = comparison.groups[0]
    baseline_bits = float(np.mean(bits[baseline]))
    sentences = []
    # From the second group on: the first one is the baseline.
    for index in range(1, len(labels)):
        members = comparison.groups[index]
        names = f"{labels[index]} and {labels[0]}"
        not_finite = [run for run in [*baseline, *members] if not np.isfinite(bits[run])]
        if not_finite:
            runs = comparison.names(not_finite)
            sentences.append(
                f"{names} cannot be told apart: held-out scores of {runs} are not finite numbers."
            )
            continue
        difference = comparison.group_differences["total"][index]
        several_seeds = min(len(baseline), len(members)) > 1
        sentences.append(
            _verdict(labels[index], labels[0], difference, baseline_bits, several_seeds)
        )
    return sentences


def warning(comparison: Comparison) -> str:
    """Return a caution about configs with one seed; "" where all have several."""
    configs = [run.config for run in comparison.runs]
    if len(group(configs)) == 1:
        return (
            "These runs have one config: what tells them apart is noise from run to run, which is "
            "not in the intervals."
        )
    single_runs = []
    for members in comparison.groups:
        if len(members) == 1:
            single_runs += members
    if not single_runs:
        return ""
    names = comparison.names(single_runs)
    return (
        f"One seed only: {names}. The interval covers the choice of held-out documents, not the "
        "noise from run to run: another seed of the same config may differ by more. Train each "
        "config with three or more --config.seed values and pass all runs."
    )


def coverage_sentence(comparison: Comparison) -> str:
    """Return how many documents were compared and how many were left out, as a sentence."""
    paired = comparison.paired
    size = 0.0
    for sizes in paired.bytes.values():
        size += float(sizes.sum())
    return (
        f"{paired.documents:,} documents ({count(size)} bytes) were scored by all runs; "
        f"{paired.left_out:,} that some run lacks were left out."
    )


def method(comparison: Comparison) -> str:
    """Return sentences on how the intervals were made."""
    largest_group = max(map(len, comparison.groups))
    if largest_group > 1:
        return METHOD + METHOD_RUNS
    return METHOD


def _verdict(
    label: str,
    baseline: str,
    difference: Difference,
    baseline_bits: float,
    several_seeds: bool,
) -> str:
    """Return the sentence on how one group does against the first; all scores are finite.

    Args:
      label, baseline: names of the group and of the first group.
      baseline_bits: bits per byte of the first group.
      several_seeds: whether both configs have several seeds.
    """
    size = abs(difference.value)
    amount = f"{size:.4f} bits per byte ({100 * size / baseline_bits:.2f} %)"
    interval = f"95 % interval {difference.low:+.4f} to {difference.high:+.4f}"
    is_lower = difference.value < 0  # fewer bits are better
    if difference.low <= 0 <= difference.high:
        return (
            f"{label} and {baseline} cannot be told apart on these documents: "
            f"the difference of {amount}, {interval}, includes zero."
        )
    if several_seeds:
        # Only then does the interval hold the noise between seeds.
        word = "better" if is_lower else "worse"
        return f"{label} is {word} than {baseline} by {amount}, {interval}."
    word = "less" if is_lower else "more"
    return (
        f"{label} scored {amount} {word} than {baseline} on these documents, {interval}. "
        "One seed cannot tell whether that is the config or chance: "
        "seed noise is not in the interval."
    )
