"""Words are cut and hashed in one way: the compiled kernels and numpy agree on any text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.text import hashing

TEXTS = st.text(
    st.one_of(st.sampled_from("abΣσς İ中ก9.\n\U00010400\ud800"), st.characters()), max_size=80
)


@given(st.lists(TEXTS, max_size=5), st.integers(1, 6), st.sampled_from([3, 8, 1 << 16]))
def test_the_kernels_cut_and_hash_as_numpy_does(texts, width, piece):
    pytest.importorskip("numba")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "PIECE", piece)
        kernels = hashing.compiled_kernels()
        compiled = [hashing.hash_words(text) for text in texts]
        compiled_shingles = hashing.hash_shingles(texts, width)
        patch.setattr(hashing, "_kernels", None)
        patch.setattr(hashing, "compiled", lambda: False)
        plain = [hashing.hash_words(text) for text in texts]
        plain_shingles = hashing.hash_shingles(texts, width)
    assert hashing.compiled_kernels() is kernels
    for one, other in zip([*compiled, compiled_shingles], [*plain, plain_shingles], strict=True):
        for ours, reference in zip(one, other, strict=True):
            assert ours.dtype == reference.dtype
            np.testing.assert_array_equal(ours, reference)


def test_a_shingle_is_the_upper_half_of_the_hash_of_a_run():
    texts = ["One two, three FOUR", "one", "", "..."]
    shingles, counts = hashing.hash_shingles(texts, 3)
    assert counts.tolist() == [2, 1, 1, 1]
    runs = [hashing.hash_runs(hashing.hash_words(texts[0])[0], 3)]
    runs.append(hashing.hash_runs(hashing.hash_words(texts[1])[0], 1))
    np.testing.assert_array_equal(shingles[:3], np.concatenate(runs) >> np.uint64(32))
    assert shingles[3] != shingles[4]
