"""Coverage of a synthesized text: topics x formats, how much of it is new, and at what price.

The novelty curve shows how novelty falls with the tokens that were paid for.
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
PARTS = 10  # of the run, in tokens, for the novelty curve
# Words whose n-grams are all held; a longer text is measured on the n-grams whose hash falls into a
# share of all.
HELD = 10_000_000
WORDS = 400  # of a document, about, to know whether there will be more than that

Hashes = UInt64[np.ndarray, "_"]


def coverage(documents: Iterable[Mapping[str, Any]], expected: int) -> dict[str, Any]:
    """Return the figures of documents in the order in which they were made.

    Each document is looked at once.

    Args:
      documents: {"text", "topic", "format", "tokens"}; tokens are those of the teacher.
      expected: at most so many; decides how much of a very long text is looked at.
    Returns:
      counts: {topic: {format: documents}}.
      distinct: {"1".."5": share of different word n-grams over all of them}.
      near_duplicates: share of the `compared` documents that are at least NEAR alike with an
        earlier one of them.
      novelty: see `novelty`.
      falls: the tokens after which per_token is first under half of the first part's, or None.
    """
    share = max(1, -(-expected * WORDS // HELD))
    stride = max(1, -(-expected // COMPARED))
    grams: dict[int, list[Hashes]] = {n: [] for n in range(1, SHINGLE + 1)}
    tokens: list[int] = []
    compared: list[Hashes] = []
    counts: dict[str, Counter] = {}
    for number, document in enumerate(documents):
        words = hash_words(document["text"])[0]
        for n, sampled in grams.items():
            every = hash_runs(words, n)
            sampled.append(_sampled(every, share))
        if number % stride == 0:
            compared.append(hash_runs(words, SHINGLE))
        tokens.append(document["tokens"])
        forms = counts.setdefault(document["topic"], Counter())
        forms[document["format"]] += 1
    curve = novelty(grams[SHINGLE], tokens, share)
    return {
        "documents": len(tokens),
        "tokens": sum(tokens),
        "counts": {topic: dict(sorted(counts[topic].items())) for topic in sorted(counts)},
        "distinct": {str(n): distinct(sampled) for n, sampled in grams.items()},
        "near_duplicates": near_duplicates(compared),
        "compared": len(compared),
        "novelty": curve,
        "falls": _falls(curve),
    }


def _falls(curve: Sequence[Mapping[str, float]]) -> float | None:
    """Return the tokens before the first part with less than half of the first part's novelty."""
    for before, part in itertools.pairwise(curve):
        if part["per_token"] < curve[0]["per_token"] / 2:
            return before["tokens"]
    return None


def ngram_hashes(text: str, n: int) -> Hashes:
    """Return a 64-bit hash of every n words in a row; none for shorter texts."""
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

    Near are two documents whose sets of shingles have a Jaccard similarity, exactly, of at least
    NEAR.
    """
    sets = [np.unique(shingles) for shingles in hashed]
    holders: dict[int, list[int]] = {}  # the documents so far of each shingle
    near = 0
    for number, members in enumerate(sets):
        common: Counter = Counter()
        for shingle in members.tolist():
            earlier = holders.setdefault(shingle, [])
            common.update(earlier)
            earlier.append(number)
        for other, size in common.items():
            union = len(members) + len(sets[other]) - size
            if size >= NEAR * union:
                near += 1
                break
    return near / len(sets) if sets else 0.0


def novelty(
    grams: Sequence[Hashes], tokens: Sequence[int], share: int = 1
) -> list[dict[str, float]]:
    """Return the novelty curve over PARTS parts of about equal teacher tokens.

    Args:
      grams: 5-grams of each document, one in `share` of all.
      tokens: of the teacher, for each document.
    Returns: for each part {tokens: until here, share: of the part's 5-grams that no earlier part
      had, per_token: such 5-grams for each teacher token of the part}.
    """
    ends = np.cumsum(tokens)
    part_of = ends
    if len(ends):
        part_of = (ends - 1) * PARTS // max(1, ends[-1])
    known, curve = np.zeros(0, np.uint64), []
    for part in np.unique(part_of):
        members = np.flatnonzero(part_of == part)
        spent = sum(tokens[i] for i in members)
        own = np.concatenate([grams[i] for i in members])
        fresh = np.setdiff1d(own, known)
        known = np.union1d(known, fresh)
        new = 0.0
        if len(own):
            # Occurrences, not different ones: a part may repeat what it says first.
            new = np.isin(own, fresh).sum() / len(own)
        last = members[-1]
        curve.append(
            {
                "tokens": int(ends[last]),
                "share": float(new),
                "per_token": len(fresh) * share / max(1, spent),
            }
        )
    return curve


def _sampled(hashes: Hashes, share: int) -> Hashes:
    """Return one in `share` of all possible hashes.

    They are the same n-grams in every document, so that new and known stay in proportion.
    """
    return hashes[(hashes >> np.uint64(20)) % np.uint64(share) == 0]


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
    for row in counts.values():
        names |= set(row)
    forms = sorted(names)
    rows = []
    for topic, row in counts.items():
        numbers = [row.get(form, 0) for form in forms]
        rows.append([topic, *numbers])
    return _table(["topic", *forms], rows)


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
    rule = ["---"] * len(header)
    lines = []
    for row in (header, rule, *rows):
        cells = " | ".join(map(str, row))
        lines.append(f"| {cells} |")
    return lines
