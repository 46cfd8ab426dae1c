"""The forecast file: written once, read unchanged, scored only against its own target, and drawn."""

import dataclasses
import datetime
import hashlib
import itertools
import json
import re

import pytest

from slmjax.errors import UserError
from slmjax.record.figures import standalone
from slmjax.studies import forecast_figure as figure
from slmjax.studies import forecast_score as scoring
from slmjax.studies import scaling_forecast as forecasts
from slmjax.studies.scaling_law import CHINCHILLA, ScalingLaw, fit_line
from tests.studies.ladders import MILLION, grid, ladder

LAW = ScalingLaw(0.78, 0.55, 0.38)
TARGET, TOKENS = 300 * MILLION, 100 * MILLION
NOW = datetime.datetime(2026, 12, 1, 8, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(hours=1)
THREE = [10 * MILLION, 50 * MILLION, 100 * MILLION]


def forecast_of(runs=None, **options):
    if runs is None:
        runs = ladder(LAW, noise=0.003)
    return forecasts.make_forecast(runs, TARGET, TOKENS, **({"now": NOW} | options))


def target_runs(losses, **changed):
    runs = ladder(LAW, [300], [len(losses)])
    return [dataclasses.replace(run, loss=loss, **changed) for run, loss in zip(runs, losses)]


def test_a_forecast_has_every_fit_that_the_runs_allow():
    forecast = forecast_of(line_sizes=THREE)
    assert list(forecast.fits) == ["line", "power", "same"]
    three = [run for run in forecast.runs if run.parameters in THREE]
    assert forecast.fits["line"].law == fit_line(three)
    assert forecast.fits["line"].intervals is None and "bias" in forecast.fits["line"].note
    power = forecast.fits["power"]
    assert power.intervals.mean[0] < power.prediction < power.intervals.mean[1]
    largest = [run.loss for run in forecast.runs if run.parameters == 100 * MILLION]
    assert forecast.fits["same"].prediction == largest[0]


def test_three_sizes_get_a_power_law_but_no_interval():
    fit = forecast_of(ladder(LAW, [10, 50, 100], [2, 2, 2], noise=0.003)).fits["power"]
    assert fit.intervals is None
    assert fit.note.startswith("No interval: 3 constants pass through 3 rungs exactly")


def test_a_curve_over_sizes_uses_only_runs_on_the_rule_of_the_targets_tokens():
    runs = grid(CHINCHILLA, [5, 20, 80], [25, 100, 400], noise=0.002)
    forecast = forecast_of(runs)
    assert forecast.common == "tokens" and "joint" in forecast.fits
    with_tokens = [run for run in runs if run.tokens == TOKENS]
    alone = forecast_of(with_tokens)
    assert "joint" not in alone.fits
    assert (
        alone.fits["line"] == forecast.fits["line"] and alone.fits["same"] == forecast.fits["same"]
    )
    # Without runs of so many tokens: those of as many tokens per parameter.
    ratio = ladder(CHINCHILLA, tokens=lambda size: size / 3)
    assert forecast_of(ratio).common == "tokens per parameter"
    with pytest.raises(UserError, match="needs runs of three sizes with these tokens"):
        forecast_of(ladder(CHINCHILLA, tokens=lambda size: 20 * size))


def test_a_forecast_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "forecast.json"
    for forecast in (
        forecast_of(),
        forecast_of(grid(CHINCHILLA, [5, 20, 80], [25, 100, 400], noise=0.002)),
        forecast_of(ladder(LAW, [10, 50, 100], [1, 1, 1])),
    ):
        path.unlink(missing_ok=True)
        assert forecasts.write_forecast(path, forecast) == forecast
        assert forecasts.read_forecast(path) == forecast


def test_the_hash_of_a_forecast_file_can_be_checked_without_this_library(tmp_path):
    path = tmp_path / "forecast.json"
    forecasts.write_forecast(path, forecast_of())
    content = json.loads(path.read_text())
    expected = content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == expected


def test_a_forecast_is_kept_once_it_is_made(tmp_path):
    path = tmp_path / "forecast.json"
    forecast = forecasts.write_forecast(path, forecast_of())
    # The same content at a later time: the first one stays.
    assert forecasts.write_forecast(path, forecast_of(now=LATER)) == forecast
    # As of a machine that rounds otherwise, from the same runs in another order.
    power = forecast.fits["power"]
    rounded = dataclasses.replace(power, prediction=power.prediction * (1 + 1e-12))
    other = forecast_of(ladder(LAW, noise=0.003)[::-1])
    other = dataclasses.replace(other, fits=other.fits | {"power": rounded})
    assert forecasts.write_forecast(path, other) == forecast
    before = path.read_bytes()
    others = [
        forecast_of(line_sizes=THREE),
        forecast_of(level=0.5),
        forecast_of(ladder(LAW, noise=0.003, chance=1)),
        dataclasses.replace(forecast, heldout="others"),
    ]
    for different in others:
        with pytest.raises(UserError, match="holds another forecast"):
            forecasts.write_forecast(path, different)
    assert path.read_bytes() == before


def test_a_forecast_file_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "forecast.json"
    forecasts.write_forecast(path, forecast_of())
    whole = path.read_text()
    changed = re.sub(r'"prediction": 0\.8', '"prediction": 0.9', whole, count=1)
    assert changed != whole
    path.write_text(changed)
    with pytest.raises(UserError, match="was changed after it was written"):
        forecasts.read_forecast(path)
    with pytest.raises(UserError, match="was changed after it was written"):
        forecasts.write_forecast(path, forecast_of())
    for broken in (whole[: len(whole) // 2], "[]", "{}", ""):
        path.write_text(broken)
        with pytest.raises(UserError, match="cannot be read as a forecast"):
            forecasts.read_forecast(path)
    with pytest.raises(UserError, match="cannot be read as a forecast"):
        forecasts.read_forecast(tmp_path / "missing.json")


def test_a_score_has_the_errors_next_to_the_spread_of_seeds():
    forecast = forecast_of(line_sizes=THREE)
    power = forecast.fits["power"].prediction
    score = scoring.score_forecast(forecast, target_runs([power * 1.001, power * 0.999]), LATER)
    assert score.measured == pytest.approx(power)
    assert score.errors["power"] == pytest.approx(0, abs=1e-12)
    same = forecast.fits["same"].prediction
    assert same / power - 1 == pytest.approx(score.errors["same"], rel=0.05)
    # Three rungs with two seeds, and the target's two.
    assert score.spread.degrees == 4
    assert score.closer["line", "power"] == "power" and score.closer["power", "same"] == "power"
    table = scoring.forecast_table(forecast, score).markdown()
    assert "+0.00 % |" in table and "(4 degrees of freedom)" in table
    before = scoring.forecast_table(forecast).markdown()
    low, high = forecast.fits["power"].intervals.run
    assert f"| {low:.4f} to {high:.4f} (90%) |" in before and "measured" not in before
    assert f"- line: {forecast.fits['line'].note}" in before


def test_errors_that_differ_by_less_than_the_spread_are_not_distinguishable():
    forecast = forecast_of()
    line, power = (forecast.fits[name].prediction for name in ("line", "power"))
    # In the middle of both: equal errors of opposite sign.
    score = scoring.score_forecast(forecast, target_runs([(line * power) ** 0.5]), LATER)
    assert score.errors["line"] == pytest.approx(-score.errors["power"])
    assert score.closer["line", "power"] == ""
    assert (
        "line and power: not distinguishable." in scoring.forecast_table(forecast, score).markdown()
    )
    unknown = forecast_of(ladder(LAW, seeds=[1] * 5))
    score = scoring.score_forecast(unknown, target_runs([0.8]), LATER)
    assert score.spread is None and set(score.closer.values()) == {None}
    assert "Seed spread unknown" in scoring.forecast_table(unknown, score).markdown()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"parameters": TARGET + 1}, "has parameters 300000001, and the forecast is for 300000000"),
        ({"tokens": TOKENS + 1}, "has tokens 100000001"),
        ({"heldout": "others"}, "has heldout others"),
        ({"unit": "nats per token"}, "has unit nats per token"),
        ({"fully_decayed": False}, "has not fully decayed"),
    ],
)
def test_only_the_target_of_the_forecast_can_be_scored(changed, words):
    with pytest.raises(UserError, match=words):
        scoring.score_forecast(forecast_of(), target_runs([0.85], **changed), LATER)


def test_a_forecast_made_after_the_first_step_is_refused():
    forecast = forecast_of()
    # Another time zone: 9 o'clock in Berlin is 8 o'clock UTC, and a minute earlier is too early.
    berlin = datetime.timezone(datetime.timedelta(hours=1))
    same_time = datetime.datetime(2026, 12, 1, 9, tzinfo=berlin)
    scoring.score_forecast(forecast, target_runs([0.85]), same_time)
    with pytest.raises(UserError, match="it is no forecast"):
        early = same_time - datetime.timedelta(minutes=1)
        scoring.score_forecast(forecast, target_runs([0.85]), early)
    with pytest.raises(UserError, match="no time zone"):
        scoring.score_forecast(forecast, target_runs([0.85]), datetime.datetime(2026, 12, 2))


def test_a_target_that_is_a_run_or_nothing_is_refused():
    with pytest.raises(UserError, match="is the target itself"):
        forecast_of([*ladder(LAW), *target_runs([0.85])])
    with pytest.raises(UserError, match="expected 1 or more"):
        forecasts.make_forecast(ladder(LAW), 0, TOKENS)
    with pytest.raises(UserError, match="level=90"):
        forecast_of(level=90)
    with pytest.raises(UserError, match="no run has 7,000,000 parameters"):
        forecast_of(line_sizes=[7 * MILLION, *THREE])


def test_a_joint_forecast_that_a_wild_run_pulls_out_of_its_interval_says_so():
    runs = grid(CHINCHILLA, [5, 20, 80], [25, 100, 400], noise=0.0005)
    assert "some run is far off" not in forecast_of(runs).fits["joint"].note
    wild = [*runs[:-1], dataclasses.replace(runs[-1], loss=1.1 * runs[-1].loss)]
    note = forecast_of(wild).fits["joint"].note
    assert "some run is far off the law" in note and "miss the law by more than seeds" in note


def test_the_figure_says_what_each_fit_forecasts_and_what_was_measured():
    forecast = forecast_of(line_sizes=THREE)
    before = figure.forecast_figure(forecast)
    assert "Band: 90% interval of the mean" in before and "measured" not in before
    for fit in forecast.fits.values():
        assert f"{fit.prediction:.3f}" in before
    score = scoring.score_forecast(forecast, target_runs([0.85, 0.853]), LATER)
    after = figure.forecast_figure(forecast, score)
    assert f"measured {score.measured:.3f}" in after
    # The same forecast is the same picture, in each theme with its own colours.
    assert after == figure.forecast_figure(forecast, score)
    light, dark = standalone(after), standalone(after, dark=True)
    assert "var(" not in light + dark and light != dark


def test_the_figure_of_three_sizes_says_why_it_has_no_band():
    svg = figure.forecast_figure(forecast_of(ladder(LAW, [10, 50, 100], [1, 1, 1])))
    assert "No interval: 3 constants pass" in svg and "Band" not in svg


@pytest.mark.parametrize("heights", [[0.2, 0.21, 0.5], [0.4, 0.4, 0.4, 0.41], [0.1, 0.9], [0.3]])
def test_labels_keep_their_order_and_their_distance(heights):
    places = figure.spread_labels(heights)
    assert places == sorted(places)
    assert all(b - a > 0.999 * figure.LABEL_GAP for a, b in itertools.pairwise(places))
    assert sum(places) == pytest.approx(sum(heights))


def test_the_rule_of_compute_counts_tokens_that_grow_with_the_model():
    fixed = figure.compute_rule(forecast_of(ladder(LAW)))
    ratio = figure.compute_rule(forecast_of(ladder(LAW, tokens=lambda size: size / 3)))
    # 1 % of the loss at 300M is 0.0084 of the 0.063 that can fall: a size ratio of 1.46.
    assert fixed == "From 300M on, 1% less loss costs 1.5 times the compute."
    assert ratio == "From 300M on, 1% less loss costs 2.1 times the compute."
