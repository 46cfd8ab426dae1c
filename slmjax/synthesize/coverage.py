"""What a synthesized text covers: topics x formats, how much of it is new, and how novelty falls with the tokens that were paid for."""

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
HELD = 10_000_000  # words whose n-grams are all held; a longer text is measured on the n-grams whose hash falls into a share of all
WORDS = 400  # of a document, about, to know whether there will be more than that


def coverage(documents: Iterable[Mapping[str, Any]], expected: int) -> dict[str, Any]:
    """The figures of documents in the order in which they were made; each is looked at once.

    Args:
      documents: {"text", "topic", "format", "tokens"}; tokens are those of the teacher.
      expected: at most so many; decides how much of a very long text is looked at.
    Returns: counts {topic: {format: documents}}; distinct {"1".."5": different word n-grams over all of them}; near_duplicates (share of
      `compared` documents that are at least NEAR alike with an earlier one of them); novelty, a list of {tokens (until here), share (of the
      part's 5-grams that no earlier part had), per_token (such 5-grams for each teacher token of the part)}; falls, the tokens after which
      per_token is first under half of the first part's, or None.
    """
    share, stride = max(1, -(-expected * WORDS // HELD)), max(1, -(-expected // COMPARED))
    grams: dict[int, list[np.ndarray]] = {n: [] for n in range(1, SHINGLE + 1)}
    tokens: list[int] = []
    compared: list[np.ndarray] = []
    counts: dict[str, Counter] = {}
    for number, document in enumerate(documents):
        words = hash_words(document["text"])[0]
        for n, held in grams.items():
            found = hash_runs(words, n)
            held.append(_sampled(found, share))
            if n == SHINGLE and number % stride == 0:
                compared.append(found)
        tokens.append(document["tokens"])
        counts.setdefault(document["topic"], Counter())[document["format"]] += 1
    curve = novelty(grams[SHINGLE], tokens, share)
    half = curve[0]["per_token"] / 2 if curve else 0.0
    return {
        "documents": len(tokens),
        "tokens": sum(tokens),
        "counts": {topic: dict(sorted(found.items())) for topic, found in sorted(counts.items())},
        "distinct": {str(n): distinct(held) for n, held in grams.items()},
        "near_duplicates": near_duplicates(compared),
        "compared": len(compared),
        "novelty": curve,
        "falls": next(
            (
                before["tokens"]
                for before, part in itertools.pairwise(curve)
                if part["per_token"] < half
            ),
            None,
        ),
    }


def ngram_hashes(text: str, n: int) -> UInt64[np.ndarray, "_"]:
    """A 64-bit hash of every n words in a row, lower-cased, without punctuation; empty for shorter texts."""
    return hash_runs(hash_words(text)[0], n)


def distinct(grams: Sequence[UInt64[np.ndarray, "_"]]) -> float:
    """Different n-grams over all n-grams ("distinct-n", Li et al. 2016); 0 where there are none."""
    total = sum(map(len, grams))
    return len(np.unique(np.concatenate(grams))) / total if total else 0.0


def near_duplicates(hashed: Sequence[UInt64[np.ndarray, "_"]]) -> float:
    """Share of documents whose set of shingles is at least NEAR alike (Jaccard, exactly) with that of an earlier one."""
    sets = [np.unique(found) for found in hashed]
    postings: dict[int, list[int]] = {}
    found = 0
    for number, members in enumerate(sets):
        shared: Counter = Counter()
        for shingle in members.tolist():
            earlier = postings.setdefault(shingle, [])
            shared.update(earlier)
            earlier.append(number)
        found += any(
            common >= NEAR * (len(members) + len(sets[other]) - common)
            for other, common in shared.items()
        )
    return found / len(sets) if sets else 0.0


def novelty(
    grams: Sequence[UInt64[np.ndarray, "_"]], tokens: Sequence[int], share: int = 1
) -> list[dict[str, float]]:
    """The novelty curve (see `coverage`) over PARTS parts of about equal teacher tokens; `grams` are one in `share` of all."""
    ends = np.cumsum(tokens)
    part_of = (ends - 1) * PARTS // max(1, ends[-1]) if len(ends) else ends
    known, out = np.zeros(0, np.uint64), []
    for part in np.unique(part_of):
        members = np.flatnonzero(part_of == part)
        spent, found = sum(tokens[i] for i in members), np.concatenate([grams[i] for i in members])
        fresh = np.setdiff1d(found, known)
        known = np.union1d(known, fresh)
        new = np.isin(found, fresh).sum() / len(found) if len(found) else 0.0
        out.append(
            {
                "tokens": int(ends[members[-1]]),
                "share": float(new),
                "per_token": len(fresh) * share / max(1, spent),
            }
        )
    return out


def markdown(found: Mapping[str, Any], rejected: Mapping[str, int]) -> str:
    """The figures as a page of tables."""
    forms = sorted({form for row in found["counts"].values() for form in row})
    lines = [
        f"# Coverage\n\n{found['documents']:,} documents, {found['tokens']:,} teacher tokens.\n",
        "## Documents by topic and format\n",
    ]
    lines += _table(
        ["topic", *forms],
        [[topic, *(row.get(form, 0) for form in forms)] for topic, row in found["counts"].items()],
    )
    lines += [
        "\n## Diversity\n",
        *_table(
            ["words in a row", "different share"],
            [[n, f"{x:.3f}"] for n, x in found["distinct"].items()],
        ),
    ]
    lines.append(
        f"\nNear-duplicates (Jaccard of word {SHINGLE}-grams at least {NEAR} with an earlier document): {found['near_duplicates']:.1%} of "
        f"{found['compared']:,} documents.\n\n## Novelty\n\nNew word {SHINGLE}-grams in each part of the run.\n"
    )
    rows = [
        [f"{part['tokens']:,}", f"{part['share']:.3f}", f"{part['per_token']:.3f}"]
        for part in found["novelty"]
    ]
    lines += _table(
        ["teacher tokens so far", "share of 5-grams that are new", "new 5-grams per token"], rows
    )
    lines.append(
        f"\nNovelty per token falls under half of its first value after {found['falls']:,} tokens."
        if found["falls"]
        else "\nNovelty per token stays above half of its first value."
    )
    lines += (
        ["\n## Rejected\n", *_table(["reason", "documents"], sorted(rejected.items()))]
        if rejected
        else ["\nNothing was rejected."]
    )
    return "\n".join(lines) + "\n"


def _table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    return [
        "| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)
    ]


def _sampled(hashes: UInt64[np.ndarray, "_"], share: int) -> UInt64[np.ndarray, "_"]:
    """One in `share` of all possible hashes: the same n-grams wherever they stand, so that new and known stay in proportion."""
    return hashes[(hashes >> np.uint64(20)) % np.uint64(share) == 0]
