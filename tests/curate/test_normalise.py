"""Normalisation: once is enough, indentation and words stay, and only what cannot be seen goes."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.curate.normalise import normalise

pieces = st.sampled_from(
    "\n \t\r\x0b\x0c\x00\x1c\x85\xa0\xad\u200b\u200d\u2028\u202e\u3000\ufeff\u0301\u1100\u1161\u212be"
)
texts = st.one_of(st.text(), st.lists(pieces).map("".join))


@given(texts)
def test_doing_it_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(texts)
def test_no_rule_is_left_to_apply(text):
    out = normalise(text)
    assert unicodedata.is_normalized("NFC", out)
    assert not any(unicodedata.category(c) == "Cc" for c in out.replace("\n", "").replace("\t", ""))
    assert not set(out) & set("\u200b\u2060\ufeff\xad\u2028\u2029")
    assert "\n\n\n\n" not in out and out == out.strip("\n")
    assert all(line == line.rstrip() for line in out.split("\n"))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 8),
            st.sampled_from(["x = 1", "if x:", "return", "# a\tb  c"]),
            st.integers(0, 3),
        ),
        min_size=1,
    )
)
def test_code_keeps_its_indentation_and_loses_only_spaces_at_line_ends(lines):
    code = "\n".join(" " * 4 * depth + text for depth, text, _ in lines)
    untidy = "\r\n".join(" " * 4 * depth + text + " " * after for depth, text, after in lines)
    assert normalise(untidy) == normalise(code) == code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafe\u0301 \u212b", "café Å"),
        ("a\r\nb\rc\u2028d\x0ce\x85f", "a\nb\nc\nd\ne\nf"),
        ("\ufeffzero\u200bwidth so\xadft\x00\x1b\x7f \u202eabc\u202c", "zerowidth soft abc"),
        ("a\n\n\n\n\nb\n\n\nc\n\nd", "a\n\n\nb\n\n\nc\n\nd"),
        ("a\n \n\t\n  \n\n b ", "a\n\n\n b"),
        ("\n\n\tindented\n", "\tindented"),
        ("a  b\tc\xa0d", "a  b\tc\xa0d"),
        ("donâ€™t", "donâ€™t"),
        ("👩\u200d👧 می\u200cخواهم", "👩\u200d👧 می\u200cخواهم"),
        ("e\u200b\u0301", "é"),
        ("", ""),
        (" \n\t\x00 ", ""),
    ],
)
def test_each_kind_of_change_and_what_stays(text, expected):
    assert normalise(text) == expected
