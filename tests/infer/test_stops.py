"""Stop strings, against the search that a reader would write."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.infer.stops import LEAST_ROWS, START, STOPPED, cut, token_automaton

few_letters = st.text(
    "ab\u00e4", min_size=1, max_size=5
)  # so few that stop strings overlap, contain each other and repeat


@given(
    stops=st.lists(few_letters, max_size=4), text=st.text("ab\u00e4", max_size=30), data=st.data()
)
def test_the_automaton_stops_at_the_first_token_that_completes_a_stop_string_however_the_text_is_cut_into_tokens(
    stops, text, data
):
    text = text.encode()
    edges = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    tokens = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)])]
    table = token_automaton(stops, tokens)
    state, seen = START, b""
    for i, token in enumerate(tokens):
        state, seen = table[state, i], seen + token
        assert (state == STOPPED) == any(stop.encode() in seen for stop in stops)


@given(stops=st.lists(few_letters, min_size=1, max_size=4), text=st.text("ab\u00e4", max_size=30))
def test_the_cut_is_where_reading_byte_by_byte_would_first_see_a_stop_string(stops, text):
    text = text.encode()
    expected = text
    for end in range(len(text) + 1):
        ending = [stop.encode() for stop in stops if text[:end].endswith(stop.encode())]
        if ending:
            expected = text[: end - max(map(len, ending))]
            break
    assert cut(text, stops) == expected


def test_tokens_of_any_length_work_and_are_not_stored():
    tokens = [
        b"x" * 50_000 + b"needle" + b"x" * 50_000,
        b"x" * 70_000 + b"need",
        b"le",
        b"need" * 20_000,
    ]
    table = token_automaton(["needle"], tokens)
    assert table.nbytes == LEAST_ROWS * len(tokens) * 2
    assert table[START, 0] == STOPPED
    assert table[table[START, 1], 2] == STOPPED
    assert table[table[START, 3], 2] == STOPPED
    assert table[START, 2] == START


def test_other_stop_strings_of_a_bucket_have_a_table_of_the_same_shape():
    tokens = [b"a", b"b"]
    assert {
        token_automaton(stops, tokens).shape for stops in ([], ["a"], ["ab", "bbbb"], ["a" * 30])
    } == {(LEAST_ROWS, 2)}
    assert token_automaton(["a" * 31], tokens).shape == (2 * LEAST_ROWS, 2)
    assert not token_automaton([], tokens)[START].any()


@pytest.mark.parametrize(
    ("stops", "words"), [(["a", ""], "empty"), (["a" * 600, "b" * 500], "1100 bytes")]
)
def test_a_stop_string_that_cannot_work_is_refused(stops, words):
    with pytest.raises(UserError, match=words):
        token_automaton(stops, [b"a"])


def test_a_stop_string_split_over_the_bytes_of_a_letter_is_found():
    first, second = "\u00e4".encode()[:1], "\u00e4".encode()[1:]
    table = token_automaton(["\u00e4"], [first, second])
    assert table[table[START, 0], 1] == STOPPED
    assert np.array_equal(table[START], [table[START, 0], START])
