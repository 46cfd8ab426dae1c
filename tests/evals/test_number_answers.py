"""Numbers are read out of answers as people mean them, and as lm-eval reads them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.evals.number_answers import (
    NO_NUMBER,
    lm_eval_flexible,
    lm_eval_match,
    lm_eval_strict,
    number_answer,
    number_text,
)

READ = {
    "#### 18": 18,
    "####18": 18,
    "The answer is 18": 18,
    "The answer is 7.": 7,
    "the final answer is -$1,200.50.": Fraction(-2401, 2),
    "Answer: **1,234**\nThat was hard in 2020.": 1234,
    "She pays $5 and gets 7-3": 3,
    "x = -5": -5,
    "a debt of $-5": -5,
    "it is 50% of it": 50,
    "3/4": Fraction(3, 4),
    "2 1/2 cups": Fraction(5, 2),
    "So 3 * 4 = <<3*4=12>>12 eggs": 12,
    "costs .5 of it": Fraction(1, 2),
    "So the total is 18 ...": 18,
    "the route v2 takes 18km": 18,
    "#### 5\nIn 2020 it was 7. #### 8": 8,
    # A mark without a number on its line gives no answer, whatever stands before it.
    "It is 12.\n#### many": None,
    "The answer is:\n18": 18,
    "no number at all": None,
    "0/0": None,
    "9" * 5000: None,
    "": None,
}


@pytest.mark.parametrize("text", READ, ids=lambda text: text[:24])
def test_the_answer_of_a_text_is_the_number_that_a_person_reads(text):
    assert number_answer(text) == READ[text]


@given(
    st.integers(-(10**9), 10**9),
    st.integers(0, 999),
    st.sampled_from(["#### {}", "So {} eggs", "The answer is {}."]),
)
def test_a_number_with_commas_sign_and_decimals_is_read_exactly(whole, thousandths, phrase):
    sign = "-" if whole < 0 else ""
    written = f"{sign}{abs(whole):,}.{thousandths:03d}"
    assert number_answer(phrase.format(written)) == Fraction(written.replace(",", ""))


@given(st.fractions(max_denominator=500), st.integers(1, 8))
def test_a_written_number_is_the_nearest_with_so_many_decimals(value, places):
    assert abs(Fraction(number_text(value, places)) - value) <= Fraction(1, 2 * 10**places)
    assert number_text(Fraction(5)) == "5" and number_text(Fraction(-1, 4)) == "-0.25"
    assert number_text(Fraction(-1, 1000), 2) == "0"


def test_the_known_defects_of_lm_evals_extraction_are_kept():
    assert lm_eval_strict("#### $18") == NO_NUMBER == lm_eval_strict("####18")
    assert lm_eval_strict("#### 5\n#### 6") == "5"
    assert lm_eval_flexible("So it is 18 ...") == "..."
    assert lm_eval_flexible("5 ,. done") == ",."
    assert lm_eval_flexible("7-3") == "-3"
    assert lm_eval_match("1,234.", "so\n#### 1234") and not lm_eval_match("18.0", "#### 18")
