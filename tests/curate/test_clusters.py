"""Clusters: only what is similar to a kept document is removed; big buckets stay cheap; chains and boilerplate merge nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.curate import clusters, minhash
from slmjax.curate.clusters import EXACT, candidates, cluster, exact_similarity
from slmjax.curate.minhash import Scheme, sketch
from slmjax.text import hashing
from slmjax.text.hash_mix import mix

WIDE = Scheme(
    ngram=2, bands=100, rows=1
)  # nearly every pair with anything in common is a candidate


def run(texts, scheme=WIDE, threshold=0.75):
    found = sketch(texts, scheme)
    keys = numbered(texts)
    return cluster(
        candidates(found.bands, keys),
        keys,
        exact_similarity(found.shingles, found.counts),
        threshold,
    )


def numbered(texts):
    return mix(np.unique(texts, return_inverse=True)[1].astype(np.uint64))


def similarity(one, other, ngram=2):
    a, b = (set(zip(*(of.split()[k:] for k in range(ngram)))) for of in (one, other))
    return len(a & b) / len(a | b)


def words(rng, n):
    return [f"w{rng.integers(10**9)}" for _ in range(n)]


DOCUMENTS = st.lists(
    st.lists(st.sampled_from("abcd"), min_size=3, max_size=7).map(" ".join), min_size=2, max_size=25
)


@given(DOCUMENTS, st.sampled_from([0.3, 0.6, 0.8, 1.0]))
def test_greedy_over_all_pairs_removes_the_same_documents(texts, threshold):
    """The reference looks at every kept document; candidates here are nearly all pairs, and what they miss may only be kept."""
    found, kept = run(texts, threshold=threshold), []
    for i, text in enumerate(texts):
        if found.keeper[i] == i:
            kept.append(i)
        else:
            assert found.keeper[i] in kept
            assert (
                found.similarity[i] == pytest.approx(similarity(text, texts[found.keeper[i]]))
                and found.similarity[i] >= threshold - 1e-6
            )
    met = {
        (low, high) for low, high, _ in zip(*candidates(sketch(texts, WIDE).bands, numbered(texts)))
    }
    for i in kept:
        assert all(
            similarity(texts[j], texts[i]) < threshold for j in kept if j < i and (j, i) in met
        )


@given(DOCUMENTS)
def test_the_compiled_similarity_is_numpys(texts):
    pytest.importorskip("numba")
    found, n = sketch(texts, WIDE), len(texts)
    starts = np.concatenate([[0], np.cumsum(found.counts)])
    high, low = np.tril_indices(n, -1)
    fast, cut = (
        clusters._jaccard(found.shingles, starts, low, high, threshold) for threshold in (0.0, 0.5)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "compiled", lambda: False)
        slow = clusters._jaccard(found.shingles, starts, low, high, 0.0)
    np.testing.assert_array_equal(fast, slow)
    np.testing.assert_array_equal(cut[slow >= 0.5], slow[slow >= 0.5])
    assert (cut[slow < 0.5] < 0.5).all()
    np.testing.assert_allclose(
        slow, [similarity(texts[i], texts[j]) for i, j in zip(low, high)], rtol=1e-6
    )


def test_a_chain_is_not_merged():
    """200 documents, neighbours at 0.8, the ends at 0: nobody goes to a document that is less similar than the threshold."""
    rng = np.random.default_rng(0)
    line = words(rng, 200 * 22 + 201)
    texts = [
        " ".join(line[22 * i : 22 * i + 201]) for i in range(200)
    ]  # 200 pairs of words, 178 in common with the next: 178 / 222
    assert (
        similarity(texts[0], texts[1]) == pytest.approx(0.80, abs=0.003)
        and similarity(texts[0], texts[199]) == 0
    )
    for order in (np.arange(200), rng.permutation(200)):
        shown = [texts[i] for i in order]
        found = run(shown, threshold=0.75)
        assert 60 < len(found.removed) <= 133  # a kept one can take its two neighbours
        assert all(similarity(shown[i], shown[found.keeper[i]]) >= 0.75 for i in found.removed)


def test_boilerplate_is_not_merged():
    """2,000 pages, sixty per cent of each the same text: nothing is removed, and pairs are few although every bucket is full."""
    rng = np.random.default_rng(1)
    shared = " ".join(words(rng, 120))
    texts = [f"{shared} {' '.join(words(rng, 80))}" for _ in range(2000)]
    scheme = Scheme(ngram=2, bands=20, rows=2)
    assert len(candidates(sketch(texts, scheme).bands, numbered(texts)).low) <= 2 * 20 * 2000
    assert len(run(texts, scheme).removed) == 0


def test_a_bucket_of_m_gives_less_than_two_m_pairs():
    pairs = candidates(np.full((500, 1), 7, np.uint64), np.arange(500).astype(np.uint64))
    assert 499 <= len(pairs.low) < 2 * 500 and (pairs.low < pairs.high).all()
    together = candidates(np.full((500, 2), 7, np.uint64), np.arange(500).astype(np.uint64))
    assert len(pairs.low) < len(together.low) < 3 * 500  # another one is drawn in every band


def test_buckets_sorted_in_parts_are_those_sorted_at_once(monkeypatch):
    rng = np.random.default_rng(2)
    bands = rng.integers(0, 300, (1000, 4)).astype(np.uint64)
    keys = rng.integers(0, 2**63, 1000).astype(np.uint64)
    whole = candidates(bands, keys)
    monkeypatch.setattr(clusters, "BLOCK", 64)
    for one, other in zip(whole, candidates(bands, keys), strict=True):
        np.testing.assert_array_equal(one, other)


def test_buckets_one_by_one_give_the_pairs_of_all_at_once():
    rng = np.random.default_rng(7)
    bands, keys = (
        rng.integers(0, 60, (400, 3)).astype(np.uint64),
        rng.integers(0, 300, 400).astype(np.uint64),
    )
    bands = bands[
        np.unique(keys, return_index=True)[1][np.unique(keys, return_inverse=True)[1]]
    ]  # the same text has the same bands
    found = {}
    for band in reversed(range(3)):
        for value in np.unique(bands[:, band]):
            members = np.flatnonzero(bands[:, band] == value)
            found |= dict.fromkeys(
                zip(*(of.tolist() for of in clusters.bucket_pairs(members, keys[members], band))),
                band,
            )
    whole = candidates(bands, keys)
    assert found == dict(zip(zip(whole.low.tolist(), whole.high.tolist()), whole.band.tolist()))


def test_copies_go_where_the_first_of_them_goes():
    rng = np.random.default_rng(3)
    base = words(rng, 60)
    near, far = " ".join([*base[:-2], "x"]), " ".join(words(rng, 60))
    found = run([" ".join(base), near, far, near, far])
    assert found.keeper.tolist() == [0, 0, 2, 0, 2]
    assert (
        found.band[4] == EXACT
        and found.similarity[4] == 1
        and found.similarity[3] == found.similarity[1] < 1
    )


def test_what_is_found_through_a_removed_document_is_similar_to_the_kept_one():
    """Bands that connect 0 with 1 and 1 with 2, never 0 with 2."""
    rng = np.random.default_rng(4)
    base = words(rng, 100)
    texts = [" ".join(base), " ".join([*base[:-1], "x"]), " ".join([*base[:-2], "y"])]
    found = sketch(texts, WIDE)
    bands = np.array([[1, 3], [1, 4], [2, 4]], np.uint64)
    keys = np.arange(3).astype(np.uint64)
    clustered = cluster(
        candidates(bands, keys), keys, exact_similarity(found.shingles, found.counts), 0.9
    )
    assert clustered.keeper.tolist() == [0, 0, 0] and clustered.band.tolist() == [
        EXACT,
        0,
        clusters.THROUGH,
    ]


def test_more_documents_change_no_decision():
    rng = np.random.default_rng(5)
    bases = [words(rng, 50) for _ in range(20)]
    texts = []
    for _ in range(300):
        text = list(bases[rng.integers(20)])
        text[rng.integers(50)] = "changed"
        texts.append(" ".join(text))
    scheme = Scheme(ngram=2)
    few, all_of_them = run(texts[:200], scheme), run(texts, scheme)
    for one, other in zip(few, all_of_them, strict=True):
        np.testing.assert_array_equal(one, other[:200])
    assert len(few.removed) > 150


def test_minhash_numpy_path_clusters_the_same(monkeypatch):
    rng = np.random.default_rng(6)
    base = words(rng, 50)
    texts = [" ".join([*base[:k], "x", *base[k + 1 :]]) for k in range(0, 50, 5)]
    fast = run(texts, Scheme(ngram=2))
    monkeypatch.setattr(clusters, "compiled", lambda: False)
    monkeypatch.setattr(minhash, "compiled", lambda: False)
    monkeypatch.setattr(hashing, "compiled", lambda: False)
    for one, other in zip(fast, run(texts, Scheme(ngram=2)), strict=True):
        np.testing.assert_array_equal(one, other)
