"""The report says what the statistics support, and never more."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slmjax.reasoning.arms import ARMS
from slmjax.reasoning.probe_statistics import ArmResult
from slmjax.reasoning.probe_words import DEMANDING, HARMLESS, ColumnResult, probe_sentences

VERDICTS = ("falls", "rises", "no change seen", "cannot be told")
COMPARED = [arm for arm, made in ARMS.items() if made.baseline]


def arm_result(arm, verdict, expected=float("nan")):
    difference = {"falls": -0.2, "rises": 0.2}.get(verdict, 0.0)
    return ArmResult(
        arm,
        ARMS[arm].baseline,
        200,
        0.5 + difference,
        0.5,
        difference,
        difference - 0.05,
        difference + 0.05,
        0.01,
        0.02,
        expected,
        verdict,
    )


def column(name="held-out", accuracy=0.5, **verdicts):
    # Every second template is solved more often by a little, so that there is a spread.
    p0 = accuracy + 0.02 * (-1.0) ** np.arange(200)
    arms = [arm_result(arm, verdicts.get(arm, "no change seen")) for arm in COMPARED]
    return ColumnResult(name, p0, (accuracy - 0.01, accuracy + 0.01), arms)


COLUMNS = st.builds(
    lambda accuracy, verdicts: column(accuracy=accuracy, **dict(zip(COMPARED, verdicts))),
    st.sampled_from([0.04, 0.09, 0.11, 0.5, 0.96]),
    st.lists(st.sampled_from(VERDICTS), min_size=len(COMPARED), max_size=len(COMPARED)),
)


@given(COLUMNS, st.none() | COLUMNS)
def test_no_findings_make_the_report_say_that_it_reasons(held_out, trained_on):
    sentences = probe_sentences(held_out, trained_on)
    text = " ".join(sentences).lower()
    for claim in (
        "it reasons.",
        "it can reason",
        "understands",
        "this proves",
        "that proves",
        "we conclude",
        "certainly",
    ):
        # "does not show that it reasons." is the one place where these words may stand.
        assert claim not in text.replace("does not show that it reasons.", "")
    answer = sentences[-1]
    falls = [
        result.arm
        for result in held_out.arms
        if result.arm in HARMLESS and result.verdict == "falls"
    ]
    if "agrees with reasoning" in answer:
        assert not falls
        assert held_out.p0.mean() >= 0.1
        assert "does not prove it" in answer
        assert not [
            result
            for result in held_out.arms
            if result.arm in DEMANDING and result.verdict == "falls"
        ]
    if falls:
        assert "depend on what does not matter" in answer
        assert all(arm in answer for arm in falls)


@given(COLUMNS)
def test_a_change_is_said_exactly_where_the_verdict_has_it(held_out):
    sentences = probe_sentences(held_out)
    if held_out.p0.mean() < 0.1:
        assert not any("accuracy falls" in sentence for sentence in sentences)
        assert any("no arm is judged" in sentence for sentence in sentences)
        return
    for result in held_out.arms:
        (sentence,) = [each for each in sentences if each.startswith(f"{result.arm}, ")]
        assert ("accuracy falls" in sentence) == (result.verdict == "falls")
        assert ("accuracy rises" in sentence) == (result.verdict == "rises")
        if result.verdict == "no change seen":
            assert "95 % interval" in sentence


def test_a_better_trained_on_column_is_not_called_reasoning():
    answer = probe_sentences(column(accuracy=0.4), column("trained-on", 0.8))[-1]
    assert "does not show that it reasons" in answer
    # Nor is it of learned patterns where nothing says that the column was learned.
    answer = probe_sentences(column(accuracy=0.4), column("not trained on", 0.8))[-1]
    assert "trained" not in answer and "agrees with reasoning" in answer
    # Without a difference the answer is that of the held-out column.
    assert "agrees with reasoning" in probe_sentences(column(), column("trained-on"))[-1]
    # The other direction is no sign of learned patterns.
    assert (
        "agrees with reasoning"
        in probe_sentences(column(accuracy=0.8), column("trained-on", 0.4))[-1]
    )


def test_a_fall_that_slips_explain_is_told_from_one_that_they_do_not():
    def answer(expected):
        held_out = column()
        arms = [
            each if each.arm != "longer" else arm_result("longer", "falls", expected)
            for each in held_out.arms
        ]
        return probe_sentences(held_out._replace(arms=arms))

    explained = answer(0.3)
    assert any(
        "as independent slips in every step would give (30.0 % right)" in each for each in explained
    )
    assert "loses on longer no more than slips in each step explain. That agrees" in explained[-1]
    unexplained = answer(0.45)
    assert any("more than independent slips" in each for each in unexplained)
    assert "longer cost more than slips" in unexplained[-1]
    assert any("less than independent slips" in each for each in answer(0.1))
