"""Goodput against timelines computed by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.record import goodput
from slmjax.record.goodput import Goodput
from slmjax.record.metrics import Records


class Run:
    """A run on a clock that moves only when told; records what the loop would write."""

    def __init__(self, monkeypatch):
        self.now, self.records = 1000.0, []
        monkeypatch.setattr(goodput.time, "time", lambda: self.now)

    def wait(self, seconds):
        self.now += seconds

    def session(self, from_step):
        self.step = from_step
        self.watch = Goodput(
            Records(kept=(), all=tuple(self.records)), from_step=from_step, clock=lambda: self.now
        )

    def spend(self, cause, seconds):
        with self.watch.spent(cause):
            self.wait(seconds)

    def steps(self, number, seconds, *, record_every=1):
        for _ in range(number):
            self.wait(seconds)
            self.watch.step()
            self.step += 1
            if self.step % record_every == 0:
                self.record()

    def record(self):
        self.records.append(
            {"event": "goodput", "step": self.step, "time": self.now, **self.watch.record()}
        )

    def finish(self):
        self.record()
        self.records.append({"event": "finish", "step": self.step, "time": self.now})

    def summary(self):
        return goodput.summarise(Records(kept=(), all=tuple(self.records)))


@pytest.fixture
def run(monkeypatch):
    return Run(monkeypatch)


def test_an_undisturbed_run_counts_from_the_first_step_to_the_last(run):
    run.session(0)
    run.wait(3)  # imports: start
    run.spend("compile", 7)
    run.spend("data_wait", 2)  # for the first batch: before the first step
    run.steps(10, 1.0)
    run.spend("evaluation", 4)
    run.spend("checkpoint", 1)
    run.steps(5, 1.0)
    run.spend("evaluation", 6)  # after the last step: outside
    run.finish()
    summary = run.summary()
    assert summary["before"] == {"start": 3.0, "compile": 7.0, "data_wait": 2.0}
    assert (summary["wall"], summary["kept"]) == (20.0, 15.0)
    assert summary["lost"] == {"checkpoint": 1.0, "evaluation": 4.0}
    assert summary["goodput"] == 0.75


def test_a_killed_run_loses_the_repeated_steps_the_time_down_and_the_second_start(run):
    run.session(0)
    run.spend("compile", 5)
    run.steps(10, 1.0)
    run.spend("checkpoint", 2)  # at step 10
    run.steps(4, 1.0)  # killed right after step 14
    run.wait(30)
    run.session(10)
    run.wait(3)
    run.spend("restore", 4)
    run.spend("compile", 1)
    run.steps(10, 1.0)
    run.finish()
    summary = run.summary()
    assert summary["wall"] == 10 + 2 + 4 + 30 + 8 + 10
    assert summary["kept"] == 20
    assert summary["lost"] == {
        "start": 3.0,
        "compile": 1.0,
        "restore": 4.0,
        "checkpoint": 2.0,
        "repeated": 4.0,
        "down": 30.0,
    }
    assert summary["goodput"] == 20 / 64
    assert summary["sessions"] == 2


def test_steps_between_records_are_interpolated_and_unseen_ones_are_down(run):
    run.session(0)
    run.steps(10, 1.0, record_every=5)
    run.steps(3, 1.0, record_every=5)  # killed at 13; the last record is of step 10
    run.wait(7)
    run.session(8)
    run.steps(2, 1.0)
    run.finish()
    summary = run.summary()
    assert summary["kept"] == 8 + 2
    assert summary["lost"] == {"repeated": 2.0, "down": 3.0 + 7.0}


def test_two_kills_count_each_second_once(run):
    run.session(0)
    run.steps(10, 1.0)
    run.wait(5)
    run.session(6)
    run.steps(2, 1.0)
    run.wait(5)
    run.session(4)  # the checkpoint at 6 turned out to be damaged
    run.steps(8, 1.0)
    run.finish()
    summary = run.summary()
    assert summary["kept"] == 12
    assert summary["lost"] == {"repeated": 6.0 + 2.0, "down": 10.0}
    assert summary["wall"] == 30


def test_a_session_that_falls_back_to_an_older_checkpoint_says_so_later(run):
    run.session(0)
    run.steps(10, 1.0)
    run.session(8)
    run.spend("restore", 1)
    run.watch.from_step = run.step = 5  # the checkpoint at 8 is damaged
    run.steps(5, 1.0)
    run.finish()
    assert run.summary()["kept"] == 10
    assert run.summary()["lost"] == {"restore": 1.0, "repeated": 5.0}


def test_a_session_killed_before_its_first_step_is_lost_time(run):
    run.session(0)
    run.steps(5, 1.0)
    run.wait(1)
    run.session(5)
    run.spend("restore", 3)
    run.record()
    run.wait(1)
    run.session(5)
    run.spend("restore", 3)
    run.steps(5, 1.0)
    run.finish()
    assert run.summary()["lost"] == {"restore": 6.0, "down": 2.0}
    assert run.summary()["kept"] == 10


def test_an_extension_does_not_count_the_days_between_but_the_replaced_decay(run):
    run.session(0)
    run.steps(10, 1.0)
    run.spend("evaluation", 3)
    run.finish()
    run.wait(86400)
    run.session(8)  # back to the trunk
    run.spend("restore", 2)
    run.steps(12, 1.0)
    run.finish()
    summary = run.summary()
    assert summary["wall"] == 10 + 2 + 12
    assert summary["lost"] == {"restore": 2.0, "extended": 2.0}
    assert summary["kept"] == 20


def test_what_a_kill_repeats_and_what_an_extension_replaces_are_told_apart(run):
    run.session(0)
    run.steps(10, 1.0)  # killed at 10
    run.wait(4)
    run.session(8)
    run.steps(4, 1.0)
    run.finish()  # at 12
    run.session(6)  # the trunk lies in the first session
    run.steps(14, 1.0)
    run.finish()
    assert run.summary()["lost"] == {"repeated": 2.0, "extended": 2.0 + 4.0, "down": 4.0}
    assert run.summary()["kept"] == 20


def test_an_inner_cause_takes_its_time_from_the_outer_one(run):
    run.session(0)
    run.steps(1, 1.0)
    with run.watch.spent("evaluation"):
        run.wait(2)
        run.spend("data_wait", 3)
        run.wait(1)
    run.steps(1, 1.0)
    run.finish()
    assert run.summary()["lost"] == {"data_wait": 3.0, "evaluation": 3.0}


def test_told_step_seconds_leave_the_rest_to_other(run):
    run.session(0)
    for _ in range(4):
        run.wait(1.0)
        run.watch.step(0.75)
    run.step = 4
    run.finish()
    summary = run.summary()
    assert summary["kept"] == 3.0
    assert summary["wall"] == 3.75
    assert summary["lost"] == {"other": 0.75}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 8),
            st.integers(1, 6),
            st.integers(0, 5),
            st.booleans(),
            st.sampled_from(goodput.SPENT),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_kept_and_lost_seconds_add_up_to_the_wall_time_and_the_live_share_agrees(sessions):
    with pytest.MonkeyPatch.context() as patch:
        run, reached = Run(patch), 0
        for back, number, pause, finished, cause in sessions:
            run.session(max(0, reached - back))
            run.spend("restore", 2)
            run.steps(number, 1.0)
            run.spend(cause, 1)
            run.steps(number, 1.0)
            assert run.watch.share() == pytest.approx(run.summary()["goodput"])
            if finished:
                run.finish()
            reached = run.step
            run.wait(pause)
        summary = run.summary()
        assert summary["kept"] == reached
        assert summary["kept"] + sum(summary["lost"].values()) == pytest.approx(summary["wall"])


def test_no_records_no_goodput():
    assert goodput.summarise(Records(kept=(), all=())) is None
    assert math.isnan(Goodput().share())


def test_an_unknown_cause_is_refused():
    with pytest.raises(ValueError, match="data_wait"), Goodput().spent("checkpiont"):
        pass
