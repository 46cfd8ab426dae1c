"""Held-out text: a group is on one side, sizes obey the limits, and a document that training has seen is found."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.data import heldout
from slmjax.data.heldout import GROUP, GroupCounter, choose_groups, group_id, seen_in_training
from slmjax.text import hashing
from slmjax.text.hashing import Matcher, shingles

WORDS = st.lists(
    st.sampled_from(
        [
            "alpha",
            "Beta",
            "gamma,",
            "delta-7",
            "\u00e9t\u00e9",
            "x's",
            "12.5",
            "\u4e2d\u6587",
            "\U0001f600",
        ]
    ),
    max_size=40,
)


def slow_words(text: str) -> list[str]:
    """What shingles hash, by regular expression: runs of letters and digits; each character of a script without spaces is a word."""
    return re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+", text.lower())


@given(first=WORDS, second=WORDS, separator=st.sampled_from([" ", "\n\n", " -- "]))
def test_two_texts_share_a_hash_where_they_share_thirteen_words(first, second, separator):
    def runs(text: str) -> list[tuple]:
        words = slow_words(text)
        width = min(13, len(words))
        return (
            [tuple(words[i : i + width]) for i in range(len(words) - width + 1)]
            if words
            else [(text.strip(),)]
        )

    a, b = separator.join(first), " ".join(second)
    hashes_a, hashes_b = shingles(a), shingles(b)
    assert (len(hashes_a), len(hashes_b)) == (len(runs(a)), len(runs(b)))
    expected = [[x == y for y in runs(b)] for x in runs(a)]
    np.testing.assert_array_equal(
        hashes_a[:, None] == hashes_b, np.array(expected).reshape(len(hashes_a), -1)
    )


def test_hashes_do_not_depend_on_where_a_long_text_is_cut(monkeypatch):
    text = " ".join(f"word{i * i}" for i in range(2000))
    whole = shingles(text)
    monkeypatch.setattr(hashing, "PIECE", 7)
    np.testing.assert_array_equal(shingles(text), whole)
    assert len(np.unique(whole)) == 2000 - 12


@given(words=WORDS)
def test_words_begin_and_end_where_they_are_cut(words):
    text = " ".join(words)
    _, starts, ends = hashing.hash_words(text)
    assert [text[start:end].lower() for start, end in zip(starts, ends)] == slow_words(text)


@given(seed=st.integers(0, 1000), size=st.integers(0, 300))
def test_a_matcher_finds_exactly_the_members(seed, size):
    draw = np.random.default_rng(seed)
    members = np.unique(draw.integers(0, 2**64, size, np.uint64))
    probes = np.concatenate([members[::3], draw.integers(0, 2**64, 500, np.uint64)])
    np.testing.assert_array_equal(
        members[Matcher(members).find(probes)], probes[np.isin(probes, members)]
    )


def test_a_document_is_removed_when_more_than_half_of_its_shingles_are_seen():
    words = [f"w{i}" for i in range(112)]  # one hundred shingles
    matcher_set = np.unique(shingles(" ".join(words)))
    matcher = Matcher(matcher_set)
    for shared, removed in ((50, False), (51, True)):
        seen = np.zeros(len(matcher_set), bool)
        seen[matcher.find(shingles(" ".join(words[: shared + 12])))] = True
        assert seen_in_training(" ".join(words), matcher, seen) is removed


def table(sizes: dict[int, int]) -> np.ndarray:
    return np.array([(group, size, 1) for group, size in sizes.items()], GROUP)


@given(sizes=st.lists(st.integers(1, 10**7), min_size=1, max_size=40), share=st.floats(0.001, 0.4))
def test_held_out_groups_obey_every_limit(sizes, share):
    groups = {group_id(str(i), 0): size for i, size in enumerate(sizes)}
    (chosen,) = choose_groups({"s": table(groups)}, {"s": sum(sizes)}, {"s": share}).groups.values()
    held, total = [groups[int(group)] for group in chosen], sum(sizes)
    assert len(held) <= len(sizes) // 2
    assert sum(held) <= min(heldout.MAX_BYTES, total / 2)
    assert len(held) == 0 or sum(held[:-1]) < share * total  # the last group was still needed
    possible = len(sizes) > 1 and min(sizes) <= total / 2
    assert bool(held) is possible


def test_a_group_of_two_sources_is_held_out_in_both_and_a_single_group_is_reported():
    groups = {group_id(str(i), 0): 1000 for i in range(200)}
    some = dict(list(groups.items())[:100])
    choice = choose_groups(
        {"all": table(groups), "some": table(some), "one": table({1: 5})},
        {"all": 200_000, "some": 100_000, "one": 5},
        dict.fromkeys(("all", "some", "one"), 0.05),
    )
    assert len(choice.groups["all"]) >= 10
    assert set(choice.groups["some"].tolist()) == set(choice.groups["all"].tolist()) & set(some)
    assert len(choice.groups["one"]) == 0
    assert any("'one' is a single group" in warning for warning in choice.warnings)


def test_another_seed_holds_out_other_groups():
    chosen = []
    for seed in (0, 1):
        name = {group_id(str(i), seed): i for i in range(100)}
        groups = choose_groups(
            {"s": table(dict.fromkeys(name, 10))}, {"s": 1000}, {"s": 0.1}
        ).groups["s"]
        chosen.append({name[group] for group in groups.tolist()})
    assert len(chosen[0]) == len(chosen[1]) == 10 and chosen[0] != chosen[1]


def test_a_counter_forgets_only_groups_that_can_never_be_held_out(monkeypatch):
    monkeypatch.setattr(heldout, "KEPT", 8)
    monkeypatch.setattr(heldout, "MAX_BYTES", 500)
    small, ids = GroupCounter(), [group_id(str(i % 700), 0) for i in range(2100)]
    for group in ids:
        small.add(group, 10)
    everything = table(dict.fromkeys(ids, 30))
    assert not small.complete and len(small.table()) < 400
    choices = [
        choose_groups({"s": t}, {"s": 21_000}, {"s": 0.5}).groups["s"].tolist()
        for t in (small.table(), everything)
    ]
    assert choices[0] == choices[1] and len(choices[0]) == 16


@pytest.mark.parametrize("text", ["", "???", " \n"])
def test_a_text_without_words_has_one_hash_of_its_own(text):
    assert len(shingles(text)) == 1 and shingles(text)[0] not in shingles("!!!")
