"""What is told of a run's mixture before it starts: epochs, caps and the order of scores; and the figure of its shares."""

import numpy as np

from slmjax.record import figures, shares
from slmjax.record.metrics import MetricsWriter
from slmjax.record.report import write_report
from tests.data.test_loader import plan_of, shards_of, whole_plan


def test_a_sentence_tells_how_often_each_source_is_read_and_where_its_cap_ends_it():
    plan = whole_plan(steps=400)
    told, epochs = shares.reading_sentences(plan), plan.epochs()
    tokens = [rows.tokens / 1000 for rows in plan.row_plans]
    at = plan.mixture.spent["notes"] / 3200
    assert told == {
        "books": f"{epochs['books']:.2f} epochs of {tokens[0]:.3g}k tokens",
        "web": f"{epochs['web']:.2f} epochs of {tokens[1]:.3g}k tokens in the order of quality, high to low",
        "notes": f"{epochs['notes']:.2f} epochs of {tokens[2]:.3g}k tokens; cap 0.5, reached at {at:.1%} of the run, ".replace(
            "%", " %"
        )
        + "from where on the other sources take its share",
    }
    assert shares.reading_sentences(plan_of(max_epochs={"web": 40}))["web"].endswith(
        "tokens; cap 40"
    )


def test_the_figure_has_a_line_for_each_source_and_dots_as_far_as_the_run_has_come():
    plan = whole_plan(steps=400)
    whole, part = shares.figure(plan.shares()), shares.figure(plan.shares(), step=200)
    assert all(f">{name}<" in whole for name in plan.train)
    assert whole.count("<use ") - part.count("<use ") == 3 * 20
    assert "var(--c2)" in whole and "var(" not in figures.standalone(whole)


def test_the_report_shows_what_was_told_beyond_its_table_and_the_shares(tmp_path):
    plan = plan_of({"books": shards_of(0), "web": shards_of(1, 500)}, max_epochs={"web": 40})
    with MetricsWriter(tmp_path) as writer:
        writer.event(
            "data",
            0,
            sources={"books": {"documents": 1}},
            folder="f",
            told=shares.reading_sentences(plan),
            shares=plan.shares(),
        )
        writer.write(20, {"train/loss": 1.0})
    page = write_report(tmp_path).read_text()
    assert (
        f"web: {plan.epochs()['web']:.2f} epochs of" in page
        and "cap 40" in page
        and "books: " not in page
    )
    assert "Shares of the sources" in page
    drawn = (tmp_path / "figures" / "shares.svg").read_text()
    assert drawn.count("<use ") < figures.standalone(shares.figure(plan.shares())).count("<use ")
    assert np.all(np.diff(plan.shares()["realised"]["steps"]) == 1)
