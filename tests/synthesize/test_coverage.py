"""The coverage figures against counts by hand and against slow, obvious ones."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.synthesize import coverage as measured
from slmjax.synthesize.coverage import (
    coverage,
    distinct,
    markdown,
    near_duplicates,
    ngram_hashes,
    novelty,
)

WORDS = st.lists(
    st.lists(st.sampled_from("abcde"), max_size=30).map(" ".join), min_size=1, max_size=12
)


def grams(text, n):
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def document(text, topic="t", form="faq", tokens=10):
    return {"text": text, "topic": topic, "format": form, "tokens": tokens}


def test_counts_and_distinct_shares_by_hand():
    found = coverage(
        [
            document("the cat, the hat"),
            document("The cat sat", form="table"),
            document("a", topic="u"),
        ],
        3,
    )
    assert found["counts"] == {"t": {"faq": 1, "table": 1}, "u": {"faq": 1}}
    assert found["documents"] == 3 and found["tokens"] == 30
    assert found["distinct"]["1"] == 5 / 8  # the cat hat sat a, of eight words
    assert found["distinct"]["2"] == 4 / 5  # "the cat" twice, "cat the", "the hat", "cat sat"
    assert found["distinct"]["5"] == 0.0


@given(WORDS, st.integers(1, 5))
def test_distinct_shares_are_those_of_sets(texts, n):
    every = [gram for text in texts for gram in grams(text, n)]
    assert distinct([ngram_hashes(text, n) for text in texts]) == (
        len(set(every)) / len(every) if every else 0.0
    )


@given(WORDS)
def test_near_duplicates_are_those_of_all_pairs(texts):
    sets = [set(grams(text, 5)) for text in texts]
    alike = 0
    for i, mine in enumerate(sets):
        alike += any(
            mine & other and len(mine & other) >= measured.NEAR * len(mine | other)
            for other in sets[:i]
        )
    assert near_duplicates([ngram_hashes(text, 5) for text in texts]) == alike / len(texts)


def test_novelty_by_hand():
    first = "a b c d e f"  # two 5-grams
    curve = novelty(
        [ngram_hashes(text, 5) for text in (first, first, first + " g", "x")], [40, 40, 40, 40]
    )
    assert [part["share"] for part in curve] == [1.0, 0.0, pytest.approx(1 / 3), 0.0]
    assert [part["per_token"] for part in curve] == [2 / 40, 0.0, 1 / 40, 0.0]
    assert [part["tokens"] for part in curve] == [40, 80, 120, 160]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_the_parts_of_the_curve_are_all_of_the_tokens(tokens):
    curve = novelty([ngram_hashes(f"a b c d e {i}", 5) for i in range(len(tokens))], tokens)
    assert len(curve) <= measured.PARTS and curve[-1]["tokens"] == sum(tokens)
    assert [part["tokens"] for part in curve] == sorted(part["tokens"] for part in curve)


def test_a_text_that_repeats_itself_is_told_where_novelty_falls():
    rng = random.Random(0)
    fresh = [" ".join(rng.choice("abcdefghijklmnop") for _ in range(50)) for _ in range(50)]
    found = coverage([document(text, tokens=50) for text in fresh + fresh], 100)
    assert found["falls"] == 2500 and found["near_duplicates"] == 0.5 and found["compared"] == 100
    assert "falls under half of its first value after 2,500 tokens" in markdown(found, {})
    assert coverage([document(text) for text in fresh], 50)["falls"] is None


def test_a_long_text_is_measured_on_a_share_of_its_ngrams(monkeypatch):
    rng = random.Random(1)
    texts = [
        document(" ".join(rng.choice("abcdefgh") for _ in range(400)), tokens=400)
        for _ in range(100)
    ]
    whole = coverage(texts, 100)
    monkeypatch.setattr(measured, "HELD", 10_000)  # one n-gram in four
    part = coverage(texts, 100)
    assert part["distinct"]["5"] == pytest.approx(whole["distinct"]["5"], rel=0.05)
    rates = [[row["per_token"] for row in found["novelty"]] for found in (part, whole)]
    np.testing.assert_allclose(*rates, rtol=0.15, atol=0.02)


def test_nothing_at_all_has_a_report_too():
    found = coverage([], 10)
    assert found["documents"] == 0 and found["near_duplicates"] == 0.0 and found["novelty"] == []
    assert "too short | 3" in markdown(found, {"too short": 3})


def test_in_scripts_without_spaces_each_character_is_a_word():
    assert len(ngram_hashes("三角形的内角和等于一百八十度。", 5)) == 14 - 4
    assert len(ngram_hashes("one 三角 two", 1)) == 4
