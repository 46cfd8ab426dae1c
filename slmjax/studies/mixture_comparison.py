"""Mixtures compared with the first one: differences in bits per byte with intervals, as a table."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from slmjax.record.comparison import Scores
from slmjax.record.paired import (
    Difference,
    Paired,
    bits_per_byte,
    bootstrap,
    bootstrap_mean,
    pair,
)
from slmjax.studies.mixture_plan import MixturePlan
from slmjax.studies.study_table import StudyTable


class MixtureComparison(NamedTuple):
    """Mixtures compared with the first of them, on the same held-out documents.

    mixtures: their names.
    seeds: runs of each mixture.
    paired: the runs' scores, those of a mixture next to each other.
    mean: for each mixture, the difference in the mean over sources of bits per byte.
    sources: {source of the basket: the same for it alone}.
    """

    mixtures: tuple[str, ...]
    seeds: int
    paired: Paired
    mean: list[Difference]
    sources: dict[str, list[Difference]]

    def bits(self, source: str) -> Float[np.ndarray, "mixtures seeds"]:
        """Return bits per byte of a source."""
        return bits_per_byte(self.paired, source).reshape(len(self.mixtures), self.seeds)


def compare_mixtures(
    plan: MixturePlan, scores: Mapping[str, Scores], seeds: int
) -> MixtureComparison:
    """Compare the mixtures of a plan.

    Args:
      scores: of each run, in the order of the plan's mixtures and of seeds.
    """
    paired = pair(list(scores.values()))
    groups = []
    for number in range(len(plan.mixtures)):
        groups.append(list(range(number * seeds, (number + 1) * seeds)))
    differences = bootstrap(paired, groups)
    sources = {source: differences[source] for source in plan.basket}
    mean = bootstrap_mean(paired, groups)
    return MixtureComparison(tuple(plan.mixtures), seeds, paired, mean, sources)


def comparison_table(comparison: MixtureComparison) -> StudyTable:
    """Return a row for each mixture: bits per byte, and the difference to the first mixture."""
    names, seeds = comparison.mixtures, comparison.seeds
    bits = {source: comparison.bits(source) for source in comparison.sources}
    mean = np.mean(list(bits.values()), 0)  # [mixtures, seeds]
    rows = []
    for number, (name, difference) in enumerate(zip(names, comparison.mean, strict=True)):
        spread = f"{mean[number].mean():.4f}"
        if seeds > 1:
            spread += f" ± {mean[number].std(ddof=1):.4f}"
        cells = ["", ""]
        if number:
            interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
            cells = [f"{difference.value:+.4f} ({interval})", verdict(difference, seeds)]
        of_sources = [f"{each[number].mean():.4f}" for each in bits.values()]
        rows.append([name, spread, *cells, *of_sources])
    head = ["mixture", "bits per byte", f"minus {names[0]} (95 %)", "", *bits]
    runs = "one seed" if seeds == 1 else f"{seeds} seeds"
    documents = f"{comparison.paired.documents} documents, {runs}"
    return StudyTable(f"Held-out bits per byte, mean over sources, {documents}", head, rows)


def verdict(difference: Difference, seeds: int) -> str:
    """Return in words what a difference says: fewer bits are better."""
    if difference.low <= 0 <= difference.high:
        return "not distinguishable"
    word = "better" if difference.value < 0 else "worse"
    if seeds == 1:
        return f"{word}, but the noise of seeds is not in the interval"
    return word
