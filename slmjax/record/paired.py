"""Paired comparison of models on identical held-out documents: bits per byte with intervals."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from slmjax.errors import UserError

RESAMPLES = 2000
# Quantiles at the ends of the interval: it is the middle 95 %.
INTERVAL = (0.025, 0.975)

# A held-out document: its content key and its number of bytes.
Document = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Paired:
    """The documents that every run scored, by source."""

    # The cross-entropy of each document, with a column for each run.
    nats: dict[str, Float[np.ndarray, "_documents _runs"]]
    # The size of each document.
    bytes: dict[str, Float[np.ndarray, "_documents"]]
    # Number of documents that some run lacked.
    left_out: int

    @property
    def documents(self) -> int:
        """Number of paired documents."""
        return sum(map(len, self.bytes.values()))


@dataclasses.dataclass(frozen=True)
class Difference:
    """Bits per byte of a group of runs minus the first group's, with its 95 % interval."""

    value: float
    low: float
    high: float


def pair(heldout: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> Paired:
    """Match held-out documents by source and content key.

    Documents that some run did not score, or scored over another number of bytes, are left out.

    Args:
      heldout: for each run {source: {"keys": uint64, "nats": float64, "bytes": int64}}, one entry
        for each document.
    Raises: UserError where no document is left.
    """
    nats, sizes = {}, {}
    left_out = 0
    # Each source once, in the order in which the runs have them.
    for source in dict.fromkeys(itertools.chain.from_iterable(heldout)):
        # For each run {document: nats}, and the documents alone.
        tables = [_by_document(run.get(source)) for run in heldout]
        document_sets = list(map(set, tables))
        common = sorted(set.intersection(*document_sets))
        left_out += len(set.union(*document_sets)) - len(common)
        if not common:
            continue
        rows = [_nats_in_each_run(tables, document) for document in common]
        nats[source] = np.array(rows, np.float64)
        sizes[source] = np.array([size for _, size in common], np.float64)
    if not nats:
        raise UserError(
            "The runs have no held-out document in common: train them on the same data.sources "
            "with the same data.heldout."
        )
    return Paired(nats, sizes, left_out)


def bits_per_byte(paired: Paired, source: str = "total") -> Float[np.ndarray, "runs"]:
    """Return each run's total bits over total bytes of the paired documents.

    Args:
      source: one source, or "total": all of them.
    """
    nats = size = 0
    for part in _parts(paired, source):
        nats += paired.nats[part].sum(0)
        size += paired.bytes[part].sum()
    return nats / size / math.log(2)


def bootstrap(
    paired: Paired, groups: Sequence[Sequence[int]], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[Difference]]:
    """Return each group's difference in bits per byte to the first group, by source and "total".

    Documents are resampled within each source, the same ones for all runs. Bits per byte is a ratio
    of sums, so a resampled document brings its nats and its bytes. A group's value is the mean of
    its runs. Where a group has k > 1 runs, they are resampled too, and their spread is widened by
    sqrt(k / (k - 1)), since k resampled runs vary too little. The interval is the middle 95 % of
    the resamples. In simulated comparisons where seed noise dominates, it held the truth in 89, 91,
    93 and 95 % of cases with 2, 3, 5 and 8 seeds a group.

    Args:
      groups: column indices of `paired.nats`, one list for each group; together they are all
        columns.

    Source: Efron & Tibshirani 1993, chapters 8 and 13; Berg-Kirkpatrick, Burkett & Klein 2012; the
      widening is from Hesterberg 2015.
    """
    # Scores that are not finite give differences that are not finite, without a warning.
    with np.errstate(invalid="ignore"):
        return _bootstrap(paired, groups, seed, resamples)


def bootstrap_mean(
    paired: Paired, groups: Sequence[Sequence[int]], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Difference]:
    """Return each group's difference in the mean over sources of bits per byte.

    Every source counts the same, however many bytes it has. See `bootstrap` for the rest.
    """
    with np.errstate(invalid="ignore"):
        weights, bits = _resampled_bits(paired, groups, seed, resamples)
        measured = [bits_per_byte(paired, source) for source in paired.nats]
        sources = [bits[source] for source in paired.nats]
        return _intervals(groups, weights, np.mean(sources, 0), np.mean(measured, 0))


def _bootstrap(
    paired: Paired, groups: Sequence[Sequence[int]], seed: int, resamples: int
) -> dict[str, list[Difference]]:
    weights, bits = _resampled_bits(paired, groups, seed, resamples)
    differences = {}
    for source in [*paired.nats, "total"]:
        measured = bits_per_byte(paired, source)
        differences[source] = _intervals(groups, weights, bits[source], measured)
    return differences


def _resampled_bits(
    paired: Paired, groups: Sequence[Sequence[int]], seed: int, resamples: int
) -> tuple[Float[np.ndarray, "resamples groups runs"], dict[str, np.ndarray]]:
    """Return (how much each run counts, {source or "total": bits per byte [resamples, runs]})."""
    chance = np.random.default_rng(seed)
    sums = {}
    for source in paired.nats:
        sums[source] = _resampled_sums(paired, source, chance, resamples)
    weights = _run_weights(groups, chance, resamples)
    bits = {}
    for source in [*paired.nats, "total"]:
        # [resamples, runs + 1]: each run's nats, and bytes in the last column.
        totals = 0
        for part in _parts(paired, source):
            totals = totals + sums[part]
        bits[source] = totals[:, :-1] / totals[:, -1:] / math.log(2)
    return weights, bits


def _intervals(
    groups: Sequence[Sequence[int]],
    weights: Float[np.ndarray, "resamples groups runs"],
    bits: Float[np.ndarray, "resamples runs"],
    measured: Float[np.ndarray, "runs"],
) -> list[Difference]:
    """Return each group's difference to the first group.

    Args:
      bits: of resampled documents.
      measured: of the documents as they are.
    """
    # [resamples, groups]
    means = _group_means(weights, bits, groups)
    lows, highs = np.quantile(means - means[:, :1], INTERVAL, axis=0)
    # The same without resampling: [groups].
    (values,) = _group_means(_run_weights(groups, None, 1), measured[None], groups)
    differences = []
    for value, low, high in zip(values, lows, highs, strict=True):
        differences.append(Difference(float(value - values[0]), float(low), float(high)))
    return differences


def _resampled_sums(
    paired: Paired, source: str, chance: np.random.Generator, resamples: int
) -> Float[np.ndarray, "resamples columns"]:
    """Return sums over documents drawn with replacement: each run's nats, and bytes last."""
    table = np.column_stack([paired.nats[source], paired.bytes[source]])
    document_count = len(table)
    sums = []
    for _ in range(resamples):
        drawn = chance.integers(document_count, size=document_count)
        # The sums as a product with counts: gathering the rows would copy the table each time.
        times_drawn = np.bincount(drawn, minlength=document_count)
        sums.append(times_drawn @ table)
    return np.stack(sums)


def _run_weights(
    groups: Sequence[Sequence[int]], chance: np.random.Generator | None, resamples: int
) -> Float[np.ndarray, "resamples groups runs"]:
    """Return how much each run counts in its group's mean.

    Args:
      chance: draws runs with replacement, and their spread is widened as `bootstrap` says; None:
        all runs of a group count the same.
    """
    runs = sum(map(len, groups))
    weights = np.zeros((resamples, len(groups), runs))
    for index, members in enumerate(groups):
        k = len(members)
        columns = list(members)
        weights[:, index, columns] = 1 / k
        # A single run is drawn once in every resample.
        if chance is not None and k > 1:
            # [resamples, k]: each run's share of the k draws.
            drawn_shares = chance.multinomial(k, [1 / k] * k, size=resamples) / k
            widening = math.sqrt(k / (k - 1))
            weights[:, index, columns] += widening * (drawn_shares - 1 / k)
    return weights


def _group_means(
    weights: Float[np.ndarray, "resamples groups runs"],
    bits: Float[np.ndarray, "resamples runs"],
    groups: Sequence[Sequence[int]],
) -> Float[np.ndarray, "resamples groups"]:
    """Return each group's weighted mean; a run that is not finite spoils only its own group."""
    means = []
    for index, members in enumerate(groups):
        columns = list(members)
        # s counts resamples, r the group's runs.
        group_weights = weights[:, index, columns]
        means.append(np.einsum("sr,sr->s", group_weights, bits[:, columns]))
    return np.stack(means, axis=1)


def _parts(paired: Paired, source: str) -> list[str]:
    """Return all sources for "total", else the named one alone."""
    if source == "total":
        return list(paired.nats)
    return [source]


def _nats_in_each_run(
    tables: Sequence[Mapping[Document, float]], document: Document
) -> list[float]:
    return [table[document] for table in tables]


def _by_document(scores: Mapping[str, np.ndarray] | None) -> dict[Document, float]:
    """Return the nats of each document of one run and source; {} where the run lacks the source."""
    if scores is None:
        return {}
    keys, sizes = scores["keys"].tolist(), scores["bytes"].tolist()
    documents = zip(keys, sizes, strict=True)
    return dict(zip(documents, scores["nats"].tolist(), strict=True))
