"""Sketches: the compiled path equals numpy's and datasketch's, and a plain reading of the definition; datasketch's permutations; the curve of bands."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.curate import minhash
from slmjax.curate.minhash import Scheme, enough_bands, optimal_bands, sketch
from slmjax.text import hashing

TEXTS = st.text(st.one_of(st.sampled_from("ab Z9.\n"), st.characters(codec="utf-8")), max_size=80)


def spelled(text, ngram):
    """The shingles as sets of strings, by the definition."""
    kind = hashing.point_entries() >> 30
    lower = lambda c: c.lower() if len(c.lower()) == 1 else c
    marked = "".join(
        f" {lower(c)} " if kind[ord(c)] == 2 else lower(c) if kind[ord(c)] == 1 else " "
        for c in text
    )
    words = marked.split()
    return (
        [tuple(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))]
        if words
        else [("", *map(lower, text))]
    )


@given(st.lists(TEXTS, min_size=1, max_size=5), st.integers(1, 6))
def test_the_compiled_kernels_give_the_sketches_of_numpy_and_datasketch(texts, ngram):
    pytest.importorskip("numba")
    scheme = Scheme(ngram=ngram, bands=3, rows=4, seed=ngram)
    with pytest.MonkeyPatch.context() as patch:
        compiled = sketch(texts, scheme, signatures=True)
        patch.setattr(minhash, "compiled", lambda: False)
        patch.setattr(hashing, "compiled", lambda: False)
        patch.setattr(hashing, "_kernels", None)
        plain = sketch(texts, scheme, signatures=True)
    for ours, reference in zip(compiled, plain, strict=True):
        assert ours.dtype == reference.dtype
        np.testing.assert_array_equal(ours, reference)


@given(TEXTS, TEXTS)
def test_shingles_are_equal_where_their_words_are(one, other):
    found = sketch([one, other], Scheme(ngram=2))
    hashes = np.split(found.shingles, [found.counts[0]])
    words = [spelled(text, 2) for text in (one, other)]
    assert [len(of) for of in hashes] == [len(of) for of in words]
    meaning = dict(zip(hashes[0].tolist(), words[0])) | dict(zip(hashes[1].tolist(), words[1]))
    assert [meaning[of] for of in np.concatenate(hashes).tolist()] == words[0] + words[1]
    assert len(meaning) == len(set(meaning.values()))


def test_words_are_those_of_the_usual_pattern():
    text = "It's 9 o'clock: RE-START (twice), café_noir!"
    assert spelled(text, 1) == [(word,) for word in re.findall(r"[a-z0-9é]+", text.lower())]
    assert sketch([text], Scheme(ngram=1)).counts[0] == 10


def test_signatures_are_those_of_datasketch():
    datasketch = pytest.importorskip("datasketch")
    texts = ["the quick brown fox jumps over the lazy dog " * 3, "a b c", ""]
    scheme = Scheme(bands=4, rows=5, seed=7)
    found = sketch(texts, scheme, signatures=True)
    for shingles, own in zip(
        np.split(found.shingles, np.cumsum(found.counts)[:-1]), found.signatures
    ):
        theirs = datasketch.MinHash(20, seed=7, hashfunc=int, scheme="affine32")
        theirs.update_batch(shingles.tolist())
        np.testing.assert_array_equal(own, theirs.hashvalues)
        assert minhash.datasketch_minhash(own, scheme).jaccard(theirs) == 1.0


def test_pairs_meet_in_a_band_as_often_as_the_curve_says():
    """600 pairs at each similarity, ten schemes each: within three standard deviations of the binomial."""
    rng = np.random.default_rng(0)
    for share in (0.5, 0.7, 0.8, 0.9):
        common = round(200 * share)
        met = []
        for seed in range(10):
            scheme = Scheme(ngram=1, bands=8, rows=5, seed=seed)
            texts = []
            for _ in range(60):
                words = [f"w{n}" for n in rng.integers(0, 10**9, 400 - common)]
                texts += [" ".join(words[:200]), " ".join(words[200 - common :])]
            bands = sketch(texts, scheme).bands
            met += list((bands[::2] == bands[1::2]).any(1))
        expected = Scheme(bands=8, rows=5).candidate_probability(common / (400 - common))
        assert (
            abs(np.mean(met) - expected)
            < 3.5 * np.sqrt(expected * (1 - expected) / len(met)) + 1e-3
        )


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_optimal_bands_are_datasketchs(threshold):
    lsh = pytest.importorskip("datasketch.lsh")
    assert optimal_bands(threshold, 128) == lsh._optimal_param(threshold, 128, 0.5, 0.5)


def test_the_curve_is_finewebs():
    """Research: .053, .565, .772, .924 at .5, .7, .75, .8 for 14 bands of 8."""
    found = Scheme().candidate_probability([0.5, 0.7, 0.75, 0.8])
    np.testing.assert_allclose(found, [0.053, 0.565, 0.772, 0.924], atol=5e-4)


@pytest.mark.parametrize("similarity", [1e-9, 0.01, 0.5, 0.999])
def test_bands_that_find_pairs_are_within_the_hashes_at_any_similarity(similarity):
    bands, rows = enough_bands(similarity, 0.8)
    assert 1 <= bands * rows <= 250
    found = float(Scheme(bands=bands, rows=rows).candidate_probability(similarity))
    assert found >= 0.8 or (bands, rows) == (250, 1)
