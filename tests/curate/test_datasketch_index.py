"""Indices to and from datasketch's MinHashLSH: same signatures, same buckets, wrong ones refused."""

import json

import numpy as np
import pytest

from slmjax.curate.clusters import candidates
from slmjax.curate.datasketch_index import as_datasketch, from_datasketch
from slmjax.curate.index import Index
from slmjax.curate.minhash import Scheme, band_hashes, sketch
from slmjax.curate.near_duplicates import deduplicate
from slmjax.errors import UserError
from slmjax.text.hashing import hash_shingles
from slmjax.text.records import Source

datasketch = pytest.importorskip("datasketch")
SMALL = Scheme(ngram=2, bands=10, rows=3, seed=3)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    draw = lambda n: [f"w{i}" for i in rng.integers(0, 10**9, n)]
    bases = [draw(40) for _ in range(5)]
    texts = []
    for number in range(60):
        words = draw(40) if number % 2 else list(bases[rng.integers(5)])
        words[rng.integers(40)] = "changed"
        texts.append(" ".join(words))
    return list(dict.fromkeys(texts))


@pytest.fixture(scope="module")
def index(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "texts.jsonl").write_text("".join(lines))
    source = Source("texts", (str(folder / "texts.jsonl"),))
    return deduplicate([source], folder / "index", scheme=SMALL)[0]


def test_an_index_comes_back_from_datasketch_as_it_went(texts, index):
    keys, signatures = from_datasketch(as_datasketch(index), SMALL)
    assert keys == list(range(len(texts)))
    np.testing.assert_array_equal(signatures, sketch(texts, SMALL, signatures=True).signatures)


def test_datasketch_answers_with_the_documents_that_share_a_band(texts, index):
    """The query is a MinHash that datasketch computed from the shingles on its own."""
    lsh, bands = as_datasketch(index), sketch(texts, SMALL).bands
    some = 0
    for number, text in enumerate(texts):
        query = datasketch.MinHash(30, seed=3, hashfunc=int, scheme="affine32")
        query.update_batch(hash_shingles([text], 2)[0].tolist())
        shares_a_band = (bands == bands[number]).any(1)
        assert sorted(lsh.query(query)) == np.flatnonzero(shares_a_band).tolist()
        some += shares_a_band.sum() > 1
    assert some > 20


def test_pairs_of_an_index_of_datasketch_are_those_of_our_own(texts):
    lsh = datasketch.MinHashLSH(num_perm=30, params=(10, 3))
    for text in texts:
        minhash = datasketch.MinHash(30, seed=3, hashfunc=int, scheme="affine32")
        minhash.update_batch(hash_shingles([text], 2)[0].tolist())
        lsh.insert(text, minhash)
    keys, signatures = from_datasketch(lsh, SMALL)
    assert keys == texts
    numbers = np.arange(len(texts)).astype(np.uint64)
    theirs = candidates(band_hashes(signatures, SMALL), numbers)
    ours = candidates(sketch(texts, SMALL).bands, numbers)
    assert len(ours.low) > 20
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_lsh_of_another_shape_or_of_other_hashes_is_refused():
    other = datasketch.MinHashLSH(num_perm=30, params=(6, 5))
    with pytest.raises(UserError, match="6 bands of 5 rows within 30 hashes; expected 10 bands"):
        from_datasketch(other, SMALL)
    for scheme in ("legacy", "affine64"):
        lsh = datasketch.MinHashLSH(num_perm=30, params=(10, 3))
        lsh.insert("a", datasketch.MinHash(30, scheme=scheme))
        with pytest.raises(UserError, match="does not hold 32-bit signatures"):
            from_datasketch(lsh, SMALL)
    hashed = datasketch.MinHashLSH(num_perm=30, params=(10, 3), hashfunc=lambda data: data[:4])
    hashed.insert("a", datasketch.MinHash(30))
    with pytest.raises(UserError, match="does not hold 32-bit signatures"):
        from_datasketch(hashed, SMALL)


def test_nothing_goes_there_and_back(tmp_path):
    keys, signatures = from_datasketch(as_datasketch(Index(tmp_path, SMALL)), SMALL)
    assert keys == [] and signatures.shape == (0, 30)
