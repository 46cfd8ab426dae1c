"""Coverage of a synthesized text: topics x formats, near-duplicates, and how much of it is new.

The novelty curve shows how much new text each teacher token buys, from the first part of a run to
the last.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt64

from slmjax.text.hashing import hash_runs, hash_words

SHINGLE = 5  # words, as in MinHash deduplication (FineWeb; Penedo et al. 2024)
NEAR = 0.75  # Jaccard similarity of word 5-grams from which two documents count as near-duplicates
COMPARED = 1000  # documents among which near-duplicates are counted, evenly spread over the run
PARTS = 10  # of the novelty curve, with about equal tokens
# Most words of a run whose n-grams are all held in memory. Of a longer run a sample is held.
HELD = 10_000_000
WORDS = 400  # of a document, about; with it the number of documents says how long the text will be

Hashes = UInt64[np.ndarray, "_"]


def coverage(documents: Iterable[Mapping[str, Any]], expected: int) -> dict[str, Any]:
    """Return the figures of a run's documents for coverage.json. Reads the documents once.

    Args:
      documents: {"text", "topic", "format", "tokens"} of each, in the order in which they were
        made; tokens are those of the teacher's answer.
      expected: most documents that may come; decides how much of a very long text is measured.
    Returns: a dictionary with
      documents, tokens: how many.
      counts: {topic: {format: documents}}.
      distinct: {"1".."5": share of different word n-grams over all of them}.
      near_duplicates: share of the compared documents that are near an earlier one of them.
      compared: number of documents that were compared.
      novelty: the list that the function `novelty` returns.
      falls: the tokens after which per_token is first under half of the first part's, or None.
    """
    # -(-a // b) rounds a / b up.
    sampled_1_in = max(1, -(-expected * WORDS // HELD))
    compared_1_in = max(1, -(-expected // COMPARED))
    grams: dict[int, list[Hashes]] = {n: [] for n in range(1, SHINGLE + 1)}
    tokens: list[int] = []
    compared: list[Hashes] = []
    counts: dict[str, Counter] = {}
    for number, document in enumerate(documents):
        words = hash_words(document["text"])[0]
        for n, sampled in grams.items():
            hashes = hash_runs(words, n)
            sampled.append(_sample(hashes, sampled_1_in))
        if number % compared_1_in == 0:
            compared.append(hash_runs(words, SHINGLE))
        tokens.append(document["tokens"])
        formats = counts.setdefault(document["topic"], Counter())
        formats[document["format"]] += 1
    curve = novelty(grams[SHINGLE], tokens, sampled_1_in)
    return {
        "documents": len(tokens),
        "tokens": sum(tokens),
        "counts": {topic: dict(sorted(counts[topic].items())) for topic in sorted(counts)},
        "distinct": {str(n): distinct(sampled) for n, sampled in grams.items()},
        "near_duplicates": near_duplicates(compared),
        "compared": len(compared),
        "novelty": curve,
        "falls": _tokens_before_fall(curve),
    }


def _tokens_before_fall(curve: Sequence[Mapping[str, float]]) -> float | None:
    """Return the tokens before the first part with less than half of the first part's novelty.

    None where no part has less.
    """
    for before, part in itertools.pairwise(curve):
        if part["per_token"] < curve[0]["per_token"] / 2:
            return before["tokens"]
    return None


def ngram_hashes(text: str, n: int) -> Hashes:
    """Return a 64-bit hash of every n words in a row; none where the text has fewer than n."""
    return hash_runs(hash_words(text)[0], n)


def distinct(grams: Sequence[Hashes]) -> float:
    """Return different n-grams over all n-grams ("distinct-n", Li et al. 2016); 0 without any."""
    total = sum(map(len, grams))
    if not total:
        return 0.0
    different = np.unique(np.concatenate(grams))
    return len(different) / total


def near_duplicates(hashed: Sequence[Hashes]) -> float:
    """Return the share of documents that are near an earlier one.

    Two documents are near if the exact Jaccard similarity of their sets of shingles is at least
    NEAR.

    Args:
      hashed: the shingles' hashes of each document.
    """
    if not hashed:
        return 0.0
    sets = [np.unique(shingles) for shingles in hashed]
    holders: dict[int, list[int]] = {}  # shingle -> numbers of the documents so far that hold it
    near = 0
    for number, shingles in enumerate(sets):
        common: Counter = Counter()  # earlier document -> number of shingles that it shares
        for shingle in shingles.tolist():
            earlier = holders.setdefault(shingle, [])
            common.update(earlier)
            earlier.append(number)
        for other, shared in common.items():
            union = len(shingles) + len(sets[other]) - shared
            if shared >= NEAR * union:
                near += 1
                break
    return near / len(sets)


def novelty(
    grams: Sequence[Hashes], tokens: Sequence[int], sampled_1_in: int = 1
) -> list[dict[str, float]]:
    """Return the novelty curve over PARTS parts of about equal teacher tokens.

    Args:
      grams: 5-grams of each document, all of them or a sample of one in `sampled_1_in`.
      tokens: of the teacher's answer, for each document.
    Returns: for each part {tokens: from the start to the end of this part, share: of the part's
      5-grams, those that no earlier part had, per_token: different 5-grams that no earlier part
      had, for each teacher token of the part}.
    """
    if not len(tokens):
        return []
    ends = np.cumsum(tokens)
    # A document belongs to the part in which its last token falls.
    part_of = (ends - 1) * PARTS // max(1, ends[-1])
    known = np.zeros(0, np.uint64)
    curve = []
    for part in np.unique(part_of):
        members = np.flatnonzero(part_of == part)
        part_tokens = sum(tokens[i] for i in members)
        occurrences = np.concatenate([grams[i] for i in members])
        fresh = np.setdiff1d(occurrences, known)  # different 5-grams that no earlier part had
        known = np.union1d(known, fresh)
        new_share = 0.0
        if len(occurrences):
            # Counts occurrences: a new 5-gram that its part repeats is new each time.
            new_share = np.isin(occurrences, fresh).sum() / len(occurrences)
        last = members[-1]
        curve.append(
            {
                "tokens": int(ends[last]),
                "share": float(new_share),
                "per_token": len(fresh) * sampled_1_in / max(1, part_tokens),
            }
        )
    return curve


def _sample(hashes: Hashes, one_in: int) -> Hashes:
    """Return about one in so many of the hashes.

    The same n-grams are chosen in every document, so that the share of new ones stays as it is.
    """
    # The hashes are mixed, so that any of their bits choose evenly; 20 is arbitrary.
    return hashes[(hashes >> np.uint64(20)) % np.uint64(one_in) == 0]


def markdown(figures: Mapping[str, Any], rejected: Mapping[str, int]) -> str:
    """Return the figures of `coverage`, and rejected documents by reason, as a page of tables."""
    compared = figures["compared"]
    lines = [
        f"# Coverage\n\n{figures['documents']:,} documents, {figures['tokens']:,} teacher tokens.",
        "\n## Documents by topic and format\n",
        *_count_table(figures["counts"]),
        "\n## Diversity\n",
        *_table(
            ["words in a row", "different share"],
            [[n, f"{share:.3f}"] for n, share in figures["distinct"].items()],
        ),
        f"\nNear-duplicates (Jaccard of word {SHINGLE}-grams at least {NEAR} with an earlier "
        f"document): {figures['near_duplicates']:.1%} of {compared:,} documents.",
        f"\n## Novelty\n\nNew word {SHINGLE}-grams in each part of the run.\n",
        *_novelty_table(figures["novelty"]),
        _falls_sentence(figures["falls"]),
    ]
    if rejected:
        lines.append("\n## Rejected\n")
        lines += _table(["reason", "documents"], sorted(rejected.items()))
    else:
        lines.append("\nNothing was rejected.")
    return "\n".join(lines) + "\n"


def _count_table(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    names: set[str] = set()
    for documents in counts.values():
        names |= set(documents)
    formats = sorted(names)
    rows = []
    for topic, documents in counts.items():
        numbers = [documents.get(form, 0) for form in formats]
        rows.append([topic, *numbers])
    return _table(["topic", *formats], rows)


def _novelty_table(curve: Sequence[Mapping[str, float]]) -> list[str]:
    head = ["teacher tokens so far", "share of 5-grams that are new", "new 5-grams per token"]
    rows = []
    for part in curve:
        tokens = f"{part['tokens']:,}"
        rows.append([tokens, f"{part['share']:.3f}", f"{part['per_token']:.3f}"])
    return _table(head, rows)


def _falls_sentence(tokens: float | None) -> str:
    if not tokens:
        return "\nNovelty per token stays above half of its first value."
    return f"\nNovelty per token falls under half of its first value after {tokens:,} tokens."


def _table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    rule = ["---"] * len(header)
    lines = []
    for row in (header, rule, *rows):
        cells = " | ".join(map(str, row))
        lines.append(f"| {cells} |")
    return lines
