"""report.html: it says what the records say, holds nothing from elsewhere, and leaves out what was not recorded."""

import html.parser
import io
import json
import re
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from slmjax import readable
from slmjax.readable import count, duration, flatten, percent
from slmjax.record import figures, progress
from slmjax.record.metrics import MetricsWriter
from slmjax.record.report import write_report

CONFIG = {"seed": 3, "train": {"steps": 40, "lr": 0.5}, "data": {"sources": {}}}


class Text(html.parser.HTMLParser):
    """The text of each section of a page, and a check that tags are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.sections, self.open, self.current = {}, [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.current = data
        elif self.open and self.open[-1] not in ("style", "title"):
            self.sections[self.current] = " ".join(
                f"{self.sections.get(self.current, '')} {data}".split()
            )


@pytest.fixture
def run(tmp_path):
    """A work directory that recorded everything, was killed after step 30 and went on from step 20."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with MetricsWriter(tmp_path) as writer:
        parameters = {"total": 30_412_800, "non_embedding": 22_000_000}
        writer.event(
            "start",
            0,
            environment={"python": "3.11"},
            command="python -m slmjax.launch --x='<y>'",
            parameters=parameters,
        )
        bad = {"not JSON": 2, "empty": 1}
        writer.event(
            "data",
            0,
            sources={
                "books": {"documents": 1234, "epochs": 1.5, "bad_lines": bad, "removed_share": 0.02}
            },
        )
        writer.event(
            "baseline",
            0,
            kneser_ney={"2": {"books": 2.0, "total": 2.0}, "5": {"books": 1.6, "total": 1.7}},
            answers={"logic": 0.5},
        )
        writer.event("lineage", 0, parents=[{"workdir": "runs/base", "hash": "81aa07"}])
        steps(writer, 0, 30)
    with MetricsWriter(tmp_path, resume_step=20) as writer:
        steps(writer, 20, 40)
        writer.event("samples", 40, samples=[{"prompt": "Once", "text": " <b>upon</b> & then"}])
        writer.event("answers", 40, kinds={"logic": {"accuracy": 0.9, "chance": 0.25, "count": 50}})
        writer.event("finish", 40)
    return tmp_path


def steps(writer, first, last, began=None):
    began = 100.0 + first if began is None else began
    for step in range(first + 1, last + 1):
        values = {
            "train/loss": 5.0 / step,
            "train/tokens": 1000 * step,
            "train/learning_rate": 0.1,
            "perf/mfu": 0.4,
        }
        writer.write(step, values)
        if step % 10 == 0:
            bits = 8 / step
            writer.write(
                step,
                {
                    "eval/books/bits_per_byte": bits,
                    "eval/web/bits_per_byte": 2 * bits,
                    "eval/bits_per_byte": 1.5 * bits,
                },
            )
        fixed = {
            "session": str(began),
            "began": began,
            "from_step": first,
            "before": {"compile": 2.0},
            "after": {},
        }
        moving = {
            "first": began + 2,
            "last": began + 2 + step - first,
            "now": began + 2 + step - first,
            "kept": float(step - first),
            "steps": step - first,
        }
        writer.event("goodput", step, **fixed, **moving, seconds={})


def test_the_report_says_what_the_records_say(run):
    page = Text(write_report(run, defaults={**CONFIG, "seed": 0}).read_text())
    headline = page.sections[""]
    for expected in (
        "Step 40 of 40",
        "finished",
        "seed 3",
        "parameters 30.4M",
        "training tokens 40k",
        "0.300",
        "MFU 40.0 %",
    ):
        assert expected in headline
    assert "books 0.200 0.200 40 2.000 1.600 0.12×" in page.sections["Held-out text"]
    assert "total 0.300 0.300 40 2.000 1.700 0.18×" in page.sections["Held-out text"]
    assert "logic 90.0 % 25.0 % 50.0 % 50" in page.sections["Answers"]
    assert "Once <b>upon</b> & then" in page.sections["Samples"]
    assert "books 1,234 1.50 3 (not JSON 2, empty 1) 2.00 %" in page.sections["Data"]
    assert "went on from step 20 (had reached 30)" in page.sections["History"]
    assert "runs/base 81aa07" in page.sections["Lineage"]
    assert "seed 3 0" in page.sections["Config"]
    assert "--x='<y>'" in page.sections["Environment"]
    assert "steps done again after a restart 10 s" in page.sections["Time"]
    assert (
        "2-gram 5-gram to best" in page.sections["Held-out text"]
        and "n-gram model questions" in page.sections["Answers"]
    )


def test_the_report_needs_nothing_from_elsewhere(run):
    page = write_report(run).read_text()
    for found in re.findall(r"(?:src|href)=\"([^\"]*)|url\(([^)]*)\)", page):
        assert "".join(found).startswith("#")
    assert "<script" not in page and "@import" not in page
    assert "#0a0b" not in page  # every stand-in colour was replaced
    assert (run / "figures" / "loss.svg").exists()
    for path in (run / "figures").iterdir():
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert "var(" not in path.read_text()


def test_what_was_not_recorded_leaves_its_section_out(tmp_path):
    page = Text(write_report(tmp_path).read_text())
    assert set(page.sections) <= {"", "\n"}
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 2.0})
    page = Text(write_report(tmp_path, extra=[("Mine", "<p>hello</p>")]).read_text())
    assert "not finished" in page.sections[""]
    assert page.sections["Mine"] == "hello"
    assert set(page.sections) == {"", "Learning", "Mine"}


def test_an_extended_run_says_where_it_continued(run):
    with MetricsWriter(run, resume_step=20) as writer:
        writer.event("extended", 20, from_step=20, steps=80, before=40)
        steps(writer, 20, 40, began=9000.0)
    page = Text(write_report(run).read_text())
    said = "went back to step 20, before the decay, and on from there on a schedule of 80 steps instead of 40"
    assert said in page.sections[""] and said in page.sections["History"]
    assert "not finished" in page.sections[""]
    assert "steps that a longer schedule replaced 20 s" in page.sections["Time"]


def test_a_run_that_diverged_still_has_a_report(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(30):
            writer.write(
                step,
                {
                    "train/loss": float("nan"),
                    "eval/bits_per_byte": float("inf"),
                    "perf/mfu": float("nan"),
                },
            )
    assert "MFU" not in Text(write_report(tmp_path).read_text()).sections[""]


@given(st.integers(1, 300), st.floats(0.001, 0.2), st.integers(0, 2**32 - 1))
def test_smoothing_is_the_mean_over_its_window(points, share, seed):
    values = np.random.default_rng(seed).normal(size=points)
    values[::7] = np.nan
    smoothed = figures.smooth(values, share)
    half = int(share * points / 2)
    for i in range(points):
        window = values[i - min(i, half) : i + min(i, half) + 1]
        window = window[np.isfinite(window)]
        assert smoothed[i] == pytest.approx(window.mean()) if len(window) else np.isnan(smoothed[i])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.6, "1k"),
        (1000, "1k"),
        (16384, "16.4k"),
        (304_123_456, "304M"),
        (1.5e12, "1.5T"),
        (-2e6, "-2M"),
    ],
)
def test_counts_read_well(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.9, "1 h 00 min"),
        (11520, "3 h 12 min"),
        (187200, "2 d 04 h"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_percent_and_flatten():
    assert (percent(0.9731), percent(float("nan"))) == ("97.3 %", "-")
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [1]}) == {"a.b.c": 1, "a.d": {}, "e": [1]}


def test_progress_prints_plain_lines_where_there_is_no_terminal():
    out, now = io.StringIO(), [0.0]
    shown = progress.Progress(
        20, every=10, console=Console(file=out, width=200), clock=lambda: now[0]
    )
    for step in range(1, 21):
        now[0] += 2.0
        shown.update(
            step,
            {
                "train/loss": 1.25,
                "perf/tokens_per_second": 41_000,
                "perf/mfu": 0.382,
                "perf/goodput": float("nan"),
            },
        )
    shown.close()
    assert out.getvalue().splitlines() == [
        "step 10/20  loss 1.2500  41k tokens/s  MFU 38.2 %  20 s left",
        "step 20/20  loss 1.2500  41k tokens/s  MFU 38.2 %",
    ]


def test_progress_draws_at_most_four_times_a_second_on_a_terminal():
    out, now = io.StringIO(), [0.0]
    console = Console(file=out, width=200, force_terminal=True, legacy_windows=False)
    with progress.Progress(10_000, console=console, clock=lambda: now[0]) as shown:
        for step in range(1, 1001):
            now[0] += 0.01
            shown.update(step, {"train/loss": 1.0})
    assert 35 <= out.getvalue().count("loss") <= 45  # ten seconds


def test_other_processes_print_nothing():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True)
    with progress.Progress(10, active=False, console=console) as shown:
        shown.update(10, {"train/loss": 1.0})
        shown.note("text")
    progress.banner("title", {"a": 1}, active=False, console=console)
    assert out.getvalue() == ""


def test_the_banner_aligns_its_rows_and_leaves_out_empty_ones():
    out = io.StringIO()
    progress.banner(
        "slmjax",
        {"model": "1.0M", "attention": "blockwise", "none": None, "empty": ""},
        console=Console(file=out, width=80),
    )
    assert out.getvalue().splitlines() == ["slmjax", "  model      1.0M", "  attention  blockwise"]


def test_work_is_said_only_where_it_takes_long(monkeypatch):
    monkeypatch.setattr(readable, "SILENCE", 0.05)
    said = []
    with readable.said_if_long("short work", say=said.append):
        pass
    with readable.said_if_long("another process's work", active=False, say=said.append):
        time.sleep(0.2)
    with readable.said_if_long("long work", say=said.append):
        time.sleep(0.2)
    assert said == ["long work ..."]


def test_exact_answers_stand_next_to_chance_and_the_n_gram_model():
    answers = {
        "logic": {"accuracy": 0.6, "chance": 0.49, "count": 25},
        "word_problems": {"accuracy": 0.12, "chance": 0.04, "count": 25},
    }
    assert progress.answer_table(answers, {"logic": 0.0}).splitlines() == [
        "exact answers to held-out questions:",
        "  logic           60 % of 25; by chance 49 %, n-gram model 0 %",
        "  word problems   12 % of 25; by chance 4 %",
    ]


def drawn(lines, **options):
    """An SVG's marks and bars: how many points are marked, how many filled patches there are."""
    svg = figures.curves(lines, title="t", x="steps", y="", **options)
    return svg.count("<use "), svg.count("opacity: 0.5")


def test_few_points_of_a_line_are_marked_and_a_histogram_has_bars():
    few, many = np.arange(3.0), np.arange(200.0)
    ticks, _ = drawn([figures.Line("many", many, many)])
    assert (
        drawn([figures.Line("few", many[:3], few), figures.Line("many", many, many)], legend=False)[
            0
        ]
        == ticks + 3
    )
    assert (
        drawn(
            [figures.Line("few", many[:3], few, dots=False), figures.Line("many", many, many)],
            legend=False,
        )[0]
        == ticks
    )
    assert (
        drawn([figures.Line("histogram", many[:20], many[:20], bars=True)], legend=False)[1] == 20
    )


def test_the_legend_of_a_figure_that_is_not_clipped_lies_below_its_axes():
    lines = [
        figures.Line(name, np.arange(50.0), np.full(50, value))
        for name, value in (("a", 0.0), ("b", 1.0))
    ]
    svg = figures.curves(lines, title="t", x="steps", y="", clip=False)
    places = re.findall(r"<text [^>]*?(?:y=\"|translate\([\d.]+ )([\d.]+)[^>]*>(\w+)</text>", svg)
    height = {text: float(y) for y, text in places}
    assert height["a"] > height["steps"] and height["b"] > height["steps"]


def test_the_reports_share_of_exact_answers_has_one_name(run):
    with MetricsWriter(run, resume_step=40) as writer:
        writer.write(40, {"eval/logic/bits_per_byte": 1.0, "eval/logic/accuracy": 0.9})
    page = Text(write_report(run).read_text())
    assert (
        "exact answers" in page.sections["Held-out text"]
        and "exact answers" in page.sections["Answers"]
    )
    assert "accuracy" not in "".join(page.sections.values())


def test_lines_that_cannot_be_read_are_counted_in_the_report(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2}x\n')
    assert "cannot be read, and are left out: 1." in write_report(tmp_path).read_text()
